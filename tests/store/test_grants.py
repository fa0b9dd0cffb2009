"""Grants, states and owners in the store."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.errors import Frozen, InvalidState
from amo_callback.grant import GrantStatus, IssuedState, NewConnection
from amo_callback.model import ConnectionFilter, ImportedConnection, Reason, Status, fingerprint
from tests.builders import (
    DAY,
    a_claim,
    a_connection,
    a_failure,
    a_grant,
    a_refreshed,
    bind,
    connected_grant,
    now,
    present,
    save,
)
from tests.fakes import START

if TYPE_CHECKING:
    from amo_callback.store import Store
    from tests.store.conftest import OpenAs

SECOND = timedelta(seconds=1)
OVER = timedelta(0)
"""The length of a lease that ends immediately."""


async def test_save_connected_second_grant_renews_connection(store: Store) -> None:
    """A later grant replaces the pair and clears the earlier failure."""
    stored = await save(store, a_connection(), iat=1)
    await store.claim(a_claim(stored))
    await store.save_failure(a_failure(stored, status=Status.NEEDS_REAUTH, reason=Reason.REVOKED, next_refresh_at=None))
    renewed = await save(store, a_connection(sealed_pair=b"new", domain="b.amocrm.ru"), iat=2)
    assert (renewed.sealed_pair, renewed.domain, renewed.pair_version) == (b"new", "b.amocrm.ru", 2)
    assert (renewed.status, renewed.reason, renewed.last_error, renewed.failures) == (Status.ACTIVE, None, None, 0)
    assert renewed.row_version > stored.row_version


@pytest.mark.parametrize("late", [-SECOND, SECOND])
@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2), (2, 2), (None, 1), (2, None), (None, None)])
async def test_save_connected_concurrent_grants_keep_later_token(
    store: Store, first: int | None, second: int | None, late: timedelta
) -> None:
    """AMO's time of issue decides between two grants; if missing or equal, the time of the answer decides."""
    await save(store, a_connection(sealed_pair=b"first"), iat=first, code="1")
    other = a_connection(sealed_pair=b"second", connected_at=START + late)
    is_later = late > timedelta(0) if first is None or second is None or first == second else second > first
    assert (await save(store, other, iat=second, code="2")).sealed_pair == (b"second" if is_later else b"first")


@pytest.mark.parametrize("iat", [1, None])
async def test_save_connected_same_grant_keeps_refreshed_pair(store: Store, iat: int | None) -> None:
    """A granted pair stored again after its refresh is discarded."""
    stored = await save(store, a_connection(), iat=iat, code="1")
    refreshed = await store.save_refreshed(a_refreshed(stored))
    assert await save(store, a_connection(), iat=iat, code="1") == refreshed


async def test_save_connected_same_grant_after_clock_change_is_discarded(store: Store) -> None:
    """A rescued grant stored again is discarded, although the clock was moved back in between."""
    await store.claim_grant(a_grant(), now=START)
    ended = a_grant(status=GrantStatus.CONNECTED, connection_id=a_connection().id)
    earlier, again = (
        NewConnection(grant=ended, connection=a_connection(connected_at=at), token_iat=7)
        for at in (START - timedelta(hours=3), START)
    )
    stored = present(await store.save_connected(earlier))
    refreshed = present(await store.save_refreshed(a_refreshed(stored)))
    assert await store.save_connected(again) is None
    assert await store.connection(refreshed.id) == refreshed


