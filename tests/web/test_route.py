"""The wrapper of every route: bugs and errors in each response form, request ids, log lines, headers."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
import pytest
from yarl import URL

from amo_callback.errors import StoreUnavailable
from amo_callback.grant import support_code
from amo_callback.model import fingerprint
from amo_callback.observe.log import make_logger
from amo_callback.web.apis import make_apis
from amo_callback.web.listener import open_listener
from tests.fakes import ShiftedClock
from tests.service import ADMIN_KEY, API_KEY, BASE, HOST, Running
from tests.web.phone import WITH_USERS, jwt_of

SECRET = "def50200" + "ab" * 30


class Broken:
    """Use cases that raise the given error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def complete(self, _visit: object) -> None:
        raise self.error

    async def start(self, *_: object, **__: object) -> None:
        raise self.error

    async def way_back(self, _state: object) -> None:
        raise self.error

    async def redeem(self, _presented: object) -> None:
        raise self.error

    async def result(self, _handle: str) -> None:
        raise self.error

    async def token(self, _selector: str, **_: object) -> None:
        raise self.error

    @property
    def access_tokens(self) -> Broken:
        return self

    authorizations = connect = redeemer = access_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A response and its log lines."""

    status: int
    text: str
    location: str | None
    log: list[dict[str, Any]]


class Apis:
    """Both APIs with broken use cases."""

    def __init__(self, app: Running) -> None:
        self._services = app.service.services

    @asynccontextmanager
    async def open(self, error: Exception) -> AsyncIterator[tuple[str, str, io.StringIO]]:
        broken, stream, clock = cast("Any", Broken(error)), io.StringIO(), ShiftedClock()
        log = make_logger(level="info", style="json", stream=stream)
        services = dataclasses.replace(self._services, store=broken, oauth=broken, lifecycle=broken, log=log)
        public_api, private_api = make_apis(services)
        async with (
            open_listener(public_api.make_app(), "127.0.0.1:0", name="public", clock=clock, log=log) as public,
            open_listener(private_api.make_app(), "127.0.0.1:0", name="private", clock=clock, log=log) as private,
        ):
            yield public.address, private.address, stream

    async def ask(self, error: Exception, path: str, *, private: bool = False, accept: str = "*/*") -> Outcome:
        headers = {"Accept": accept, "Authorization": f"Bearer {API_KEY}"}
        async with self.open(error) as (public_address, private_address, stream), aiohttp.ClientSession() as http:
            url = URL(f"http://{private_address if private else public_address}{path}", encoded=True)
            method = "POST" if path.endswith("exchange-code") else "GET"
            async with http.request(
                method, url, headers=headers, data=b'{"code": "c"}', allow_redirects=False
            ) as answer:
                return Outcome(
                    status=answer.status,
                    text=await answer.text(),
                    location=answer.headers.get("Location"),
                    log=[json.loads(line) for line in stream.getvalue().splitlines()],
                )


@pytest.fixture
def apis(app: Running) -> Apis:
    return Apis(app)


async def test_callback_bug_redirects_to_app_with_auth_failed(apis: Apis) -> None:
    """After a bug the user returns to the app with an error word and the state, and the log has the trace."""
    asked = await apis.ask(ZeroDivisionError(SECRET), f"{BASE}/callback?code=c&state=s&referer={HOST}")
    assert (asked.status, asked.location) == (302, "foryoure://amo-crm/callback?error=auth_failed&state=s")
    bug = next(line for line in asked.log if line["event"] == "http.bug")
    assert "ZeroDivisionError" in bug["exception"]
    [refused] = [line for line in asked.log if line["event"] == "callback.refused"]
    assert (refused["support_code"], refused["word"], refused["error"]) == (
        support_code(fingerprint("c")),
        "auth_failed",
        "internal_error",
    )
    assert SECRET not in str(asked)


@pytest.mark.parametrize(
    ("path", "member"),
    [
        (f"{BASE}/exchange-code", "error"),
        ("/connections/x/token", "code"),
    ],
)
async def test_route_bug_is_500_in_each_api(apis: Apis, path: str, member: str) -> None:
    """A bug is 500 `internal_error` in each API's form, and only the log has the trace."""
    asked = await apis.ask(ZeroDivisionError(SECRET), path, private=member == "code")
    assert (asked.status, json.loads(asked.text)[member]) == (500, "internal_error")
    assert [line["event"] for line in asked.log if line["level"] == "error"] == ["http.bug"]
    assert "ZeroDivisionError" not in asked.text
    assert SECRET not in str(asked)


