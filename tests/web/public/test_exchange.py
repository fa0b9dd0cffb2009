"""`POST {base}/exchange-code`: the app presents AMO's code or a ticket after the deep link."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.web.authorizations import AuthorizationBody
from amo_callback.web.private.tokens import RefreshBody
from amo_callback.web.public.account import ExchangeBody
from tests.service import BASE, HOST, LINK, Answer, Running
from tests.web.phone import WITH_USERS, Phone, allow, of, owners

PATH = f"{BASE}/exchange-code"


async def _ask(app: Running, **body: object) -> Answer:
    return await app.public(PATH, method="POST", json=body)


async def test_exchange_code_known_code_returns_connection_repeatedly(app: Running) -> None:
    """The code of the deep link returns the current connection every time and is exchanged once."""
    code = app.amo.code()
    await app.callback(app.query(code=code))
    for _ in range(3):
        answer = await _ask(app, code=code)
        assert (answer.status, answer.json()) == (
            200,
            {
                "success": True,
                "data": {"connected": True, "hasTokens": True, "domain": HOST, "accountId": str(app.amo.account.id)},
                "message": "The account is connected.",
            },
        )
    assert len(app.amo.fake.ledger.entries) == 1


async def test_exchange_code_known_code_ignores_other_fields(app: Running) -> None:
    """The host matters only if AMO is asked: a known code returns its result with any host."""
    code = app.amo.code()
    await app.callback(app.query(code=code))
    for referer in ("evil.com", "https://admin.example.com/x", ""):
        assert (await _ask(app, code=code, referer=referer, userId=42)).status == 200


async def test_exchange_code_undecodable_compressed_body_is_400(app: Running) -> None:
    """A body that cannot be decompressed is 400, without a trace in the log."""
    answer = await app.public(
        PATH, method="POST", data=b"junk", headers={"Content-Encoding": "gzip", "Content-Type": "application/json"}
    )
    assert (answer.status, answer.json()["error"]) == (400, "invalid_request")
    assert "Traceback" not in app.log.getvalue()


async def test_exchange_code_connection_lost_in_body_logs_no_bug(app: Running) -> None:
    """A connection that ends within the body is no bug and leaves no trace in the log."""
    host, _, port = app.service.public.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n{{".encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await app.public("/healthz")).status == 200
    assert "http.bug" not in app.log.getvalue()


async def test_exchange_code_unknown_code_is_exchanged(run: Any) -> None:
    """Without a callback the code is exchanged at the body's `referer` or at the default domain."""
    async with run(AMO__DEFAULT_DOMAIN=HOST) as app:
        assert (await _ask(app, code=app.amo.code())).status == 200
        assert (await _ask(app, code=app.amo.code(), referer=f"https://{HOST}/")).status == 200
        assert len(app.amo.fake.ledger.entries) == 2


async def test_exchange_code_failure_is_logged_with_its_error(app: Running) -> None:
    """The request's log line has the error that the app receives."""
    answer = await _ask(app, code="junk", referer=HOST)
    line = [line for line in app.lines() if line["event"] == "http.request"][-1]
    assert (line["status"], line["error"]) == (answer.status, answer.json()["error"]) == (400, "auth_failed")


async def test_exchange_code_during_exchange_waits_for_result(app: Running) -> None:
    """If the app calls before the callback has finished, both get the result of one exchange."""
    code = app.amo.code()
    callback = await app.begun(app.callback(app.query(code=code)))
    asking = asyncio.create_task(_ask(app, code=code))
    app.amo.sandbox.go_on.set()
    assert ((await callback).status, (await asking).status) == (302, 200)
    assert len(app.amo.fake.ledger.entries) == 1


async def test_exchange_code_exchange_over_8_seconds_is_503(app: Running) -> None:
    """After 8 s the app gets 503 with `Retry-After`, and the same code works later."""
    code = app.amo.code()
    answer = await app.late(_ask(app, code=code, referer=HOST))
    assert (answer.status, answer.json()["error"], answer.headers["Retry-After"]) == (503, "amo_unavailable", "5")
    app.amo.sandbox.go_on.set()
    await app.witness.until("connection.connected")
    assert (await _ask(app, code=code, referer=HOST)).status == 200


