"""The example configuration for calls of AMO's API through nginx."""

import io
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from trustme import CA

from amo_callback.web.listener import open_listener
from tests.e2e.nginx import check_example, run_nginx, unused_address
from tests.e2e.nginx_proxy import Proxied, run_proxy, write_proxy
from tests.e2e.processes import eventually
from tests.fakes import ShiftedClock
from tests.service import ADMIN_KEY, API_KEY, READ_KEY, Running

UNKNOWN_KEY = "wrong-api-key-0123456789-0123456789-012345678"
LIMITED_KEY = "limited-api-key-0123456789-0123456789-0123456"
"""A key for another account."""
KEYS = f"backend:{API_KEY}\nreader:read:{READ_KEY}\nadmin:admin:{ADMIN_KEY}\nlimited:token:account=1:{LIMITED_KEY}"


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CA:
    """Return an authority that the service trusts."""
    authority, trusted = CA(), tmp_path / "trusted-by-service.pem"
    authority.cert_pem.write_to_path(str(trusted))
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    return authority


@pytest.fixture
async def proxied(tmp_path: Path, encryption_key: str, authority: CA) -> AsyncIterator[Proxied]:
    """Run nginx in front of AMO; no test may lead to a token or key in a log."""
    async with run_proxy(tmp_path, encryption_key, authority, API__KEYS=KEYS) as proxied:
        yield proxied
        assert proxied.leaked() == []


async def test_proxy_configuration_is_accepted_without_warning(tmp_path: Path) -> None:
    """`nginx -t` reports neither an error nor a warning."""
    write_proxy(tmp_path, private="127.0.0.1:8081")
    status, result = await check_example(tmp_path)
    assert status == 0, result
    assert "warn" not in result


# --- calls that AMO answers -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"])
async def test_proxy_sends_call_to_amo_with_its_token(proxied: Proxied, method: str) -> None:
    """AMO receives the call's method, path, query and body as they are, with the account's token and no API key."""
    body = b'[{"name": "\xd0\xbb\xd0\xb8\xd0\xb4"}]' if method in {"POST", "PATCH", "PUT"} else b""
    target = "/api/v4/leads/a%2Fb//%D0%BB?filter[id][]=1&query=%2B380+50&with=/../x"
    headers = {"Content-Type": "application/hal+json", "If-Modified-Since": "Mon, 01 Jun 2026 10:00:00 GMT"}
    for name in (proxied.account, proxied.name):
        answer = await proxied.ask(f"/{name}{target}", method=method, data=body or None, headers=headers)
        assert (answer.status, "X-Amo-Error" in answer.headers) == (200, False)
        assert answer.text == ("" if method == "HEAD" else '{"valid": true}')
        [*_, seen] = proxied.api.requests
        assert (seen.server_name, seen.method, seen.target, seen.body) == ("localhost", method, target, body)
        assert seen.values("Authorization") == [f"Bearer {await proxied.token()}"]
        assert seen.values("Host") == [proxied.app.amo.address]
        assert [seen.values(name) for name in headers] == [[value] for value in headers.values()]
    assert API_KEY not in str(proxied.api.requests)
    await eventually(lambda: proxied.nginx.logged().count("/api/v4/leads/a/b/") == 2)  # logged after the answer
    assert "filter" not in proxied.nginx.logged()


async def test_proxy_sends_long_token(proxied: Proxied) -> None:
    """An access token of eight kilobytes reaches AMO."""
    token = "t" * 8000
    cipher = proxied.app.service.services.core.cipher
    pair = cipher.decrypt_pair(await proxied.app.stored(proxied.name))
    assert pair is not None
    sealed = cipher.seal_pair(replace(pair, access_token=token), connection_id=proxied.name)
    with closing(sqlite3.connect(proxied.app.folder / "amo-callback.db")) as database, database:
        database.execute("UPDATE connections SET sealed_pair = ?", (sealed,))
    proxied.app.clock.advance(2)
    assert (await proxied.ask(f"/{proxied.account}/api/v4/leads")).status == 401
    assert proxied.api.requests[-1].values("Authorization") == [f"Bearer {token}"]


