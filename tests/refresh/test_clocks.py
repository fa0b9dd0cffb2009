"""Times that cannot be right: a connection that has them is refreshed at once, and its access token is in doubt."""

from datetime import timedelta
from typing import Any

import pytest

from amo_callback.errors import NeedsReauth
from amo_callback.model import Connection
from amo_callback.schedule import is_impossible
from tests.builders import DAY, a_connection
from tests.fakes import START
from tests.refresh.harness import API_DOMAIN, RefreshHarness

MINUTE = timedelta(minutes=1)
MONTH = 30 * DAY


async def _written_a_month_ahead(harness: RefreshHarness) -> Connection:
    """Return a connection as a process wrote it whose clock was a month ahead."""
    issued_at = harness.clock.now() + MONTH
    return await harness.connect(
        api_domain=API_DOMAIN,
        access_issued_at=issued_at,
        access_expires_at=issued_at + DAY,
        next_refresh_at=issued_at + DAY / 2,
        connected_at=harness.clock.now(),
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, False),
        ({"access_issued_at": START + MINUTE}, False),
        ({"access_issued_at": START + MINUTE + timedelta(microseconds=1)}, True),
        ({"next_refresh_at": START + DAY}, False),
        ({"next_refresh_at": START + DAY + timedelta(microseconds=1)}, True),
        ({"next_refresh_at": START + 2 * DAY, "failures": 1}, False),
        ({"access_issued_at": START + MONTH, "failures": 1}, True),
        ({"access_issued_at": None, "access_expires_at": None, "next_refresh_at": None}, False),
    ],
)
def test_times_are_impossible_in_the_future_or_beyond_expiry(row: dict[str, Any], *, expected: bool) -> None:
    """A minute is what two clocks may differ by; a back-off may end after the access token has expired."""
    assert is_impossible(a_connection(**row), now=START) is expected


async def test_a_connection_with_impossible_times_is_refreshed_by_the_scheduler(harness: RefreshHarness) -> None:
    """Issued in the future, or due after it expires: it is due now, and right afterwards."""
    connection = await _written_a_month_ahead(harness)
    async with harness.running(harness.lifecycle):
        await harness.witness.until("refresh.succeeded")
    refreshed = await harness.now(connection)
    assert not is_impossible(refreshed, now=harness.clock.now())
    assert refreshed.pair_version == connection.pair_version + 1


async def test_impossible_times_come_first_and_the_others_earliest_due_first(harness: RefreshHarness) -> None:
    """Then earliest expiry; those that back off are not impossible, whatever their due time."""
    now = harness.clock.now()
    rows = {
        "late": {"next_refresh_at": now - MINUTE, "access_expires_at": now + 3 * MINUTE},
        "earlier": {"next_refresh_at": now - 2 * MINUTE, "access_expires_at": now + 9 * MINUTE},
        "same, expires first": {"next_refresh_at": now - MINUTE, "access_expires_at": now + 2 * MINUTE},
        "due too late": {"next_refresh_at": now + 2 * DAY, "access_expires_at": now + DAY},
        "not due": {"next_refresh_at": now + MINUTE, "access_expires_at": now + DAY},
    }
    names = {}
    for number, (name, row) in enumerate(rows.items()):
        issued = await harness.exchange()
        account = {"account_id": str(number), "id": a_connection(number).id}
        names[(await harness.keep(issued, **{**account, **row})).id] = name
    due = (await harness.store.due(now=now, limit=9, exclude=())).refreshes
    assert [names[one.id] for one in due] == ["due too late", "earlier", "same, expires first", "late"]


async def test_a_token_issued_in_the_future_is_not_handed_out_as_fresh(harness: RefreshHarness) -> None:
    """It is refreshed first, however much of its life seems to be left."""
    connection = await _written_a_month_ahead(harness)
    handed_out = await harness.lifecycle.access_tokens.token(connection.id, min_ttl=300)
    assert not handed_out.stale
    assert handed_out.token.value != harness.pair(connection).access_token
    assert harness.amo.fake.live_account(handed_out.token.value) is harness.amo.account


async def test_a_token_issued_in_the_future_that_amo_rejects_is_not_handed_out_at_all(harness: RefreshHarness) -> None:
    """Nor as stale, where it cannot be refreshed either."""
    connection = await _written_a_month_ahead(harness)
    harness.fade(connection)
    harness.amo.account.disabled = True
    for _ in range(3):
        with pytest.raises(NeedsReauth):
            await harness.lifecycle.access_tokens.token(connection.id, min_ttl=0)