async def test_exchange_code_connection_in_needs_reauth_is_not_connected(run: Any) -> None:
    """A connection that has failed since is reported as not connected and without tokens."""
    async with run(lifetimes={"access": 30}) as app:
        code = app.amo.code()
        await app.callback(app.query(code=code))
        app.amo.account.disabled = True
        app.clock.advance(31)
        await app.witness.until("connection.needs_reauth")
        answer = (await _ask(app, code=code, referer=HOST)).json()
        data = answer["data"]
        assert (data["connected"], data["hasTokens"], data["domain"]) == (False, False, HOST)
        assert answer["message"] == "The account is not connected."


@pytest.mark.parametrize("code", ["junk", "junk\0", "й" * 2048])
async def test_exchange_code_refused_code_is_400(app: Running, code: str) -> None:
    """A code that AMO refuses has the deep link's error word every time, and AMO is asked once."""
    for _ in range(2):
        answer = await _ask(app, code=code, referer=HOST)
        assert (answer.status, answer.json()["success"], answer.json()["error"]) == (400, False, "auth_failed")
    assert len(app.amo.fake.ledger.entries) == 1


async def test_exchange_code_transient_failure_is_503_and_retryable(app: Running) -> None:
    """The same code works once AMO has recovered."""
    code = app.amo.code()
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    answer = await _ask(app, code=code, referer=HOST)
    assert (answer.status, answer.json()["error"]) == (503, "amo_unavailable")
    assert (await _ask(app, code=code, referer=HOST)).status == 200


@pytest.mark.parametrize(
    ("referer", "error"),
    [("evil.com", "account_not_allowed"), ("a.amocrm.ru:8443", "account_not_allowed"), (None, "invalid_request")],
)
async def test_exchange_code_referer_not_allowed_is_not_asked(app: Running, referer: str | None, error: str) -> None:
    """A host that is not allowed, or a missing host without a default, is 400, and nothing is sent."""
    answer = await _ask(app, code=app.amo.code(), referer=referer)
    assert (answer.status, answer.json()["error"]) == (400, error)
    assert app.amo.fake.ledger.entries == []


async def test_exchange_code_failed_codes_are_rate_limited(run: Any) -> None:
    """The limit on failed codes also applies to `exchange-code`; `Retry-After` is the end of the window."""
    async with run(LIMITS__FAILED_CODES="1") as app:
        assert (await _ask(app, code="junk1", referer=HOST)).status == 400
        answer = await _ask(app, code="junk2", referer=HOST)
        assert (answer.status, answer.json()["error"], answer.headers["Retry-After"]) == (429, "rate_limited", "60")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"code"', b"{}", b"\xff\xfe", b"[" * 60_000, b'{"a":' * 10_000),
        *(b'{"code": %s}' % value for value in (b'""', b"null", b"7", b'["x"]', b'"\\ud800"', b'"%s"' % (b"c" * 4097))),
        b'{"code": "x", "referer": 7}',
    ],
)
async def test_exchange_code_malformed_body_is_400(app: Running, body: bytes) -> None:
    """A body that is not the expected JSON is 400, and AMO is not asked."""
    answer = await app.public(PATH, method="POST", data=body)
    assert (answer.status, answer.json()["error"]) == (400, "invalid_request")
    assert app.amo.fake.ledger.entries == []


async def test_exchange_code_other_method_is_405(app: Running) -> None:
    """A method other than POST is 405 with `Allow`."""
    answer = await app.public(PATH)
    assert (answer.status, answer.headers["Allow"], answer.json()["error"]) == (405, "POST", "method_not_allowed")


def test_request_bodies_repr_shows_no_secret() -> None:
    """The repr of a body shows no code, verifier, state, challenge or token."""
    challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    bodies = [
        ExchangeBody(code="sekret", code_verifier="sekret"),
        AuthorizationBody(state="sekret", code_challenge=challenge, code_challenge_method="S256"),
        RefreshBody(rejected_access_token="sekret"),
    ]
    assert not [body for body in bodies if "sekret" in repr(body) or challenge in repr(body)]


# --- tickets --------------------------------------------------------------------------------------


@pytest.fixture
async def ticket_app(run: Any) -> AsyncIterator[Running]:
    """Run the service with JWT settings and tickets."""
    async with run(APP__HAND_BACK="ticket", **WITH_USERS) as running:
        yield running


TICKET = re.compile(r"[A-Za-z0-9_-]{22}")


