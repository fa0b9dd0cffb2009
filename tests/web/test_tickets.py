"""`hand_back`: what the deep link carries in place of AMO's code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.amo.sandbox.faults import Fault
from tests.conftest import BASE, HOST
from tests.web.phone import WITH_USERS, Phone, allow, of, owners

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import Answer, Running

LINK = "foryoure://amo-crm/callback"
TICKET = re.compile(r"[A-Za-z0-9_-]{22}")


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with users, handing back tickets."""
    async with run(APP__HAND_BACK="ticket", **WITH_USERS) as running:
        yield running


async def _present(app: Running, code: str, **more: str) -> Answer:
    return await app.public(f"{BASE}/exchange-code", method="POST", json={"code": code, **more})


async def test_a_ticket_stands_for_the_code(app: Running) -> None:
    """The link carries a ticket, AMO's code never leaves; `exchange-code` takes it any number of times."""
    code = app.amo.code()
    redirect = await app.callback(app.query(code=code, state="s"))
    ticket = of(redirect.location)["code"]
    assert redirect.location == f"{LINK}?code={ticket}&state=s"
    assert TICKET.fullmatch(ticket)
    page = await app.public((await app.callback(app.query(code=code, state="s"), html=True)).location)
    assert f"{LINK}?code={ticket}&amp;state=s" in page.text
    assert code not in page.text
    for _ in range(3):
        answer = await _present(app, ticket)
        assert (answer.status, answer.json()["data"]["connected"]) == (200, True)
    assert len(app.amo.vendor.ledger.entries) == 1


async def test_a_ticket_is_good_for_ten_minutes(app: Running) -> None:
    """Counted from when it was connected, not from when AMO's code came; then it is told as expired."""
    code = app.amo.code()
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    await app.callback(app.query(code=code))
    app.clock.advance(600)
    ticket = of((await app.callback(app.query(code=code))).location)["code"]
    app.clock.advance(590)
    assert (await _present(app, ticket)).status == 200
    app.clock.advance(10)
    answer = await _present(app, ticket)
    assert (answer.status, answer.json()["error"]) == (410, "code_expired")


async def test_a_ticket_is_bound_to_its_grants_verifier(app: Running) -> None:
    """Who has caught the ticket has nothing: the verifier and the user's JWT are asked for as with a code."""
    phone, thief = Phone(app, "42"), Phone(app, "666")
    ticket = of((await allow(app, (await phone.start())["authorize_url"])).location)["code"]
    assert (await thief.exchange(ticket)).status == 403
    assert (await phone.exchange(ticket)).status == 200
    assert await owners(app) == ["42"]


async def test_a_ticket_that_nobody_issued_is_no_code(run: Any) -> None:
    """It is asked about at AMO like any other code, or, where states are issued, not at all."""
    async with run(APP__HAND_BACK="ticket") as app:
        assert (await _present(app, "A" * 22, referer=HOST)).json()["error"] == "auth_failed"
    async with run(APP__HAND_BACK="ticket", APP__STATE="issued") as app:
        assert (await _present(app, "B" * 22, referer=HOST)).status == 404
        assert app.amo.vendor.ledger.entries == []


async def test_nothing_may_be_handed_back(run: Any) -> None:
    """With `none` the link tells the success alone."""
    async with run(APP__HAND_BACK="none") as app:
        assert (await app.callback(app.query(state="s"))).location == f"{LINK}?success=true&state=s"
