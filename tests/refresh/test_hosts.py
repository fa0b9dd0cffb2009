"""Stored hosts, accounts and users: whoever can write the database gets no secret, and nobody else's token."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.amo.sandbox.faults import Fault
from amo_callback.errors import HostNotAllowed, NeedsReauth, UnknownOutcome
from amo_callback.model import Reason, RefreshRules, RefreshTrigger, Status
from tests.refresh.house import API_DOMAIN, DAY
from tests.service import HOST, amo_client

if TYPE_CHECKING:
    from pathlib import Path

    from amo_callback.model import Connection
    from tests.refresh.house import House

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


def _asked(house: House) -> int:
    """Count the requests of any kind that have reached AMO."""
    return house.amo.sandbox.requests + house.amo.sandbox.look_ups


async def _token(house: House, selector: str) -> Any:
    handed_out = await house.lifecycle.access_tokens.token(selector, min_ttl=0)
    await house.traffic.until_quiet()
    return handed_out


async def _count(house: House) -> int:
    now = house.clock.now()
    return (await house.store.survey(now=now, late=now)).hosts_not_allowed


# --- where requests go ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
async def test_a_stored_host_that_is_not_allowed_gets_no_refresh_token(
    house: House, tampering: Tampering, host: str
) -> None:
    """Nothing is sent, and the connection is not blamed: it stays active and is tried again after the retry cap."""
    connection = await house.connect(api_domain=API_DOMAIN)
    tampering.set(connection, domain=host)
    before = _asked(house)
    with pytest.raises(HostNotAllowed) as refused:
        await house.refresh(connection)
    assert _asked(house) == before
    assert "amo.allowed_domains" in str(refused.value)
    after = await house.now(connection)
    assert (after.status, after.last_error, after.attempt) == (Status.ACTIVE, "host_not_allowed", None)
    assert (after.next_refresh_at, after.refusals) == (house.clock.now() + CAP, 0)
    assert await _count(house) == 1
    assert house.witness.names().count("host.not_allowed") == 1
    assert await house.store.webhooks(limit=10) == []


@pytest.mark.parametrize("demand", [RefreshTrigger.HAND_OUT, RefreshTrigger.FORCED])
async def test_callers_in_a_loop_write_nothing_more(house: House, tampering: Tampering, demand: RefreshTrigger) -> None:
    """Once it is put off, each further caller is told at once, without a request, a write or a log line."""
    connection = await house.connect(api_domain=API_DOMAIN)
    tampering.set(connection, domain=EVIL)
    before = _asked(house)
    for _ in range(5):
        with pytest.raises(HostNotAllowed):
            await house.refresh(connection, demand=demand)
    assert _asked(house) == before
    assert house.witness.names().count("host.not_allowed") == 1
    assert (await house.now(connection)).failures == 1


async def test_the_loop_tries_a_refused_host_once_per_retry_cap(house: House, tampering: Tampering) -> None:
    """Rows with such a host are not found due again and again, also where their access token has expired."""
    connection = await house.connect(api_domain=API_DOMAIN)
    tampering.set(connection, domain=EVIL)
    house.clock.advance(2 * DAY)
    before = _asked(house)
    async with house.running(house.lifecycle):
        await house.pass_time(3 * CAP.total_seconds(), step=5)
    assert _asked(house) == before
    assert house.witness.names().count("host.not_allowed") == 4
    assert house.traffic.calls["claim"] == 0


async def test_it_works_again_as_soon_as_the_setting_allows_the_host(house: House) -> None:
    """At start what was put off is due, so that nobody waits for the retry cap."""
    stored = await house.connect(api_domain=API_DOMAIN, domain=EVIL)
    house.amo.account.host = EVIL
    with pytest.raises(HostNotAllowed):
        await house.refresh(stored)
    async with amo_client(house.amo, house.clock, allowed_domains=[EVIL]) as client:
        lifecycle = house.make_lifecycle(amo=client)
        await lifecycle.hosts.begin()
        assert await _count(house) == 0
        due = (await house.store.due(now=house.clock.now(), limit=10, apart_from=())).refreshes
        assert [each.id for each in due] == [stored.id]
        assert (
            await lifecycle.coordinator.refresh(stored.id, demand=RefreshTrigger.SCHEDULE)
        ).pair_version == stored.pair_version + 1
        handed_out = await lifecycle.access_tokens.token(stored.id, min_ttl=0)
    assert handed_out.base_url == house.amo.endpoint.replace("{domain}", EVIL)


async def test_a_caller_need_not_wait_once_the_host_is_allowed(house: House, tampering: Tampering) -> None:
    """The row was mended by hand: a forced refresh goes at once, whatever was put off before."""
    connection = await house.connect(api_domain=API_DOMAIN)
    tampering.set(connection, domain=EVIL)
    with pytest.raises(HostNotAllowed):
        await house.refresh(connection)
    tampering.set(connection, domain=HOST)
    assert (await house.refresh(connection, demand=RefreshTrigger.FORCED)).last_error is None
    assert await _count(house) == 0


async def test_nothing_is_asked_about_a_connection_whose_host_is_refused(house: House, tampering: Tampering) -> None:
    """In doubt, named by AMO's hook, or given up: its tokens stay here, and it waits for the retry cap."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.sandbox.faults.add(Fault.NOTHING_AFTER)
    with pytest.raises(UnknownOutcome):
        await house.refresh(connection)
    await house.lifecycle.switched_off(connection.account_id)
    tampering.set(connection, domain=EVIL)
    house.clock.advance(901)
    before = _asked(house)
    with pytest.raises(HostNotAllowed):
        await house.refresh(connection)
    for status in (Status.ACTIVE, Status.NEEDS_REAUTH):
        tampering.set(connection, status=status, look_up_at=0, attempt=None)
        await house.look_up_due()
        assert (await house.now(connection)).look_up_at == house.clock.now() + CAP
    assert _asked(house) == before
    assert (await house.now(connection)).status is Status.NEEDS_REAUTH


