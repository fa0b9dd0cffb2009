"""The composition of the service: its components are opened in order and closed in reverse order.

Only this module and the command line connect AMO, the store and the log with the use cases.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from amo_callback.amo.client import AmoClient
from amo_callback.amo.protocol import Integration
from amo_callback.amo.rate_limiter import RateLimiter
from amo_callback.amo.transport import Transport, tls_context
from amo_callback.appearance import read_logo
from amo_callback.config.types import read_webhook_secrets
from amo_callback.core import Core
from amo_callback.crypto import Cipher
from amo_callback.errors import ConfigurationError, DecryptionFailed, TaskDied
from amo_callback.events import Event, Level
from amo_callback.hosts import crm_name
from amo_callback.identity import ApiKeys, read_api_keys
from amo_callback.oauth.flow import OAuth
from amo_callback.observe.metrics import Metrics
from amo_callback.observe.systemd import Notifier, Watchdog
from amo_callback.rate_limit import LocalLimits
from amo_callback.refresh.rescue import RescueFolder
from amo_callback.store import open_store
from amo_callback.tokens.lifecycle import TokenLifecycle
from amo_callback.web import health
from amo_callback.web.access_log import LogThrottle
from amo_callback.web.apis import open_listeners
from amo_callback.web.client_ip import TrustedProxies
from amo_callback.web.pages import Brand, Pages
from amo_callback.webhooks.dispatcher import WebhookDispatcher
from amo_callback.webhooks.sender import Signer, open_sender

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from amo_callback.clock import Clock
    from amo_callback.config.settings import App, Settings
    from amo_callback.events import Observer
    from amo_callback.identity.jwt import JwtVerifier
    from amo_callback.refresh.scheduler import RefreshScheduler
    from amo_callback.refresh.stats_poller import StatsPoller
    from amo_callback.store import Store

_UNKNOWN_KEY = "unknown API key: outdated backend or unauthorized attempt"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataPaths:
    """The paths of persistent data."""

    folder: Path
    """The base folder for a relative database path."""
    rescue: Path
    """The folder of rescue files."""
    machine: str
    """The id of a database file's location (machine and path); if the id has changed, all connections are frozen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """The components that the handlers of both APIs use."""

    settings: Settings
    core: Core
    store: Store
    oauth: OAuth
    lifecycle: TokenLifecycle
    users: JwtVerifier | None
    """The verifier of app users' JWTs; `None` if JWTs are not configured."""
    api_keys: ApiKeys
    proxies: TrustedProxies
    pages: Pages
    metrics: Metrics
    log: FilteringBoundLogger


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    public: str
    """The address of the public API."""
    private: str
    services: Services
    died: asyncio.Future[None]
    """A future that fails with `TaskDied` if a background task ends before the shutdown."""
    stop: Callable[[], None]
    """Prevents new work from starting; called first when a stop signal arrives."""
    reload: Callable[[Settings], Sequence[str]]
    """Applies reloadable settings, and returns the names of changed settings that require a restart."""


