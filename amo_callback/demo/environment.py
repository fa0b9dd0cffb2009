"""The demo's environment: the service, its reverse proxy, the stand-in for AMO, the phone and the panel."""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from amo_callback.amo.sandbox.app import Sandbox
from amo_callback.amo.sandbox.fake_amo import FakeAmo, Lifetimes, SandboxIntegration
from amo_callback.config.loader import load_settings
from amo_callback.crypto import new_key
from amo_callback.demo.access import guard
from amo_callback.demo.backend import Backend, Poller
from amo_callback.demo.feed import Feed, LogStream
from amo_callback.demo.panel import Renderer, panel_routes
from amo_callback.demo.phone import ANOTHER_USER, AUDIENCE, AppConfig, Phone
from amo_callback.demo.proxy import Proxy
from amo_callback.demo.scenarios import SLOW, Scenarios
from amo_callback.observe.log import make_logger, take_over_library_logs
from amo_callback.web.composition import DataPaths, Service, open_service
from amo_callback.web.listener import open_listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from amo_callback.clock import Clock
    from amo_callback.config.settings import Settings
    from amo_callback.demo.feed import FeedEntry

_DEEP_LINK = "foryoure://amo-crm/callback"
_ACCOUNTS = ("reforyou.amocrm.ru", "gingersnaps.amocrm.ru")
_SITES = 3
"""The number of ports to choose: for the panel, the stand-in for AMO, and the proxy."""
_JWT_LIFE = timedelta(days=1)
_TIMEOUT = aiohttp.ClientTimeout(total=60)


@dataclass(frozen=True, kw_only=True, slots=True)
class Addresses:
    """Listen addresses, in the form `host:port`."""

    panel: str
    amo: str
    proxy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSecrets:
    """Random secrets for one run of the demo."""

    api_key: str = field(default_factory=secrets.token_urlsafe, repr=False)
    jwt_secret: str = field(default_factory=secrets.token_urlsafe, repr=False)
    encryption_key: str = field(default_factory=new_key, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    service: Service
    poller: Poller
    curl: str = field(repr=False)
    """A curl command that requests a token."""
    backend: str = field(repr=False)
    """A shell command that sets the environment variables of a backend that is tried with the demo."""
    base: str
    """The base URL of the public API, for an app that is tried with the demo."""
    jwt: str = field(repr=False)
    """The JWT of that app's user."""


def choose_addresses(first: int | None) -> Addresses:
    """Choose consecutive ports that start at `first`, or free ports if `first` is `None`.

    The ports are chosen before the listeners open, because the redirect URI contains the proxy's port.
    """
    ports = [_free_port() for _ in range(_SITES)] if first is None else range(first, first + _SITES)
    panel, amo, proxy = (f"127.0.0.1:{port}" for port in ports)
    return Addresses(panel=panel, amo=amo, proxy=proxy)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def demo_settings(fake: FakeAmo, *, addresses: Addresses, made: DemoSecrets) -> Settings:
    """Return the service's settings, with short intervals that suit the demo's short-lived tokens."""
    known = fake.integration
    values = {
        "SERVER__PUBLIC": "127.0.0.1:0",
        "SERVER__PRIVATE": "127.0.0.1:0",
        "AMO__CLIENT_ID": known.client_id,
        "AMO__CLIENT_SECRET": known.client_secret,
        "AMO__REDIRECT_URI": known.redirect_uri,
        "AMO__AUTHORIZE_URL": f"http://{addresses.amo}/oauth",
        "AMO__ENDPOINT": f"http://{addresses.amo}/{{domain}}",
        "AMO__TIMEOUT": str(SLOW + 1),
        "APP__DEEP_LINK": _DEEP_LINK,
        "APP__JWT_SECRET": made.jwt_secret,
        "APP__JWT_AUDIENCE": AUDIENCE,
        "REFRESH__POLL_INTERVAL": "1",
        "REFRESH__LEASE": str(SLOW + 4),  # a code waits for its rate-limit slot for up to three seconds
        "REFRESH__RETRY_BASE": "2",
        "REFRESH__RETRY_CAP": "10",
        "STORAGE__ENCRYPTION_KEYS": made.encryption_key,
        "API__KEYS": f"demo:read+token+admin:{made.api_key}",
    }
    return load_settings(None, {f"AMO_CALLBACK_{name}": value for name, value in values.items()})


@asynccontextmanager
async def open_demo(
    addresses: Addresses,
    *,
    token_life: float,
    clock: Clock,
    on_entry: Callable[[FeedEntry], None],
) -> AsyncIterator[Demo]:
    """Run the demo; remove all its files on exit."""
    made = DemoSecrets()
    fake = FakeAmo(
        integration=SandboxIntegration(redirect_uri=f"http://{addresses.proxy}/api/amo-crm/callback"),
        now=clock.now,
        lifetimes=Lifetimes(access=token_life),
    )
    for host in _ACCOUNTS:
        fake.open_account(host)
    sandbox = Sandbox(fake, clock=clock)
    feed = Feed(clock=clock, ledger=fake.ledger, on_entry=on_entry)
    log = make_logger(level="warning", style="console", stream=LogStream(feed), secrets=[made.api_key])
    take_over_library_logs(log)
    settings = demo_settings(fake, addresses=addresses, made=made)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="amo-callback-demo-")))
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False))
        proxy = Proxy(http, panel=addresses.panel, deep_link=_DEEP_LINK)
        for name, app, address in (("amo", sandbox.app(), addresses.amo), ("proxy", proxy.app(), addresses.proxy)):
            app.middlewares.append(guard(address, changes={"/oauth/allow"}))
            await stack.enter_async_context(open_listener(app, address, name=name, clock=clock, log=log))
        paths = DataPaths(folder=folder, rescue=folder / "rescue", machine="demo")
        service = await stack.enter_async_context(
            open_service(settings, paths=paths, clock=clock, log=log, observer=feed)
        )
        proxy.public = service.public
        backend = Backend(http, private=service.private, key=made.api_key)
        poller = Poller(backend, sandbox, clock=clock)
        renderer = Renderer(phone_sites=[addresses.amo, addresses.proxy])
        config = AppConfig(
            base=f"http://{addresses.proxy}/api/amo-crm", deep_link=_DEEP_LINK, jwt_secret=made.jwt_secret
        )
        phone = Phone(
            http,
            config,
            renderer=renderer,
            clock=clock,
            report=feed.add,
        )
        stack.push_async_callback(phone.close)
        hook = f"http://{addresses.proxy}/api/amo-crm/hooks/disconnect"
        scenarios = Scenarios(sandbox, backend, phone, feed, hook=hook)
        curl = (
            f"curl -H 'Authorization: Bearer {made.api_key}' "
            f"'http://{service.private}/connections/account:{fake.accounts[0].id}/token?min_ttl=1'"
        )
        panel = panel_routes(poller, feed, scenarios, renderer, curl=curl)
        pages = web.Application(middlewares=[guard(addresses.panel, changes={"/phone/connect"})])
        pages.add_routes([*panel, *phone.routes(), *renderer.routes()])
        await stack.enter_async_context(open_listener(pages, addresses.panel, name="panel", clock=clock, log=log))
        polling = asyncio.create_task(poller.run(), name="poller")
        stack.push_async_callback(_end, polling)
        token = config.jwt_of(ANOTHER_USER, expires_at=clock.now() + _JWT_LIFE)
        yield Demo(
            service=service,
            poller=poller,
            curl=curl,
            backend=f"export AMO_CALLBACK=http://{service.private} API_KEY={made.api_key}",
            base=config.base,
            jwt=token,
        )


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
