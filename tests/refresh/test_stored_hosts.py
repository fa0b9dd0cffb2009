"""Stored hosts, accounts and users: a changed database row must not send a secret or a token to another host."""

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import HostNotAllowed, NeedsReauth, UnknownOutcome
from amo_callback.model import Connection, Reason, RefreshRules, RefreshTrigger, Status
from tests.refresh.harness import API_DOMAIN, DAY, RefreshHarness
from tests.service import HOST, amo_client

FOREIGN_HOST = "evil.example.com"
HOSTS = [
    FOREIGN_HOST,
    f"{HOST}.example.com",
    f"{HOST}@{FOREIGN_HOST}",
    f"{HOST}:8443",
    f"{FOREIGN_HOST}/{HOST}",
    f"https://{HOST}",
    HOST.upper(),
    "a.b.amocrm.ru",
    "",
    "\ud7ff.amocrm.ru",
]
"""Stored hosts that are malformed or not AMO's."""
CAP = timedelta(seconds=RefreshRules().retry_cap)


class Tampering:
    """A writer that changes database rows without an encryption key."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def set(self, connection: Connection, **columns: object) -> None:
        """Change columns of a row without the service."""
        changes = ", ".join(f"{name} = :{name}" for name in columns)
        with closing(sqlite3.connect(self._file)) as database, database:
            database.execute(f"UPDATE connections SET {changes} WHERE id = :id", {**columns, "id": connection.id})  # noqa: S608 -- because the names come from the test


@pytest.fixture
def tampering(tmp_path: Path) -> Tampering:
    return Tampering(tmp_path / "amo-callback.db")


async def _count_not_allowed(harness: RefreshHarness) -> int:
    now = harness.clock.now()
    return (await harness.store.stats(now=now, late=now)).hosts_not_allowed


@pytest.mark.parametrize("host", HOSTS)
async def test_refresh_host_not_allowed_sends_nothing_and_stays_active(
    harness: RefreshHarness, tampering: Tampering, host: str
) -> None:
    """A refresh of a host not on the allow list sends nothing and is retried after `retry_cap`."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, domain=host)
    before = harness.count_requests()
    with pytest.raises(HostNotAllowed) as refused:
        await harness.refresh(connection)
    assert harness.count_requests() == before
    assert "amo.allowed_domains" in str(refused.value)
    after = await harness.now(connection)
    assert (after.status, after.last_error, after.attempt) == (Status.ACTIVE, "host_not_allowed", None)
    assert (after.next_refresh_at, after.refusals) == (harness.clock.now() + CAP, 0)
    assert await _count_not_allowed(harness) == 1
    assert harness.witness.names().count("host.not_allowed") == 1
    assert await harness.store.webhooks(limit=10) == []


@pytest.mark.parametrize("trigger", [RefreshTrigger.HAND_OUT, RefreshTrigger.FORCED])
async def test_refresh_host_not_allowed_repeated_callers_write_nothing(
    harness: RefreshHarness, tampering: Tampering, trigger: RefreshTrigger
) -> None:
    """After the first refusal further callers are rejected without a request, a write or a log line."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, domain=FOREIGN_HOST)
    before = harness.count_requests()
    for _ in range(5):
        await harness.fail(connection, HostNotAllowed, trigger=trigger)
    assert harness.count_requests() == before
    assert harness.witness.names().count("host.not_allowed") == 1
    assert (await harness.now(connection)).failures == 1


async def test_scheduler_host_not_allowed_is_retried_once_per_retry_cap(
    harness: RefreshHarness, tampering: Tampering
) -> None:
    """A row whose host is not allowed is due once per `retry_cap`, also after its access token expires."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, domain=FOREIGN_HOST)
    harness.clock.advance(2 * DAY)
    before = harness.count_requests()
    async with harness.running(harness.lifecycle):
        await harness.pass_time(3 * CAP.total_seconds(), step=5)
    assert harness.count_requests() == before
    assert harness.witness.names().count("host.not_allowed") == 4
    assert harness.traffic.calls["claim"] == 0


async def test_start_with_host_now_allowed_makes_connection_due(harness: RefreshHarness) -> None:
    """At start a connection is due at once if its host has been added to the allow list."""
    stored = await harness.connect(api_domain=API_DOMAIN, domain=FOREIGN_HOST)
    harness.amo.account.host = FOREIGN_HOST
    await harness.fail(stored, HostNotAllowed)
    async with amo_client(harness.amo, harness.clock, allowed_domains=[FOREIGN_HOST]) as client:
        lifecycle = harness.make_lifecycle(amo=client)
        await lifecycle.hosts.begin()
        assert await _count_not_allowed(harness) == 0
        due = (await harness.store.due(now=harness.clock.now(), limit=10, exclude=())).refreshes
        assert [each.id for each in due] == [stored.id]
        assert (await harness.refresh(stored, by=lifecycle.coordinator)).pair_version == stored.pair_version + 1
        handed_out = await lifecycle.access_tokens.token(stored.id, min_ttl=0)
    assert handed_out.base_url == harness.amo.endpoint.replace("{domain}", FOREIGN_HOST)


