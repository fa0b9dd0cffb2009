"""Who spent my token? What happened to a connection, by whom, on whose demand, and why."""

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import AmoCallbackError, NeedsReauth
from amo_callback.events import StoredEvent
from amo_callback.model import Connection, RefreshTrigger, abbreviated, fingerprint
from tests.builders import a_claim
from tests.refresh.harness import API_DOMAIN, RefreshHarness


async def _told(harness: RefreshHarness, connection: Connection) -> list[StoredEvent]:
    """Return the history of a connection, oldest first."""
    return list(reversed(await harness.store.events(connection_id=connection.id, limit=100)))


def _mark(harness: RefreshHarness, connection: Connection) -> str:
    return abbreviated(fingerprint(harness.pair(connection).refresh_token))


async def test_a_refresh_tells_which_token_became_which_on_whose_demand(harness: RefreshHarness) -> None:
    """A chain of fingerprints: each token is presented once, and its successor is named beside it."""
    first = await harness.connect()
    second = await harness.refresh(first, trigger=RefreshTrigger.FORCED)
    third = await harness.refresh(second)
    one, two = await _told(harness, first)
    marks = [_mark(harness, each) for each in (first, second, third)]
    assert [one.name, two.name] == ["refresh.succeeded"] * 2
    assert [one.details["token"], one.details["next_token"]] == marks[:2]
    assert [two.details["token"], two.details["next_token"]] == marks[1:]
    assert [one.details["trigger"], two.details["trigger"]] == ["forced", "schedule"]
    assert len(str(one.details["request_id"])) == 32
    assert (one.at, one.details["seconds"]) == (harness.clock.now(), 0.0)


async def test_a_token_that_somebody_else_spent_is_told_as_such(harness: RefreshHarness) -> None:
    """Revoked, and nobody here presented it before: the one look says so, with AMO's status and request id."""
    connection = await harness.connect()
    harness.amo.spend(grant_type="refresh_token", refresh_token=harness.pair(connection).refresh_token)
    await harness.fail(connection, NeedsReauth)
    [given_up] = await _told(harness, connection)
    assert (given_up.name, given_up.details["reason"]) == ("connection.needs_reauth", "revoked")
    assert given_up.details["token"] == _mark(harness, connection)
    assert str(given_up.details["spent_by"]).startswith("not used by this database before")
    assert (given_up.details["status"], len(str(given_up.details["request_id"]))) == (401, 32)


async def test_a_token_that_we_may_have_spent_is_told_with_our_attempts(harness: RefreshHarness) -> None:
    """An answer was lost: its attempt, who took it over, and the verdict all name the same token."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, AmoCallbackError, Fault.NOTHING_AFTER)
    harness.clock.advance(901)
    await harness.fail(connection, NeedsReauth)
    told = await _told(harness, connection)
    assert [event.name for event in told] == ["refresh.failed", "refresh.taken_over", "connection.needs_reauth"]
    assert {event.details["token"] for event in told} == {_mark(harness, connection)}
    assert (told[0].details["error"], told[0].details["detail"]) == ("outcome_open", "connection_lost")
    assert (told[1].details["from_process"], told[2].details["reason"]) == ("process-1", "in_doubt")


@pytest.mark.parametrize("presented", ["f" * 64, ""], ids=["a token", "nothing"])
async def test_a_process_that_died_in_the_middle_is_named(harness: RefreshHarness, presented: str) -> None:
    """It could not tell its end itself: whoever takes over tells for it, with the token where it presented one."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner="server-1:4711", fingerprint=presented))
    lifecycle = harness.make_lifecycle(process="process-2")
    lifecycle.leases.remaining(await harness.now(connection))
    harness.clock.advance(60)
    await harness.refresh(connection, by=lifecycle.coordinator)
    taken, succeeded = await _told(harness, connection)
    assert (taken.name, succeeded.name) == ("refresh.taken_over", "refresh.succeeded")
    assert (taken.details["from_process"], taken.details.get("token", "")) == ("server-1:4711", presented[:16])
    assert taken.details["lease_until"]


async def test_what_was_not_done_is_told_too(harness: RefreshHarness) -> None:
    """A token in doubt that could not be looked up was postponed, and the history says why nothing happened."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, AmoCallbackError, Fault.HTTP_500)
    harness.clock.advance(901)
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
    await harness.fail(connection, AmoCallbackError)
    assert [event.name for event in await _told(harness, connection)] == ["refresh.failed", "refresh.postponed"]


async def test_what_is_remembered_holds_no_secret(harness: RefreshHarness) -> None:
    """Fingerprints and no tokens, whatever happened."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    secrets = []
    for fault in (None, Fault.HTTP_500, Fault.TEAPOT, Fault.UNPAID, Fault.NO_REFRESH_TOKEN_AFTER):
        if fault is not None:
            harness.amo.sandbox.faults.add(fault)
        pair = harness.pair(await harness.now(connection))
        secrets += [pair.access_token, pair.refresh_token]
        try:
            await harness.refresh(connection, trigger=RefreshTrigger.FORCED)
        except AmoCallbackError:
            harness.clock.advance(901)
    told = str(await harness.store.events(limit=100))
    assert [secret for secret in secrets if secret[-24:] in told or secret[:24] in told] == []
    assert len(await _told(harness, connection)) >= 5