@pytest.mark.parametrize("on_request", [True, False])
async def test_save_connected_after_disconnect_is_refused_only_if_requested(store: Store, *, on_request: bool) -> None:
    """A pair granted before a requested disconnect is discarded by the store's counter, whatever the clocks show."""
    stored = await save(store, a_connection(), iat=1)
    begun = await store.claim_grant(a_grant("before"), now=START)
    assert await store.disconnect(stored, on_request=on_request)
    erased = await now(store, stored)
    assert (erased.status, erased.sealed_pair, erased.pair_version) == (Status.DISCONNECTED, None, 2)
    again = await store.claim_grant(a_grant("before", attempt="attempt-2"), now=START, over=begun.attempt)
    assert (again.attempt, again.no) == ("attempt-2", begun.no)
    late = NewConnection(grant=again, connection=a_connection(connected_at=START + DAY), token_iat=2)
    assert (await store.save_connected(late) is None) is on_request
    earlier = a_connection(connected_at=START - DAY)  # by another process's clock
    assert (await save(store, earlier, iat=3, code="after")).status is Status.ACTIVE


async def test_save_connected_discarded_pair_refuses_grant_unless_active(store: Store) -> None:
    """A grant whose pair is discarded ends as connected only if the connection is active."""
    stored = await save(store, a_connection(), iat=2)
    pairs = []
    for code in ("before", "also before"):
        grant = dataclasses.replace(
            await store.claim_grant(a_grant(code), now=START), status=GrantStatus.CONNECTED, connection_id=stored.id
        )
        pairs.append(NewConnection(grant=grant, connection=a_connection(), token_iat=1))
    assert await store.save_connected(pairs[0]) is None
    await store.disconnect(await now(store, stored), on_request=True)
    assert await store.save_connected(pairs[1]) is None
    ended = [await store.grant(pair.grant.code_hash) for pair in pairs]
    assert [(one and one.status, one and one.error) for one in ended] == [
        (GrantStatus.CONNECTED, None),
        (GrantStatus.REFUSED, "code_expired"),
    ]


async def test_pair_obtained_is_stored_per_client_id(store: Store) -> None:
    """A grant or a refresh confirms the client id, also after a disconnect; an import does not."""
    assert not await store.pair_obtained("granted")
    stored = await save(store, a_connection(1, client_id="granted"))
    assert await store.disconnect(stored, on_request=True)
    theirs = a_connection(2, client_id="imported", refreshed_at=START)
    assert await store.import_connections([ImportedConnection(connection=theirs, replaces=None)]) == []
    assert [await store.pair_obtained(name) for name in ("granted", "imported", "grant")] == [True, False, False]
    claimed = present(await store.claim(a_claim(theirs)))
    assert await store.save_refreshed(a_refreshed(claimed)) is not None
    assert await store.pair_obtained("imported")


async def test_claim_grant_concurrent_calls_return_one_attempt(store: Store) -> None:
    """Twenty concurrent claims of one code begin one grant, and all return it."""
    grants = [a_grant(attempt=f"attempt-{number}", handle_hash=f"handle-{number}") for number in range(20)]
    seen = await asyncio.gather(*(store.claim_grant(grant, now=START) for grant in grants))
    [attempt] = {grant.attempt for grant in seen}
    begun = present(await store.grant(fingerprint("code")))
    [asked] = [grant for grant in grants if grant.attempt == attempt]
    assert dataclasses.replace(begun, lease_until=asked.lease_until, no=0) == asked
    assert await store.grant_by_handle(asked.handle_hash) == begun
    assert await store.grant("unknown") is None
    assert [await store.grant_by_handle(grant.handle_hash) for grant in grants if grant is not asked] == [None] * 19


@pytest.mark.parametrize("status", [GrantStatus.CONNECTED, GrantStatus.REFUSED])
async def test_claim_grant_of_ended_grant_returns_result(store: Store, status: GrantStatus) -> None:
    """An ended grant is not begun a second time."""
    grant = await store.claim_grant(a_grant(), now=START)
    assert await store.finish_grant(dataclasses.replace(grant, status=status, error="code_used"))
    after = await store.claim_grant(a_grant(attempt="2"), now=START + DAY / 1440)
    assert (after.status, after.error, after.attempt) == (status, "code_used", "attempt-1")


