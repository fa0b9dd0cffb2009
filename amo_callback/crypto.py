"""Secrets sealed for storage: Fernet, several keys at once, each record bound to its place.

A record is sealed together with the name of what it belongs to (`connection:ID`), so that a row copied
over another one by hand does not open there.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet, InvalidToken

from amo_callback.errors import DecryptionFailed
from amo_callback.grant import AuthorizationRequest, GrantSecrets
from amo_callback.model import TokenPair, has_own_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.model import Connection

_CANARY = b"amo-callback can read this store"
_SCRYPT_MEMORY = 512 * 1024 * 1024


class RecordKind(StrEnum):
    """What a sealed record belongs to."""

    CONNECTION = "connection"
    GRANT = "grant"
    STATE = "state"
    CANARY = "canary"
    RESCUE = "rescue"


def context_of(kind: RecordKind, name: str) -> str:
    """Return the name that a record is bound to: sealed for this place, it opens in no other."""
    return kind.value if kind is RecordKind.CANARY else f"{kind.value}:{name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncryptedRecord:
    """A sealed record, as it was read."""

    kind: RecordKind
    name: str
    content: bytes = field(repr=False)

    @property
    def place(self) -> str:
        return context_of(self.kind, self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReencryptedRecord:
    """The same under another key. It takes the place of the very bytes that were read, and of no others."""

    read: EncryptedRecord
    content: bytes = field(repr=False)


def new_key() -> str:
    """Return a fresh encryption key: 32 random bytes, URL-safe base64."""
    return Fernet.generate_key().decode()


class Cipher:
    """Seal with the newest key, open with any."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [Fernet(key) for key in keys]

    def seal(self, content: bytes, *, bound_to: str) -> bytes:
        """Encrypt and authenticate `content`, to be opened only under the same name."""
        return self._keys[0].encrypt(bound_to.encode() + b"\0" + content)

    def open(self, sealed: bytes, *, bound_to: str) -> bytes:
        """Return what was sealed under this name; raises `DecryptionFailed`."""
        return self._opened(sealed, bound_to)[1]

    def key_of(self, sealed: bytes, *, bound_to: str) -> int:
        """Return the place of the key that opens this among ours, 0 for the newest; raises `DecryptionFailed`."""
        return self._opened(sealed, bound_to)[0]

    def reseal(self, sealed: bytes, *, bound_to: str) -> bytes:
        """Seal the same with the newest key; raises `DecryptionFailed`."""
        return self.seal(self.open(sealed, bound_to=bound_to), bound_to=bound_to)

    def _opened(self, sealed: bytes, bound_to: str) -> tuple[int, bytes]:
        for number, key in enumerate(self._keys):
            try:
                opened = key.decrypt(sealed)
            except InvalidToken:
                continue
            name, _, content = opened.partition(b"\0")
            if name != bound_to.encode():
                raise DecryptionFailed
            return number, content
        raise DecryptionFailed

    def seal_pair(self, pair: TokenPair, *, connection_id: str) -> bytes:
        content = {"access_token": pair.access_token, "refresh_token": pair.refresh_token}
        return self.seal(json.dumps(content).encode(), bound_to=context_of(RecordKind.CONNECTION, connection_id))

    def open_tokens(self, sealed: bytes, *, connection_id: str) -> tuple[str, str]:
        """Open a connection's access token and refresh token; raises `DecryptionFailed`."""
        content = json.loads(self.open(sealed, bound_to=context_of(RecordKind.CONNECTION, connection_id)))
        return content["access_token"], content["refresh_token"]

    def pair_of(self, connection: Connection) -> TokenPair | None:
        """Return a connection's token pair, with the row's times, or `None` where no key opens it.

        The pair is sealed for the connection's id, and the id is derived from an account and a user: in a row with
        another account or user it is not opened.
        """
        if not has_own_id(connection):
            return None
        try:
            access_token, refresh_token = self.open_tokens(connection.sealed_pair or b"", connection_id=connection.id)
        except DecryptionFailed:
            return None
        issued_at, expires_at = connection.access_issued_at, connection.access_expires_at
        if issued_at is None or expires_at is None:
            return None
        return TokenPair(
            access_token=access_token, refresh_token=refresh_token, issued_at=issued_at, expires_at=expires_at
        )

    def seal_grant(self, secrets: GrantSecrets, *, code_hash: str) -> bytes:
        return self.seal(_json(secrets), bound_to=context_of(RecordKind.GRANT, code_hash))

    def open_grant(self, sealed: bytes, *, code_hash: str) -> GrantSecrets:
        """Open what a grant hands back; raises `DecryptionFailed`."""
        content = json.loads(self.open(sealed, bound_to=context_of(RecordKind.GRANT, code_hash)))
        return GrantSecrets(
            **{
                **content,
                "code": base64.b64decode(content["code"]),
                "state": _bytes(content["state"]),
                "request": _request(content["request"]) if content.get("request") else None,
            }
        )

    def seal_request(self, request: AuthorizationRequest, *, state_hash: str) -> bytes:
        return self.seal(_json(request), bound_to=context_of(RecordKind.STATE, state_hash))

    def open_request(self, sealed: bytes, *, state_hash: str) -> AuthorizationRequest:
        """Open what a state stands for; raises `DecryptionFailed`."""
        return _request(json.loads(self.open(sealed, bound_to=context_of(RecordKind.STATE, state_hash))))

    def seal_canary(self) -> bytes:
        """Return the record that shows at start whether our keys decrypt the store."""
        return self.seal(_CANARY, bound_to=context_of(RecordKind.CANARY, ""))

    def check_canary(self, sealed: bytes) -> None:
        """Raise `DecryptionFailed` where no key of ours wrote this store."""
        self.open(sealed, bound_to=context_of(RecordKind.CANARY, ""))


def _json(record: GrantSecrets | AuthorizationRequest) -> bytes:
    """Write a record with its bytes in base64."""
    return json.dumps(dataclasses.asdict(record), default=lambda value: base64.b64encode(value).decode()).encode()


def _request(content: dict[str, Any]) -> AuthorizationRequest:
    return AuthorizationRequest(**{**content, "state": _bytes(content["state"])})


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


# --- passphrases ---------------------------------------------------------------------------------


def key_of_passphrase(passphrase: str, *, salt: bytes, n: int, r: int, p: int) -> str:
    """Return the encryption key that scrypt (RFC 7914) derives; raises `ValueError` where it refuses the cost."""
    key = hashlib.scrypt(passphrase.encode(), salt=salt, n=n, r=r, p=p, maxmem=_SCRYPT_MEMORY, dklen=32)
    return base64.urlsafe_b64encode(key).decode()