@asynccontextmanager
async def open_service(
    settings: Settings,
    *,
    paths: DataPaths,
    clock: Clock,
    log: FilteringBoundLogger,
    observer: Observer,
    supervisor: Notifier | None = None,
    listeners: Mapping[str, Sequence[socket.socket]] = MappingProxyType({}),
    max_connections: int | None = None,
    lost_lines: Callable[[], int] = lambda: 0,
    on_reload: Mapping[str, Callable[[Settings], None]] = MappingProxyType({}),
) -> AsyncIterator[Service]:
    """Open the whole service: store, AMO client, refreshing, grants, webhooks, background tasks, then both listeners.

    `listeners` contains inherited sockets by API name. `lost_lines` returns the number of lost log lines.
    `max_connections` replaces the setting if the limit on open files is too low for the setting. `on_reload` contains
    functions that apply reloadable settings, by `section.key`.

    Raises `ConfigurationError` if the service cannot start, or `CommandFailed` if an address is in use. On exit, no new
    work is started, the listeners answer requests in progress, and the results of requests to AMO are stored.
    """
    async with AsyncExitStack() as stack:
        services = await stack.enter_async_context(
            open_services(settings, paths=paths, clock=clock, log=log, observer=observer, lost_lines=lost_lines)
        )
        core, lifecycle = services.core, services.lifecycle
        watchdog = Watchdog(
            supervisor or Notifier({}, pid=0),
            clock=core.clock,
            status=partial(health.status_line, services),
            is_alive=partial(health.is_alive, services),
            at_risk=lambda: lifecycle.pending_writes.at_risk,
        )
        await stack.enter_async_context(watchdog.running())  # runs until all requests in progress are finished
        died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stack.callback(_retrieve, died)
        webhook = settings.webhook
        if webhook.url is not None and webhook.secret is not None:
            signer = Signer(
                read_webhook_secrets(webhook.secret.get_secret_value()),
                reconnect_url=settings.amo.connect_url,
                allowed_domains=settings.amo.allowed_domains,
            )
            send = await stack.enter_async_context(open_sender(webhook.url, signer))
            dispatcher = WebhookDispatcher(core, send)
            services.store.on_webhook(dispatcher.wake)
            await stack.enter_async_context(_running(dispatcher, name="webhooks", core=core, died=died))
        stack.push_async_callback(lifecycle.drain)
        stack.push_async_callback(services.oauth.connect.drain)
        await stack.enter_async_context(_running(lifecycle.scheduler, name="refresher", core=core, died=died))
        await lifecycle.stats_poller.poll()  # the first requests need the result
        await stack.enter_async_context(_running(lifecycle.stats_poller, name="stats", core=core, died=died))
        public, private = await stack.enter_async_context(
            open_listeners(services, listeners, max_connections or settings.server.max_connections)
        )

        def stop() -> None:
            watchdog.stop()
            core.stop.set()

        stack.callback(stop)  # called first on exit, even without a signal
        core.observer(Event(name="service.started", fields={"public": public.address, "private": private.address}))
        watchdog.ready()
        yield Service(
            public=public.address,
            private=private.address,
            services=services,
            died=died,
            stop=stop,
            reload=partial(_reload, settings, {**_reload_handlers(services), **on_reload}),
        )
        core.observer(Event(name="service.stopping"))


@asynccontextmanager
async def open_services(
    settings: Settings,
    *,
    paths: DataPaths,
    clock: Clock,
    log: FilteringBoundLogger,
    observer: Observer,
    lost_lines: Callable[[], int] = lambda: 0,
    idle: bool = False,
) -> AsyncIterator[Services]:
    """Open all components except background tasks and listeners; raises `ConfigurationError`.

    If `idle` is true, requests are answered from the store, and nothing is refreshed or sent to AMO.
    """
    metrics = Metrics(lost_lines=lost_lines)

    def observe(event: Event) -> None:
        observer(event)
        metrics(event)

    async with AsyncExitStack() as stack:
        cipher = Cipher(settings.storage.encryption_keys.get_secret_value().split())
        process = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        url = settings.storage.url.get_secret_value()
        store = await stack.enter_async_context(open_store(url, folder=paths.folder, clock=clock, process=process))
        store.stores_webhooks = settings.webhook.url is not None
        await _check_canary(store, cipher)
        users = await stack.enter_async_context(open_jwt_verifier(settings.app, clock=clock, observer=observe))
        rate_limiter = RateLimiter(
            per_second=settings.amo.requests_per_second,
            shared=store.shared or LocalLimits(clock=store.clock),
            clock=store.clock,
            observer=observe,
        )
        stack.push_async_callback(rate_limiter.close)
        rescue = RescueFolder(paths.rescue)
        if not idle:
            await asyncio.to_thread(rescue.open)
        store.observe(observe)
        core = Core(
            store=store,
            amo=_make_client(settings, rate_limiter=rate_limiter, clock=store.clock, observer=observe),
            cipher=cipher,
            clock=store.clock,
            observer=observe,
            random=random.random,
            rules=settings.refresh.rules,
            process=process,
            stop=asyncio.Event(),
        )
        lifecycle = TokenLifecycle(core, rescue=rescue, machine=paths.machine)
        refused_keys = LogThrottle(
            lambda count: log.warning("authorization.refused", count=count, text=_UNKNOWN_KEY), clock=store.clock
        )
        stack.callback(refused_keys.close)

        def on_refused() -> None:
            metrics.key_refused()
            refused_keys.count()

        if idle:
            # Not `prepare`: without a listener, a process must not freeze the connections of a copied database.
            await lifecycle.freeze_switch.watch()
            core.stop.set()
        else:
            await lifecycle.prepare()

        yield Services(
            settings=settings,
            core=core,
            store=store,
            oauth=OAuth(core, settings, lifecycle),
            lifecycle=lifecycle,
            users=users,
            api_keys=ApiKeys(read_api_keys(settings.api.keys.get_secret_value()), on_refused=on_refused),
            proxies=TrustedProxies(settings.server.trusted_proxies),
            pages=Pages(_brand(settings)),
            metrics=metrics,
            log=log,
        )


