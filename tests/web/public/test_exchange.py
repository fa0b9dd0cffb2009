"""`POST {base}/exchange-code`: what the app asks after the deep link, by AMO's code or by a ticket."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.web.authorizations import AuthorizationBody
from amo_callback.web.private.tokens import RefreshBody
from amo_callback.web.public.account import ExchangeBody
from tests.service import BASE, HOST, Answer, Running
from tests.web.phone import WITH_USERS, Phone, allow, of, owners

PATH = f"{BASE}/exchange-code"


async def _ask(app: Running, **body: object) -> Answer:
    return await app.public(PATH, method="POST", json=body)


async def test_the_callbacks_code_is_recognised_any_number_of_times(app: Running) -> None:
    """The app sends the code that the deep link brought, and gets the connection as it is now."""
    code = app.amo.code()
    await app.callback(app.query(code=code))
    for _ in range(3):
        answer = await _ask(app, code=code)
        assert (answer.status, answer.json()) == (
            200,
            {
                "success": True,
                "data": {"connected": True, "hasTokens": True, "domain": HOST, "accountId": str(app.amo.account.id)},
                "message": "amoCRM is connected.",
            },
        )
    assert len(app.amo.fake.ledger.entries) == 1


async def test_a_known_code_is_told_whatever_else_is_sent(app: Running) -> None:
    """The host matters only where AMO is to be asked: a known code gives its outcome."""
    code = app.amo.code()
    await app.callback(app.query(code=code))
    for referer in ("evil.com", "https://admin.example.com/x", ""):
        assert (await _ask(app, code=code, referer=referer, userId=42)).status == 200


async def test_a_body_that_cannot_be_unpacked_is_400(app: Running) -> None:
    """Junk that calls itself compressed is the sender's fault, and no trace in the log."""
    answer = await app.public(
        PATH, method="POST", data=b"junk", headers={"Content-Encoding": "gzip", "Content-Type": "application/json"}
    )
    assert (answer.status, answer.json()["error"]) == (400, "invalid_request")
    assert "Traceback" not in app.log.getvalue()


