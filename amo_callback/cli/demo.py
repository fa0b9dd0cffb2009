"""`amo-callback demo`: the whole flow on this machine, against the built-in stand-in for AMO."""

from __future__ import annotations

import secrets
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import aiohttp
from aiohttp import web
from jinja2 import Environment

from amo_callback.amo.sandbox.app import Sandbox
from amo_callback.amo.sandbox.vendor import Lives, SandboxIntegration, Vendor
from amo_callback.cipher import new_key
from amo_callback.cli.loop import run_loop
from amo_callback.cli.serve import on_signal, until_end
from amo_callback.clock import SystemClock
from amo_callback.config_load import load_settings
from amo_callback.event import Level
from amo_callback.observe.log import LogObserver, make_logger, take_over_library_logs
from amo_callback.web.doors import open_door
from amo_callback.web.lifecycle import Home, open_service

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Mapping

    from structlog.typing import FilteringBoundLogger

    from amo_callback.config import Settings
    from amo_callback.event import Event
    from amo_callback.ports import Clock, Observer

_HOSTS = ("reforyou.amocrm.ru", "gingersnaps.amocrm.ru")
_STATE = "the-state-that-the-app-made"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("demo", help="try the whole flow on this machine, nothing to configure")
    parser.add_argument("--token-life", type=int, default=30, metavar="SECONDS", help="default: 30")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, _environ: Mapping[str, str]) -> int:
    """Run until Ctrl-C."""
    return run_loop(_demo(token_life=options.token_life))


async def _demo(*, token_life: int) -> int:
    clock = SystemClock()
    public, key = f"127.0.0.1:{_free_port()}", secrets.token_urlsafe(32)
    log = make_logger(level="warning", style="auto", stream=sys.stderr, secrets=[key])
    take_over_library_logs(log)
    vendor = Vendor(
        integration=SandboxIntegration(redirect_uri=f"http://{public}/api/amo-crm/callback"),
        now=clock.now,
        lives=Lives(access=token_life),
    )
    for host in _HOSTS:
        vendor.open_account(host)
    observer = _Told(clock, LogObserver(log))
    signalled = on_signal(observer)
    with TemporaryDirectory(prefix="amo-callback-demo-") as folder:
        async with _amo_and_app(vendor, clock=clock, public=public, log=log) as outside:
            settings = _settings(vendor, public=public, outside=outside, key=key)
            home = Home(folder=Path(folder), rescue=Path(folder) / "rescue", machine="demo")
            async with open_service(settings, home=home, clock=clock, log=log, observer=observer) as service:
                _say(_WELCOME.format(outside=outside, private=service.private, key=key, life=token_life))
                status = await until_end(service, signalled)
    _say("\nThe demo has ended; nothing of it is left on this machine.")
    return status


def _settings(vendor: Vendor, *, public: str, outside: str, key: str) -> Settings:
    """Configure as an administrator would, by the environment alone."""
    known = vendor.integration
    return load_settings(
        None,
        {
            "AMO_CALLBACK_SERVER__PUBLIC": public,
            "AMO_CALLBACK_SERVER__PRIVATE": "127.0.0.1:0",
            "AMO_CALLBACK_AMO__CLIENT_ID": known.client_id,
            "AMO_CALLBACK_AMO__CLIENT_SECRET": known.client_secret,
            "AMO_CALLBACK_AMO__REDIRECT_URI": known.redirect_uri,
            "AMO_CALLBACK_AMO__AUTHORIZE_URL": f"http://{outside}/oauth",
            "AMO_CALLBACK_AMO__ENDPOINT": f"http://{outside}/{{domain}}",
            "AMO_CALLBACK_APP__DEEP_LINK": f"http://{outside}/app",
            "AMO_CALLBACK_REFRESH__POLL_INTERVAL": "1",
            "AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS": new_key(),
            "AMO_CALLBACK_API__KEYS": f"demo:{key}",
        },
    )


