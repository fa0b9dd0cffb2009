"""Grants started here: races between processes, and between the read of a code and its claim."""

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
from tests.builders import a_connection, a_grant, bind, save
from tests.fakes import START, Override, answering
from tests.oauth.process import Process

CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


async def _owners(process: Process) -> list[str]:
    [connection] = await process.store.connections_of(str(process.amo.account.id))
    return list((await process.store.owners_of([connection.id]))[connection.id])


async def test_claim_of_code_failed_with_other_state_keeps_that_state(process: Process, other: Process) -> None:
    """A code that fails with another state between read and claim keeps that state's authorization request."""
    authorizations = process.authorizations()
    first_state, second_state = [
        (await authorizations.start(AuthorizationRequest(user=user, asserted_by_backend=True))).state
        for user in ("42", "666")
    ]
    code = process.amo.code()

    async def fail() -> None:
        process.amo.sandbox.faults.add(Fault.HTTP_500)
        await other.complete(code, first_state)

    process.before_claims(fail)
    with suppress(InvalidState):
        await process.complete(code, second_state)
    assert (await other.complete(code, first_state)).status is GrantStatus.CONNECTED
    assert await _owners(process) == ["42"]


async def test_redeem_during_claim_by_callback_needs_verifier(process: Process) -> None:
    """If the app calls before the callback's claim is stored, the callback's challenge still applies."""
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


async def test_redeem_code_failing_between_reads_needs_verifier(process: Process, other: Process) -> None:
    """A code that was unknown at first, and has failed before its exchange, is not sent without its verifier."""
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


async def test_save_connected_repeated_does_not_rebind_owner(store: Store) -> None:
    """If a rescue file remains after its commit, an owner who has disconnected since is not bound by it."""
    grant = a_grant()
    await store.claim_grant(grant, now=START)
    pair = NewConnection(grant=grant, connection=a_connection(), token_iat=1, owner="42")
    assert await store.save_connected(pair) is not None
    name = pair.connection_id
    await bind(store, name, "17")
    await store.unbind("42")
    assert await store.save_connected(pair) is None
    assert (await store.owners_of([name]))[name] == ["17"]


async def test_redeem_ticket_expires_exactly_after_ten_minutes(process: Process) -> None:
    """A ticket is accepted until ten minutes have passed; the ticket of a failed grant is never accepted."""
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


async def test_claim_with_state_just_used_uses_no_reservation(process: Process, other: Process) -> None:
    """If a code of another account uses the state between read and claim, AMO is not asked."""
    authorizations = process.authorizations()
    state, fresh = [(await authorizations.start(AuthorizationRequest(user="42"))).state for _ in range(2)]
    account, second = process.amo.fake.open_account("another.amocrm.ru"), process.amo.code()
    first = process.amo.fake.allow(account)

    async def race(_grant: Grant, *, state_hash: str, **_: object) -> None:
        if state_hash == fingerprint(state):
            await other.complete(first, state, host=account.host)

    process.connect = process.make(attempts=1)
    process.failing.away = {"claim_grant"}
    with pytest.raises(StoreUnavailable):  # so that the two processes' handles differ
        await process.complete(second)
    process.failing.away = set()
    process.failing.before["claim_grant"] = race
    with pytest.raises(InvalidState):
        await process.complete(second, state)
    assert (await process.complete(second, fresh)).status is GrantStatus.CONNECTED


async def test_complete_while_frozen_uses_no_reservation(process: Process) -> None:
    """AMO is not asked: after the thaw the address has its one reservation."""
    process.connect = process.make(attempts=1)
    await process.store.freeze_all(why="a test")
    for _ in range(2):
        with pytest.raises(Frozen):
            await process.complete("code")
    await process.store.thaw_all(machine="here")
    assert (await process.complete(process.amo.code())).status is GrantStatus.CONNECTED


@pytest.mark.parametrize("error", [NotFound, QueueFull])
async def test_complete_concurrent_caller_does_not_share_local_failure(
    process: Process, error: type[AmoCallbackError]
) -> None:
    """If the first of two callers with one code is refused before AMO is asked, the second is served."""

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


def test_priority_of_user_request_is_above_link_and_plain_code() -> None:
    """A request with a user is first, then one by a link, then a code without a request."""
    assert priority_of(AuthorizationRequest(user="42")) is Priority.KNOWN_USER
    assert priority_of(AuthorizationRequest()) is Priority.OUR_LINK
    assert priority_of(None) is Priority.ANONYMOUS


async def test_page_of_owner_connections_starts_after_cursor(store: Store) -> None:
    """Each page starts after the end of the previous one."""
    names = [(await save(store, a_connection(number), iat=number)).id for number in (1, 2, 3)]
    for name in names:
        await bind(store, name, "42", first_only=True)
    after, seen = "", list[str]()
    for _ in names:
        [one] = await store.page(after=after, limit=1, only=ConnectionFilter(owner="42"))
        after = one.id
        seen.append(one.id)
    assert seen == sorted(names)
    assert await store.page(after=after, limit=1, only=ConnectionFilter(owner="42")) == []


async def test_redeem_store_unavailable_uses_no_reservation(process: Process) -> None:
    """Only a wrong verifier is counted, not a failure of the store."""
    away = Override(process.connect, complete=answering(StoreUnavailable("away")))
    process.connect = cast("GrantService", away)
    redeemer = process.redeemer(process.store, attempts=1)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await redeemer.redeem(RedeemRequest(code=b"code", verifier="v" * 43, address="192.0.2.1"))