def _brand(settings: Settings) -> Brand:
    """Return the appearance of the return page; raises `ConfigurationError` if the logo cannot be used."""
    app = settings.app
    return Brand(
        app=app.name,
        crm=crm_name(urlsplit(settings.amo.authorize_url).hostname or ""),
        ios_store_url=app.ios_store_url,
        android_store_url=app.android_store_url,
        accent=app.accent,
        logo=None if app.logo is None else read_logo(app.logo),
    )


@asynccontextmanager
async def open_jwt_verifier(app: App, *, clock: Clock, observer: Observer) -> AsyncIterator[JwtVerifier | None]:
    """Open the verifier of app users' JWTs; yields `None` if JWTs are not configured."""
    if app.jwt_audience is None:
        yield None
        return
    from amo_callback.identity.jwt import Hs256Verifier, JwtRules  # noqa: PLC0415 -- loaded only if JWTs are configured

    rules = JwtRules(audience=app.jwt_audience, issuer=app.jwt_issuer, user_claim=app.jwt_user_claim)
    if app.jwt_secret is not None:
        yield Hs256Verifier(app.jwt_secret.get_secret_value(), rules=rules)
    elif app.jwks_url is not None:
        from amo_callback.identity.jwks import open_jwks  # noqa: PLC0415 -- loaded only if a key set is configured

        async with open_jwks(app.jwks_url, rules=rules, clock=clock, observer=observer) as verifier:
            yield verifier


async def _check_canary(store: Store, cipher: Cipher) -> None:
    """Raise `ConfigurationError` if no key decrypts the canary, because no stored pair could be decrypted either."""
    try:
        cipher.check_canary(await store.canary(cipher.seal_canary()))
    except DecryptionFailed:
        raise ConfigurationError(
            "storage.encryption_keys: no configured key decrypts this database; configure the keys that encrypted it"
        ) from None


def _make_client(settings: Settings, *, rate_limiter: RateLimiter, clock: Clock, observer: Observer) -> AmoClient:
    amo = settings.amo
    return AmoClient(
        integration=Integration(
            client_id=amo.client_id,
            client_secret=amo.client_secret.get_secret_value(),
            redirect_uri=amo.redirect_uri,
            endpoint=amo.endpoint,
            authorize_url=amo.authorize_url,
            allowed_domains=amo.allowed_domains,
            default_domain=amo.default_domain,
        ),
        transport=Transport(tls=tls_context(), rate_limiter=rate_limiter, clock=clock, timeout=amo.timeout),
        rate_limiter=rate_limiter,
        clock=clock,
        observer=observer,
    )


@asynccontextmanager
async def _running(
    loop: RefreshScheduler | WebhookDispatcher | StatsPoller, *, name: str, core: Core, died: asyncio.Future[None]
) -> AsyncIterator[None]:
    """Run a loop; `died` fails if the loop ends before the process shuts down."""
    task = asyncio.create_task(loop.run(), name=name)

    def on_end(ended: asyncio.Task[None]) -> None:
        if core.stop.is_set():
            return
        error = None if ended.cancelled() else ended.exception()
        core.observer(Event(name=f"{name}.died", level=Level.ERROR, error=error))
        if not died.done():
            died.set_exception(TaskDied())

    task.add_done_callback(on_end)
    try:
        yield
    finally:
        core.stop.set()
        await asyncio.wait({task})


def _reload_handlers(services: Services) -> Mapping[str, Callable[[Settings], None]]:
    def replace_keys(fresh: Settings) -> None:
        services.api_keys.replace(read_api_keys(fresh.api.keys.get_secret_value()))

    def change_limits(fresh: Settings) -> None:
        services.oauth.limits.change(attempts=fresh.limits.failed_codes, window=fresh.limits.window)

    return {"api.keys": replace_keys, "limits.failed_codes": change_limits, "limits.window": change_limits}


def _reload(settings: Settings, handlers: Mapping[str, Callable[[Settings], None]], fresh: Settings) -> Sequence[str]:
    for handler in handlers.values():
        handler(fresh)
    return [
        f"{section}.{key}"
        for section, before in settings
        for key, value in before
        if f"{section}.{key}" not in handlers and getattr(getattr(fresh, section), key) != value
    ]


def _retrieve(died: asyncio.Future[None]) -> None:
    """Retrieve the exception, so that asyncio does not log that it was never retrieved."""
    if died.done():
        died.exception()
    died.cancel()
