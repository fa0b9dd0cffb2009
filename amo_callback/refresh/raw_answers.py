"""Raw answers: successful token responses from which no token pair could be read.

A raw answer may still contain the next token pair, so it is encrypted and saved in the rescue folder. The operator can
recover the pair with `amo-callback connections import --raw FILE`. Unlike a pending write, a raw answer does not stop
refreshes of the connection. Its file is removed when a newer pair is stored, or after three months, when its refresh
token would have expired.
"""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from amo_callback.crypto import RecordKind, context_of
from amo_callback.errors import AmoCallbackError, DecryptionFailed, StoreUnavailable, UnknownOutcome
from amo_callback.events import Event, Level
from amo_callback.refresh.pending_pair import parse_name
from amo_callback.refresh.rescue import RAW
from amo_callback.schedule import REFRESH_TOKEN_LIFETIME

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.crypto import Cipher
    from amo_callback.model import Connection
    from amo_callback.refresh.pending_writes import PendingWrites
    from amo_callback.refresh.rescue import RescueFolder

_MOST = 64 * 1024
"""The maximum number of bytes of a response body that are saved."""
_LOOK_EVERY = 60.0
"""Seconds between two checks for files to remove."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawAnswer:
    """The content of a raw answer's file."""

    body: bytes = field(repr=False)
    domain: str
    """The host that sent the response."""
    presented: str
    """The fingerprint of the presented refresh token; empty for a code exchange."""


def file_name(connection: Connection) -> str:
    """Return the file name for the response to a refresh of the connection's stored pair."""
    return f"{connection.id}-{connection.pair_version}{RAW}"


def grant_file_name(code_hash: str) -> str:
    """Return the file name for the response to a code exchange; the name begins with the support code."""
    return f"{code_hash}{RAW}"


def refreshed_by(name: str) -> tuple[str, int] | None:
    """Return the connection id and the refreshed pair's version from a file name; `None` for a code exchange."""
    connection_id, version = parse_name(name.removesuffix(RAW))
    return (connection_id, version) if connection_id and version is not None else None


def open_raw(name: str, sealed: bytes, cipher: Cipher) -> RawAnswer:
    """Decrypt the content of a raw answer's file; raises `DecryptionFailed`."""
    content = json.loads(cipher.open(sealed, context=context_of(RecordKind.RESCUE, name)))
    try:
        return RawAnswer(**{**content, "body": base64.b64decode(content["body"])})
    except (KeyError, TypeError, ValueError):  # written by another version of amo-callback
        raise DecryptionFailed from None


def _seal(name: str, answer: RawAnswer, cipher: Cipher) -> bytes:
    body = base64.b64encode(answer.body).decode()
    content = {"body": body, "domain": answer.domain, "presented": answer.presented}
    return cipher.seal(json.dumps(content).encode(), context=context_of(RecordKind.RESCUE, name))


class RawAnswers:
    """Saves raw answers in the rescue folder, and removes those that are no longer needed."""

    def __init__(self, core: Core, *, rescue: RescueFolder, pending_writes: PendingWrites) -> None:
        self._core = core
        self._rescue = rescue
        self._pending_writes = pending_writes
        self.count = 0
        """The number of raw answers in the rescue folder, as last read or changed."""
        self._look_at = core.clock.monotonic()

    async def keep(self, name: str, error: AmoCallbackError, *, domain: str, presented: str = "") -> None:
        """Save the response that an error contains, if the response may contain a pair."""
        if not isinstance(error, UnknownOutcome) or not error.body:
            return
        refreshed = refreshed_by(name)
        fields: dict[str, object] = {"file": name}
        sealed = _seal(name, RawAnswer(body=error.body[:_MOST], domain=domain, presented=presented), self._core.cipher)
        try:
            with self._pending_writes.expecting():
                await asyncio.to_thread(self._rescue.write, name, sealed)
        except OSError as failed:
            event, fields["error"] = "raw_answer.lost", failed.strerror
        else:
            event, fields["text"] = (
                "raw_answer.kept",
                "AMO's response may contain a token pair: run `amo-callback connections import --raw FILE`",
            )
            self.count += 1
        connection_id = None if refreshed is None else refreshed[0]
        self._core.observer(Event(name=event, level=Level.ERROR, connection_id=connection_id, fields=fields))

    async def has(self, connection: Connection) -> bool:
        """Return whether a raw answer to a refresh of the stored pair exists; `False` if the folder cannot be read."""
        try:
            return await asyncio.to_thread(self._rescue.has, file_name(connection))
        except OSError:
            return False

    async def watch(self) -> None:
        """Once a minute, remove raw answers that are superseded by a stored pair, or older than three months."""
        if self._core.clock.monotonic() < self._look_at:
            return
        self._look_at = self._core.clock.monotonic() + _LOOK_EVERY
        with suppress(OSError, StoreUnavailable):  # retried in a minute
            ages = await asyncio.to_thread(self._rescue.raw_ages)
            self.count = len(ages)
            for name, age in ages.items():
                if age > REFRESH_TOKEN_LIFETIME.total_seconds() or await self._is_replaced(name):
                    await asyncio.to_thread(self._rescue.remove, name)
                    self.count -= 1

    async def _is_replaced(self, name: str) -> bool:
        refreshed = refreshed_by(name)
        stored = None if refreshed is None else await self._core.store.connection(refreshed[0])
        return refreshed is not None and stored is not None and stored.pair_version > refreshed[1]
