"""Life and death of the service: every resource in its own context, opened in order, closed in reverse.

Here, in `services` and `resources`, and in the command, the vendor, the store and the log are joined to the use cases.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from amo_callback.event import Event
from amo_callback.identity import ApiKeys, read_api_keys
from amo_callback.observe.metrics import Metrics
from amo_callback.observe.systemd import Notifier
from amo_callback.web.app import make_apps
from amo_callback.web.doors import Door, open_door
from amo_callback.web.health import oldest_beat
from amo_callback.web.heart import Heart, beating
from amo_callback.web.keys import API_KEYS, Services
from amo_callback.web.reload import Reloader
from amo_callback.web.resources import draining, open_courier, running
from amo_callback.web.services import Home, open_services

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from amo_callback.config import Server, Settings
    from amo_callback.connect.build import Connecting
    from amo_callback.notices.courier import Courier
    from amo_callback.ports import Clock, Observer, Supervisor
    from amo_callback.web.app import Apps
    from amo_callback.web.reload import Taker

__all__ = ["Home", "Service", "open_service"]


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
    max_connections: int | None = None,
    lost_lines: Callable[[], int] = lambda: 0,
) -> AsyncIterator[Service]:
    """Open the whole service: store, client, custody, grants, courier, refresher, then both doors.

    `listeners` are the sockets of doors that somebody else has opened, by the doors' names; `lost_lines` counts those
    of the log; `max_connections` is in the place of the setting where the process may not open enough files for it.

    Raises `ConfigurationError` where it cannot begin. At the end nothing new is begun, the doors drain, and what is in
    flight is stored.
    """
    async with AsyncExitStack() as stack:
        metrics = Metrics(lost_lines=lost_lines)
        observer = _both(observer, metrics)
        services = await stack.enter_async_context(
            open_services(settings, home=home, clock=clock, observer=observer, metrics=metrics)
        )
        heart = _heart(settings, services, supervisor or Notifier({}, pid=0))
        await stack.enter_async_context(beating(heart))  # to the end of all that drains
        died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stack.callback(_look_at, died)
        courier = await stack.enter_async_context(_at_work(settings, services, observer=observer, died=died))
        apps = make_apps(settings, services, log)
        public, private = await stack.enter_async_context(
            _open_doors(
                apps,
                settings.server,
                clock=clock,
                log=log,
                metrics=metrics,
                listeners=listeners,
                max_connections=max_connections or settings.server.max_connections,
            )
        )

        def stop() -> None:
            heart.stop()
            services.custody.stop()
            services.connecting.connect.stop()
            if courier is not None:
                courier.stop()

        stack.callback(stop)  # the first thing at the end, also where nobody sent a signal
        observer(Event(name="service.started", fields={"public": public.address, "private": private.address}))
        heart.ready()
        yield Service(
            public=public.address,
            private=private.address,
            services=services,
            died=died,
            stop=stop,
            reloader=Reloader(settings, _takers(apps.private[API_KEYS], services.connecting)),
        )
        observer(Event(name="service.stopping"))


def _heart(settings: Settings, services: Services, supervisor: Supervisor) -> Heart:
    return Heart(
        supervisor=supervisor,
        custody=services.custody,
        store=services.store,
        clock=services.clock,
        oldest_beat=oldest_beat(settings.refresh.poll_interval),
    )


@asynccontextmanager
async def _at_work(
    settings: Settings, services: Services, *, observer: Observer, died: asyncio.Future[None]
) -> AsyncIterator[Courier | None]:
    """Run the loops; at the end wait for what is in flight, of the loops and of the doors."""
    custody, store = services.custody, services.store
    async with (
        open_courier(settings, store, clock=services.clock, observer=observer, died=died) as courier,
        draining(custody),
        draining(services.connecting.connect),
        running(custody.refresher, name="refresher", observer=observer, died=died),
    ):
        await custody.surveyor.look()  # before anybody may ask what it has seen
        async with running(custody.surveyor, name="surveyor", observer=observer, died=died):
            yield courier


@asynccontextmanager
async def _open_doors(
    apps: Apps,
    server: Server,
    *,
    clock: Clock,
    log: FilteringBoundLogger,
    metrics: Metrics,
    listeners: Mapping[str, Sequence[socket.socket]],
    max_connections: int,
) -> AsyncIterator[tuple[Door, Door]]:
    """Open the public door and the private one; at the end both close at the same time."""
    async with AsyncExitStack() as stack:
        doors = [
            await stack.enter_async_context(
                open_door(
                    app,
                    address,
                    name=name,
                    clock=clock,
                    log=log,
                    listeners=listeners.get(name, ()),
                    socket_mode=int(server.socket_mode, 8),
                    max_connections=max_connections,
                    closed=partial(metrics.client_closed, name),
                )
            )
            for name, app, address in (
                ("public", apps.public, server.public),
                ("private", apps.private, server.private),
            )
        ]
        stack.push_async_callback(_close_together, *doors)
        public, private = doors
        metrics.watch_clients("public", lambda: public.connection_count)
        metrics.watch_clients("private", lambda: private.connection_count)
        yield public, private


def _takers(api_keys: ApiKeys, connecting: Connecting) -> Mapping[str, Taker]:
    """Return who takes what may change while the service runs."""

    def take_keys(fresh: Settings) -> None:
        api_keys.replace(read_api_keys(fresh.api.keys.get_secret_value()))

    def take_limits(fresh: Settings) -> None:
        connecting.limits.change(unproven=fresh.limits.failed_codes, window=fresh.limits.window)

    return {"api.keys": take_keys, "limits.failed_codes": take_limits, "limits.window": take_limits}


def _both(log: Observer, metrics: Metrics) -> Observer:
    """Let what happens be told, and counted."""

    def observe(event: Event) -> None:
        log(event)
        metrics(event)

    return observe


async def _close_together(*doors: Door) -> None:
    await asyncio.gather(*(door.close() for door in doors))


def _look_at(died: asyncio.Future[None]) -> None:
    if died.done():
        died.exception()  # looked at, also where nobody waited for it
    died.cancel()
