"""The example configuration for nginx, in front of the service and another backend."""

import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.typing import FilteringBoundLogger
from yarl import URL

from amo_callback.app_links import ANDROID_FILE, IOS_FILE
from amo_callback.deploy.units import text_of
from amo_callback.web.listener import open_listener
from tests.e2e.nginx import Nginx, check_example, run_command, run_nginx, unused_address, write_example
from tests.e2e.processes import eventually
from tests.fakes import ShiftedClock
from tests.service import BASE, Running
from tests.web.phone import WITH_USERS

EXAMPLE = text_of("nginx.conf")
LINK_HOST = "app.example.com"
_COMMENTED_OUT = re.compile(r"^#(?=server|    |}|$)", re.MULTILINE)


async def _written(folder: Path, *, service: str, other: str, with_link: bool = False) -> str:
    """Write the example with local addresses, logs and certificate, and return its address.

    `with_link` uncomments the server of the https deep link.
    """
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    address = unused_address()
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = await run_command(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
        "-subj", "/CN=admin.example.com", "-keyout", str(key), "-out", str(certificate),
    )  # fmt: skip
    assert made[0] == 0, made
    text = _COMMENTED_OUT.sub("", EXAMPLE) if with_link else EXAMPLE
    assert text.count("\nserver {") == 1 + with_link
    changes = {
        "listen 443 ssl;": f"listen {address} ssl;",
        "/etc/ssl/certs/admin.example.com.pem": str(certificate),
        "/etc/ssl/private/admin.example.com.key": str(key),
        f"/etc/ssl/certs/{LINK_HOST}.pem": str(certificate),
        f"/etc/ssl/private/{LINK_HOST}.key": str(key),
        "http://127.0.0.1:8080;": f"http://{service};",
        "http://127.0.0.1:3000;": f"http://{other};",
        "/var/log/nginx/": f"{folder}/",
    }
    write_example(folder, text, changes)
    return address


@asynccontextmanager
async def _fronted(folder: Path, *, service: str, other: str, with_link: bool = False) -> AsyncIterator[Nginx]:
    address = await _written(folder, service=service, other=other, with_link=with_link)
    async with run_nginx(folder, address) as nginx:
        yield nginx


@asynccontextmanager
async def _echo(name: str, log: FilteringBoundLogger) -> AsyncIterator[str]:
    """Serve a backend that returns its name and the `X-Forwarded-For` it received."""

    async def tell(request: web.Request) -> web.Response:
        return web.json_response({"name": name, "from": request.headers.getall("X-Forwarded-For", [])})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", tell)
    async with open_listener(app, "127.0.0.1:0", name=name, clock=ShiftedClock(), log=log) as opened:
        yield opened.address


@pytest.mark.parametrize("with_link", [False, True])
async def test_nginx_accepts_example_without_warning(tmp_path: Path, *, with_link: bool) -> None:
    """`nginx -t` reports neither an error nor a warning, with and without the server of the https deep link."""
    await _written(tmp_path, service="127.0.0.1:8080", other="127.0.0.1:3000", with_link=with_link)
    status, result = await check_example(tmp_path)
    assert status == 0, result
    assert "warn" not in result


async def test_nginx_proxies_service_routes_and_others_to_other_backend(app: Running, tmp_path: Path) -> None:
    """A callback redirects to the app, other paths reach the other backend, and the log has no code."""
    async with (
        _echo("other", app.service.services.log) as other,
        _fronted(tmp_path, service=app.service.public, other=other) as nginx,
    ):
        query = app.query()
        url = URL(f"https://{nginx.address}{BASE}/callback?{query}", encoded=True)
        async with app.http.get(url, ssl=False, allow_redirects=False) as answer:
            assert answer.status == 302
            assert answer.headers["Location"].startswith("foryoure://amo-crm/callback?code=")
        for path in ("/", "/callback/x", "/connections", "/return/", "/hooks"):
            async with app.http.get(f"https://{nginx.address}{BASE}{path}", ssl=False) as answer:
                assert (await answer.json())["name"] == "other", path
        async with app.http.get(f"https://{nginx.address}{BASE}/return/AbC-dEf_1?x=secret", ssl=False) as answer:
            assert answer.status == 404
        await eventually(lambda: f'"GET {BASE}/return/" 404' in nginx.logged())  # logged after the response is sent
        logged = nginx.logged()
    assert f'"GET {BASE}/callback" 302' in logged
    code = query.partition("code=")[2].partition("&")[0]
    assert [secret for secret in (code, "state", "AbC-dEf_1", "secret") if secret in logged] == []


async def test_nginx_proxies_every_public_route(run: Any, tmp_path: Path) -> None:
    """The example's pattern matches every documented route under the base path, with and without users."""
    async with run(**WITH_USERS) as app:
        answer = await app.private("/openapi.json")
        assert answer.status == 200, (answer.text, app.lines())
        paths = [path.replace("{handle}", "h") for path in json.loads(answer.text)["paths"] if path.startswith(BASE)]
        async with (
            _echo("other", app.service.services.log) as other,
            _echo("service", app.service.services.log) as service,
            _fronted(tmp_path, service=service, other=other) as nginx,
        ):
            for path in paths:
                async with app.http.get(f"https://{nginx.address}{path}", ssl=False) as passed:
                    assert (await passed.json())["name"] == "service", path
    assert len(paths) == 8