async def test_proxy_over_unix_socket_sends_call_to_amo(tmp_path: Path, encryption_key: str, authority: CA) -> None:
    """The address of the private API can be a Unix socket."""
    async with run_proxy(tmp_path, encryption_key, authority, unix=True) as proxied:
        answers = [await proxied.ask(f"/{proxied.account}/api/v4/leads", key=key) for key in (API_KEY, UNKNOWN_KEY)]
        assert [answer.status for answer in answers] == [200, 401]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (204, {}),
        (302, {"Location": "https://other.amocrm.ru/api/v4/leads"}),
        (400, {"Content-Type": "application/problem+json"}),
        (401, {"WWW-Authenticate": "Bearer"}),
        (403, {}),
        (404, {}),
        (413, {}),
        (429, {"Retry-After": "7"}),
        (500, {}),
        (502, {}),
        (504, {}),
    ],
)
async def test_proxy_passes_answer_of_amo_unchanged(proxied: Proxied, status: int, headers: dict[str, str]) -> None:
    """AMO's status, headers and body reach the caller, also of errors; a redirect is not followed."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers, body=body)

    body = b"" if status == 204 else b"AMO's own text"
    proxied.api.answer = answer
    received = await proxied.ask(f"/{proxied.account}/api/v4/leads")
    assert (received.status, received.text) == (status, body.decode())
    assert headers.items() <= received.headers.items()
    assert "X-Amo-Error" not in received.headers
    assert len(proxied.api.requests) == 1


async def test_proxy_sends_bodies_to_amo_alone(proxied: Proxied) -> None:
    """Long and chunked bodies reach AMO whole, after the key is checked; a body above the limit is 413."""
    path = f"/{proxied.account}/api/v4/leads"

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"chunk" * 1000

    for sent, size in ((io.BytesIO(b"x" * 7_000_000), 7_000_000), (chunks(), 500_000)):
        assert (await proxied.ask(path, method="POST", data=sent)).status == 200
        assert len(proxied.api.requests[-1].body) == size
    request = f"POST {path} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 4\r\n"
    answer = await proxied.send(f"{request}Authorization: Bearer {API_KEY}\r\n\r\nbody".encode())
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    assert proxied.api.requests[-1].body == b"body"
    count = len(proxied.api.requests)
    assert b"HTTP/1.1 401 " in await proxied.send(f"{request}\r\nbody".encode())
    large = await proxied.ask(path, method="POST", data=io.BytesIO(b"x" * 9_000_000))
    assert (large.status, large.headers["X-Amo-Error"], large.json()["status"]) == (413, "proxy_error", 413)
    assert len(proxied.api.requests) == count


# --- calls that do not reach AMO ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name", "status", "code"),
    [
        (None, "", 401, "unauthorized"),
        (UNKNOWN_KEY, "", 401, "unauthorized"),
        (READ_KEY, "", 403, "forbidden"),
        (LIMITED_KEY, "", 403, "forbidden"),
        (API_KEY, "account:1", 404, "not_found"),
        (API_KEY, "...", 404, "not_found"),
    ],
)
async def test_proxy_refused_call_has_status_and_code(
    proxied: Proxied, key: str | None, name: str, status: int, code: str
) -> None:
    """The status and code of the private API reach the caller, and nothing reaches AMO."""
    answer = await proxied.ask(f"/{name or proxied.account}/api/v4/leads", key=key, method="POST", data=b"body")
    problem = answer.json()
    assert (answer.status, problem["status"], problem["code"]) == (status, status, code)
    assert (answer.headers["X-Amo-Error"], answer.headers["Content-Type"]) == (code, "application/problem+json")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers.get("WWW-Authenticate", "").startswith("Bearer realm=") is (status == 401)
    assert proxied.api.requests == []


async def test_proxy_without_valid_token_is_503_with_retry_after_or_409(
    tmp_path: Path, encryption_key: str, authority: CA
) -> None:
    """A frozen connection is 503 with `Retry-After`, and a connection in `needs_reauth` is 409."""
    async with run_proxy(tmp_path, encryption_key, authority) as proxied:
        app, path = proxied.app, f"/{proxied.account}/api/v4/leads"
        app.amo.spend(grant_type="refresh_token", refresh_token=app.amo.fake.ledger.issued[-1])
        await app.private("/freeze", method="POST", key=ADMIN_KEY)
        app.clock.advance(86_400)
        frozen = await proxied.ask(path)
        assert (frozen.status, frozen.headers["X-Amo-Error"], frozen.json()["code"]) == (503, "frozen", "frozen")
        assert frozen.headers["Retry-After"] == "900"
        await app.private("/thaw", method="POST", key=ADMIN_KEY)
        await app.witness.until("connection.needs_reauth")
        lost = await proxied.ask(path)
        assert (lost.status, lost.headers["X-Amo-Error"], lost.json()["code"]) == (409, "needs_reauth", "needs_reauth")
        assert "Retry-After" not in lost.headers
        assert proxied.api.requests == []


@pytest.mark.parametrize(
    "target",
    [
        "/{name}",
        "/{name}?/api",
        "/{name}%2fapi",
        "/{name}%00/api",
        "/{name}/api%00",
        "/{name}/api v4",
        "/{name}/\xff",
        "/{name}@example.com/api",
        "/{name}%40example.com/api",
        "/{name}\\api",
        "//{name}/api",
        "/./{name}/api",
        "/../{name}/api",
        "/{name}/../account:2/api",
        "/{name}/../../account:2/api",
        "/{name}/x/..%2f..%2faccount:2/api",
        "/{name}/x/%2e%2e/%2E%2E/account:2/api",
        "/../authorization",
        "/amo-callback-authorization",
        "/{name}/../amo-callback-authorization",
        "/{name}/..%2famo-callback-authorization",
        "/@amo_callback_error",
        "*",
    ],
)
async def test_proxy_hostile_target_is_refused_without_sub_request(proxied: Proxied, target: str) -> None:
    """A target without a plain name, or with a path out of the name, is 400 or 404 without a sub-request."""
    before = len(proxied.app.lines())
    line = f"GET {target.format(name=proxied.account)} HTTP/1.1".encode("latin-1")
    head = f"Host: h\r\nConnection: close\r\nAuthorization: Bearer {API_KEY}\r\n\r\n".encode()
    answer = await proxied.send(line + b"\r\n" + head)
    assert answer[:13] in {b"HTTP/1.1 400 ", b"HTTP/1.1 404 "}
    assert proxied.api.requests == []
    assert [line for line in proxied.app.lines()[before:] if line["event"] == "http.request"] == []


@pytest.mark.parametrize("lines", ["Authorization: Bearer {key}\r\nAuthorization: Bearer x", "Authorization: {key}"])
async def test_proxy_doubled_or_other_authorization_is_refused(proxied: Proxied, lines: str) -> None:
    """Two `Authorization` headers are 400, and one without a scheme is 401."""
    head = f"GET /{proxied.account}/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{lines.format(key=API_KEY)}\r\n\r\n"
    answer = await proxied.send(head.encode())
    assert answer[9:12] == (b"400" if lines.count("\n") else b"401")
    assert proxied.api.requests == []


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
async def test_proxy_refuses_methods_that_repeat_headers(proxied: Proxied, method: str) -> None:
    """TRACE, whose answer would repeat the access token, and CONNECT are 405."""
    request = (
        f"{method} /{proxied.account}/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer {API_KEY}"
    )
    assert (await proxied.send(f"{request}\r\n\r\n".encode())).startswith(b"HTTP/1.1 405 ")
    assert proxied.api.requests == []


# --- secrets --------------------------------------------------------------------------------------


async def test_proxy_sends_no_other_header_of_caller_to_amo(proxied: Proxied) -> None:
    """Host, cookies, hop-by-hop headers and the caller's own `X-Amo-` headers neither reach AMO nor change the call."""
    request = "\r\n".join(
        [
            f"GET http://example.com/{proxied.account}/api/v4/leads HTTP/1.1",
            "Host: example.org",
            "Connection: close, Authorization, X-Other",
            f"Authorization: bearer {API_KEY}",
            f"Proxy-Authorization: Bearer {API_KEY}",
            f"X-Api-Key: {API_KEY}",
            "X-Amo-Authorization: Bearer other",
            "X-Amo-Base-Url: https://example.com",
            "X-Forwarded-For: 203.0.113.7",
            "X-Accel-Redirect: /amo-callback-authorization",
            "Cookie: session_id=1",
            "TE: trailers",
            "Upgrade: websocket",
            "Accept: application/json",
        ]
    )
    assert (await proxied.send(f"{request}\r\n\r\n".encode())).startswith(b"HTTP/1.1 200 ")
    [seen] = proxied.api.requests
    assert {name: value for name, value in seen.headers if name != "Authorization"} == {
        "Host": proxied.app.amo.address,
        "Connection": "close",
        "Accept": "application/json",
    }
    assert seen.values("Authorization") == [f"Bearer {await proxied.token()}"]


