"""What the command does for a person: by the private door; where nobody listens there, in the store itself.

Both engines let another process work beside the service, so what a missing API key forbids at the door may be done in
the store by whoever may read the configuration anyway.
"""

from __future__ import annotations

import json
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from amo_callback.cipher import Cipher
from amo_callback.cli.door import MANY, Door, is_served, private_session
from amo_callback.cli.local import open_local
from amo_callback.custody.farewell import Farewell
from amo_callback.custody.freezer import Freezer
from amo_callback.custody.memory import Memory
from amo_callback.custody.rescue import Rescue
from amo_callback.custody.selection import Selection
from amo_callback.custody.unsaved import Unsaved
from amo_callback.errors import CommandFailed, NotFound
from amo_callback.hosts import account_url
from amo_callback.identity import Scope, key_with
from amo_callback.model import Filter
from amo_callback.web.private.connections import show
from amo_callback.web.private.events import filter_of, show_event
from amo_callback.web.private.notices import show_notice
from amo_callback.web.private.tokens import show_token
from amo_callback.web.route import to_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from amo_callback.cli.local import Local, Place
    from amo_callback.model import Connection


class Operations(Protocol):
    """What the command asks for; answers are what the private door's are."""

    async def connections(self, only: Mapping[str, str]) -> list[dict[str, Any]]:
        """List connections."""

    async def connection(self, selector: str) -> dict[str, Any]:
        """Show one, with its last events."""

    async def events(self, selector: str | None, *, limit: int) -> list[dict[str, Any]]:
        """List what happened, newest first."""

    async def freeze(self, selector: str | None, *, frozen: bool) -> dict[str, Any]:
        """Freeze or thaw one connection, or all where none is named."""

    async def token(self, selector: str) -> dict[str, Any]:
        """Hand out an access token."""

    async def refresh(self, selector: str) -> dict[str, Any]:
        """Refresh a pair now, and hand out its access token."""

    async def disconnect(self, selector: str) -> dict[str, Any]:
        """Forget a connection."""

    async def notices(self) -> list[dict[str, Any]]:
        """List what was not delivered."""

    async def retry_notices(self, notice_id: str | None) -> dict[str, Any]:
        """Try one again, or all that are parked where none is named."""


@asynccontextmanager
async def open_operations(place: Place, *, scope: Scope) -> AsyncIterator[Operations]:
    """Open the way that there is: the door of the service that runs, else the store."""
    key = key_with(place.settings.api.keys.get_secret_value(), scope)
    if key is not None:
        cipher = Cipher(place.settings.storage.encryption_keys.get_secret_value().split())
        async with private_session(place.settings.server.private) as session:
            if await is_served(session, cipher, nonce=secrets.token_urlsafe(16)):
                yield Door(session, key)
                return
    async with open_local(place) as local:
        yield _Store(local)


class _Store:
    """The store, where no service runs."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._store = local.store
        unsaved = Unsaved(
            store=local.store,
            rescue=Rescue(local.place.rescue),
            cipher=local.cipher,
            clock=local.clock,
            observer=lambda _event: None,
        )
        memory = Memory(store=local.store, clock=local.clock)
        self._selection = Selection(store=local.store, unsaved=unsaved, memory=memory)
        self._freezer = Freezer(
            store=local.store,
            clock=local.clock,
            observer=lambda _event: None,
            machine=local.place.machine,
        )

    async def connections(self, only: Mapping[str, str]) -> list[dict[str, Any]]:
        found = await self._store.page(after="", limit=MANY, only=Filter(**only))  # type: ignore[arg-type]  # reason: a status is its text
        all_frozen = await self._store.frozen() is not None
        owners = await self._store.owners_of([connection.id for connection in found])
        return [
            _jsonable(show(connection, owners[connection.id], frozen=all_frozen or connection.frozen))
            for connection in found
        ]

    async def connection(self, selector: str) -> dict[str, Any]:
        [found, *_] = await self._selection.find(selector)
        events = await self._store.events(connection_id=found.id, limit=20)
        return {**await self._shape(found), "events": [_jsonable(show_event(event)) for event in events]}

    async def token(self, selector: str) -> dict[str, Any]:
        """Hand out what lives; nothing is refreshed: whoever spends must stay to store what it brings."""
        [found, *_] = await self._selection.find(selector)
        pair, now = self._local.cipher.pair_of(found), self._local.clock.now()
        if pair is None or pair.expires_at <= now:
            raise CommandFailed("it has no live access token, and only the running service gets a new one: start it")
        amo = self._local.place.settings.amo
        base_url = account_url(amo.endpoint, found.domain, allowed=amo.allowed_domains)
        return dict(show_token(found, pair, now=now, base_url=base_url))

    async def refresh(self, selector: str) -> dict[str, Any]:
        raise CommandFailed(f"only the running service refreshes: start it, and ask for {selector} again")

    async def disconnect(self, selector: str) -> dict[str, Any]:
        farewell = Farewell(store=self._store, clock=self._local.clock, observer=lambda _event: None)
        connection = await self._selection.only(selector)
        return await self._shape(await farewell.disconnect(connection, why="asked by the command"))

    async def _shape(self, connection: Connection) -> dict[str, Any]:
        owners = await self._store.owners_of([connection.id])
        return _jsonable(show(connection, owners[connection.id]))

    async def events(self, selector: str | None, *, limit: int) -> list[dict[str, Any]]:
        return [_jsonable(show_event(event)) for event in await self._store.events(**filter_of(selector), limit=limit)]

    async def freeze(self, selector: str | None, *, frozen: bool) -> dict[str, Any]:
        if selector is not None:
            connection = await self._selection.only(selector)
            await (self._freezer.freeze(connection) if frozen else self._freezer.thaw(connection))
            return await self._shape(await self._selection.only(connection.id))
        await (self._freezer.freeze_all(why="asked by the command") if frozen else self._freezer.thaw_all())
        return {"frozen": self._freezer.frozen is not None, "open_attempts": len(await self._store.attempts())}

    async def notices(self) -> list[dict[str, Any]]:
        return [_jsonable(show_notice(notice)) for notice in await self._store.notices(limit=MANY)]

    async def retry_notices(self, notice_id: str | None) -> dict[str, Any]:
        found = await self._store.retry_notices(notice_id)
        if notice_id is not None and not found:
            raise NotFound("There is no such notice.")
        return {"retried": found}


def _jsonable(value: object) -> dict[str, Any]:
    return dict(json.loads(to_json(value)))
