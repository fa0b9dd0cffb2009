"""Secrets sealed for storage: Fernet, several keys at once, each record bound to its place.

A record is sealed together with the name of what it belongs to (`connection:ID`), so that a row copied
over another one by hand does not open there.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from amo_callback.errors import Unreadable
from amo_callback.grant import GrantSecrets
from amo_callback.model import TokenPair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.model import Connection

_CANARY = b"amo-callback can read this store"
_SCRYPT_MEMORY = 512 * 1024 * 1024


def new_key() -> str:
    """Return a fresh encryption key: 32 random bytes, URL-safe base64."""
    return Fernet.generate_key().decode()


class Cipher:
    """Seal with the newest key, open with any."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def seal(self, content: bytes, *, bound_to: str) -> bytes:
        """Encrypt and authenticate `content`, to be opened only under the same name."""
        return self._fernet.encrypt(bound_to.encode() + b"\0" + content)

    def open(self, sealed: bytes, *, bound_to: str) -> bytes:
        """Return what was sealed under this name; raises `Unreadable`."""
        try:
            opened = self._fernet.decrypt(sealed)
        except InvalidToken:
            raise Unreadable from None
        name, _, content = opened.partition(b"\0")
        if name != bound_to.encode():
            raise Unreadable
        return content

    def seal_pair(self, pair: TokenPair, *, connection_id: str) -> bytes:
        """Seal a token pair for one connection."""
        content = {
            "access_token": pair.access_token,
            "refresh_token": pair.refresh_token,
            "issued_at": pair.issued_at.isoformat(),
            "expires_at": pair.expires_at.isoformat(),
        }
        return self.seal(json.dumps(content).encode(), bound_to=_connection(connection_id))

    def open_pair(self, sealed: bytes, *, connection_id: str) -> TokenPair:
        """Open a connection's token pair; raises `Unreadable`."""
        content = json.loads(self.open(sealed, bound_to=_connection(connection_id)))
        return TokenPair(
            access_token=content["access_token"],
            refresh_token=content["refresh_token"],
            issued_at=datetime.fromisoformat(content["issued_at"]),
            expires_at=datetime.fromisoformat(content["expires_at"]),
        )

    def pair_of(self, connection: Connection) -> TokenPair | None:
        """Return a connection's token pair, or `None` where no key opens it.

        Its times are the row's: they are taken back where the clock was.
        """
        try:
            pair = self.open_pair(connection.sealed_pair or b"", connection_id=connection.id)
        except Unreadable:
            return None
        return dataclasses.replace(
            pair,
            issued_at=connection.access_issued_at or pair.issued_at,
            expires_at=connection.access_expires_at or pair.expires_at,
        )

    def seal_grant(self, secrets: GrantSecrets, *, code_hash: str) -> bytes:
        """Seal what a grant hands back, for that grant."""
        content = {
            "handle": secrets.handle,
            "code": base64.b64encode(secrets.code).decode(),
            "state": None if secrets.state is None else base64.b64encode(secrets.state).decode(),
            "domain": secrets.domain,
        }
        return self.seal(json.dumps(content).encode(), bound_to=_grant(code_hash))

    def open_grant(self, sealed: bytes, *, code_hash: str) -> GrantSecrets:
        """Open what a grant hands back; raises `Unreadable`."""
        content = json.loads(self.open(sealed, bound_to=_grant(code_hash)))
        return GrantSecrets(
            handle=content["handle"],
            code=base64.b64decode(content["code"]),
            state=None if content["state"] is None else base64.b64decode(content["state"]),
            domain=content["domain"],
        )

    def seal_canary(self) -> bytes:
        """Return the record by which a store tells at start whether it can be read."""
        return self.seal(_CANARY, bound_to="canary")

    def check_canary(self, sealed: bytes) -> None:
        """Raise `Unreadable` where no key of ours wrote this store."""
        self.open(sealed, bound_to="canary")


def _grant(code_hash: str) -> str:
    return f"grant:{code_hash}"


def _connection(connection_id: str) -> str:
    return f"connection:{connection_id}"


# --- passphrases ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scrypt:
    """What it costs to try a passphrase (RFC 7914): as OWASP advises, 128 MiB and some tenths of a second."""

    salt: bytes
    n: int = 2**17
    r: int = 8
    p: int = 1


def key_of_passphrase(passphrase: str, cost: Scrypt) -> str:
    """Return the encryption key that a passphrase stands for; raises `ValueError` where scrypt refuses the cost."""
    key = hashlib.scrypt(
        passphrase.encode(), salt=cost.salt, n=cost.n, r=cost.r, p=cost.p, maxmem=_SCRYPT_MEMORY, dklen=32
    )
    return base64.urlsafe_b64encode(key).decode()