@pytest.mark.parametrize("status", [200, 404])
async def test_proxy_answer_of_amo_leads_to_no_internal_location(proxied: Proxied, status: int) -> None:
    """`X-Accel-Redirect` in AMO's answer has no effect, and its cookies and `X-Amo-Error` are removed."""
    headers = {
        "X-Accel-Redirect": "/amo-callback-authorization",
        "X-Amo-Error": "frozen",
        "Set-Cookie": "session_id=1; Path=/",
    }

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers, text="AMO's own text")

    proxied.api.answer = answer
    received = await proxied.ask(f"/{proxied.account}/api/v4/leads")
    assert (received.status, received.text) == (status, "AMO's own text")
    assert not {"X-Amo-Authorization", "X-Amo-Error", "X-Amo-Base-Url", "Set-Cookie"} & received.headers.keys()
    assert len([line for line in proxied.app.lines() if line["event"] == "token.handed_out"]) == 1


async def test_proxy_without_answer_of_amo_is_502_after_one_request(proxied: Proxied) -> None:
    """If AMO closes the connection, the caller gets 502, and the call is not repeated."""

    async def abort(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    proxied.api.answer = abort
    for method in ("GET", "POST"):
        answer = await proxied.ask(f"/{proxied.account}/api/v4/leads", method=method)
        assert (answer.status, answer.headers["X-Amo-Error"]) == (502, "proxy_error")
    assert [seen.method for seen in proxied.api.requests] == ["GET", "POST"]


@pytest.mark.parametrize("wrong", ["authority", "host", "time"])
async def test_proxy_with_wrong_certificate_of_amo_sends_no_token(proxied: Proxied, authority: CA, wrong: str) -> None:
    """A certificate of another authority or host, or an expired one, is 502, and AMO's address receives no request."""
    path = f"/{proxied.account}/api/v4/leads"
    assert (await proxied.ask(path)).status == 200
    issuer, host = CA() if wrong == "authority" else authority, "example.com" if wrong == "host" else "localhost"
    end = datetime.now(UTC) + timedelta(days=-1 if wrong == "time" else 1)
    issuer.issue_cert(host, not_before=end - timedelta(days=2), not_after=end).configure_cert(proxied.api.tls)
    answer = await proxied.ask(path)
    assert (answer.status, answer.headers["X-Amo-Error"], answer.json()["status"]) == (502, "proxy_error", 502)
    assert len(proxied.api.requests) == 1
    await eventually(lambda: "upstream SSL certificate" in proxied.nginx.logged())


async def test_proxy_with_url_without_tls_sends_no_token(app: Running, tmp_path: Path) -> None:
    """If the base URL is not https, the call is 502, and nginx opens no connection to it."""
    await app.connected()
    async with run_nginx(tmp_path, write_proxy(tmp_path, private=app.service.private)) as nginx:
        url = f"http://{nginx.address}/account:{app.amo.account.id}/api/v4/account"
        async with app.http.get(url, headers={"Authorization": f"Bearer {API_KEY}"}) as answer:
            assert (answer.status, answer.headers["X-Amo-Error"]) == (502, "proxy_error")
        assert 'invalid URL prefix in "/api/v4/account"' in nginx.logged()


async def test_proxy_sub_request_has_key_alone(app: Running, tmp_path: Path) -> None:
    """The private API receives a GET request with the API key, without the caller's body, cookies and other headers."""
    seen: list[tuple[str, str, bytes, dict[str, str]]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.method, request.raw_path, await request.read(), dict(request.headers)))
        headers = {"X-Amo-Error": "amo_refused", "Retry-After": "31"}
        return web.Response(status=int(request.path.split("/")[2]), headers=headers)

    private = web.Application()
    private.router.add_route("*", "/{path:.*}", answer)
    log = app.service.services.log
    async with (
        open_listener(private, "127.0.0.1:0", name="private", clock=ShiftedClock(), log=log) as opened,
        run_nginx(tmp_path, write_proxy(tmp_path, private=opened.address)) as nginx,
    ):
        headers = {"Authorization": f"Bearer {API_KEY}", "Cookie": "a=b", "X-Other": "x"}
        for status in (401, 403, 404, 409, 502, 503, 500, 418, 302):
            url = f"http://{nginx.address}/{status}/api?min_ttl=1"
            async with app.http.post(url, headers=headers, data=b"body") as received:
                assert received.status == (500 if status in {418, 302} else status)
                assert received.headers["X-Amo-Error"] == (await received.json())["code"] == "amo_refused"
                assert received.headers["Retry-After"] == "31"
    assert [(method, path, body) for method, path, body, _ in seen][:2] == [
        ("GET", "/connections/401/authorization", b""),
        ("GET", "/connections/403/authorization", b""),
    ]
    assert all(set(headers) == {"Authorization", "Host", "Connection"} for *_, headers in seen)


