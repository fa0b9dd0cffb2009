"""Hostile requests to every path of both APIs cause no 5xx, and no trace of a bug in response or log."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Callable, Container, Iterator
from typing import Any

import pytest

from tests.service import ADMIN_KEY, BASE, HOST, READ_KEY, Answer, Running
from tests.web.phone import WITH_USERS, bearer

DEEP = b"[" * 10_000
BODIES = {
    "not JSON": b"\x00\x01\x02 not JSON",
    "truncated JSON": b'{"',
    "a list": b"[]",
    "null": b"null",
    "a number": b"7",
    "NaN": b"NaN",
    "minus infinity": b"-Infinity",
    "broken UTF-8": b'{"code": "\xff\xfe", "owner": "\xff", "state": "\xff", "rejected_access_token": "\xff"}',
    "lone surrogate": b'{"code": "\\ud800", "owner": "\\ud800", "state": "\\ud800", '
    b'"rejected_access_token": "\\ud800", "accountId": "\\ud800"}',
    "UTF-16": '{"code": "x", "owner": "42"}'.encode("utf-16"),
    "10,000 levels of lists": DEEP,
    "10,000 levels of objects": b'{"a":' * 10_000,
    "5 MB": b'{"code": "' + b"x" * 5_000_000 + b'"}',
    "a number of 5,000 digits": b'{"code": 1%(n)s, "owner": 1%(n)s, "state": 1%(n)s, "rejected_access_token": 1%(n)s, '
    b'"connections": [{"access_token": 1%(n)s}], "accountId": 1%(n)s}' % {b"n": b"0" * 5_000},
    "a number of 4,000 digits": b'{"code": 1%(n)s, "owner": 1%(n)s, "state": 1%(n)s, "rejected_access_token": 1%(n)s, '
    b'"connections": [{"access_token": 1%(n)s}], "accountId": 1%(n)s}' % {b"n": b"0" * 4_000},
    "1e999": b'{"accountId": 1e999, "code": 1e999, "owner": 1e999, "state": 1e999, "rejected_access_token": 1e999, '
    b'"connections": [{"expires_at": 1e999}]}',
    "NaN as values": b'{"accountId": NaN, "code": NaN, "owner": NaN, "state": NaN, "rejected_access_token": NaN, '
    b'"connections": [{"access_token": "x", "refresh_token": "x", "domain": "a.amocrm.ru", "expires_at": NaN}]}',
    "wrong types": b'{"code": {}, "owner": [], "state": {}, "rejected_access_token": {}, "connections": {}, '
    b'"accountId": {}}',
}
TYPES = ("application/x-www-form-urlencoded", "text/plain", "application/xml", "multipart/form-data; boundary=x",
         "application/json; charset=utf-7", "application/json; charset=nonsense", "\xff")  # fmt: skip
NAMES = {
    "an encoded slash": "a%2Fb",
    "an encoded NUL": "%00",
    "dots": "..%2f..%2f..%2fetc%2fpasswd",
    "encoded dots": "%2e%2e%2f%2e%2e",
    "invalid UTF-8": "%ff%fe",
    "encoded surrogate": "%ed%a0%80",
    "raw bytes": b"\xff\xfe".decode("latin-1"),
    "10 kB": "x" * 10_000,
    "an account without id": "account:",
    "an owner without id": "owner:",
    "an owner of invalid UTF-8": "owner:%ff",
    "an account with NUL": "account:%00",
    "a broken escape": "%zz",
    "an injection": "account:1%27%20OR%20%271%27=%271",
    "new lines": "a%0d%0aX-Evil:%201",
}
METHODS = ("PUT", "PATCH", "TRACE", "OPTIONS", "PROPFIND", "BREW")


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with JWT settings."""
    async with run(**WITH_USERS, LIMITS__FAILED_CODES="1000000", AMO__DEFAULT_DOMAIN=HOST) as running:
        yield running


async def _operations(app: Running) -> list[tuple[str, str, Any]]:
    document = (await app.private("/openapi.json", key=READ_KEY)).json()
    return [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "head"
    ]


async def _ask(app: Running, path: str, *, api: str, method: str, **options: Any) -> Answer:
    """Send a request with the most privileged credentials of the API."""
    if isinstance(body := options.get("data"), bytes):
        options["data"] = io.BytesIO(body)  # sent in parts, because 5 MB at once would block the loop
    if api == "private":
        return await app.private(path, key=ADMIN_KEY, method=method, **options)
    options["headers"] = {**bearer("42"), **options.get("headers", {})}
    return await app.public(path, method=method, **options)


def _filled_path(path: str, name: str = "unknown") -> str:
    return re.sub(r"\{\w+\}", lambda _: name, path)