@pytest.mark.parametrize(("path", "status"), [(f"{BASE}/return/AAAAAAAAAAAAAAAAAAAAAA", 503), (f"{BASE}/connect", 400)])
async def test_page_bug_has_support_code_of_its_log_line(apis: Apis, path: str, status: int) -> None:
    """After a bug, a person gets a page with a support code, which is in one line of the log."""
    asked = await apis.ask(ZeroDivisionError(SECRET), path, accept="text/html")
    assert asked.status == status
    [refused] = [line for line in asked.log if line["event"] == "callback.refused"]
    assert f"<code>{refused['support_code']}</code>" in asked.text
    assert refused["error"] == "internal_error"
    assert [line["event"] for line in asked.log if line["level"] == "error"] == ["http.bug"]
    assert SECRET not in str(asked)


async def test_route_store_unavailable_is_503_in_each_form(apis: Apis) -> None:
    """Redirect, page, envelope and problem all report an unavailable store as retryable, not as a bug."""
    away = StoreUnavailable("SQLITE_BUSY")
    callback = f"{BASE}/callback?code=c&state=s&referer={HOST}"
    asked = await apis.ask(away, callback)
    assert asked.location == "foryoure://amo-crm/callback?error=amo_unavailable&state=s"
    assert (await apis.ask(away, callback, accept="text/html")).status == 503
    page = await apis.ask(away, f"{BASE}/return/AAAAAAAAAAAAAAAAAAAAAA")
    assert (page.status, 'id="again"' in page.text, 'id="open"' in page.text) == (503, True, False)
    [line] = [line for line in page.log if line["event"] == "callback.refused"]
    assert (line["word"], line["error"], line["level"]) == ("amo_unavailable", "store_unavailable", "warning")
    assert f"<code>{line['support_code']}</code>" in page.text
    assert (await apis.ask(away, f"{BASE}/exchange-code")).status == 503
    problem = await apis.ask(away, "/connections/x/token", private=True)
    assert (problem.status, json.loads(problem.text)["code"]) == (503, "store_unavailable")
    assert "error" not in {line["level"] for line in problem.log}


# --- additions of the wrapper ----------------------------------------------------------------------


async def test_request_id_well_formed_is_kept_by_private_api(app: Running) -> None:
    """The private API keeps a well-formed id and replaces any other; the public API always replaces it."""
    for sent, taken in (("a-b_c.1", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("", False)):
        answer = await app.private("/connections", headers={"X-Request-ID": sent})
        assert (answer.headers["X-Request-ID"] == sent) is taken
        line = [line for line in app.lines() if line["event"] == "http.request"][-1]
        assert line["request_id"] == answer.headers["X-Request-ID"]
    answer = await app.public("/nowhere", headers={"X-Request-ID": "mine"})
    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["X-Request-ID"])


