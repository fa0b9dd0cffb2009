"""Stored hosts, accounts and users: whoever can write the database gets no secret, and nobody else's token."""

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import HostNotAllowed, NeedsReauth, UnknownOutcome
from amo_callback.model import Connection, Reason, RefreshRules, RefreshTrigger, Status
from tests.refresh.harness import API_DOMAIN, DAY, RefreshHarness
from tests.service import HOST, amo_client

EVIL = "evil.example.com"
HOSTS = [
    EVIL,
    f"{HOST}.example.com",
    f"{HOST}@{EVIL}",
    f"{HOST}:8443",
    f"{EVIL}/{HOST}",
    f"https://{HOST}",
    HOST.upper(),
    "a.b.amocrm.ru",
    "",
    "\ud7ff.amocrm.ru",
]
"""Stored hosts that are not as an account's host is stored, or not AMO's."""
CAP = timedelta(seconds=RefreshRules().retry_cap)


class Tampering:
    """Somebody who can write the database, and has no encryption key."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def set(self, connection: Connection, **columns: object) -> None:
        """Change a row behind the back of the service."""
        changes = ", ".join(f"{name} = :{name}" for name in columns)
        with closing(sqlite3.connect(self._file)) as database, database:
            database.execute(f"UPDATE connections SET {changes} WHERE id = :id", {**columns, "id": connection.id})  # noqa: S608 -- because the test writes it


@pytest.fixture
def tampering(tmp_path: Path) -> Tampering:
    return Tampering(tmp_path / "amo-callback.db")


def _asked(harness: RefreshHarness) -> int:
    """Count the requests of any kind that have reached AMO."""
    return harness.amo.sandbox.requests + harness.amo.sandbox.introspections


async def _token(harness: RefreshHarness, selector: str) -> Any:
    handed_out = await harness.lifecycle.access_tokens.token(selector, min_ttl=0)
    await harness.traffic.until_quiet()
    return handed_out


async def _count(harness: RefreshHarness) -> int:
    now = harness.clock.now()
    return (await harness.store.stats(now=now, late=now)).hosts_not_allowed


@pytest.mark.parametrize("host", HOSTS)
async def test_a_host_that_is_not_allowed_gets_no_refresh_token(
    harness: RefreshHarness, tampering: Tampering, host: str
) -> None:
    """Nothing is sent, and the connection is not blamed: it stays active and is tried again after the retry cap."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, domain=host)
    before = _asked(harness)
    with pytest.raises(HostNotAllowed) as refused:
        await harness.refresh(connection)
    assert _asked(harness) == before
    assert "amo.allowed_domains" in str(refused.value)
    after = await harness.now(connection)
    assert (after.status, after.last_error, after.attempt) == (Status.ACTIVE, "host_not_allowed", None)
    assert (after.next_refresh_at, after.refusals) == (harness.clock.now() + CAP, 0)
    assert await _count(harness) == 1
    assert harness.witness.names().count("host.not_allowed") == 1
    assert await harness.store.webhooks(limit=10) == []


@pytest.mark.parametrize("trigger", [RefreshTrigger.HAND_OUT, RefreshTrigger.FORCED])
async def test_callers_in_a_loop_write_nothing(
    harness: RefreshHarness, tampering: Tampering, trigger: RefreshTrigger
) -> None:
    """Once it is put off, each further caller is told at once, without a request, a write or a log line."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, domain=EVIL)
    before = _asked(harness)
    for _ in range(5):
        await harness.fail(connection, HostNotAllowed, trigger=trigger)
    assert _asked(harness) == before
    assert harness.witness.names().count("host.not_allowed") == 1
    assert (await harness.now(connection)).failures == 1


async def test_the_loop_tries_a_refused_host_once_per_retry_cap(harness: RefreshHarness, tampering: Tampering) -> None:
    """Rows with such a host are not found due again and again, also where their access token has expired."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, domain=EVIL)
    harness.clock.advance(2 * DAY)
    before = _asked(harness)
    async with harness.running(harness.lifecycle):
        await harness.pass_time(3 * CAP.total_seconds(), step=5)
    assert _asked(harness) == before
    assert harness.witness.names().count("host.not_allowed") == 4
    assert harness.traffic.calls["claim"] == 0


async def test_it_works_again_as_soon_as_the_setting_allows_the_host(harness: RefreshHarness) -> None:
    """At start what was put off is due, so that nobody waits for the retry cap."""
    stored = await harness.connect(api_domain=API_DOMAIN, domain=EVIL)
    harness.amo.account.host = EVIL
    await harness.fail(stored, HostNotAllowed)
    async with amo_client(harness.amo, harness.clock, allowed_domains=[EVIL]) as client:
        lifecycle = harness.make_lifecycle(amo=client)
        await lifecycle.hosts.begin()
        assert await _count(harness) == 0
        due = (await harness.store.due(now=harness.clock.now(), limit=10, exclude=())).refreshes
        assert [each.id for each in due] == [stored.id]
        assert (await harness.refresh(stored, by=lifecycle.coordinator)).pair_version == stored.pair_version + 1
        handed_out = await lifecycle.access_tokens.token(stored.id, min_ttl=0)
    assert handed_out.base_url == harness.amo.endpoint.replace("{domain}", EVIL)