def _check(answer: Answer, name: str, *, expected: Container[int] = range(400, 500)) -> None:
    assert answer.status in expected, f"{name}: {answer.status} {answer.text[:200]}"
    for trace in ("Traceback", 'File "', "aiohttp", "pydantic", "Error("):
        assert trace not in answer.text, name
    assert "X-Evil" not in answer.headers, name


def _check_log(app: Running) -> None:
    text = app.log.getvalue()
    assert "Traceback" not in text
    assert [line for line in app.lines() if line["event"] == "http.bug" or line.get("status", 0) >= 500] == []


async def test_malformed_body_is_refused_by_every_operation_that_reads_one(
    app: Running, record_property: Callable[[str, object], None]
) -> None:
    """Each body is refused with 400, or 413 if it is too long, and AMO receives no token request."""
    asked = 0
    for method, path, operation in await _operations(app):
        if "requestBody" not in operation:
            continue
        for name, body in BODIES.items():
            answer = await _ask(app, _filled_path(path), api=operation["tags"][0], method=method, data=body)
            _check(answer, f"{path} with {name}", expected={400, 413})
            asked += 1
    assert asked > 40
    assert app.amo.fake.ledger.entries == []
    _check_log(app)
    record_property("cases", asked)


async def test_body_is_read_as_json_with_any_content_type(app: Running) -> None:
    """An invalid body is refused with every type, and a valid one is accepted with the type that `curl -d` sends."""
    for method, path, operation in await _operations(app):
        if "requestBody" not in operation:
            continue
        for kind in TYPES:
            headers = {"Content-Type": kind}
            answer = await _ask(
                app, _filled_path(path), api=operation["tags"][0], method=method, data=b"a=b&c=d", headers=headers
            )
            _check(answer, f"{path} as {kind}")
    form = {"Content-Type": TYPES[0]}
    answer = await app.private("/authorizations", method="POST", data=b'{"owner": "42"}', headers=form)
    assert answer.status == 200
    _check_log(app)


async def test_body_of_operation_that_reads_none_is_ignored(app: Running) -> None:
    """The status is the same with and without a body."""
    for method, path, operation in await _operations(app):
        if "requestBody" in operation or path in {f"{BASE}/connect", f"{BASE}/callback"}:
            continue
        plain = await _ask(app, _filled_path(path), api=operation["tags"][0], method=method)
        for body in (BODIES["not JSON"], DEEP, BODIES["5 MB"]):
            answer = await _ask(app, _filled_path(path), api=operation["tags"][0], method=method, data=body)
            assert answer.status == plain.status, path
    _check_log(app)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
async def test_invalid_name_in_path_is_400_or_404(app: Running, name: str) -> None:
    """Every path with a name refuses an invalid name."""
    for method, path, operation in await _operations(app):
        if "{" not in path:
            continue
        body = b"{}" if "requestBody" in operation else None
        answer = await _ask(app, _filled_path(path, name), api=operation["tags"][0], method=method, data=body)
        _check(answer, f"{method} {path} with {name[:40]}")
        assert answer.status in {400, 404}, path
    _check_log(app)


@pytest.mark.parametrize("method", METHODS)
async def test_unknown_method_is_405_with_allow(app: Running, method: str) -> None:
    """The status is 405 with `Allow`, or 400 for a method that is not part of HTTP."""
    for _, path, operation in await _operations(app):
        answer = await _ask(app, _filled_path(path), api=operation["tags"][0], method=method)
        _check(answer, f"{method} {path}")
        assert answer.status in {400, 405}
        assert answer.status == 400 or answer.headers["Allow"]
    _check_log(app)


async def test_invalid_private_parameter_is_400(app: Running) -> None:
    """Every private operation refuses repeated, empty, binary and long values."""
    asked = 0
    for method, path, operation in await _operations(app):
        if operation["tags"] != ["private"]:
            continue
        for parameter in (one["name"] for one in operation["parameters"] if one["in"] == "query"):
            for value in ("1&{}=1", "", "%00", "%ff%00", "%01\xff", "x" * 10_000, "%0d%0aX-Evil:1"):
                answer = await _ask(
                    app,
                    f"{_filled_path(path)}?{parameter}={value.replace('{}', parameter)}",
                    api="private",
                    method=method,
                )
                _check(answer, f"{path} {parameter}={value[:20]}")
                assert answer.status == 400, (path, parameter, value[:20])
                asked += 1
    assert asked > 40
    _check_log(app)


async def test_malformed_public_query_causes_no_bug(app: Running) -> None:
    """A browser's malformed query is accepted or refused, without a 5xx, an injected header or a logged bug."""
    for method, path, operation in await _operations(app):
        if operation["tags"] != ["public"]:
            continue
        for query in _queries(operation):
            answer = await _ask(app, f"{_filled_path(path)}?{query}", api="public", method=method)
            _check(answer, f"{path}?{query[:40]}", expected=range(200, 500))
    _check_log(app)


