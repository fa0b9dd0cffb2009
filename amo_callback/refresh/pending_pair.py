"""A token pair that is not in the store yet, and the content of its rescue file."""

from __future__ import annotations

import base64
import dataclasses
import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from amo_callback.crypto import EncryptedRecord, RecordKind, context_of
from amo_callback.errors import DecryptionFailed
from amo_callback.grant import Grant, GrantStatus, NewConnection
from amo_callback.model import Connection, RefreshedPair, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.crypto import Cipher

PendingPair = RefreshedPair | NewConnection
"""A pair for which a refresh token or an authorization code has been spent."""


def file_name(pending_pair: PendingPair) -> str:
    """Return the name of a rescue file: `{id}-{pair_version}` for a refreshed pair, `{id}-g{attempt}` for a grant."""
    if isinstance(pending_pair, RefreshedPair):
        return f"{pending_pair.connection_id}-{pending_pair.pair_version}"
    return f"{pending_pair.connection_id}-g{pending_pair.grant.attempt}"


def parse_name(name: str) -> tuple[str, int | None]:
    """Return the connection id and the replaced pair version from a file name; the version is `None` for a grant."""
    connection_id, _, version = name.rpartition("-")
    return connection_id, int(version) if version.isdecimal() else None


def clamped_to(pending_pair: PendingPair, now: datetime) -> PendingPair:
    """Return a pair; if it was issued after `now`, its times are moved back so that its issue time is `now`.

    In that case, the clock was moved back after the pair was issued. The pair's age is unknown, but with its original
    times, the pair would appear valid for longer than its lifetime.
    """
    issued_at = (
        pending_pair.issued_at if isinstance(pending_pair, RefreshedPair) else pending_pair.connection.connected_at
    )
    ahead = issued_at - now
    if ahead <= timedelta(0):
        return pending_pair
    if isinstance(pending_pair, RefreshedPair):
        return dataclasses.replace(pending_pair, **_earlier(pending_pair, ahead))
    connection = dataclasses.replace(pending_pair.connection, **_earlier(pending_pair.connection, ahead))
    return dataclasses.replace(pending_pair, connection=connection)


def _earlier(value: RefreshedPair | Connection, ahead: timedelta) -> dict[str, Any]:
    """Return a pair's times moved back by `ahead`; omit `connected_at`, because it determines the order of grants."""
    times = {name: at for name, at in _fields(value).items() if isinstance(at, datetime) and name != "connected_at"}
    return {name: at - ahead for name, at in times.items()}


def seal_pending(pending_pair: PendingPair, cipher: Cipher) -> bytes:
    """Encrypt the pair for its rescue file."""
    if isinstance(pending_pair, RefreshedPair):
        content: dict[str, object] = {"refreshed": _fields(pending_pair)}
    else:
        content = {
            "grant": _fields(pending_pair.grant),
            "connection": _fields(pending_pair.connection),
            "token_iat": pending_pair.token_iat,
            "owner": pending_pair.owner,
        }
    return cipher.seal(
        json.dumps(content, default=_encode).encode(), context=context_of(RecordKind.RESCUE, file_name(pending_pair))
    )


def open_pending(name: str, sealed: bytes, cipher: Cipher) -> PendingPair:
    """Decrypt the content of a rescue file; raises `DecryptionFailed`, also for a file in an unknown format."""
    content = json.loads(cipher.open(sealed, context=context_of(RecordKind.RESCUE, name)), object_hook=_decode)
    try:
        if "refreshed" in content:
            return RefreshedPair(**content["refreshed"])
        grant, connection = content["grant"], content["connection"]
        return NewConnection(
            grant=Grant(**{**grant, "status": GrantStatus(grant["status"])}),
            connection=Connection(**{**connection, "status": Status(connection["status"])}),
            token_iat=content["token_iat"],
            owner=content.get("owner"),
        )
    except (KeyError, TypeError, ValueError):  # written by another version of amo-callback
        raise DecryptionFailed from None


def sealed_in(pending_pair: PendingPair) -> Sequence[EncryptedRecord]:
    """Return the encrypted records in a pair, which are stored without re-encryption."""
    if isinstance(pending_pair, RefreshedPair):
        return [
            EncryptedRecord(
                kind=RecordKind.CONNECTION, name=pending_pair.connection_id, content=pending_pair.sealed_pair
            )
        ]
    pair, grant = pending_pair.connection, pending_pair.grant
    found = [EncryptedRecord(kind=RecordKind.CONNECTION, name=pair.id, content=pair.sealed_pair or b"")]
    return (
        found
        if grant.sealed is None
        else [*found, EncryptedRecord(kind=RecordKind.GRANT, name=grant.code_hash, content=grant.sealed)]
    )


def _fields(value: Any) -> dict[str, Any]:  # noqa: ANN401 -- any dataclass is accepted
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _encode(value: object) -> object:
    if isinstance(value, datetime):
        return {"time": value.isoformat()}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    raise TypeError


def _decode(content: dict[str, Any]) -> object:
    if content.keys() == {"time"}:
        return datetime.fromisoformat(content["time"])
    if content.keys() == {"bytes"}:
        return base64.b64decode(content["bytes"])
    return content