async def test_access_log_line_has_route_and_trace_without_path(app: Running) -> None:
    """The line has route pattern, status and client; the path may hold a handle, and the query a code."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "X-Forwarded-For": "192.0.2.7"}
    await app.public(f"{BASE}/return/AAAAAAAAAAAAAAAAAAAAAA?again=1", headers=headers)
    await app.private("/nowhere?secret=1", method="PROPFIND", headers={"traceparent": "00-nonsense-01"})
    first, second = [line for line in app.lines() if line["event"] == "http.request"]
    assert {name: first[name] for name in ("listener", "method", "route", "status", "peer", "trace_id", "level")} == {
        "listener": "public",
        "method": "GET",
        "route": f"{BASE}/return/{{handle}}",
        "status": 404,
        "peer": "192.0.2.7",
        "trace_id": trace,
        "level": "info",
    }
    assert (second["route"], second["method"], second["status"], "trace_id" in second) == ("none", "other", 404, False)
    assert "secret" not in app.log.getvalue()


@pytest.mark.parametrize(
    ("claims", "detail"),
    [({"aud": "another"}, "audience"), ({"exp": 0}, "expired"), (None, "missing"), ({"sub": ""}, "user")],
)
async def test_refused_jwt_is_logged_with_failed_check(run: Any, claims: dict[str, Any] | None, detail: str) -> None:
    """The log line of a 401 names the failed check, and contains nothing of the JWT."""
    async with run(**WITH_USERS) as app:
        headers = {} if claims is None else {"Authorization": f"Bearer {jwt_of('42', **claims)}"}
        answer = await app.public(f"{BASE}/status", headers=headers)
        assert answer.status == 401
        line = [line for line in app.lines() if line["event"] == "http.request"][-1]
        assert (line["status"], line["error"], line["detail"]) == (401, "unauthorized", detail)
        assert "another" not in app.log.getvalue()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_access_log_monitoring_requests_are_debug(app: Running, path: str) -> None:
    """Health, readiness and metrics requests are frequent and are logged at debug."""
    await app.private(path, key=None)
    [line] = [line for line in app.lines() if line["event"] == "http.request"]
    assert (line["level"], line["route"]) == ("debug", path)


async def test_access_log_disabled_keeps_request_id(run: Any) -> None:
    """`log.access = false` disables only the access lines."""
    async with run(LOG__ACCESS="false") as app:
        assert (await app.private("/connections")).headers["X-Request-ID"]
        assert not [line for line in app.lines() if line["event"] == "http.request"]


async def test_private_api_responses_are_no_store(app: Running) -> None:
    """Responses without tokens, such as lists and errors, are `no-store` too."""
    for path in ("/connections", "/connections/unknown", "/nowhere", "/readyz", "/metrics", "/connections?limit=x"):
        assert (await app.private(path)).headers["Cache-Control"] == "no-store"


async def test_problem_details_have_title(app: Running) -> None:
    """RFC 9457's `title` is the status phrase, also for HTTP errors."""
    answer = await app.private("/connections/unknown")
    assert answer.json() == {
        "status": 404,
        "title": "Not Found",
        "code": "not_found",
        "detail": "There is no such connection.",
    }
    answer = await app.private("/connections/x/token", method="POST")
    assert (answer.status, answer.json()["title"], answer.headers["Allow"]) == (405, "Method Not Allowed", "GET,HEAD")
    assert answer.json()["code"] == "invalid_request"


async def test_head_is_answered_wherever_get_is(app: Running) -> None:
    """HEAD has the status and the headers of GET, and no body, on every route of the private API."""
    connection = await app.connected()
    for route in make_apis(app.service.services)[1].routes:
        if route.method != "GET":
            continue
        path = route.path.replace("{id}", connection)
        get, head = await app.private(path), await app.private(path, method="HEAD")
        assert (head.status, head.text) == (get.status, "")
        assert head.headers.get("Content-Type") == get.headers.get("Content-Type")
    assert (await app.private("/connections/nope", method="HEAD")).status == 404
    assert (await app.private("/freeze", method="HEAD")).status == 405


async def test_unknown_query_parameter_is_named_on_every_private_route(app: Running) -> None:
    """A misspelled parameter is 400 and named, also on routes without parameters; nothing is done."""
    connection = await app.connected()
    for route in make_apis(app.service.services)[1].routes:
        path = re.sub(r"{\w+}", connection, route.path)
        answer = await app.private(f"{path}?min_tll=5", method=route.method, key=ADMIN_KEY)
        assert answer.status == 400, route.path
        problem = answer.json()
        is_oauth = route.path == "/oauth/token"
        assert problem["error" if is_oauth else "code"] == "invalid_request"
        assert problem["error_description" if is_oauth else "detail"].startswith("min_tll: unknown parameter; ")
    assert (await app.private("/readyz")).json()["checks"]["frozen"]["ok"]
    assert app.amo.fake.ledger.refreshes() == []


@pytest.mark.parametrize(
    "cursor", ["", "x", "-1", "1.0", "-" * 36, "9" * 19, "%00", f"{'A' * 8}-0000-0000-0000-{'0' * 12}"]
)
async def test_malformed_cursor_is_400(app: Running, cursor: str) -> None:
    """A cursor that no page contained is refused, and the field is named."""
    for path in ("/connections", "/events", "/webhooks"):
        answer = await app.private(f"{path}?cursor={cursor}")
        assert (answer.status, answer.json()["code"]) == (400, "invalid_request"), path
        assert answer.json()["detail"] == "cursor: must be the next_cursor of the previous page"