async def test_nginx_replaces_forwarded_for_and_omits_unreadable_request(app: Running, tmp_path: Path) -> None:
    """`X-Forwarded-For` is replaced, and an oversized request line gets an error page and is not logged."""
    async with (
        _echo("service", app.service.services.log) as service,
        _fronted(tmp_path, service=service, other=service) as nginx,
    ):
        url = f"https://{nginx.address}{BASE}/callback"
        async with app.http.get(url, ssl=False, headers={"X-Forwarded-For": "203.0.113.7"}) as answer:
            assert (await answer.json())["from"] == ["127.0.0.1"]
        for length in (40_000, 200_000):
            long = URL(f"{url}?code=def50200{'a' * length}", encoded=True)
            async with app.http.get(long, ssl=False) as answer:
                assert answer.status == 400
                assert "Go back to the app" in await answer.text()
        await eventually(lambda: nginx.logged().count('" 400 ') == 2)  # logged after the response is sent
        assert "def50200" not in nginx.logged()


async def test_nginx_with_unavailable_service_logs_no_code(app: Running, tmp_path: Path) -> None:
    """An unavailable service is a 502, and nginx's error log does not contain the request."""
    unused = unused_address()
    async with _fronted(tmp_path, service=unused, other=unused) as nginx:
        async with app.http.get(f"https://{nginx.address}{BASE}/callback?code=def50200", ssl=False) as answer:
            assert answer.status == 502
        await eventually(lambda: '" 502 ' in nginx.logged())  # logged after the response is sent
        assert "def50200" not in nginx.logged()


async def test_nginx_serves_files_and_page_of_https_link_without_logging_its_query(run: Any, tmp_path: Path) -> None:
    """The link's host serves the files without a redirect and the page; neither nginx nor the service logs a query."""
    secrets = ["def50200secret", "zzsecretstate"]
    query = f"code={secrets[0]}&state={secrets[1]}"
    settings = {
        "APP__DEEP_LINK": f"foryoure://amo-crm/callback https://{LINK_HOST}/amo-crm/callback",
        "APP__IOS_APP_IDS": "ABCDE12345.com.example.app",
        "APP__ANDROID_PACKAGE": "com.example.app",
        "APP__ANDROID_CERT_FINGERPRINTS": ":".join(["AB"] * 32),
    }
    async with (
        run(**settings) as app,
        _echo("other", app.service.services.log) as other,
        _fronted(tmp_path, service=app.service.public, other=other, with_link=True) as nginx,
    ):

        async def ask(method: str, target: str, host: str = LINK_HOST) -> tuple[int, str, str]:
            url = URL(f"https://{nginx.address}{target}", encoded=True)
            options = {"ssl": False, "allow_redirects": False, "server_hostname": host, "headers": {"Host": host}}
            async with app.http.request(method, url, **options) as answer:
                assert "Location" not in answer.headers
                return answer.status, answer.headers["Content-Type"], await answer.text()

        for path in (IOS_FILE, ANDROID_FILE):
            own = await app.public(path)
            assert await ask("GET", f"{path}?{query}") == (200, "application/json", own.text)
            assert await ask("HEAD", f"{path}?{query}") == (200, "application/json", "")
            assert (await ask("GET", path, "admin.example.com"))[0] == 404
        status, media, page = await ask("GET", f"/amo-crm/callback?{query}")
        assert (status, media) == (200, "text/html; charset=utf-8")
        assert f"foryoure://amo-crm/callback?code={secrets[0]}&amp;state={secrets[1]}" in page
        for target in (f"/?{query}", f"/amo-crm/callback/?{query}", f"{BASE}/callback?{query}", f"/x%00?{query}"):
            assert (await ask("GET", target))[0] in {400, 404}
        for target in (f"/amo-crm/callback?{query}{'x' * 40_000}", f"/amo-crm/callback?{query}{'x' * 200_000}"):
            assert (await ask("GET", target))[0] == 400
        await eventually(lambda: nginx.logged().count('" 400 ') >= 2)  # logged after the response is sent
        logged = nginx.logged()
        assert '"GET /amo-crm/callback" 200' in logged
        assert app.amo.sandbox.requests == 0
        assert [secret for secret in secrets if secret in logged + app.log.getvalue()] == []


async def test_nginx_of_https_link_with_unavailable_service_logs_no_query(app: Running, tmp_path: Path) -> None:
    """If the service is unavailable, nginx's error log does not contain the link's query."""
    unused = unused_address()
    async with _fronted(tmp_path, service=unused, other=unused, with_link=True) as nginx:
        url = f"https://{nginx.address}/amo-crm/callback?code=def50200"
        options: dict[str, Any] = {"ssl": False, "server_hostname": LINK_HOST, "headers": {"Host": LINK_HOST}}
        async with app.http.get(url, **options) as answer:
            assert answer.status == 502
        await eventually(lambda: '" 502 ' in nginx.logged())  # logged after the response is sent
        assert "def50200" not in nginx.logged()