async def test_claim_grant_of_failed_grant_begins_new_attempt(store: Store) -> None:
    """A failed grant can be claimed until its code expires; it keeps its handle and its doubt."""
    grant = await store.claim_grant(a_grant(), now=START)
    failed = dataclasses.replace(grant, status=GrantStatus.FAILED, error="code_used", possibly_spent=True)
    assert await store.finish_grant(failed)
    for over, at in ((grant.attempt, grant.expires_at), (None, START), ("another", START)):
        assert (await store.claim_grant(a_grant(attempt="2"), now=at, over=over)).attempt == "attempt-1"
    again = await store.claim_grant(a_grant(attempt="2", handle_hash="another"), now=START, over=grant.attempt)
    assert (again.status, again.error, again.attempt, again.possibly_spent) == (GrantStatus.EXCHANGING, None, "2", True)
    assert again.handle_hash == grant.handle_hash
    assert not await store.finish_grant(failed)


async def test_claim_grant_of_abandoned_grant_marks_code_possibly_spent(store: Store) -> None:
    """A process that saw the lease end can claim an abandoned grant, whose code is then possibly spent."""
    grant = await store.claim_grant(a_grant(), now=START)
    for abandoned in (None, "another"):
        kept = await store.claim_grant(a_grant(attempt="2"), now=grant.lease_until + DAY / 1440, over=abandoned)
        assert kept.attempt == grant.attempt
    after = await store.claim_grant(a_grant(attempt="2"), now=START, over=grant.attempt)
    assert (after.attempt, after.possibly_spent) == ("2", True)


async def test_prune_expired_grant_erases_then_deletes_it(store: Store) -> None:
    """An expired grant loses its sealed data immediately and is deleted a day later."""
    grant = await store.claim_grant(a_grant(), now=START)
    await store.prune(now=grant.expires_at - SECOND, keep=DAY.total_seconds())
    assert await store.grant(grant.code_hash) == grant
    await store.prune(now=grant.expires_at, keep=DAY.total_seconds())
    assert await store.grant(grant.code_hash) == dataclasses.replace(grant, sealed=None)
    await store.prune(now=grant.expires_at + DAY, keep=DAY.total_seconds())
    assert await store.grant(grant.code_hash) is None


def a_state(**more: Any) -> IssuedState:
    values: dict[str, Any] = {"state_hash": "state", "sealed": b"sealed", "expires_at": START + DAY / 48}
    return IssuedState(**{**values, **more})


async def test_claim_grant_uses_state_with_code(store: Store) -> None:
    """A state is used in the transaction of its code's claim, and only for that code."""
    await store.issue_state(a_state())
    assert await store.issued_state("state") == a_state()
    grant = await store.claim_grant(a_grant(), now=START, state_hash="state")
    assert await store.issued_state("state") == a_state(
        code_hash=grant.code_hash, sealed=grant.sealed, expires_at=grant.expires_at
    )
    assert await store.grant(grant.code_hash) == grant
    with pytest.raises(InvalidState):
        await store.claim_grant(a_grant("another"), now=START, state_hash="state")
    assert await store.grant(fingerprint("another")) is None
    await store.finish_grant(dataclasses.replace(grant, status=GrantStatus.FAILED))
    again = await store.claim_grant(a_grant(attempt="2"), now=START + DAY / 100, over=grant.attempt, state_hash="state")
    assert again.attempt == "2"


async def test_claim_grant_concurrent_states_use_one(store: Store, open_as: OpenAs) -> None:
    """Of several states presented with one code at once, one is used and the others stay unused."""
    names = [f"state-{number}" for number in range(6)]
    for name in names:
        await store.issue_state(a_state(state_hash=name))
    async with open_as("two") as other:
        claims = [
            one.claim_grant(a_grant(attempt=name, handle_hash=name), now=START, state_hash=name)
            for one, name in zip([store, other] * 3, names, strict=True)
        ]
        claimed = {grant.attempt for grant in await asyncio.gather(*claims)}
    found = [await store.issued_state(name) for name in names]
    assert len(claimed) == 1
    assert [one.state_hash for one in found if one is not None and one.code_hash] == [*claimed]


