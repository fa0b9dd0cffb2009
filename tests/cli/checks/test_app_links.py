"""The check of the hosts of https deep links, with a TLS server that has the name of each host."""

from __future__ import annotations

import json
import socket
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from trustme import CA

from amo_callback.app_links import ANDROID_FILE, IOS_FILE, app_link_files
from amo_callback.cli.checks.app_links import check_app_links
from amo_callback.cli.checks.finding import Severity, run_check_async
from amo_callback.cli.checks.network import open_probe
from amo_callback.clock import SystemClock
from tests.cli.harness import settings_with
from tests.wait_limit import WAIT_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp.abc import ResolveResult

    from amo_callback.config.settings import Settings

    Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

HOST = "app.example.com"
WEB = f"https://{HOST}/amo-crm/back"
APPS = {
    "APP__DEEP_LINK": f"foryoure://amo-crm/callback {WEB}",
    "APP__IOS_APP_IDS": "ABCDE12345.com.example.app",
    "APP__ANDROID_PACKAGE": "com.example.app",
    "APP__ANDROID_CERT_FINGERPRINTS": ":".join(["AB"] * 32),
}
OK = [
    ("ok", f"https://{HOST}{IOS_FILE} matches the configuration"),
    ("ok", f"https://{HOST}{ANDROID_FILE} matches the configuration"),
    ("ok", f"{WEB} shows a page to browsers"),
]


@pytest.fixture(scope="module")
def authority() -> CA:
    return CA()


class _ToPort(AbstractResolver):
    """A resolver that resolves each name to one port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002 -- aiohttp's signature
    ) -> list[ResolveResult]:
        assert port == 443
        return [
            {
                "hostname": host,
                "host": "127.0.0.1",
                "port": self._port,
                "family": socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
        ]

    async def close(self) -> None: ...


@asynccontextmanager
async def _served(authority: CA, answer: Answer, *names: str) -> AsyncIterator[int]:
    """Serve an application over TLS with a certificate for these names, and yield its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    runner = web.ServerRunner(web.Server(answer))  # type: ignore[arg-type]  # reason: it also accepts a `StreamResponse`
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def _checked(
    settings: Settings, authority: CA, port: int, *, wait_limit: float = WAIT_LIMIT
) -> list[tuple[str, str, str | None]]:
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    connector = aiohttp.TCPConnector(resolver=_ToPort(port), ssl=trusted, force_close=True)
    async with open_probe(clock=SystemClock(), wait_limit=wait_limit, connector=connector) as http:
        found = await run_check_async("app_links", check_app_links(settings, http))
    assert {one.check for one in found} <= {"app_links"}
    assert all((one.fix is None) == (one.severity is Severity.OK) for one in found)
    return [(one.severity.value, one.message, one.fix) for one in found]


def _serving(settings: Settings, seen: list[str] | None = None, **changed: Any) -> Answer:
    """Return the answers of a correct host, of which the options change the response to one path."""
    files = app_link_files(settings.app)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if seen is not None:
            seen.append(f"{request.method} {request.host}{request.path_qs} {sorted(request.headers)}")
        options: dict[str, Any] = {"text": files.get(request.path, "<h1>page</h1>")}
        options["content_type"] = "application/json" if request.path in files else "text/html"
        if request.path == changed.get("path"):
            options |= {name: value for name, value in changed.items() if name != "path"}
        return web.Response(**options)

    return answer


async def _checked_with(authority: CA, **changed: Any) -> list[tuple[str, str, str | None]]:
    settings = settings_with(**APPS)
    async with _served(authority, _serving(settings, **changed), HOST) as port:
        return await _checked(settings, authority, port)


async def test_correct_hosts_are_ok(authority: CA) -> None:
    """Each host's files are requested once, each link's page once, by GET and as a stranger would."""
    links = [WEB, f"https://{HOST}/b", "https://app.example.org:443/b"]
    settings, seen = settings_with(**{**APPS, "APP__DEEP_LINK": ",".join(links)}), list[str]()
    async with _served(authority, _serving(settings, seen), HOST, "app.example.org") as port:
        found = await _checked(settings, authority, port)
    assert [one[:2] for one in found] == [
        *OK[:2],
        ("ok", f"https://app.example.org{IOS_FILE} matches the configuration"),
        ("ok", f"https://app.example.org{ANDROID_FILE} matches the configuration"),
        *(("ok", f"{link} shows a page to browsers") for link in links),
    ]
    headers = ["Accept", "Accept-Encoding", "Connection", "Host", "User-Agent"]
    assert [line.removesuffix(f" {headers}") for line in seen] == [
        *(f"GET {host}{path}" for host in (HOST, "app.example.org") for path in (IOS_FILE, ANDROID_FILE)),
        f"GET {HOST}/amo-crm/back",
        f"GET {HOST}/b",
        "GET app.example.org/b",
    ]