async def test_forced_refresh_after_host_corrected_is_sent_at_once(
    harness: RefreshHarness, tampering: Tampering
) -> None:
    """A forced refresh is sent at once after the row was corrected."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, domain=FOREIGN_HOST)
    await harness.fail(connection, HostNotAllowed)
    tampering.set(connection, domain=HOST)
    assert (await harness.refresh(connection, trigger=RefreshTrigger.FORCED)).last_error is None
    assert await _count_not_allowed(harness) == 0


async def test_recheck_host_not_allowed_is_postponed_by_retry_cap(
    harness: RefreshHarness, tampering: Tampering
) -> None:
    """A token in doubt, a hook or a recheck causes no introspection at a host that is not allowed."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, UnknownOutcome, Fault.NOTHING_AFTER)
    await harness.lifecycle.integration_disabled(connection.account_id)
    tampering.set(connection, domain=FOREIGN_HOST)
    harness.clock.advance(901)
    before = harness.count_requests()
    await harness.fail(connection, HostNotAllowed)
    for status in (Status.ACTIVE, Status.NEEDS_REAUTH):
        tampering.set(connection, status=status, recheck_at=0, attempt=None)
        await harness.run_due_rechecks()
        assert (await harness.now(connection)).recheck_at == harness.clock.now() + CAP
    assert harness.count_requests() == before
    assert (await harness.now(connection)).status is Status.NEEDS_REAUTH


async def test_introspection_api_domain_not_allowed_is_not_sent(harness: RefreshHarness, tampering: Tampering) -> None:
    """No introspection is sent to an `api_domain` that is not allowed; a token without doubt is refreshed."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, api_domain=FOREIGN_HOST)
    refreshed = await harness.refresh(connection)
    assert refreshed.api_domain == API_DOMAIN
    await harness.fail(connection, UnknownOutcome, Fault.NOTHING_AFTER)
    tampering.set(connection, api_domain=FOREIGN_HOST)
    harness.clock.advance(901)
    before = harness.count_requests()
    await harness.fail(connection, HostNotAllowed)
    after = await harness.now(connection)
    assert harness.count_requests() == before
    assert (after.status, after.last_error) == (Status.ACTIVE, "host_not_allowed")


async def test_host_not_allowed_neither_opens_breaker_nor_is_probed(
    harness: RefreshHarness, tampering: Tampering
) -> None:
    """Hosts that are not allowed neither open the circuit breaker nor cause a mass failure, and are never probed."""
    connected = [connection for _, connection in await harness.connect_accounts(11)]
    for connection in connected[:10]:
        tampering.set(connection, domain=FOREIGN_HOST)
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


async def test_hand_out_host_not_allowed_is_rejected(harness: RefreshHarness, tampering: Tampering) -> None:
    """No access token is handed out for a host that is not allowed; the first hand-out marks the connection."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    assert (await harness.hand_out(connection.id)).base_url == harness.amo.endpoint.replace("{domain}", HOST)
    tampering.set(connection, domain=FOREIGN_HOST)
    harness.clock.advance(2)
    before = harness.count_requests()
    for _ in range(3):
        with pytest.raises(HostNotAllowed):
            await harness.hand_out(connection.id)
    with pytest.raises(HostNotAllowed):
        await harness.lifecycle.access_tokens.refresh(connection.id)
    harness.clock.advance(0.95 * DAY)
    with pytest.raises(HostNotAllowed):
        await harness.lifecycle.access_tokens.token(connection.id, min_ttl=DAY)
    assert harness.count_requests() == before
    assert await _count_not_allowed(harness) == 1


async def test_hand_out_long_lived_token_of_host_not_allowed_is_rejected(
    harness: RefreshHarness, tampering: Tampering
) -> None:
    """No long-lived token of a host that is not allowed is handed out, and its connection is never due."""
    connection = await harness.connect(refresh_expires_at=None, next_refresh_at=None)
    tampering.set(connection, domain=FOREIGN_HOST)
    with pytest.raises(HostNotAllowed):
        await harness.hand_out(connection.id)
    after = await harness.now(connection)
    assert (after.last_error, after.next_refresh_at) == ("host_not_allowed", None)
    assert (await harness.store.due(now=harness.clock.now() + 9 * CAP, limit=10, exclude=())).refreshes == []


async def test_refresh_row_with_changed_user_is_unreadable_until_corrected(
    harness: RefreshHarness, tampering: Tampering
) -> None:
    """A row with another user id is unreadable and not presented, and recovers when it is corrected."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, user_id="1")
    before = harness.count_requests()
    await harness.fail(connection, NeedsReauth)
    after = await harness.now(connection)
    assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.UNREADABLE)
    assert harness.count_requests() == before
    tampering.set(connection, user_id=connection.user_id)
    harness.clock.advance(CAP.total_seconds())
    await harness.run_due_rechecks()
    assert (await harness.now(connection)).status is Status.ACTIVE
    assert (await harness.refresh(connection)).pair_version == 2


async def test_decrypt_pair_without_account_is_readable_at_other_host(
    harness: RefreshHarness, tampering: Tampering
) -> None:
    """The id of a connection without an account was derived from its first host and remains valid."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    tampering.set(connection, account_id="", domain="moved.amocrm.ru")
    assert harness.cipher.decrypt_pair(await harness.now(connection)) is not None