@pytest.mark.parametrize("name", ["state", "unknown"])
async def test_claim_grant_expired_or_unknown_state_is_refused(store: Store, name: str) -> None:
    """A state that has just expired, or is unknown, claims no grant."""
    await store.issue_state(a_state())
    with pytest.raises(InvalidState):
        await store.claim_grant(a_grant(), now=a_state().expires_at, state_hash=name)
    assert await store.grant(fingerprint("code")) is None


async def test_prune_expired_state_erases_then_deletes_it(store: Store) -> None:
    """An expired state loses its sealed data immediately and is deleted a day later."""
    await store.issue_state(a_state())
    for at, left in (
        (a_state().expires_at - SECOND, a_state()),
        (a_state().expires_at, a_state(sealed=None)),
        (a_state().expires_at + DAY, None),
    ):
        await store.prune(now=at, keep=DAY.total_seconds())
        assert await store.issued_state("state") == left


async def test_grant_by_ticket_finds_grant(store: Store) -> None:
    """A grant is found by its ticket from the claim on, with its time of acceptance."""
    grant = await store.claim_grant(a_grant(ticket_hash="ticket"), now=START)
    assert await store.grant_by_ticket("ticket") == grant
    ended = dataclasses.replace(grant, status=GrantStatus.CONNECTED, accepted_at=START)
    assert await store.finish_grant(ended)
    assert await store.grant_by_ticket("ticket") == ended
    assert await store.grant_by_ticket("another") is None


async def test_grant_with_unknown_error_is_auth_failed(store: Store) -> None:
    """An error that can only have been written by hand is read as `auth_failed`."""
    grant = await store.claim_grant(a_grant(), now=START)
    assert await store.finish_grant(dataclasses.replace(grant, status=GrantStatus.REFUSED, error="by hand"))
    assert present(await store.grant(grant.code_hash)).error == "auth_failed"
    await store.issue_state(a_state())
    await store.record_refusal("state", error="by hand")
    assert present(await store.issued_state("state")).error == "auth_failed"


async def test_bind_first_only_with_other_owner_is_refused(store: Store) -> None:
    """Binding an owner twice has no effect, and `first_only` is refused if the connection has another owner."""
    stored = await save(store, a_connection())
    for _ in range(2):
        assert await bind(store, stored.id, "42", first_only=True)
    assert not await bind(store, stored.id, "17", first_only=True)
    assert await bind(store, stored.id, "17")
    assert await store.owners_of([stored.id, "unknown"]) == {stored.id: ["42", "17"], "unknown": []}
    assert [one.id for one in await store.connections_named("17")] == [stored.id]
    assert [one.id for one in await store.page(after="", limit=9, only=ConnectionFilter(owner="42"))] == [stored.id]
    assert await store.page(after="", limit=9, only=ConnectionFilter(owner="42", status=Status.NEEDS_REAUTH)) == []
    assert await store.page(after="", limit=9, only=ConnectionFilter(owner="42", account_id="7")) == []
    result = [event.details for event in await store.events(connection_id=stored.id, limit=9)]
    assert result == [{"owner": "17"}, {"owner": "42"}]


async def test_counter_orders_connections_and_bindings(store: Store) -> None:
    """The counter orders grants and bindings independently of clocks; a repeated binding does not advance it."""
    one, other = await save(store, a_connection(1)), await save(store, a_connection(2))
    assert 0 < one.precedence < other.precedence
    again = await save(store, a_connection(1, connected_at=START + SECOND), iat=2)
    assert again.precedence > other.precedence
    codes = {connection.id: await connected_grant(store, connection.id) for connection in (other, one)}
    for connection in (other, one, other):
        assert await store.bind(connection.id, owner="42", code_hash=codes[connection.id], first_only=False)
    bindings = await store.bindings_of([one.id, other.id])
    assert again.precedence < bindings[other.id]["42"] < bindings[one.id]["42"]
    assert await store.disconnect(await now(store, other), on_request=True)
    after = (await store.claim_grant(a_grant("after"), now=START)).no
    assert after > bindings[one.id]["42"]


