"""Everything that stands around the service, and the service in the midst of it, opened in order."""

from __future__ import annotations

import secrets
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from amo_callback.amo.sandbox.app import Sandbox
from amo_callback.amo.sandbox.rules import Lives, SandboxIntegration
from amo_callback.amo.sandbox.vendor import Vendor
from amo_callback.cipher import new_key
from amo_callback.config.loader import load_settings
from amo_callback.demo.backend import Backend
from amo_callback.demo.life import Life, Watcher
from amo_callback.demo.panel import Panel, loopback_only
from amo_callback.demo.phone import AUDIENCE, Phone
from amo_callback.demo.proxy import Proxy
from amo_callback.demo.render import Renderer
from amo_callback.demo.story import YOU, Aside, Story
from amo_callback.demo.trials import Trials
from amo_callback.observe.log import make_logger, take_over_library_logs
from amo_callback.web.composition import DataPaths, Service, open_service
from amo_callback.web.listener import open_listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from amo_callback.clock import Clock
    from amo_callback.config.settings import Settings
    from amo_callback.demo.story import Line

_ACCOUNTS = ("reforyou.amocrm.ru", "gingersnaps.amocrm.ru")
_SITES = 3
"""The panel's, AMO's and the proxy's."""
_TIMEOUT = aiohttp.ClientTimeout(total=60)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sites:
    """Where everything is: `host:port`."""

    panel: str
    amo: str
    proxy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Secrets:
    """What is made anew for each demonstration."""

    api_key: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    encryption_key: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What runs."""

    service: Service
    story: Story
    trials: Trials
    watcher: Watcher
    curl: str = field(repr=False)
    """A command that takes a token as a backend does."""


def choose_sites(first: int | None) -> Sites:
    """Choose where everything listens: from a port on, or at ports that are free now.

    The redirect URI names its port before anything listens there.
    """
    ports = [_free_port() for _ in range(_SITES)] if first is None else range(first, first + _SITES)
    panel, amo, proxy = (f"127.0.0.1:{port}" for port in ports)
    return Sites(panel=panel, amo=amo, proxy=proxy)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def make_secrets() -> Secrets:
    """Make them."""
    return Secrets(api_key=secrets.token_urlsafe(32), jwt_secret=secrets.token_urlsafe(32), encryption_key=new_key())


def demo_settings(vendor: Vendor, *, sites: Sites, made: Secrets) -> Settings:
    """Configure as an administrator would, by the environment alone, for lives that are half a minute long."""
    known = vendor.integration
    values = {
        "SERVER__PUBLIC": "127.0.0.1:0",
        "SERVER__PRIVATE": "127.0.0.1:0",
        "AMO__CLIENT_ID": known.client_id,
        "AMO__CLIENT_SECRET": known.client_secret,
        "AMO__REDIRECT_URI": known.redirect_uri,
        "AMO__AUTHORIZE_URL": f"http://{sites.amo}/oauth",
        "AMO__ENDPOINT": f"http://{sites.amo}/{{domain}}",
        "AMO__TIMEOUT": "3",
        "APP__DEEP_LINK": f"http://{sites.panel}/phone/return",
        "APP__JWT_SECRET": made.jwt_secret,
        "APP__JWT_AUDIENCE": AUDIENCE,
        "REFRESH__POLL_INTERVAL": "1",
        "REFRESH__LEASE": "4",
        "REFRESH__RETRY_BASE": "2",
        "REFRESH__RETRY_CAP": "10",
        "STORAGE__ENCRYPTION_KEYS": made.encryption_key,
        "API__KEYS": f"demo:{made.api_key}",
    }
    return load_settings(None, {f"AMO_CALLBACK_{name}": value for name, value in values.items()})


@asynccontextmanager
async def open_stage(
    sites: Sites,
    *,
    token_life: float,
    clock: Clock,
    told: Callable[[Line], None],
    seen: Callable[[Life], None],
) -> AsyncIterator[Stage]:
    """Open all of it; nothing of it is left at the end."""
    made = make_secrets()
    vendor = Vendor(
        integration=SandboxIntegration(redirect_uri=f"http://{sites.proxy}/api/amo-crm/callback"),
        now=clock.now,
        lives=Lives(access=token_life),
    )
    for host in _ACCOUNTS:
        vendor.open_account(host)
    sandbox = Sandbox(vendor, clock=clock)
    story = Story(clock=clock, ledger=vendor.ledger, told=told)
    log = make_logger(level="warning", style="console", stream=Aside(story), secrets=[made.api_key])
    take_over_library_logs(log)
    settings = demo_settings(vendor, sites=sites, made=made)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="amo-callback-demo-")))
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False))
        proxy = Proxy(http, panel=sites.panel)
        for name, app, address in (("amo", sandbox.app(), sites.amo), ("proxy", proxy.app(), sites.proxy)):
            await stack.enter_async_context(open_listener(app, address, name=name, clock=clock, log=log))
        paths = DataPaths(folder=folder, rescue=folder / "rescue", machine="demo")
        service = await stack.enter_async_context(
            open_service(settings, paths=paths, clock=clock, log=log, observer=story)
        )
        proxy.public = service.public
        backend = Backend(http, private=service.private, key=made.api_key)
        watcher = Watcher(backend, sandbox, clock=clock, seen=seen)
        trials = Trials(sandbox, backend, story, hook=f"http://{sites.proxy}/api/amo-crm/hooks/disconnect")
        renderer = Renderer(phone_sites=[sites.amo, sites.proxy])
        phone = Phone(
            http,
            public=sites.proxy,
            deep_link="foryoure://amo-crm/callback",
            jwt_secret=made.jwt_secret,
            renderer=renderer,
            clock=clock,
            tell=partial(story.say, YOU),
        )
        curl = (
            f"curl -H 'Authorization: Bearer {made.api_key}' "
            f"'http://{service.private}/connections/account:{vendor.accounts[0].id}/token?min_ttl=1'"
        )
        panel = Panel(life=lambda: watcher.life, story=story, trials=trials, renderer=renderer, curl=curl)
        pages = web.Application(middlewares=[loopback_only])
        pages.add_routes([*panel.routes(), *phone.routes(), *renderer.routes()])
        await stack.enter_async_context(open_listener(pages, sites.panel, name="panel", clock=clock, log=log))
        yield Stage(service=service, story=story, trials=trials, watcher=watcher, curl=curl)
