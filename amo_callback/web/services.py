"""What both doors stand before, from the store to the grants: opened in order, closed in reverse."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.alone import Alone
from amo_callback.cipher import Cipher
from amo_callback.connect.build import make_connecting
from amo_callback.custody.build import Custody, make_custody
from amo_callback.custody.rescue import Rescue
from amo_callback.identity.build import open_users
from amo_callback.store import open_store
from amo_callback.web.keys import Services
from amo_callback.web.resources import check_canary, connect_rules, open_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from amo_callback.config import Settings
    from amo_callback.model import Connection
    from amo_callback.ports import AmoOAuth, Clock, Metrics, Observer, Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """Where the service keeps what outlives it."""

    folder: Path
    """A relative database starts here."""
    rescue: Path
    """Where pairs wait that the database does not take."""
    machine: str
    """A name for the place of the database: another one's is not spent from."""


@asynccontextmanager
async def open_services(
    settings: Settings, *, home: Home, clock: Clock, observer: Observer, metrics: Metrics, idle: bool = False
) -> AsyncIterator[Services]:
    """Open all of it, and begin nothing; raises `ConfigurationError`.

    An `idle` one never will: it answers from the store, refreshes nothing, and sends nothing to AMO.
    """
    async with AsyncExitStack() as stack:
        cipher = Cipher(settings.storage.encryption_keys.get_secret_value().split())
        process = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        store = await stack.enter_async_context(
            open_store(settings.storage.url.get_secret_value(), folder=home.folder, clock=clock, process=process)
        )
        await check_canary(store, cipher)
        users = await stack.enter_async_context(open_users(settings.app, clock=clock, observer=observer))
        clock = store.clock  # from here on: the app's JWTs alone are checked by the machine's own
        shared = store.shared or Alone(clock=clock)
        amo = await stack.enter_async_context(open_client(settings, shared=shared, clock=clock, observer=observer))
        custody = await _open_custody(
            settings,
            store=store,
            amo=amo,
            cipher=cipher,
            home=home,
            clock=clock,
            observer=observer,
            process=process,
            idle=idle,
        )
        connecting = make_connecting(
            store=store,
            shared=shared,
            amo=amo,
            cipher=cipher,
            clock=clock,
            observer=observer,
            custody=custody,
            rules=connect_rules(settings),
            random=random.random,
            connected=lambda connection: _connected(custody, connection),
        )
        yield Services(
            store=store,
            amo=amo,
            cipher=cipher,
            connecting=connecting,
            users=users,
            custody=custody,
            clock=clock,
            metrics=metrics,
        )


async def _open_custody(
    settings: Settings,
    *,
    store: Store,
    amo: AmoOAuth,
    cipher: Cipher,
    home: Home,
    clock: Clock,
    observer: Observer,
    process: str,
    idle: bool,
) -> Custody:
    """Build it; find out whether it may spend here, and store what an earlier process has left."""
    files = Rescue(home.rescue)
    if not idle:
        await asyncio.to_thread(files.open)
    custody = make_custody(
        store=store,
        amo=amo,
        cipher=cipher,
        rescue=files,
        clock=clock,
        observer=observer,
        rules=settings.refresh.rules,
        owner=process,
        machine=home.machine,
        random=random.random,
    )
    if idle:
        await custody.freezer.watch()  # the location is not checked: only serving from it freezes a copy
        custody.stop()
        return custody
    await custody.freezer.begin()
    await custody.leases.begin()
    await custody.hosts.begin()
    await custody.breaker.address_block.watch()
    await custody.unsaved.restore()
    await custody.credentials.watch()
    return custody


def _connected(custody: Custody, connection: Connection) -> None:
    """Tell of an exchange that succeeded: AMO takes our credentials, and there is one more to keep fresh."""
    custody.breaker.accepted()
    custody.refresher.expect(connection.next_refresh_at)