async def test_ticket_replaces_code_in_deep_link(ticket_app: Running) -> None:
    """The link has a ticket instead of AMO's code, and `exchange-code` accepts it any number of times."""
    code = ticket_app.amo.code()
    redirect = await ticket_app.callback(ticket_app.query(code=code, state="s"))
    ticket = of(redirect.location)["code"]
    assert redirect.location == f"{LINK}?code={ticket}&state=s"
    assert TICKET.fullmatch(ticket)
    page = await ticket_app.public(
        (await ticket_app.callback(ticket_app.query(code=code, state="s"), html=True)).location
    )
    assert f"{LINK}?code={ticket}&amp;state=s" in page.text
    assert code not in page.text
    for _ in range(3):
        answer = await _ask(ticket_app, code=ticket)
        assert (answer.status, answer.json()["data"]["connected"]) == (200, True)
    assert len(ticket_app.amo.fake.ledger.entries) == 1


async def test_ticket_expires_ten_minutes_after_connection(ticket_app: Running) -> None:
    """The ten minutes count from the connection, not from AMO's code; then the ticket is `code_expired`."""
    code = ticket_app.amo.code()
    ticket_app.amo.sandbox.faults.add(Fault.HTTP_500)
    await ticket_app.callback(ticket_app.query(code=code))
    ticket_app.clock.advance(600)
    ticket = of((await ticket_app.callback(ticket_app.query(code=code))).location)["code"]
    ticket_app.clock.advance(590)
    assert (await _ask(ticket_app, code=ticket)).status == 200
    ticket_app.clock.advance(10)
    answer = await _ask(ticket_app, code=ticket)
    assert (answer.status, answer.json()["error"]) == (410, "code_expired")
    fresh = ticket_app.amo.code()  # AMO's code is accepted for another ten minutes
    ticket = of((await ticket_app.callback(ticket_app.query(code=fresh))).location)["code"]
    ticket_app.clock.advance(600)
    assert [(await _ask(ticket_app, code=one)).status for one in (ticket, fresh)] == [410, 200]


async def test_ticket_needs_verifier_and_jwt_of_its_grant(ticket_app: Running) -> None:
    """An intercepted ticket is useless: verifier and user JWT are required as for a code."""
    phone, thief = Phone(ticket_app, "42"), Phone(ticket_app, "666")
    ticket = of((await allow(ticket_app, (await phone.start())["authorize_url"])).location)["code"]
    assert (await thief.exchange(ticket)).status == 403
    assert (await phone.exchange(ticket)).status == 200
    assert await owners(ticket_app) == ["42"]


async def test_ticket_unknown_is_treated_as_unknown_code(run: Any) -> None:
    """An unknown ticket is presented to AMO like any other code, or is 404 in `issued` mode."""
    async with run(APP__HAND_BACK="ticket") as app:
        assert (await _ask(app, code="A" * 22, referer=HOST)).json()["error"] == "auth_failed"
    async with run(APP__HAND_BACK="ticket", APP__STATE="issued") as app:
        assert (await _ask(app, code="B" * 22, referer=HOST)).status == 404
        assert app.amo.fake.ledger.entries == []


@pytest.mark.parametrize("mode", ["app", "issued"])
async def test_ticket_presented_to_callback_stays_valid(run: Any, mode: str) -> None:
    """A stolen ticket sent to the callback as a code stays valid for the app with the verifier."""
    async with run(APP__HAND_BACK="ticket", APP__STATE=mode, **WITH_USERS) as app:
        phone = Phone(app, "42")
        ticket = await phone.connect()
        link = (await app.public(f"{BASE}/connect")).location
        await allow(app, link, code=ticket)
        assert (await phone.exchange(ticket)).status == 200
        assert await owners(app) == ["42"]


async def test_ticket_of_expired_grant_is_code_expired(run: Any) -> None:
    """If the code's 20 minutes end before the ticket's ten, the ticket has expired and AMO is not asked."""
    async with run(APP__HAND_BACK="ticket") as app:
        code = app.amo.code()
        app.amo.sandbox.faults.add(Fault.HTTP_500)
        await app.callback(app.query(code=code))
        app.clock.advance(1190)
        ticket = of((await app.callback(app.query(code=code))).location)["code"]
        asked = app.amo.sandbox.requests
        app.clock.advance(20)
        await app.service.services.store.prune(now=app.clock.now(), keep=86400)
        answer = await _ask(app, code=ticket, referer=HOST)
        assert (answer.status, answer.json()["error"]) == (410, "code_expired")
        assert app.amo.sandbox.requests == asked
