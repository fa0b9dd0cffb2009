"""Grants that begin here, between processes and between two looks: what a race must not be good for."""

import asyncio
from contextlib import suppress
from typing import cast

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import (
    AmoCallbackError,
    Frozen,
    GrantExpired,
    InvalidState,
    NotFound,
    PkceMismatch,
    QueueFull,
    StoreUnavailable,
)
from amo_callback.grant import (
    AuthorizationRequest,
    CodePresentation,
    CodeSource,
    Grant,
    GrantStatus,
    NewConnection,
)
from amo_callback.model import ConnectionFilter, fingerprint
from amo_callback.oauth.grant_service import GrantService
from amo_callback.oauth.limits import priority_of
from amo_callback.oauth.redemption import RedeemRequest
from amo_callback.rate_limit import Priority
from amo_callback.store import Store
from tests.builders import a_connection, a_grant, save
from tests.fakes import START, Override, answering
from tests.oauth.process import Process

CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


async def _owners(process: Process) -> list[str]:
    [connection] = await process.store.connections_of(str(process.amo.account.id))
    return list((await process.store.owners_of([connection.id]))[connection.id])


async def test_a_failed_code_is_not_tried_again_for_another_state(process: Process, other: Process) -> None:
    """Between our look and our claim it was claimed with another state, and failed: whose that was, is not replaced."""
    authorizations = process.authorizations()
    theirs, ours = [
        (await authorizations.start(AuthorizationRequest(user=user, asserted_by_backend=True))).state
        for user in ("42", "666")
    ]
    code = process.amo.code()

    async def fail() -> None:
        process.amo.sandbox.faults.add(Fault.HTTP_500)
        await other.complete(code, theirs)

    process.before_claims(fail)
    with suppress(InvalidState):
        await process.complete(code, ours)
    assert (await other.complete(code, theirs)).status is GrantStatus.CONNECTED
    assert await _owners(process) == ["42"]


async def test_a_code_that_is_about_to_be_claimed_asks_for_its_verifier(process: Process) -> None:
    """The app comes while the callback is not written down yet: what the callback then tells of it holds."""
    request = AuthorizationRequest(user="42", challenge=CHALLENGE)
    state = (await process.authorizations().start(request)).state
    code, store = process.amo.code(), process.store
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        reached.set()
        await go_on.wait()

    process.before_claims(wait)
    callback = asyncio.create_task(process.complete(code, state))
    await reached.wait()
    process.clock.advance(1)
    thief = asyncio.create_task(process.redeemer(store).redeem(RedeemRequest(code=code.encode(), user="42")))
    await process.clock.until_sleeping(8)
    go_on.set()
    with pytest.raises(PkceMismatch):
        await thief
    assert (await callback).status is GrantStatus.CONNECTED
    assert await _owners(process) == []


async def test_a_code_that_fails_between_two_looks_is_not_tried_without_its_verifier(
    process: Process, other: Process
) -> None:
    """It was not known when the app asked, and had failed by the time it was to be exchanged: AMO is not asked."""
    request = AuthorizationRequest(user="42", challenge=CHALLENGE)
    state = (await process.authorizations().start(request)).state
    code = process.amo.code()

    async def race(_ticket_hash: str) -> None:
        process.amo.sandbox.faults.add(Fault.HTTP_500)
        await other.complete(code, state)

    process.failing.before["grant_by_ticket"] = race
    with pytest.raises(PkceMismatch):
        await process.redeemer(process.failing).redeem(
            RedeemRequest(code=code.encode(), host=process.amo.account.host, user="42")
        )
    assert process.amo.sandbox.requests == 1


async def test_a_pair_that_is_offered_again_does_not_bind_again(store: Store) -> None:
    """A rescue file outlived its commit: whom a backend vouched for then, and who has left since, stays away."""
    grant = a_grant()
    await store.claim_grant(grant, now=START)
    pair = NewConnection(grant=grant, connection=a_connection(), token_iat=1, owner="42")
    assert await store.save_connected(pair) is not None
    name = pair.connection_id
    await store.bind(name, owner="17", grant_no=1, first_only=False)
    await store.unbind("42")
    assert await store.save_connected(pair) is None
    assert (await store.owners_of([name]))[name] == ["17"]