async def test_equal_json_with_other_white_space_is_ok(authority: CA) -> None:
    """A proxy may reformat the JSON, and name a character set."""
    text = json.dumps(json.loads(app_link_files(settings_with(**APPS).app)[IOS_FILE]), indent=4)
    changed = {"path": IOS_FILE, "text": text, "charset": "utf-8"}
    assert [one[:2] for one in await _checked_with(authority, **changed)] == OK


@pytest.mark.parametrize("path", [IOS_FILE, ANDROID_FILE])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"status": 301, "headers": {"Location": "/x"}}, "responds with status 301 instead of 200 (phones"),
        ({"status": 404}, "responds with status 404 instead of 200"),
        ({"status": 502}, "responds with status 502 instead of 200"),
        ({"content_type": "text/html"}, "has the media type text/html instead of application/json"),
        ({"content_type": "application/pkcs7-mime"}, "has the media type application/pkcs7-mime instead of"),
        ({"text": ""}, "does not match the configuration"),
        ({"text": "[]"}, "does not match the configuration"),
        ({"text": "<html>"}, "does not match the configuration"),
        ({"text": "[" * 200_000}, "does not match the configuration"),
        ({"text": " " * 2_000_000}, "does not match the configuration"),
        ({"text": None, "body": b"\xff\xfe\x00"}, "does not match the configuration"),
    ],
    ids=range(11),
)  # fmt: skip
async def test_wrong_file_fails_with_fix(authority: CA, path: str, changed: dict[str, Any], message: str) -> None:
    """A redirect, another status, media type or content fails, and the other requests are still made."""
    found = await _checked_with(authority, path=path, **changed)
    number = [IOS_FILE, ANDROID_FILE].index(path)
    severity, result, fix = found[number]
    assert (severity, result.startswith(f"https://{HOST}{path} {message}")) == ("fail", True)
    assert "server.public" in (fix or "")
    assert [one[:2] for one in found[:number] + found[number + 1 :]] == OK[:number] + OK[number + 1 :]


@pytest.mark.parametrize("status", [204, 302, 404, 503])
async def test_wrong_page_fails(authority: CA, status: int) -> None:
    """A link whose path has no page fails."""
    *rest, (severity, result, _) = await _checked_with(authority, path="/amo-crm/back", status=status)
    assert [one[:2] for one in rest] == OK[:2]
    assert (severity, result.startswith(f"{WEB} responds with status {status} instead of 200")) == ("fail", True)


async def test_file_of_other_apps_fails(authority: CA) -> None:
    """A file with another app, such as one from before a change of the settings, fails."""
    other = settings_with(**{**APPS, "APP__IOS_APP_IDS": "ABCDE12345.com.example.other"})
    async with _served(authority, _serving(other), HOST) as port:
        found = await _checked(settings_with(**APPS), authority, port)
    assert [one[0] for one in found] == ["fail", "ok", "ok"]


async def test_invalid_certificate_fails_and_unreachable_host_warns(authority: CA) -> None:
    """A certificate for another name fails; a host that this machine cannot reach is a warning."""
    settings = settings_with(**APPS)
    async with _served(authority, _serving(settings), "other.example.com") as port:
        found = await _checked(settings, authority, port)
    assert {one[0] for one in found} == {"fail"}
    assert found[0][1] == f"https://{HOST}{IOS_FILE}: the TLS certificate is not valid"
    async with _served(CA(), _serving(settings), HOST) as port:
        assert {one[0] for one in await _checked(settings, authority, port)} == {"fail"}
    found = await _checked(settings, authority, port)
    assert {one[0] for one in found} == {"warn"}
    assert found[0][1].endswith("Connection refused (request sent from this machine)")
    assert found[0][2] == f"from another network, run: curl -i https://{HOST}{IOS_FILE}"


async def test_link_without_apps_warns_and_without_https_link_is_not_checked(authority: CA) -> None:
    """Without ids of apps, only the pages are requested; without an https link, nothing is."""
    settings, seen = settings_with(APP__DEEP_LINK=WEB), list[str]()
    async with _served(authority, _serving(settings, seen), HOST) as port:
        found = await _checked(settings, authority, port)
        assert await _checked(settings_with(), authority, port) == []
    assert [one[0] for one in found] == ["warn", "ok"]
    assert found[0][2] == "set app.ios_app_ids, or app.android_package and app.android_cert_fingerprints"
    assert len(seen) == 1
