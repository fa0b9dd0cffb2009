"""Good answers in which no pair could be read: paid for, so they are kept, sealed, for a person to look at.

Such an answer may hold the next pair all the same. Its file is no pair that waits for the store, and blocks nothing. It
is removed once a newer pair is stored, or when its refresh token would be dead; `connections import --raw` recovers it.
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
from amo_callback.refresh.pending_pair import replaced_by
from amo_callback.refresh.rescue import RAW
from amo_callback.schedule import REFRESH_TOKEN_LIFE

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.crypto import Cipher
    from amo_callback.model import Connection
    from amo_callback.refresh.pending_writes import PendingWrites
    from amo_callback.refresh.rescue import RescueFolder

_MOST = 64 * 1024
"""Bytes of a body that are kept."""
_LOOK_EVERY = 60.0
"""Seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawAnswer:
    """An answer as it is kept."""

    body: bytes = field(repr=False)
    domain: str
    """The host that gave it."""
    presented: str
    """The fingerprint of the refresh token that it was given for; nothing where that was an authorization code."""


def name_of(connection: Connection) -> str:
    """Return the name of the file with the answer to a refresh of the stored pair."""
    return f"{connection.id}-{connection.pair_version}{RAW}"


def name_of_grant(code_hash: str) -> str:
    """Return the name of the file with the answer to an exchange: it begins with its support code."""
    return f"{code_hash}{RAW}"


def refreshed_by(name: str) -> tuple[str, int] | None:
    """Return which connection's refresh a file answers, and the pair version before it; `None` for an exchange."""
    connection_id, version = replaced_by(name.removesuffix(RAW))
    return (connection_id, version) if connection_id and version is not None else None


def open_raw(name: str, sealed: bytes, cipher: Cipher) -> RawAnswer:
    """Open what a file holds; raises `DecryptionFailed`."""
    content = json.loads(cipher.open(sealed, bound_to=context_of(RecordKind.RESCUE, name)))
    try:
        return RawAnswer(**{**content, "body": base64.b64decode(content["body"])})
    except (KeyError, TypeError, ValueError):  # of another version of amo-callback
        raise DecryptionFailed from None


def _seal(name: str, answer: RawAnswer, cipher: Cipher) -> bytes:
    body = base64.b64encode(answer.body).decode()
    content = {"body": body, "domain": answer.domain, "presented": answer.presented}
    return cipher.seal(json.dumps(content).encode(), bound_to=context_of(RecordKind.RESCUE, name))


class RawAnswers:
    """Keep raw answers in the rescue folder."""

    def __init__(self, core: Core, *, rescue: RescueFolder, pending_writes: PendingWrites) -> None:
        self._core = core
        self._rescue = rescue
        self._pending_writes = pending_writes
        self.count = 0
        """How many there are, as of the last look at the folder."""
        self._look_at = core.clock.monotonic()

    async def keep(self, name: str, error: AmoCallbackError, *, domain: str, presented: str = "") -> None:
        """Keep the answer that an error brings, where it may hold a pair; until that is done the process goes on."""
        if not isinstance(error, UnknownOutcome) or not error.body:
            return
        refreshed = refreshed_by(name)
        told: dict[str, object] = {"file": name}
        sealed = _seal(name, RawAnswer(body=error.body[:_MOST], domain=domain, presented=presented), self._core.cipher)
        try:
            with self._pending_writes.expecting():
                await asyncio.to_thread(self._rescue.write, name, sealed)
        except OSError as failed:
            event, told["error"] = "raw_answer.lost", failed.strerror
        else:
            event, told["text"] = "raw_answer.kept", "a pair may be in it: amo-callback connections import --raw FILE"
            self.count += 1
        connection_id = None if refreshed is None else refreshed[0]
        self._core.observer(Event(name=event, level=Level.ERROR, connection_id=connection_id, fields=told))

    async def has(self, connection: Connection) -> bool:
        """Tell whether an answer to a refresh of the stored pair is kept, as far as can be told."""
        try:
            return await asyncio.to_thread(self._rescue.has, name_of(connection))
        except OSError:
            return False

    async def watch(self) -> None:
        """Once a minute, remove what a newer pair has made useless, and what is as old as a refresh token can be."""
        if self._core.clock.monotonic() < self._look_at:
            return
        self._look_at = self._core.clock.monotonic() + _LOOK_EVERY
        with suppress(OSError, StoreUnavailable):  # the next look does it
            ages = await asyncio.to_thread(self._rescue.raw_ages)
            self.count = len(ages)
            for name, age in ages.items():
                if age > REFRESH_TOKEN_LIFE.total_seconds() or await self._is_replaced(name):
                    await asyncio.to_thread(self._rescue.remove, name)
                    self.count -= 1

    async def _is_replaced(self, name: str) -> bool:
        refreshed = refreshed_by(name)
        stored = None if refreshed is None else await self._core.store.connection(refreshed[0])
        return refreshed is not None and stored is not None and stored.pair_version > refreshed[1]
