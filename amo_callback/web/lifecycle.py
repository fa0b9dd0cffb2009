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
from typing import TYPE_CHECKING

from amo_callback.amo.client import AmoClient, open_session
from amo_callback.amo.pace import Pace
from amo_callback.amo.protocol import Integration
from amo_callback.cipher import Cipher
from amo_callback.connect.build import ConnectRules, make_connecting
from amo_callback.custody.build import Custody, make_custody
from amo_callback.custody.rescue import Rescue
from amo_callback.errors import ConfigurationError, TaskDied, Unreadable
from amo_callback.event import Event, Level
from amo_callback.identity.build import open_users
from amo_callback.model import RefreshRules
from amo_callback.notices.courier import Courier
from amo_callback.notices.sender import open_sender
from amo_callback.observe.metrics import Metrics
from amo_callback.store import open_store
from amo_callback.web.app import make_apps
from amo_callback.web.doors import Door, open_door
from amo_callback.web.keys import API_KEYS, Services
from amo_callback.web.reload import Reloader
from amo_callback.webhook import Signer, read_secrets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from amo_callback.config import Settings
    from amo_callback.connect.completion import Connect
    from amo_callback.custody.refresher import Refresher
    from amo_callback.custody.surveyor import Surveyor
    from amo_callback.ports import Clock, Observer, Store


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
    settings: Settings, *, home: Home, clock: Clock, log: FilteringBoundLogger, observer: Observer
) -> AsyncIterator[Service]:
    """Open the whole service: store, client, custody, grants, courier, refresher, then both doors.

    Raises `ConfigurationError` where it cannot begin. At the end nothing new is begun, the doors drain, and what is in
    flight is stored.
    """
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        observer = _both(observer, metrics)
        cipher = Cipher(settings.storage.encryption_keys.get_secret_value().split())
        process = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        store = await stack.enter_async_context(
            open_store(settings.storage.url, folder=home.folder, clock=clock, process=process)
        )
        await _check_canary(store, cipher)
        amo = await stack.enter_async_context(_client(settings, clock, observer))
        files = Rescue(home.rescue)
        await asyncio.to_thread(files.open)
        custody = make_custody(
            store=store,
            amo=amo,
            cipher=cipher,
            rescue=files,
            clock=clock,
            observer=observer,
            rules=_refresh_rules(settings),
            owner=process,
            machine=home.machine,
            random=random.random,
        )
        await custody.freezer.begin()
        await custody.unsaved.restore()
        users = await stack.enter_async_context(open_users(settings.app, clock=clock, observer=observer))
        connecting = make_connecting(
            store=store,
            amo=amo,
            cipher=cipher,
            clock=clock,
            observer=observer,
            unsaved=custody.unsaved,
            leases=custody.leases,
            rules=_connect_rules(settings),
            random=random.random,
            connected=lambda: _connected(custody),
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
        died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stack.callback(_look_at, died)
        courier = await stack.enter_async_context(_courier(settings, store, clock=clock, observer=observer, died=died))
        await stack.enter_async_context(_draining(custody))
        await stack.enter_async_context(_draining(connecting.connect))
        await stack.enter_async_context(_running(custody.refresher, name="refresher", observer=observer, died=died))
        await custody.surveyor.look()  # before anybody may ask what it has seen
        await stack.enter_async_context(_running(custody.surveyor, name="surveyor", observer=observer, died=died))
        apps = make_apps(settings, services, log)
        public = await stack.enter_async_context(
            open_door(apps.public, settings.server.public, name="public", clock=clock, log=log)
        )
        private = await stack.enter_async_context(
            open_door(apps.private, settings.server.private, name="private", clock=clock, log=log)
        )
        stack.push_async_callback(_close_together, public, private)

        def stop() -> None:
            custody.stop()
            connecting.connect.stop()
            if courier is not None:
                courier.stop()

        stack.callback(stop)  # the first thing at the end, also where nobody sent a signal
        fields = {"public": public.address, "private": private.address}
        observer(Event(name="service.started", fields=fields))
        yield Service(
            public=public.address,
            private=private.address,
            services=services,
            died=died,
            stop=stop,
            reloader=Reloader(settings, api_keys=apps.private[API_KEYS]),
        )
        observer(Event(name="service.stopping"))


def _both(log: Observer, metrics: Metrics) -> Observer:
    """Let what happens be told, and counted."""

    def observe(event: Event) -> None:
        log(event)
        metrics(event)

    return observe


def _connected(custody: Custody) -> None:
    """Tell of an exchange that succeeded: AMO takes our credentials, and there is one more to keep fresh."""
    custody.breaker.accepted()
    custody.refresher.wake()


async def _close_together(*doors: Door) -> None:
    await asyncio.gather(*(door.close() for door in doors))


async def _check_canary(store: Store, cipher: Cipher) -> None:
    """Refuse to start on a store that our keys cannot read: every connection in it would look lost."""
    try:
        cipher.check_canary(await store.canary(cipher.seal_canary()))
    except Unreadable:
        raise ConfigurationError(
            "storage.encryption_keys: none of them opens this database; give the keys it was written with"
        ) from None


@asynccontextmanager
async def _client(settings: Settings, clock: Clock, observer: Observer) -> AsyncIterator[AmoClient]:
    pace = Pace(per_second=settings.amo.requests_per_second, clock=clock)
    try:
        async with open_session() as session:
            yield AmoClient(
                session=session,
                integration=Integration(
                    client_id=settings.amo.client_id,
                    client_secret=settings.amo.client_secret.get_secret_value(),
                    redirect_uri=settings.amo.redirect_uri,
                    endpoint=settings.amo.endpoint,
                    authorize_url=settings.amo.authorize_url,
                ),
                pace=pace,
                clock=clock,
                observer=observer,
                timeout=settings.amo.timeout,
                default_domain=settings.amo.default_domain,
                allowed_domains=settings.amo.allowed_domains,
            )
    finally:
        await pace.close()


@asynccontextmanager
async def _draining(worker: Custody | Connect) -> AsyncIterator[None]:
    """Wait at the end for what is in flight: it has been paid for."""
    try:
        yield
    finally:
        worker.stop()
        await worker.drain()


@asynccontextmanager
async def _courier(
    settings: Settings, store: Store, *, clock: Clock, observer: Observer, died: asyncio.Future[None]
) -> AsyncIterator[Courier | None]:
    """Deliver notices where somebody wants them; at the end what is in flight gets its answer."""
    notify = settings.notify
    if notify.url is None or notify.secret is None:
        yield None
        return
    async with open_sender(notify.url) as sender:
        courier = Courier(
            store=store,
            sender=sender,
            signer=Signer(read_secrets(notify.secret.get_secret_value()), reconnect_url=settings.amo.connect_url),
            clock=clock,
            observer=observer,
            poll_interval=settings.refresh.poll_interval,
            random=random.random,
        )
        store.on_notice(courier.wake)
        async with _running(courier, name="courier", observer=observer, died=died):
            yield courier


@asynccontextmanager
async def _running(
    loop: Refresher | Courier | Surveyor, *, name: str, observer: Observer, died: asyncio.Future[None]
) -> AsyncIterator[None]:
    """Run a loop; `died` fails where it ends before it was told to."""
    task = asyncio.create_task(loop.run(), name=name)

    def look(ended: asyncio.Task[None]) -> None:
        if loop.stopped:
            return
        error = None if ended.cancelled() else ended.exception()
        observer(Event(name=f"{name}.died", level=Level.ERROR, error=error))
        if not died.done():
            died.set_exception(TaskDied())

    task.add_done_callback(look)
    try:
        yield
    finally:
        loop.stop()
        await asyncio.wait({task})


def _look_at(died: asyncio.Future[None]) -> None:
    if died.done():
        died.exception()  # looked at, also where nobody waited for it
    died.cancel()


def _refresh_rules(settings: Settings) -> RefreshRules:
    refresh = settings.refresh
    return RefreshRules(
        at=refresh.at,
        jitter=refresh.jitter,
        concurrency=refresh.concurrency,
        poll_interval=refresh.poll_interval,
        lease=refresh.lease,
        retry_base=refresh.retry_base,
        retry_cap=refresh.retry_cap,
    )


def _connect_rules(settings: Settings) -> ConnectRules:
    return ConnectRules(
        issued_only=settings.app.state == "issued",
        allowed_accounts=frozenset(settings.amo.allowed_accounts),
        refresh=_refresh_rules(settings),
        unproven=settings.limits.unproven,
        window=settings.limits.window,
        requests_per_second=settings.amo.requests_per_second,
    )