async def test_proxy_with_unreachable_private_api_is_502(tmp_path: Path) -> None:
    """If the private API cannot be reached, the status is 502."""
    async with (
        run_nginx(tmp_path, write_proxy(tmp_path, private=unused_address())) as nginx,
        aiohttp.ClientSession() as http,
        http.get(f"http://{nginx.address}/account:1/api", headers={"Authorization": f"Bearer {API_KEY}"}) as answer,
    ):
        assert (answer.status, answer.headers["X-Amo-Error"]) == (502, "proxy_error")
        assert json.loads(await answer.text())["status"] == 502
        assert API_KEY not in nginx.logged()


# --- an access token that AMO rejects -------------------------------------------------------------


async def test_proxy_after_401_of_amo_forced_refresh_recovers(proxied: Proxied) -> None:
    """Nginx repeats no call, so AMO's 401 reaches the caller; after `POST /refresh`, the next call succeeds."""
    path = f"/{proxied.account}/api/v4/leads"
    proxied.app.amo.fake.forget(await proxied.token())
    for _ in range(2):
        answer = await proxied.ask(path)
        assert (answer.status, "X-Amo-Error" in answer.headers) == (401, False)
    refreshed = await proxied.app.private(f"/connections/{proxied.account}/refresh", method="POST")
    assert refreshed.status == 200
    assert (await proxied.ask(path)).status == 200
    assert len(proxied.app.amo.fake.ledger.refreshes()) == 1


async def test_proxy_after_401_to_new_token_refresh_recovers_after_10_seconds(proxied: Proxied) -> None:
    """`POST /refresh` returns a pair unchanged for ten seconds; only after that does it recover."""
    path, refresh = f"/{proxied.account}/api/v4/leads", f"/connections/{proxied.account}/refresh"
    await proxied.app.private(refresh, method="POST")
    proxied.app.amo.fake.forget(await proxied.token())
    statuses = []
    for seconds in (0, 10):
        proxied.app.clock.advance(seconds)
        await proxied.app.private(refresh, method="POST")
        statuses.append((await proxied.ask(path)).status)
    assert statuses == [401, 200]


async def test_proxy_refresh_that_ends_old_token_needs_no_action(proxied: Proxied) -> None:
    """If a refresh invalidates the old access token, the next call has the new one."""
    proxied.app.amo.fake.quirks.refresh_kills_access = True
    path = f"/{proxied.account}/api/v4/leads"
    assert (await proxied.ask(path)).status == 200
    await proxied.app.private(f"/connections/{proxied.name}/refresh", method="POST")
    assert (await proxied.ask(path)).status == 200
