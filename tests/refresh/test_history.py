"""The history of a connection: events, triggers, tokens and causes."""

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import AmoCallbackError, NeedsReauth
from amo_callback.events import StoredEvent
from amo_callback.model import Connection, RefreshTrigger, abbreviated, fingerprint
from tests.builders import a_claim
from tests.refresh.harness import API_DOMAIN, RefreshHarness


async def _history(harness: RefreshHarness, connection: Connection) -> list[StoredEvent]:
    """Return the history of a connection, oldest first."""
    return list(reversed(await harness.store.events(connection_id=connection.id, limit=100)))


def _abbreviated_fingerprint(harness: RefreshHarness, connection: Connection) -> str:
    return abbreviated(fingerprint(harness.pair(connection).refresh_token))


async def test_history_refresh_contains_both_fingerprints_and_trigger(harness: RefreshHarness) -> None:
    """Each refresh records the fingerprints of the presented and the following token, and its trigger."""
    first = await harness.connect()
    second = await harness.refresh(first, trigger=RefreshTrigger.FORCED)
    third = await harness.refresh(second)
    one, two = await _history(harness, first)
    fingerprints = [_abbreviated_fingerprint(harness, each) for each in (first, second, third)]
    assert [one.name, two.name] == ["refresh.succeeded"] * 2
    assert [one.details["token"], one.details["next_token"]] == fingerprints[:2]
    assert [two.details["token"], two.details["next_token"]] == fingerprints[1:]
    assert [one.details["trigger"], two.details["trigger"]] == ["forced", "schedule"]
    assert len(str(one.details["request_id"])) == 32
    assert (one.at, one.details["seconds"]) == (harness.clock.now(), 0.0)


async def test_history_token_spent_by_other_system_names_possible_causes(harness: RefreshHarness) -> None:
    """A revoked token that this database has not used is recorded with that fact and AMO's answer."""
    connection = await harness.connect()
    harness.amo.spend(grant_type="refresh_token", refresh_token=harness.pair(connection).refresh_token)
    await harness.fail(connection, NeedsReauth)
    [event] = await _history(harness, connection)
    assert (event.name, event.details["reason"]) == ("connection.needs_reauth", "revoked")
    assert event.details["token"] == _abbreviated_fingerprint(harness, connection)
    assert str(event.details["spent_by"]).startswith("no earlier use of the token is recorded in this database")
    assert (event.details["status"], len(str(event.details["request_id"]))) == (401, 32)


async def test_history_token_in_doubt_contains_all_its_attempts(harness: RefreshHarness) -> None:
    """The lost attempt, its takeover and the terminal failure contain the same fingerprint."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, AmoCallbackError, Fault.NOTHING_AFTER)
    harness.clock.advance(901)
    await harness.fail(connection, NeedsReauth)
    history = await _history(harness, connection)
    assert [event.name for event in history] == ["refresh.failed", "refresh.taken_over", "connection.needs_reauth"]
    assert {event.details["token"] for event in history} == {_abbreviated_fingerprint(harness, connection)}
    assert (history[0].details["error"], history[0].details["detail"]) == ("outcome_open", "connection_lost")
    assert (history[1].details["from_process"], history[2].details["reason"]) == ("process-1", "in_doubt")


@pytest.mark.parametrize("presented", ["f" * 64, ""], ids=["token", "no token"])
async def test_history_takeover_names_killed_process(harness: RefreshHarness, presented: str) -> None:
    """A takeover records the killed process and the fingerprint of the token that it presented, if any."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner="server-1:4711", fingerprint=presented))
    lifecycle = harness.make_lifecycle(process="process-2")
    lifecycle.leases.remaining(await harness.now(connection))
    harness.clock.advance(60)
    await harness.refresh(connection, by=lifecycle.coordinator)
    taken, succeeded = await _history(harness, connection)
    assert (taken.name, succeeded.name) == ("refresh.taken_over", "refresh.succeeded")
    assert (taken.details["from_process"], taken.details.get("token", "")) == ("server-1:4711", presented[:16])
    assert taken.details["lease_until"]


async def test_history_postponed_refresh_is_recorded(harness: RefreshHarness) -> None:
    """A refresh that is postponed because introspection is unanswered is recorded."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, AmoCallbackError, Fault.HTTP_500)
    harness.clock.advance(901)
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
    await harness.fail(connection, AmoCallbackError)
    assert [event.name for event in await _history(harness, connection)] == ["refresh.failed", "refresh.postponed"]


async def test_history_contains_no_token(harness: RefreshHarness) -> None:
    """The history contains fingerprints but no tokens."""
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
    stored = str(await harness.store.events(limit=100))
    assert [secret for secret in secrets if secret[-24:] in stored or secret[:24] in stored] == []
    assert len(await _history(harness, connection)) >= 5