async def test_bind_to_disconnected_connection_is_refused(store: Store) -> None:
    """A disconnected or unknown connection takes no owner, and a disconnect removes its owners."""
    stored = await save(store, a_connection())
    await bind(store, stored.id, "42", first_only=True)
    assert await store.disconnect(stored, on_request=True)
    assert await store.owners_of([stored.id]) == {stored.id: []}
    for name in (stored.id, "unknown"):
        assert not await bind(store, name, "42")
    assert await store.connections_named("42") == []


async def test_save_connected_with_owner_binds_owner(store: Store) -> None:
    """The grant's owner is bound in its transaction, also if the pair is discarded, but not after a disconnect."""
    pair = NewConnection(grant=a_grant(), connection=a_connection(), token_iat=2, owner="42")
    assert await store.save_connected(pair) is not None
    earlier = dataclasses.replace(pair, grant=a_grant("earlier"), token_iat=1, owner="17")
    assert await store.save_connected(earlier) is None
    assert sorted((await store.owners_of([a_connection().id]))[a_connection().id]) == ["17", "42"]
    await store.disconnect(await now(store, a_connection()), on_request=True)
    assert await store.save_connected(earlier) is None
    assert await store.owners_of([a_connection().id]) == {a_connection().id: []}


@pytest.mark.parametrize("on_request", [True, False])
async def test_bind_by_grant_before_unbind_is_refused(store: Store, *, on_request: bool) -> None:
    """A grant from before the owner was unbound, or the connection disconnected, binds no owner; a later grant does."""
    stored = await save(store, a_connection(), iat=1)
    before = await connected_grant(store, "before")
    for owner in ("42", "17"):
        assert await store.bind(stored.id, owner=owner, code_hash=before, first_only=False)
    await store.unbind("42")
    assert not await store.bind(stored.id, owner="42", code_hash=before, first_only=False)
    between = await connected_grant(store, "between")
    assert await store.bind(stored.id, owner="42", code_hash=between, first_only=False)
    await store.disconnect(await now(store, stored), on_request=on_request)
    await save(store, a_connection(), iat=2)
    for code_hash in (before, between):
        for owner in ("42", "7"):
            assert not await store.bind(stored.id, owner=owner, code_hash=code_hash, first_only=True)
    after = await connected_grant(store, "after")
    assert await store.bind(stored.id, owner="7", code_hash=after, first_only=True)


async def test_unbind_disconnects_connections_without_other_owner(store: Store) -> None:
    """Unbinding an owner disconnects connections without another owner, and is refused during a freeze."""
    alone, shared, foreign = [await save(store, a_connection(number)) for number in (1, 2, 3)]
    for one in (alone, shared):
        await bind(store, one.id, "42")
    for one in (shared, foreign):
        await bind(store, one.id, "17")
    await store.freeze_all(why="a test")
    with pytest.raises(Frozen):
        await store.unbind("42")
    assert len(await store.connections_named("42")) == 2
    await store.thaw_all(machine=None)
    result = {(event.connection_id, event.name) for event in await store.unbind("42")}
    assert result == {(alone.id, "connection.disconnected"), (shared.id, "owner.unbound")}
    assert [(await now(store, one)).status for one in (alone, shared, foreign)] == ["disconnected", "active", "active"]
    assert await store.owners_of([alone.id, shared.id, foreign.id]) == {
        alone.id: [], shared.id: ["17"], foreign.id: ["17"]
    }  # fmt: skip
    assert await store.unbind("42") == []