def _queries(operation: Any) -> Iterator[str]:
    for parameter in (one["name"] for one in operation["parameters"] if one["in"] == "query"):
        for value in ("a&{}=b", "", "%00", "%ff", "\xff", "%", "x" * 10_000, "[]", "%0d%0aX-Evil:%201"):
            yield f"{parameter}={value.replace('{}', parameter)}"
    yield "&".join(f"a{number}=b" for number in range(2_000))
    yield "%ff=%ff&\xff=\xff&=&&=="


FLOODS = {
    "a thousand headers": [(f"X-Flood-{number}", "x" * 20) for number in range(1_000)],
    "a header of 64 kB": [("X-Flood", "x" * 64_000)],
    "an API key of 20 kB": [("Authorization", "Bearer " + "x" * 20_000)],
    "two API keys": [("Authorization", "Bearer x"), ("Authorization", "Bearer y")],
    "invalid bytes": [("X-Flood", "\xff\xfe"), ("Accept", "\xff"), ("X-Forwarded-For", "\xff"), ("User-Agent", "\xff")],
    "a negative length": [("Content-Length", "-1")],
    "two lengths": [("Content-Length", "1"), ("Content-Length", "2")],
    "a length and chunks": [("Content-Length", "1"), ("Transfer-Encoding", "chunked")],
    "an unknown transfer coding": [("Transfer-Encoding", "nonsense")],
    "an unknown content coding": [("Content-Encoding", "nonsense"), ("Content-Length", "2")],
    "an unknown expectation": [("Expect", "nonsense")],
}


@pytest.mark.parametrize("headers", FLOODS.values(), ids=FLOODS.keys())
async def test_hostile_headers_cause_no_bug(app: Running, headers: list[tuple[str, str]]) -> None:
    """Both APIs refuse or ignore the headers, and keep running."""
    key = ("Authorization", f"Bearer {ADMIN_KEY}")
    for address, path in (
        (app.service.private, "/connections/unknown/token"),
        (app.service.private, "/connections/unknown"),
        (app.service.public, f"{BASE}/status"),
        (app.service.public, f"{BASE}/nowhere"),
    ):
        own = [] if any(name == "Authorization" for name, _ in headers) else [key]
        status, text = await _raw(address, f"GET {path} HTTP/1.1", [*own, *headers])
        assert 400 <= status < 500, (path, status, text[:300])
        assert "x" * 100 not in text
        assert "Traceback" not in text
    assert (await app.private("/healthz", key=None)).status == 200
    assert (await app.public("/healthz")).status == 200
    _check_log(app)


@pytest.mark.parametrize(
    "line", ["GET /" + "x" * 70_000 + " HTTP/1.1", "GET", "\x00\x01", "GET / HTTP/9.9", "GET http://[::1 HTTP/1.1",
             "GET //evil.com/%2e%2e HTTP/1.1", "CONNECT a:443 HTTP/1.1", "GET * HTTP/1.1", "OPTIONS * HTTP/1.1",
             "GET /connections/\xff/token HTTP/1.1", "GET /connections?owner=\xff HTTP/1.1"],
    ids=range(11),
)  # fmt: skip
async def test_malformed_request_line_is_4xx_without_its_text(app: Running, line: str) -> None:
    """The response does not contain the request line."""
    for address in (app.service.private, app.service.public):
        status, text = await _raw(address, line, [("Authorization", f"Bearer {ADMIN_KEY}")])
        assert 400 <= status < 500, (status, text[:300])
        assert "x" * 100 not in text
        assert "Traceback" not in text
    _check_log(app)


async def _raw(address: str, line: str, headers: list[tuple[str, str]]) -> tuple[int, str]:
    """Send a request byte for byte and return the status and the whole response."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        fields = [("Host", "a"), ("Connection", "close"), *headers]
        head = "\r\n".join([line, *(f"{name}: {value}" for name, value in fields)])
        writer.write(head.encode("latin-1") + b"\r\n\r\n")
        await writer.drain()
        answer = (await reader.read(1_000_000)).decode("latin-1")
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return int(answer.split(" ", 2)[1]), answer


async def test_unknown_parameter_name_is_escaped_and_truncated(app: Running) -> None:
    """No response repeats the name unchanged: it is written as JSON and truncated."""
    answer = await app.private("/connections?%00%22%0a" + "n" * 500 + "=1", key=ADMIN_KEY)
    _check(answer, "a name")
    assert len(json.loads(answer.text)["detail"]) < 250
