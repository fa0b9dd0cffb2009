"""The connection that listens to the changes of other instances, and webhooks whether the database is up.

A commit notifies a channel, in the same transaction. What was sent while this process did not listen is lost, and
a pooler in between may drop all of it: so a cache is valid for a moment only.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import asyncpg

from amo_callback.model import ChangeNotice
from amo_callback.store.engine import ANY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from asyncpg.pool import PoolConnectionProxy

    from amo_callback.clock import DatabaseClock

_CHANNEL = "amo_callback"
_BEAT = 1.0
"""Seconds between two looks at whether the connection lives."""
_AGAIN = 0.5
"""Seconds until the next try to connect."""
_PATIENCE = 2.0
"""Seconds that an answer may take."""
_MOST = 100
"""Connections that are named in one message, which may have 8,000 bytes; where there are more, it is any of them."""


class Listener:
    """The connection that listens, made anew whenever it is lost."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]], *, clock: DatabaseClock) -> None:
        self._connect = connect
        self._clock = clock
        self._name = secrets.token_hex(8)
        self._connection: asyncpg.Connection | None = None
        self._asking = asyncio.Lock()
        self._listeners: list[Callable[[ChangeNotice], None]] = []
        self.down: str | None = None
        """Why the database cannot be reached; `None` where it can, as far as is known."""

    def on_change(self, call: Callable[[ChangeNotice], None]) -> None:
        self._listeners.append(call)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen meanwhile; from the first moment on, where that can be."""
        with suppress(Exception):  # it is tried again
            await self._begin()
        task = asyncio.create_task(self._live(), name="store:listen")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            self._end()

    async def notify(self, connection: PoolConnectionProxy, changes: Iterable[ChangeNotice]) -> None:
        """Say, with the transaction that `connection` is in, what it changes."""
        if message := _message(list(changes)):
            await connection.execute("SELECT pg_notify($1, $2)", _CHANNEL, f"{self._name} {message}")

    async def ping(self) -> None:
        """Receive all notifications so far: they arrive before the answer to a query that is sent after them."""
        async with self._asking, asyncio.timeout(_PATIENCE):
            if self._connection is None:
                raise ConnectionError
            asked_at = self._clock.monotonic()
            self._clock.set(await self._connection.fetchval("SELECT clock_timestamp()"), asked_at=asked_at)

    async def _live(self) -> None:
        while True:
            try:
                if self._connection is None:
                    async with asyncio.timeout(_PATIENCE):
                        await self._begin()
                await asyncio.sleep(_BEAT)
                await self.ping()
            except Exception as error:  # noqa: BLE001 -- because whatever a server has answered, it may be well again
                if self._connection is None:
                    # One that was lost is made anew at once: only where that cannot be either is the database down; and
                    # not where there is merely none to spare.
                    self.down = None if isinstance(error, asyncpg.TooManyConnectionsError) else type(error).__name__
                    await asyncio.sleep(_AGAIN)
                self._end()

    async def _begin(self) -> None:
        connection = await self._connect()
        try:
            await connection.add_listener(_CHANNEL, self._on_message)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        self.down = None
        self._notify_all(ANY)

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def _on_message(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        sender, _, message = str(payload).partition(" ")
        if sender != self._name:
            self._notify_all(_read(message))

    def _notify_all(self, changed: ChangeNotice) -> None:
        for call in self._listeners:
            call(changed)


def _message(changes: list[ChangeNotice]) -> str:
    """Return what was changed, as one line; nothing, where that is no connection."""
    if not changes:
        return ""
    names = sorted({name for changed in changes for name in changed.connections or ()})
    every = len(names) > _MOST or any(changed.connections is None for changed in changes)
    erased = any(changed.erased for changed in changes)
    if every:
        return f"every {'erased' if erased else 'changed'}"
    kind = "erased" if erased else "belonging" if any(changed.belonging for changed in changes) else "changed"
    return " ".join([kind, *names])


def _read(message: str) -> ChangeNotice:
    kind, *names = message.split(" ")
    if kind == "every":
        return ChangeNotice(connections=None, belonging=True, erased=names == ["erased"])
    return ChangeNotice(connections=frozenset(names), belonging=kind != "changed", erased=kind == "erased")