async def test_a_caller_need_not_wait_once_the_host_is_allowed(harness: RefreshHarness, tampering: Tampering) -> None:
    """The row was mended by hand: a forced refresh goes at once, whatever was put off before."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, domain=EVIL)
    await harness.fail(connection, HostNotAllowed)
    tampering.set(connection, domain=HOST)
    assert (await harness.refresh(connection, trigger=RefreshTrigger.FORCED)).last_error is None
    assert await _count(harness) == 0


async def test_nothing_is_asked_about_one_whose_host_is_refused(harness: RefreshHarness, tampering: Tampering) -> None:
    """In doubt, named by AMO's hook, or given up: its tokens stay here, and it waits for the retry cap."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, UnknownOutcome, Fault.NOTHING_AFTER)
    await harness.lifecycle.switched_off(connection.account_id)
    tampering.set(connection, domain=EVIL)
    harness.clock.advance(901)
    before = _asked(harness)
    await harness.fail(connection, HostNotAllowed)
    for status in (Status.ACTIVE, Status.NEEDS_REAUTH):
        tampering.set(connection, status=status, recheck_at=0, attempt=None)
        await harness.recheck_due()
        assert (await harness.now(connection)).recheck_at == harness.clock.now() + CAP
    assert _asked(harness) == before
    assert (await harness.now(connection)).status is Status.NEEDS_REAUTH


async def test_an_api_host_that_is_not_allowed_is_not_asked(harness: RefreshHarness, tampering: Tampering) -> None:
    """A token in doubt waits for the operator; one beyond doubt is refreshed, which brings the right host back."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, api_domain=EVIL)
    refreshed = await harness.refresh(connection)
    assert refreshed.api_domain == API_DOMAIN
    await harness.fail(connection, UnknownOutcome, Fault.NOTHING_AFTER)
    tampering.set(connection, api_domain=EVIL)
    harness.clock.advance(901)
    before = _asked(harness)
    await harness.fail(connection, HostNotAllowed)
    after = await harness.now(connection)
    assert _asked(harness) == before
    assert (after.status, after.last_error) == (Status.ACTIVE, "host_not_allowed")


async def test_refused_hosts_are_no_mass_failure_and_open_no_breaker(
    harness: RefreshHarness, tampering: Tampering
) -> None:
    """Ten of eleven connections: the eleventh is refreshed, and gives its place as the probe to none of them."""
    connected = [connection for _, connection in await harness.connect_accounts(11)]
    for connection in connected[:10]:
        tampering.set(connection, domain=EVIL)
    harness.clock.advance(901)
    for connection in connected[:10]:
        await harness.fail(connection, HostNotAllowed)
    assert (harness.lifecycle.breaker.reason, harness.lifecycle.breaker.terminal_suspended) == (None, False)
    assert (await harness.refresh(connected[10])).pair_version == 2
    harness.lifecycle.breaker.refuse("Check the `client_id` parameter")
    probe = await harness.store.probe(exclude=(), turn=timedelta(0))
    assert probe is not None
    assert probe.id == connected[10].id
    assert await harness.store.probe(exclude=(probe.id,), turn=timedelta(0)) is None


async def test_no_token_is_handed_out_for_a_host_not_allowed(harness: RefreshHarness, tampering: Tampering) -> None:
    """Fresh, young or stale: a backend would send it there. The first caller makes the connection known."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    assert (await _token(harness, connection.id)).base_url == harness.amo.endpoint.replace("{domain}", HOST)
    tampering.set(connection, domain=EVIL)
    harness.clock.advance(2)
    before = _asked(harness)
    for _ in range(3):
        with pytest.raises(HostNotAllowed):
            await _token(harness, connection.id)
    with pytest.raises(HostNotAllowed):
        await harness.lifecycle.access_tokens.refresh(connection.id)
    harness.clock.advance(0.95 * DAY)
    with pytest.raises(HostNotAllowed):
        await harness.lifecycle.access_tokens.token(connection.id, min_ttl=DAY)
    assert _asked(harness) == before
    assert await _count(harness) == 1


async def test_no_long_lived_token_is_handed_out_for_such_a_host(harness: RefreshHarness, tampering: Tampering) -> None:
    """It has no refresh token, so nothing of it comes due: only hand-outs find its host refused."""
    connection = await harness.connect(refresh_expires_at=None, next_refresh_at=None)
    tampering.set(connection, domain=EVIL)
    with pytest.raises(HostNotAllowed):
        await _token(harness, connection.id)
    after = await harness.now(connection)
    assert (after.last_error, after.next_refresh_at) == ("host_not_allowed", None)
    assert (await harness.store.due(now=harness.clock.now() + 9 * CAP, limit=10, exclude=())).refreshes == []


async def test_a_row_of_another_user_is_unreadable_until_mended(harness: RefreshHarness, tampering: Tampering) -> None:
    """Nothing of it is presented; when the row is as it was, the connection recovers by itself."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, user_id="1")
    before = _asked(harness)
    await harness.fail(connection, NeedsReauth)
    after = await harness.now(connection)
    assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.UNREADABLE)
    assert _asked(harness) == before
    tampering.set(connection, user_id=connection.user_id)
    harness.clock.advance(CAP.total_seconds())
    await harness.recheck_due()
    assert (await harness.now(connection)).status is Status.ACTIVE
    assert (await harness.refresh(connection)).pair_version == 2


async def test_a_connection_of_no_known_account_keeps_its_id(harness: RefreshHarness, tampering: Tampering) -> None:
    """Its id stands for the host at which it connected: it is readable at any other host, too."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, account_id="", domain="moved.amocrm.ru")
    assert harness.cipher.decrypt_pair(await harness.now(connection)) is not None
