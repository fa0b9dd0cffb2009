"""Impossible times: the connection is refreshed at once, and its access token is in doubt."""

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


async def _connect_a_month_ahead(harness: RefreshHarness) -> Connection:
    """Connect, with times written by a process whose clock is a month ahead."""
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
def test_is_impossible_future_issue_or_due_after_expiry(row: dict[str, Any], *, expected: bool) -> None:
    """Times are impossible if issued over a minute ahead, or due after expiry without a back-off."""
    assert is_impossible(a_connection(**row), now=START) is expected


async def test_scheduler_connection_with_impossible_times_is_refreshed(harness: RefreshHarness) -> None:
    """A connection that was issued in the future is due now, and has correct times after the refresh."""
    connection = await _connect_a_month_ahead(harness)
    async with harness.running(harness.lifecycle):
        await harness.witness.until("refresh.succeeded")
    refreshed = await harness.now(connection)
    assert not is_impossible(refreshed, now=harness.clock.now())
    assert refreshed.pair_version == connection.pair_version + 1


async def test_store_due_order_is_impossible_then_earliest_due_then_expiry(harness: RefreshHarness) -> None:
    """Impossible times come first, then the earliest due time, then the earliest expiry."""
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


async def test_hand_out_token_issued_in_future_is_refreshed_first(harness: RefreshHarness) -> None:
    """A token that was issued in the future is refreshed before a hand-out."""
    connection = await _connect_a_month_ahead(harness)
    handed_out = await harness.lifecycle.access_tokens.token(connection.id, min_ttl=300)
    assert not handed_out.stale
    assert handed_out.token.value != harness.pair(connection).access_token
    assert harness.amo.fake.live_account(handed_out.token.value) is harness.amo.account


async def test_hand_out_token_issued_in_future_and_rejected_is_refused(harness: RefreshHarness) -> None:
    """A token that was issued in the future and that AMO rejects is not handed out, not even as stale."""
    connection = await _connect_a_month_ahead(harness)
    harness.refresh_elsewhere(connection)
    harness.amo.account.disabled = True
    for _ in range(3):
        with pytest.raises(NeedsReauth):
            await harness.lifecycle.access_tokens.token(connection.id, min_ttl=0)