async def test_a_client_that_goes_away_in_mid_body_is_nobodys_fault(app: Running) -> None:
    """A connection that ends within the body is no bug, and leaves no trace in the log."""
    host, _, port = app.service.public.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n{{".encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await app.public("/healthz")).status == 200
    assert "http.bug" not in app.log.getvalue()


async def test_a_code_never_seen_is_exchanged_now(run: Any) -> None:
    """Without the callback, at `referer` from the body or at the default domain."""
    async with run(AMO__DEFAULT_DOMAIN=HOST) as app:
        assert (await _ask(app, code=app.amo.code())).status == 200
        assert (await _ask(app, code=app.amo.code(), referer=f"https://{HOST}/")).status == 200
        assert len(app.amo.fake.ledger.entries) == 2


async def test_a_code_in_progress_is_waited_for(app: Running) -> None:
    """The app may be faster than the callback: both get the one exchange's outcome."""
    code = app.amo.code()
    callback = await app.begun(app.callback(app.query(code=code)))
    asking = asyncio.create_task(_ask(app, code=code))
    app.amo.sandbox.go_on.set()
    assert ((await callback).status, (await asking).status) == (302, 200)
    assert len(app.amo.fake.ledger.entries) == 1


async def test_one_that_takes_too_long_is_told_to_come_again(app: Running) -> None:
    """After 8 s the app is told to ask again, with the same code."""
    code = app.amo.code()
    answer = await app.late(_ask(app, code=code, referer=HOST))
    assert (answer.status, answer.json()["error"], answer.headers["Retry-After"]) == (503, "amo_unavailable", "5")
    app.amo.sandbox.go_on.set()
    await app.witness.until("connection.connected")
    assert (await _ask(app, code=code, referer=HOST)).status == 200


async def test_the_connection_is_told_as_it_is_now(run: Any) -> None:
    """A connection that died since is told as not connected, and its dead token as not held."""
    async with run(lifetimes={"access": 30}) as app:
        code = app.amo.code()
        await app.callback(app.query(code=code))
        app.amo.account.disabled = True
        app.clock.advance(31)
        await app.witness.until("connection.needs_reauth")
        answer = (await _ask(app, code=code, referer=HOST)).json()
        data = answer["data"]
        assert (data["connected"], data["hasTokens"], data["domain"]) == (False, False, HOST)
        assert answer["message"] == "amoCRM is not connected."


@pytest.mark.parametrize("code", ["junk", "junk\0", "й" * 2048])
async def test_a_refusal_of_amos_is_400(app: Running, code: str) -> None:
    """What AMO refuses is the same word as in the deep link, however often it is asked."""
    for _ in range(2):
        answer = await _ask(app, code=code, referer=HOST)
        assert (answer.status, answer.json()["success"], answer.json()["error"]) == (400, False, "auth_failed")
    assert len(app.amo.fake.ledger.entries) == 1


async def test_a_passing_failure_is_503_and_can_be_tried_again(app: Running) -> None:
    """The same code works once AMO is well."""
    code = app.amo.code()
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    answer = await _ask(app, code=code, referer=HOST)
    assert (answer.status, answer.json()["error"]) == (503, "amo_unavailable")
    assert (await _ask(app, code=code, referer=HOST)).status == 200


@pytest.mark.parametrize(
    ("referer", "error"),
    [("evil.com", "account_not_allowed"), ("a.amocrm.ru:8443", "account_not_allowed"), (None, "invalid_request")],
)
async def test_a_bad_referer_never_sees_our_secret(app: Running, referer: str | None, error: str) -> None:
    """The host is checked here as in the callback; none at all, without a default, is a bad request."""
    answer = await _ask(app, code=app.amo.code(), referer=referer)
    assert (answer.status, answer.json()["error"]) == (400, error)
    assert app.amo.fake.ledger.entries == []


async def test_junk_is_limited_here_too(run: Any) -> None:
    """The limit is the address's, whichever way it comes."""
    async with run(LIMITS__FAILED_CODES="1") as app:
        assert (await _ask(app, code="junk1", referer=HOST)).status == 400
        answer = await _ask(app, code="junk2", referer=HOST)
        assert (answer.status, answer.json()["error"], answer.headers["Retry-After"]) == (429, "rate_limited", "5")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"code"', b"{}", b"\xff\xfe", b"[" * 60_000, b'{"a":' * 10_000),
        *(b'{"code": %s}' % value for value in (b'""', b"null", b"7", b'["x"]', b'"\\ud800"', b'"%s"' % (b"c" * 4097))),
        b'{"code": "x", "referer": 7}',
    ],
)
async def test_a_broken_body_is_400_and_asks_nobody(app: Running, body: bytes) -> None:
    """Whatever is not the JSON that was agreed on."""
    answer = await app.public(PATH, method="POST", data=body)
    assert (answer.status, answer.json()["error"]) == (400, "invalid_request")
    assert app.amo.fake.ledger.entries == []


async def test_other_methods_are_405(app: Running) -> None:
    """Only POST, and the answer says so."""
    answer = await app.public(PATH)
    assert (answer.status, answer.headers["Allow"], answer.json()["error"]) == (405, "POST", "method_not_allowed")


def test_no_body_shows_what_is_secret_in_it() -> None:
    """Neither code, verifier, state, challenge nor token is in a repr, which may end up in any text."""
    challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    bodies = [
        ExchangeBody(code="sekret", code_verifier="sekret"),
        AuthorizationBody(state="sekret", code_challenge=challenge, code_challenge_method="S256"),
        RefreshBody(rejected_access_token="sekret"),
    ]
    assert not [body for body in bodies if "sekret" in repr(body) or challenge in repr(body)]


# --- tickets --------------------------------------------------------------------------------------


@pytest.fixture
async def ticketing(run: Any) -> AsyncIterator[Running]:
    """Run the service with users, handing back tickets."""
    async with run(APP__HAND_BACK="ticket", **WITH_USERS) as running:
        yield running


LINK = "foryoure://amo-crm/callback"
TICKET = re.compile(r"[A-Za-z0-9_-]{22}")


async def test_a_ticket_stands_for_the_code(ticketing: Running) -> None:
    """The link carries a ticket, AMO's code never leaves; `exchange-code` takes it any number of times."""
    code = ticketing.amo.code()
    redirect = await ticketing.callback(ticketing.query(code=code, state="s"))
    ticket = of(redirect.location)["code"]
    assert redirect.location == f"{LINK}?code={ticket}&state=s"
    assert TICKET.fullmatch(ticket)
    page = await ticketing.public((await ticketing.callback(ticketing.query(code=code, state="s"), html=True)).location)
    assert f"{LINK}?code={ticket}&amp;state=s" in page.text
    assert code not in page.text
    for _ in range(3):
        answer = await _ask(ticketing, code=ticket)
        assert (answer.status, answer.json()["data"]["connected"]) == (200, True)
    assert len(ticketing.amo.fake.ledger.entries) == 1


async def test_a_ticket_is_good_for_ten_minutes(ticketing: Running) -> None:
    """Counted from when it was connected, not from when AMO's code came; then it is told as expired."""
    code = ticketing.amo.code()
    ticketing.amo.sandbox.faults.add(Fault.HTTP_500)
    await ticketing.callback(ticketing.query(code=code))
    ticketing.clock.advance(600)
    ticket = of((await ticketing.callback(ticketing.query(code=code))).location)["code"]
    ticketing.clock.advance(590)
    assert (await _ask(ticketing, code=ticket)).status == 200
    ticketing.clock.advance(10)
    answer = await _ask(ticketing, code=ticket)
    assert (answer.status, answer.json()["error"]) == (410, "code_expired")
    fresh = ticketing.amo.code()  # AMO's code is known for as long again
    ticket = of((await ticketing.callback(ticketing.query(code=fresh))).location)["code"]
    ticketing.clock.advance(600)
    assert [(await _ask(ticketing, code=one)).status for one in (ticket, fresh)] == [410, 200]


async def test_a_ticket_is_bound_to_its_grants_verifier(ticketing: Running) -> None:
    """Who has caught the ticket has nothing: the verifier and the user's JWT are asked for as with a code."""
    phone, thief = Phone(ticketing, "42"), Phone(ticketing, "666")
    ticket = of((await allow(ticketing, (await phone.start())["authorize_url"])).location)["code"]
    assert (await thief.exchange(ticket)).status == 403
    assert (await phone.exchange(ticket)).status == 200
    assert await owners(ticketing) == ["42"]


async def test_a_ticket_that_nobody_issued_is_no_code(run: Any) -> None:
    """It is asked about at AMO like any other code, or, where states are issued, not at all."""
    async with run(APP__HAND_BACK="ticket") as app:
        assert (await _ask(app, code="A" * 22, referer=HOST)).json()["error"] == "auth_failed"
    async with run(APP__HAND_BACK="ticket", APP__STATE="issued") as app:
        assert (await _ask(app, code="B" * 22, referer=HOST)).status == 404
        assert app.amo.fake.ledger.entries == []


@pytest.mark.parametrize("mode", ["app", "issued"])
async def test_a_stolen_ticket_cannot_be_burnt(run: Any, mode: str) -> None:
    """A thief who sends it to the callback as if it were a code leaves it good for whoever has the verifier."""
    async with run(APP__HAND_BACK="ticket", APP__STATE=mode, **WITH_USERS) as app:
        phone = Phone(app, "42")
        ticket = await phone.connect()
        link = (await app.public(f"{BASE}/connect")).location
        await allow(app, link, code=ticket)
        assert (await phone.exchange(ticket)).status == 200
        assert await owners(app) == ["42"]


async def test_a_ticket_whose_grant_is_over_is_no_code(run: Any) -> None:
    """Connected late, its code's 20 minutes end before its own ten: AMO is not asked about it then, nor later."""
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