def _free_port() -> int:
    """Return a port that is free now: the redirect URI must name it before anything listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# --- what stands outside -------------------------------------------------------------------------


@asynccontextmanager
async def _amo_and_app(vendor: Vendor, *, clock: Clock, public: str, log: FilteringBoundLogger) -> AsyncIterator[str]:
    """Serve the stand-in, and two pages that stand for the mobile app; yield the address."""
    app = Sandbox(vendor, clock=clock).app()
    pages = Environment(autoescape=True)
    start, landed = pages.from_string(_START), pages.from_string(_LANDED)
    consent = "/oauth?" + urlencode({"client_id": vendor.integration.client_id, "state": _STATE, "mode": "popup"})

    async def show_start(_request: web.Request) -> web.Response:
        return web.Response(text=start.render(consent=consent), content_type="text/html")

    async def show_landed(request: web.Request) -> web.Response:
        """Do what the app does with the deep link: compare the state, then ask `exchange-code`."""
        answer = None
        if code := request.query.get("code"):
            async with aiohttp.ClientSession() as session:
                address = f"http://{public}/api/amo-crm/exchange-code"
                async with session.post(address, json={"code": code}) as response:
                    answer = f"{response.status} {await response.text()}"
        html = landed.render(
            error=request.query.get("error"), state=request.query.get("state") == _STATE, answer=answer
        )
        return web.Response(text=html, content_type="text/html")

    app.add_routes([web.get("/", show_start), web.get("/app", show_landed)])
    async with open_door(app, "127.0.0.1:0", name="demo", clock=clock, log=log) as door:
        yield door.address


_HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>For You</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,"><style>
body { font: 1.125rem/1.5 system-ui, sans-serif; max-width: 28rem; margin: 0 auto; padding: 10vh 1.25rem;
  overflow-wrap: anywhere }
a { display: block; padding: .9rem 1rem; border-radius: .75rem; text-align: center; text-decoration: none;
  font-weight: 600; background: #1a56db; color: #fff }
code { font-size: .9rem }
</style></head><body>"""
_START = (
    _HEAD + "<h1>For You</h1><p>This page stands for the mobile app.</p>"
    '<a id="connect" href="{{ consent }}">Connect AMO CRM</a></body></html>'
)
_LANDED = (
    _HEAD + "<h1>{{ 'Not connected' if error else 'Back in the app' }}</h1>"
    "{% if error %}<p>The deep link says <code>error={{ error }}</code>.</p>{% endif %}"
    "<p>The state is {{ 'the one the app made' if state else 'NOT the one the app made' }}.</p>"
    "{% if answer %}<p>exchange-code answers:<br><code>{{ answer }}</code></p>{% endif %}"
    '<a id="again" href="/">Start again</a></body></html>'
)

# --- what the terminal shows ---------------------------------------------------------------------

_WELCOME = """\
The whole flow on this machine: the service, a stand-in for amoCRM, and a page that stands for the app.

  Open        http://{outside}/
  A token     curl -H 'Authorization: Bearer {key}' \\
                'http://{private}/connections/account:31920194/token?min_ttl=5'

Tokens live {life} seconds here; watch them being refreshed. Ctrl-C ends it.
"""


class _Told:
    """Tell events to a person; what needs attention is also logged."""

    def __init__(self, clock: Clock, log: Observer) -> None:
        self._clock = clock
        self._log = log

    def __call__(self, event: Event) -> None:
        fields = event.fields
        words = {
            "connection.connected": "connected",
            "refresh.succeeded": "refreshed",
            "grant.failed": f"not connected: {fields.get('word')}",
        }
        if event.name in words:
            due = fields.get("next_refresh_at")
            then = f"next refresh {due:%H:%M:%S}" if due else ""
            _say(f"{self._clock.now():%H:%M:%S}  {words[event.name]:<14} {fields.get('domain')!s:<24} {then}".rstrip())
        elif event.level in {Level.WARNING, Level.ERROR}:
            self._log(event)


def _say(text: str) -> None:
    print(text, flush=True)
