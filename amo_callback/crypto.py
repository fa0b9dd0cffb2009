"""Encryption of stored secrets: Fernet with several keys, each record bound to its context.

A record is encrypted together with the name of its context (`connection:ID`), so that a record that was manually copied
into another row cannot be decrypted there.
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
    """The kind of an encrypted record."""

    CONNECTION = "connection"
    GRANT = "grant"
    STATE = "state"
    CANARY = "canary"
    RESCUE = "rescue"


def context_of(kind: RecordKind, name: str) -> str:
    """Return the name of a record's context."""
    return kind.value if kind is RecordKind.CANARY else f"{kind.value}:{name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncryptedRecord:
    """An encrypted record, as it was read."""

    kind: RecordKind
    name: str
    content: bytes = field(repr=False)

    @property
    def place(self) -> str:
        return context_of(self.kind, self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReencryptedRecord:
    """A re-encrypted record; it replaces the stored record only if the stored record is unchanged since it was read."""

    read: EncryptedRecord
    content: bytes = field(repr=False)


def new_key() -> str:
    """Return a random encryption key: 32 bytes in URL-safe base64."""
    return Fernet.generate_key().decode()


class Cipher:
    """Encrypts with the newest key, and decrypts with any of the keys."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [Fernet(key) for key in keys]

    def seal(self, content: bytes, *, context: str) -> bytes:
        """Encrypt and authenticate `content` for one context."""
        return self._keys[0].encrypt(context.encode() + b"\0" + content)

    def open(self, sealed: bytes, *, context: str) -> bytes:
        """Decrypt a record that was encrypted for this context; raises `DecryptionFailed`."""
        return self._opened(sealed, context)[1]

    def key_index(self, sealed: bytes, *, context: str) -> int:
        """Return the index of the key that decrypts a record (0 for the newest); raises `DecryptionFailed`."""
        return self._opened(sealed, context)[0]

    def reencrypt(self, sealed: bytes, *, context: str) -> bytes:
        """Encrypt the content of a record with the newest key; raises `DecryptionFailed`."""
        return self.seal(self.open(sealed, context=context), context=context)

    def _opened(self, sealed: bytes, context: str) -> tuple[int, bytes]:
        for number, key in enumerate(self._keys):
            try:
                opened = key.decrypt(sealed)
            except InvalidToken:
                continue
            name, _, content = opened.partition(b"\0")
            if name != context.encode():
                raise DecryptionFailed
            return number, content
        raise DecryptionFailed

    def seal_pair(self, pair: TokenPair, *, connection_id: str) -> bytes:
        content = {"access_token": pair.access_token, "refresh_token": pair.refresh_token}
        return self.seal(json.dumps(content).encode(), context=context_of(RecordKind.CONNECTION, connection_id))

    def open_tokens(self, sealed: bytes, *, connection_id: str) -> tuple[str, str]:
        """Decrypt a connection's access token and refresh token; raises `DecryptionFailed`."""
        content = json.loads(self.open(sealed, context=context_of(RecordKind.CONNECTION, connection_id)))
        return content["access_token"], content["refresh_token"]

    def decrypt_pair(self, connection: Connection) -> TokenPair | None:
        """Return a connection's token pair, with its times from the row; `None` if the pair cannot be decrypted.

        The pair is encrypted for the connection's id, which is derived from account and user. In a row with another
        account or user, it cannot be decrypted.
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
        return self.seal(_json(secrets), context=context_of(RecordKind.GRANT, code_hash))

    def open_grant(self, sealed: bytes, *, code_hash: str) -> GrantSecrets:
        """Decrypt the secrets of a grant; raises `DecryptionFailed`."""
        content = json.loads(self.open(sealed, context=context_of(RecordKind.GRANT, code_hash)))
        return GrantSecrets(
            **{
                **content,
                "code": base64.b64decode(content["code"]),
                "state": _bytes(content["state"]),
                "request": _request(content["request"]) if content.get("request") else None,
            }
        )

    def seal_request(self, request: AuthorizationRequest, *, state_hash: str) -> bytes:
        return self.seal(_json(request), context=context_of(RecordKind.STATE, state_hash))

    def open_request(self, sealed: bytes, *, state_hash: str) -> AuthorizationRequest:
        """Decrypt the authorization request of a state; raises `DecryptionFailed`."""
        return _request(json.loads(self.open(sealed, context=context_of(RecordKind.STATE, state_hash))))

    def seal_canary(self) -> bytes:
        """Return the canary, a record that shows at startup whether the keys can decrypt the store."""
        return self.seal(_CANARY, context=context_of(RecordKind.CANARY, ""))

    def check_canary(self, sealed: bytes) -> None:
        """Raise `DecryptionFailed` if no key decrypts the canary."""
        self.open(sealed, context=context_of(RecordKind.CANARY, ""))


def _json(record: GrantSecrets | AuthorizationRequest) -> bytes:
    """Encode a record as JSON, with bytes in base64."""
    return json.dumps(dataclasses.asdict(record), default=lambda value: base64.b64encode(value).decode()).encode()


def _request(content: dict[str, Any]) -> AuthorizationRequest:
    return AuthorizationRequest(**{**content, "state": _bytes(content["state"])})


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


# --- passphrases ---------------------------------------------------------------------------------


def derive_key(passphrase: str, *, salt: bytes, n: int, r: int, p: int) -> str:
    """Derive an encryption key with scrypt (RFC 7914); raises `ValueError` if scrypt rejects the parameters."""
    key = hashlib.scrypt(passphrase.encode(), salt=salt, n=n, r=r, p=p, maxmem=_SCRYPT_MEMORY, dklen=32)
    return base64.urlsafe_b64encode(key).decode()
