"""People first: junk codes starve neither refreshing nor whoever is expected."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.amo.sandbox.faults import Fault
from tests.conftest import HOST
from tests.web.phone import WITH_USERS, Phone, allow, of

if TYPE_CHECKING:
    from tests.conftest import Answer, Running

FLOOD = 300
SOON = 10
"""Requests to AMO within which whoever goes first has had his turn: of strangers many more are waiting."""


async def _junk(app: Running, number: int, *, spread: bool) -> Answer:
    address = f"198.51.{number // 250}.{number % 250}" if spread else "198.51.100.7"
    return await app.callback(f"code=junk{number}&state=s&referer={HOST}", headers={"X-Forwarded-For": address})


@pytest.mark.parametrize("spread", [False, True], ids=["one address", "many addresses"])
async def test_a_flood_of_junk_stops_neither_refreshing_nor_who_is_expected(run: Any, *, spread: bool) -> None:
    """While hundreds of junk codes wait, a refresh and a person with an issued state have the next turns at AMO.

    The person comes from the flood's own address, too.
    """
    waiting = 112 if spread else 30
    async with run(AMO__REQUESTS_PER_SECOND="5", **WITH_USERS) as app:
        connection = await app.connected()
        phone = Phone(app, "42")
        url = (await phone.start())["authorize_url"]
        flood = [asyncio.create_task(_junk(app, number, spread=spread)) for number in range(FLOOD)]
        while sum(task.done() for task in flood) < FLOOD - waiting:
            await asyncio.wait([task for task in flood if not task.done()], return_when=asyncio.FIRST_COMPLETED)
        ledger = app.amo.vendor.ledger
        before = len(ledger.entries)
        code = app.amo.code()
        query = f"code={code}&state={of(url)['state']}&referer={HOST}"
        refreshed, back = await asyncio.gather(
            app.private(f"/connections/{connection}/refresh", method="POST"),
            app.callback(query, headers={"X-Forwarded-For": "198.51.100.7"}),
        )
        presented = [entry.presented for entry in ledger.entries[before:]]
        [refresh] = ledger.refreshes()
        assert max(presented.index(code), presented.index(refresh.presented)) < SOON
        assert (refreshed.status, of(back.location).get("code")) == (200, code)
        for task in flood:
            task.cancel()
        ended = await asyncio.gather(*flood, return_exceptions=True)
        words = {of(answer.location)["error"] for answer in ended if not isinstance(answer, BaseException)}
        assert ("amo_unavailable" if spread else "rate_limited") in words


async def test_a_stranger_is_told_when_too_many_wait(run: Any) -> None:
    """Nothing is written for who would only grow old in the queue; the same code works once there is room."""
    async with run(AMO__REQUESTS_PER_SECOND="1", AMO__TIMEOUT="30", REFRESH__LEASE="32") as app:
        app.amo.sandbox.faults.add(Fault.SLOW)
        first = asyncio.create_task(app.callback(app.query(code="junk")))
        await app.amo.sandbox.asked.wait()
        query = app.query(state="s")
        assert of((await app.callback(query)).location)["error"] == "amo_unavailable"
        page = await app.callback(query, html=True)
        assert (page.status, 'id="again"' in page.text) == (503, True)
        app.amo.sandbox.go_on.set()
        assert of((await first).location)["error"] == "auth_failed"
        assert "code" in of((await app.callback(query)).location)


async def test_known_people_have_places_of_their_own(run: Any) -> None:
    """Strangers who use up an address's places leave those of whoever began a grant here."""
    async with run(LIMITS__FAILED_CODES="1", **WITH_USERS) as app:
        url = (await Phone(app, "42").start())["authorize_url"]
        for word in ("auth_failed", "rate_limited"):
            assert of((await app.callback(app.query(code=f"junk-{word}"))).location)["error"] == word
        assert "code" in of((await allow(app, url)).location)
