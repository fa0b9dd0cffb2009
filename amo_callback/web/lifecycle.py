"""Life and death of the service: every resource in its own context, opened in order, closed in reverse.

The only place (with the command) where the vendor, the store and the log are joined to the use cases.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from amo_callback.alone import Alone
from amo_callback.cipher import Cipher
from amo_callback.connect.build import make_connecting
from amo_callback.custody.build import Custody, make_custody
from amo_callback.custody.rescue import Rescue
from amo_callback.event import Event
from amo_callback.identity import ApiKeys, read_api_keys
from amo_callback.identity.build import open_users
from amo_callback.observe.metrics import Metrics
from amo_callback.observe.systemd import Notifier
from amo_callback.store import open_store
from amo_callback.web.app import make_apps
from amo_callback.web.doors import Door, open_door
from amo_callback.web.health import oldest_beat
from amo_callback.web.heart import Heart, beating
from amo_callback.web.keys import API_KEYS, Services
from amo_callback.web.reload import Reloader
from amo_callback.web.resources import (
    check_canary,
    connect_rules,
    draining,
    open_client,
    open_courier,
    refresh_rules,
    running,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from amo_callback.config import Settings
    from amo_callback.connect.build import Connecting
    from amo_callback.model import Connection
    from amo_callback.ports import Clock, Observer, Supervisor
    from amo_callback.web.reload import Taker


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """The running service."""

    public: str
    private: str
    services: Services
    died: asyncio.Future[None]
    """Ends with `TaskDied` where the refresher does, the surveyor, or the courier of notices."""
    stop: Callable[[], None]
    """Begin nothing new from now on: what a signal does first."""
    reloader: Reloader


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
async def open_service(
    settings: Settings,
    *,
    home: Home,
    clock: Clock,
    log: FilteringBoundLogger,
    observer: Observer,
    supervisor: Supervisor | None = None,
    listeners: Mapping[str, Sequence[socket.socket]] = MappingProxyType({}),
) -> AsyncIterator[Service]:
    """Open the whole service: store, client, custody, grants, courier, refresher, then both doors.

    `listeners` are the sockets of doors that somebody else has opened, by the doors' names.

    Raises `ConfigurationError` where it cannot begin. At the end nothing new is begun, the doors drain, and what is in
    flight is stored.
    """
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        observer = _both(observer, metrics)
        cipher = Cipher(settings.storage.encryption_keys.get_secret_value().split())
        process = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        store = await stack.enter_async_context(
            open_store(settings.storage.url.get_secret_value(), folder=home.folder, clock=clock, process=process)
        )
        await check_canary(store, cipher)
        shared = store.shared or Alone(clock=clock)
        amo = await stack.enter_async_context(open_client(settings, shared=shared, clock=clock, observer=observer))
        files = Rescue(home.rescue)
        await asyncio.to_thread(files.open)
        custody = make_custody(
            store=store,
            amo=amo,
            cipher=cipher,
            rescue=files,
            clock=clock,
            observer=observer,
            rules=refresh_rules(settings),
            owner=process,
            machine=home.machine,
            random=random.random,
        )
        await custody.freezer.begin()
        await custody.unsaved.restore()
        users = await stack.enter_async_context(open_users(settings.app, clock=clock, observer=observer))
        connecting = make_connecting(
            store=store,
            shared=shared,
            amo=amo,
            cipher=cipher,
            clock=clock,
            observer=observer,
            unsaved=custody.unsaved,
            leases=custody.leases,
            rules=connect_rules(settings),
            random=random.random,
            connected=lambda connection: _connected(custody, connection),
        )
        services = Services(
            store=store,
            amo=amo,
            cipher=cipher,
            connecting=connecting,
            users=users,
            custody=custody,
            clock=clock,
            metrics=metrics,
        )
        heart = Heart(
            supervisor=supervisor or Notifier({}, pid=0),
            custody=custody,
            store=store,
            clock=clock,
            oldest_beat=oldest_beat(settings.refresh.poll_interval),
        )
        await stack.enter_async_context(beating(heart))  # to the end of all that drains
        died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stack.callback(_look_at, died)
        courier = await stack.enter_async_context(
            open_courier(settings, store, clock=clock, observer=observer, died=died)
        )
        await stack.enter_async_context(draining(custody))
        await stack.enter_async_context(draining(connecting.connect))
        await stack.enter_async_context(running(custody.refresher, name="refresher", observer=observer, died=died))
        await custody.surveyor.look()  # before anybody may ask what it has seen
        await stack.enter_async_context(running(custody.surveyor, name="surveyor", observer=observer, died=died))
        apps = make_apps(settings, services, log)
        public = await stack.enter_async_context(
            open_door(
                apps.public,
                settings.server.public,
                name="public",
                clock=clock,
                log=log,
                listeners=listeners.get("public", ()),
            )
        )
        private = await stack.enter_async_context(
            open_door(
                apps.private,
                settings.server.private,
                name="private",
                clock=clock,
                log=log,
                listeners=listeners.get("private", ()),
            )
        )
        stack.push_async_callback(_close_together, public, private)

        def stop() -> None:
            heart.stop()
            custody.stop()
            connecting.connect.stop()
            if courier is not None:
                courier.stop()

        stack.callback(stop)  # the first thing at the end, also where nobody sent a signal
        fields = {"public": public.address, "private": private.address}
        observer(Event(name="service.started", fields=fields))
        heart.ready()
        yield Service(
            public=public.address,
            private=private.address,
            services=services,
            died=died,
            stop=stop,
            reloader=Reloader(settings, _takers(apps.private[API_KEYS], connecting)),
        )
        observer(Event(name="service.stopping"))


def _takers(api_keys: ApiKeys, connecting: Connecting) -> Mapping[str, Taker]:
    """Return who takes what may change while the service runs."""

    def take_keys(fresh: Settings) -> None:
        api_keys.replace(read_api_keys(fresh.api.keys.get_secret_value()))

    def take_limits(fresh: Settings) -> None:
        connecting.limits.change(unproven=fresh.limits.unproven, window=fresh.limits.window)

    return {"api.keys": take_keys, "limits.unproven": take_limits, "limits.window": take_limits}


def _both(log: Observer, metrics: Metrics) -> Observer:
    """Let what happens be told, and counted."""

    def observe(event: Event) -> None:
        log(event)
        metrics(event)

    return observe


def _connected(custody: Custody, connection: Connection) -> None:
    """Tell of an exchange that succeeded: AMO takes our credentials, and there is one more to keep fresh."""
    custody.breaker.accepted()
    custody.refresher.expect(connection.next_refresh_at)


async def _close_together(*doors: Door) -> None:
    await asyncio.gather(*(door.close() for door in doors))


def _look_at(died: asyncio.Future[None]) -> None:
    if died.done():
        died.exception()  # looked at, also where nobody waited for it
    died.cancel()