async def test_a_ticket_is_over_to_the_second(process: Process) -> None:
    """It is taken until its ten minutes have passed, and not in the moment in which they have; a failed one never."""
    process.amo.sandbox.faults.add(Fault.HTTP_500)
    failed, ticket = [(await process.complete(process.amo.code())).ticket for _ in range(2)]
    redeemer = process.redeemer(process.store)
    with pytest.raises(GrantExpired):
        await redeemer.redeem(RedeemRequest(code=failed.encode()))
    process.clock.advance(599)
    redeemed = await redeemer.redeem(RedeemRequest(code=ticket.encode()))
    assert redeemed.result.status is GrantStatus.CONNECTED
    process.clock.advance(1)
    with pytest.raises(GrantExpired):
        await redeemer.redeem(RedeemRequest(code=ticket.encode()))
    assert process.amo.sandbox.requests == 2


async def test_who_comes_with_a_state_that_was_just_used_keeps_his_place(process: Process, other: Process) -> None:
    """Between our look and our claim it was used with another code: AMO is not asked, and no place is taken."""
    authorizations = process.authorizations()
    state, fresh = [(await authorizations.start(AuthorizationRequest(user="42"))).state for _ in range(2)]
    first, second = process.amo.code(), process.amo.code()

    async def race(_grant: Grant, *, state_hash: str, **_: object) -> None:
        if state_hash == fingerprint(state):
            await other.complete(first, state)

    process.connect = process.make(places=1)
    process.failing.away = {"claim_grant"}
    with pytest.raises(StoreUnavailable):  # so that its handles are not the other one's
        await process.complete(second)
    process.failing.away = set()
    process.failing.before["claim_grant"] = race
    with pytest.raises(InvalidState):
        await process.complete(second, state)
    assert (await process.complete(second, fresh)).status is GrantStatus.CONNECTED


async def test_who_comes_while_all_is_frozen_keeps_his_place(process: Process) -> None:
    """AMO is not asked: once it is thawed, the one place of the address is there."""
    process.connect = process.make(places=1)
    await process.store.freeze_all(why="a test")
    for _ in range(2):
        with pytest.raises(Frozen):
            await process.complete("code")
    await process.store.thaw_all(machine="here")
    assert (await process.complete(process.amo.code())).status is GrantStatus.CONNECTED


@pytest.mark.parametrize("error", [NotFound, QueueFull])
async def test_whose_way_was_another_is_not_told_the_first_ones_failure(
    process: Process, error: type[AmoCallbackError]
) -> None:
    """Two bring one code at once, and the first may not or has no place: the second is served for himself."""

    def check_domain(host: str | None) -> str:
        if host == "first":
            raise error
        return process.client.check_domain(host)

    process.connect = process.make(
        Override(process.client, check_domain=check_domain, exchange=process.client.exchange)
    )
    code = process.amo.code()
    first = asyncio.create_task(
        process.connect.complete(CodePresentation(code=code.encode(), host="first", source=CodeSource.APP))
    )
    second = asyncio.create_task(process.complete(code))
    with pytest.raises(error):
        await first
    assert (await second).status is GrantStatus.CONNECTED


def test_a_link_that_anybody_can_follow_makes_nobody_expected() -> None:
    """Who began with a user goes first, then who began with a link, then whoever brings a code."""
    assert priority_of(AuthorizationRequest(user="42")) is Priority.KNOWN_USER
    assert priority_of(AuthorizationRequest()) is Priority.OUR_LINK
    assert priority_of(None) is Priority.ANONYMOUS


async def test_an_owners_connections_are_paged(store: Store) -> None:
    """Each page begins after the last one's end."""
    names = [(await save(store, a_connection(number), iat=number)).id for number in (1, 2, 3)]
    for name in names:
        await store.bind(name, owner="42", grant_no=1, first_only=True)
    after, seen = "", list[str]()
    for _ in names:
        [one] = await store.page(after=after, limit=1, only=ConnectionFilter(owner="42"))
        after = one.id
        seen.append(one.id)
    assert seen == sorted(names)
    assert await store.page(after=after, limit=1, only=ConnectionFilter(owner="42")) == []


async def test_who_cannot_be_answered_takes_no_place(process: Process) -> None:
    """Only who guesses verifiers is counted: where the store is away it is nobody's guess."""
    away = Override(process.connect, complete=answering(StoreUnavailable("away")))
    process.connect = cast("GrantService", away)
    redeemer = process.redeemer(process.store, places=1)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await redeemer.redeem(RedeemRequest(code=b"code", verifier="v" * 43, address="192.0.2.1"))