async def test_an_api_host_that_is_not_allowed_is_not_asked(house: House, tampering: Tampering) -> None:
    """A token in doubt waits for the operator; one beyond doubt is refreshed, which brings the right host back."""
    connection = await house.connect(api_domain=API_DOMAIN)
    tampering.set(connection, api_domain=EVIL)
    refreshed = await house.refresh(connection)
    assert refreshed.api_domain == API_DOMAIN
    house.amo.sandbox.faults.add(Fault.NOTHING_AFTER)
    with pytest.raises(UnknownOutcome):
        await house.refresh(connection)
    tampering.set(connection, api_domain=EVIL)
    house.clock.advance(901)
    before = _asked(house)
    with pytest.raises(HostNotAllowed):
        await house.refresh(connection)
    after = await house.now(connection)
    assert _asked(house) == before
    assert (after.status, after.last_error) == (Status.ACTIVE, "host_not_allowed")


async def test_refused_hosts_open_no_breaker_and_are_no_mass_failure(house: House, tampering: Tampering) -> None:
    """Ten of eleven connections: the eleventh is refreshed, and gives its place as the probe to none of them."""
    connected = [connection for _, connection in await house.connect_accounts(11)]
    for connection in connected[:10]:
        tampering.set(connection, domain=EVIL)
    house.clock.advance(901)
    for connection in connected[:10]:
        with pytest.raises(HostNotAllowed):
            await house.refresh(connection)
    assert (house.lifecycle.breaker.reason, house.lifecycle.breaker.held) == (None, False)
    assert (await house.refresh(connected[10])).pair_version == 2
    house.lifecycle.breaker.refuse("Check the `client_id` parameter")
    probe = await house.store.probe(apart_from=(), turn=timedelta(0))
    assert probe is not None
    assert probe.id == connected[10].id
    assert await house.store.probe(apart_from=(probe.id,), turn=timedelta(0)) is None


# --- what is handed out --------------------------------------------------------------------------


async def test_no_token_is_handed_out_for_a_host_that_is_not_allowed(house: House, tampering: Tampering) -> None:
    """Fresh, young or stale: a backend would send it there. The first caller makes the connection known."""
    connection = await house.connect(api_domain=API_DOMAIN)
    assert (await _token(house, connection.id)).base_url == house.amo.endpoint.replace("{domain}", HOST)
    tampering.set(connection, domain=EVIL)
    house.clock.advance(2)
    before = _asked(house)
    for _ in range(3):
        with pytest.raises(HostNotAllowed):
            await _token(house, connection.id)
    with pytest.raises(HostNotAllowed):
        await house.lifecycle.access_tokens.refresh(connection.id)
    house.clock.advance(0.95 * DAY)
    with pytest.raises(HostNotAllowed):
        await house.lifecycle.access_tokens.token(connection.id, min_ttl=DAY)
    assert _asked(house) == before
    assert await _count(house) == 1


async def test_a_long_lived_token_is_not_handed_out_for_such_a_host_either(house: House, tampering: Tampering) -> None:
    """It has no refresh token, so nothing of it comes due: only hand-outs find its host refused."""
    connection = await house.connect(refresh_expires_at=None, next_refresh_at=None)
    tampering.set(connection, domain=EVIL)
    with pytest.raises(HostNotAllowed):
        await _token(house, connection.id)
    after = await house.now(connection)
    assert (after.last_error, after.next_refresh_at) == ("host_not_allowed", None)
    assert (await house.store.due(now=house.clock.now() + 9 * CAP, limit=10, apart_from=())).refreshes == []


# --- whose pair it is ----------------------------------------------------------------------------


async def test_a_row_that_names_another_account_hands_out_no_token(house: House, tampering: Tampering) -> None:
    """The rows of two accounts change their names: neither gets the other's token, also where its pair was open."""
    (_, one), (_, two) = await house.connect_accounts(2)
    for connection in (one, two):
        assert (await _token(house, f"account:{connection.account_id}")).connection.id == connection.id
    sent = len(house.amo.fake.ledger.refreshes())
    tampering.set(one, account_id=two.account_id)
    tampering.set(two, account_id=one.account_id)
    house.clock.advance(2)
    for account in (one, two):
        with pytest.raises(NeedsReauth) as raised:
            await _token(house, f"account:{account.account_id}")
        assert raised.value.reason is Reason.UNREADABLE
    assert len(house.amo.fake.ledger.refreshes()) == sent


async def test_a_row_that_names_another_user_is_unreadable_until_it_is_mended(
    house: House, tampering: Tampering
) -> None:
    """Nothing of it is presented; when the row is as it was, the connection recovers by itself."""
    connection = await house.connect(api_domain=API_DOMAIN)
    tampering.set(connection, user_id="1")
    before = _asked(house)
    with pytest.raises(NeedsReauth):
        await house.refresh(connection)
    after = await house.now(connection)
    assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.UNREADABLE)
    assert _asked(house) == before
    tampering.set(connection, user_id=connection.user_id)
    house.clock.advance(CAP.total_seconds())
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.ACTIVE
    assert (await house.refresh(connection)).pair_version == 2


async def test_a_connection_whose_account_is_not_known_keeps_its_id_when_it_moves(
    house: House, tampering: Tampering
) -> None:
    """Its id stands for the host at which it connected: it is readable at any other host, too."""
    connection = await house.connect(api_domain=API_DOMAIN)
    tampering.set(connection, account_id="", domain="moved.amocrm.ru")
    assert house.cipher.pair_of(await house.now(connection)) is not None
