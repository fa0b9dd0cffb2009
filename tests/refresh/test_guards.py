"""Guards that nothing else webhooks: each was taken away once, and only the test here told of it."""

from __future__ import annotations

import asyncio
import errno
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from amo_callback.amo.sandbox.faults import Fault
from amo_callback.errors import (
    AccountBlocked,
    AmoCallbackError,
    IntrospectionUnavailable,
    InvalidRefreshToken,
    MassFailureSuspected,
    NeedsReauth,
    NotFound,
    NotYet,
    RequestNotSent,
    RetryableError,
    ShuttingDown,
    StoreUnavailable,
    UnauthorizedWithoutHint,
    UnknownOutcome,
)
from amo_callback.grant import NewConnection
from amo_callback.model import (
    Connection,
    IntrospectionResult,
    RefreshRules,
    RefreshTrigger,
    Status,
    TokenResponse,
    TokenState,
)
from amo_callback.refresh.pending_pair import name_of, seal_pending
from tests.builders import a_claim, a_connection, a_grant, a_refreshed, a_verdict, an_extension, now, save, switch_off
from tests.conftest import HOST
from tests.fakes import START, Override
from tests.refresh.harness import API_DOMAIN, DAY
from tests.refresh.test_interleavings import Away, Gated, Queue, _again, _spent

if TYPE_CHECKING:
    from amo_callback.amo.client import AmoClient
    from amo_callback.events import Event
    from amo_callback.store import Store
    from tests.fakes import FakeClock
    from tests.refresh.harness import RefreshHarness


SECOND = timedelta(seconds=1)
DAYS = timedelta(days=1)


# --- attempt ---------------------------------------------------------------------------------------


async def test_a_stop_during_the_extension_sends_no_second_request(harness: RefreshHarness) -> None:
    """The signal comes while more time is being written: the claim is given back, and the token is not in doubt."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "renamed.amocrm.ru"
    harness.failing.after["extend"] = lambda *_, **__: harness.lifecycle.core.stop.set()
    with pytest.raises(ShuttingDown):
        await harness.refresh(connection)
    after = await harness.now(connection)
    assert (after.attempt, after.in_doubt, after.failures) == (None, False, 0)
    assert len(harness.amo.fake.ledger.refreshes()) == 1


@pytest.mark.parametrize("during", ["extend", "refresh"])
async def test_a_second_request_that_would_outlive_its_lease_is_not_sent(harness: RefreshHarness, during: str) -> None:
    """Stopped while more time is written, or after it: what is left of the lease is not enough for an answer."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "renamed.amocrm.ru"
    harness.failing.after["extend"] = lambda *_, **__: harness.clock.advance(55.1 if during == "extend" else 0)

    async def refresh(*, domain: str, **request: Any) -> TokenResponse:
        harness.clock.advance(55.1 if during == "refresh" and domain != connection.domain else 0)
        return await harness.client.refresh(domain=domain, **request)

    amo = Override(harness.client, refresh=refresh)
    coordinator = harness.make_coordinator(amo=amo)
    with pytest.raises(RequestNotSent):
        await coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE)
    assert [entry.host for entry in harness.amo.fake.ledger.refreshes()] == [connection.domain]
    assert not (await harness.now(connection)).in_doubt


ELSEWHERE = "renamed.amocrm.ru"
GOOD, REFUSED, UNKNOWN, UNASKED = TokenState.GOOD, TokenState.REFUSED, TokenState.UNKNOWN, TokenState.UNASKED


async def _followed(
    harness: RefreshHarness, refused: AmoCallbackError, sighting: IntrospectionResult
) -> tuple[type[Exception], list[str]]:
    """Have AMO refuse whatever is presented, and tell this of the token; return what is raised, and who was asked."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    asked: list[str] = []

    async def refresh(*, domain: str, **_: object) -> TokenResponse:
        asked.append(domain)
        raise refused

    async def look_up(**_: object) -> IntrospectionResult:
        return sighting

    async def ask_about(**_: object) -> IntrospectionResult:
        return IntrospectionResult(standing=UNKNOWN)

    amo = Override(harness.client, refresh=refresh, look_up=look_up, ask_about=ask_about)
    with pytest.raises(AmoCallbackError) as raised:
        await harness.make_coordinator(amo=amo).refresh(connection.id, demand=RefreshTrigger.SCHEDULE)
    return type(raised.value), asked


@pytest.mark.parametrize(
    ("sighting", "asked", "accepted", "same_host"),
    [
        (IntrospectionResult(standing=GOOD, domain=HOST), [HOST], True, True),
        (IntrospectionResult(standing=GOOD, domain=ELSEWHERE), [HOST, ELSEWHERE], True, True),
        (IntrospectionResult(standing=GOOD), [HOST], True, False),
        (IntrospectionResult(standing=REFUSED), [HOST], False, False),
        (IntrospectionResult(standing=UNKNOWN), [HOST], None, False),
        (IntrospectionResult(standing=UNASKED), [HOST], None, False),
    ],
)
async def test_an_unexplained_refusal_is_followed_where_the_account_has_moved(
    harness: RefreshHarness, sighting: IntrospectionResult, asked: list[str], *, accepted: bool | None, same_host: bool
) -> None:
    """The host that has refused last, and what introspection says of the token, decide whose fault it is."""
    refused = UnauthorizedWithoutHint(401)
    assert await _followed(harness, refused, sighting) == (UnauthorizedWithoutHint, asked)
    assert (refused.accepted, refused.same_host) == (accepted, same_host)


@pytest.mark.parametrize(
    ("misread", "sighting", "raised", "asked"),
    [
        (True, IntrospectionResult(standing=GOOD, domain=HOST), NeedsReauth, [HOST]),
        (True, IntrospectionResult(standing=GOOD, domain=ELSEWHERE), NeedsReauth, [HOST, ELSEWHERE]),
        (True, IntrospectionResult(standing=GOOD), NeedsReauth, [HOST]),
        (True, IntrospectionResult(standing=REFUSED), NeedsReauth, [HOST]),
        (True, IntrospectionResult(standing=UNKNOWN), IntrospectionUnavailable, [HOST]),
        (False, IntrospectionResult(standing=GOOD, domain=ELSEWHERE), NeedsReauth, [HOST]),
        (False, IntrospectionResult(standing=UNKNOWN), NeedsReauth, [HOST]),
    ],
)
async def test_a_refusal_of_who_could_not_read_the_token_is_believed_where_the_account_lives(
    harness: RefreshHarness, *, misread: bool, sighting: IntrospectionResult, raised: type[Exception], asked: list[str]
) -> None:
    """Whoever could read it is believed at once, and nobody is asked."""
    assert await _followed(harness, InvalidRefreshToken(undecodable=misread), sighting) == (raised, asked)


async def test_whoever_comes_second_to_a_claim_spends_nothing(harness: RefreshHarness) -> None:
    """Between the last look and the claim another process was faster: its pair is taken, and told as nothing else."""
    connection = await harness.connect()
    faster = harness.make_coordinator(process="process-2", store=harness.store)
    harness.failing.before["claim"] = lambda *_, **__: faster.refresh(
        connection.id, demand=RefreshTrigger.SCHEDULE, satisfied=_again(connection)
    )
    refreshed = await harness.refresh(connection, satisfied=_again(connection))
    assert (refreshed.pair_version, refreshed.attempt, _spent(harness)) == (2, None, 1)
    assert harness.witness.names() == ["refresh.succeeded"]


async def test_whatever_a_success_means_for_others_its_pair_is_stored_first(harness: RefreshHarness) -> None:
    """An observer that fails as the breaker closes costs no pair."""
    connection = await harness.connect()

    def observer(event: Event) -> None:
        if event.name == "amo_credentials.accepted":
            raise RuntimeError("the log is broken")

    lifecycle = harness.make_lifecycle(observer=observer)
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(60)
    with pytest.raises(RuntimeError):
        await lifecycle.coordinator.refresh(connection.id, demand=RefreshTrigger.FORCED)
    assert (await harness.now(connection)).pair_version == 2


async def test_each_request_about_a_moved_account_has_a_slot_of_its_own(harness: RefreshHarness) -> None:
    """AMO bans whoever asks too often: the first request, the look-up and the second request wait for one each."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "renamed.amocrm.ru"
    order: list[str] = []

    async def slot(_priority: object) -> None:
        order.append("slot")

    async def look_up(**question: Any) -> IntrospectionResult:
        order.append("look-up")
        return await harness.client.look_up(**question)

    async def refresh(**request: Any) -> TokenResponse:
        order.append("refresh")
        return await harness.client.refresh(**request)

    amo = Override(harness.client, slot=slot, look_up=look_up, refresh=refresh)
    await harness.make_coordinator(amo=amo).refresh(connection.id, demand=RefreshTrigger.SCHEDULE)
    assert order == ["slot", "refresh", "slot", "look-up", "slot", "refresh"]


# --- keeper ----------------------------------------------------------------------------------------


async def test_what_was_refreshed_during_the_wait_for_a_slot_is_not_refreshed_again(harness: RefreshHarness) -> None:
    """Another process was faster: its pair satisfies whoever waited, and is not spent."""
    connection = await harness.connect()
    queue = Queue(harness)
    coordinator = harness.make_coordinator(amo=cast("AmoClient", queue))
    refreshing = asyncio.create_task(
        coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE, satisfied=_again(connection))
    )
    await queue.asked.wait()
    refreshed = await harness.make_coordinator(process="process-2").refresh(
        connection.id, demand=RefreshTrigger.SCHEDULE
    )
    queue.served.set()
    assert await refreshing == refreshed
    assert _spent(harness) == 1


async def test_what_was_stopped_during_the_wait_for_a_slot_is_not_presented(harness: RefreshHarness) -> None:
    """AMO has refused our credentials to another one meanwhile: all who waited stay at home."""
    connection = await harness.connect()
    queue = Queue(harness)
    lifecycle = harness.make_lifecycle(amo=cast("AmoClient", queue))
    refreshing = asyncio.create_task(lifecycle.coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await queue.asked.wait()
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    queue.served.set()
    with pytest.raises(NotYet) as raised:
        await refreshing
    assert raised.value.cause_code == "amo_credentials"
    assert harness.amo.fake.ledger.refreshes() == []


async def test_a_store_that_was_away_during_the_wait_for_a_slot_gives_an_attempt_a_lease_more(
    harness: RefreshHarness,
) -> None:
    """Looked up and about to be presented: its owner may hold a good pair, and could not store it just now."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner="process-2"))
    lifecycle = harness.make_lifecycle()
    lifecycle.leases.left(await harness.now(connection))
    harness.clock.advance(60)
    slots = 0

    async def slot(_priority: object) -> None:
        nonlocal slots
        slots += 1
        if slots == 2:  # the one for the refresh
            harness.failing.away = {"count"}
            with pytest.raises(StoreUnavailable):
                await harness.failing.count()

    coordinator = harness.make_coordinator(amo=Override(harness.client, slot=slot))
    refreshing = asyncio.create_task(coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await harness.clock.until_sleeping(0.25)
    harness.clock.advance(60)
    await harness.clock.until_sleeping(0.25)
    assert (harness.amo.sandbox.look_ups, harness.amo.fake.ledger.refreshes()) == (1, [])
    harness.clock.advance(60)
    assert (await refreshing).pair_version == 2
    assert harness.amo.sandbox.look_ups == 1  # it is the same doubt


async def test_whoever_has_what_he_wants_takes_no_slot(harness: RefreshHarness) -> None:
    """Neither a freeze nor the end of the service keeps from him what is there already."""
    connection = await harness.connect()
    queue = Queue(harness)
    lifecycle = harness.make_lifecycle(amo=cast("AmoClient", queue))
    lifecycle.core.stop.set()
    found = await lifecycle.coordinator.refresh(
        connection.id, demand=RefreshTrigger.SCHEDULE, satisfied=lambda _now: True
    )
    assert found == connection
    assert not queue.asked.is_set()


async def test_no_more_than_so_many_are_refreshed_at_once(harness: RefreshHarness) -> None:
    """However many come: the others wait for a place, and take neither a slot nor a claim that would age meanwhile."""
    connections = []
    for _ in range(3):
        connections.append(await harness.connect())
        harness.amo.account.user_id += 1
    slots = 0
    two, third, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slot(_priority: object) -> None:
        nonlocal slots
        slots += 1
        if slots == 2:
            two.set()
        await go_on.wait()

    def satisfied(_connection: Connection) -> bool:
        third.set()
        return False

    coordinator = harness.make_coordinator(amo=Override(harness.client, slot=slot), rules=RefreshRules(concurrency=2))
    refreshing = [
        asyncio.create_task(coordinator.refresh(one.id, demand=RefreshTrigger.SCHEDULE)) for one in connections[:2]
    ]
    await two.wait()
    last = coordinator.refresh(connections[2].id, demand=RefreshTrigger.SCHEDULE, satisfied=satisfied)
    refreshing.append(asyncio.create_task(last))
    await third.wait()
    assert [(await harness.now(one)).attempt for one in connections] == [None] * 3
    assert (slots, coordinator.in_flight) == (2, 3)
    go_on.set()
    assert {stored.pair_version for stored in await asyncio.gather(*refreshing)} == {2}


async def test_a_rescue_folder_that_is_away_stops_only_those_whose_pair_may_lie_in_it(harness: RefreshHarness) -> None:
    """Where no process died at a connection, nothing of it can have been left there."""
    connection = await harness.connect()

    def read() -> Any:
        raise OSError(errno.EACCES, "Permission denied")

    coordinator = harness.make_coordinator(rescue=Override(harness.rescue, read=read))
    refreshed = await coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE)
    assert refreshed.pair_version == 2
    await harness.store.claim(a_claim(refreshed, owner="process-2"))
    refreshing = asyncio.create_task(coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await harness.clock.until_sleeping(0.25)
    harness.clock.advance(60)
    with pytest.raises(StoreUnavailable) as raised:
        await refreshing
    assert connection.id in raised.value.detail


async def test_an_attempt_that_got_more_time_is_looked_up_again(harness: RefreshHarness) -> None:
    """Its owner presented the token once more after the look-up, and died: that look-up tells nothing of it."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner="process-2"))
    slots = 0

    async def slot(_priority: object) -> None:
        nonlocal slots
        slots += 1
        if slots == 2:  # the one for the refresh
            await harness.store.extend(an_extension(connection, domain=connection.domain))

    coordinator = harness.make_coordinator(amo=Override(harness.client, slot=slot))
    refreshing = asyncio.create_task(coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    for looked_up in (0, 1):
        await harness.clock.until_sleeping(0.25)
        assert harness.amo.sandbox.look_ups == looked_up
        harness.clock.advance(60)
    assert (await refreshing).pair_version == 2
    assert harness.amo.sandbox.look_ups == 2


async def test_whoever_joins_a_flight_is_not_content_with_what_contents_another(harness: RefreshHarness) -> None:
    """A backend that met 401 joins one that takes any pair: it gets a new one, and not the one it came with."""
    connection = await harness.connect()
    claimed = await harness.store.claim(a_claim(connection, owner="process-2"))
    assert claimed is not None
    first = asyncio.create_task(harness.refresh(connection, satisfied=lambda now: now.attempt is None))
    await harness.clock.until_sleeping(0.25)
    second = asyncio.create_task(
        harness.refresh(connection, demand=RefreshTrigger.FORCED, satisfied=_again(connection))
    )
    await asyncio.sleep(0)
    await harness.store.release(connection_id=connection.id, attempt=claimed.attempt or "")
    harness.clock.advance(0.25)
    assert (await first).pair_version == 1
    assert (await second).pair_version == 2


async def test_whoever_joins_a_flight_that_has_to_wait_need_not(harness: RefreshHarness) -> None:
    """A hand-out respects the back-off after a refused connection; a forced refresh of the same moment goes."""
    connection = await harness.connect()

    coordinator = harness.make_coordinator(amo=cast("AmoClient", Away(harness)))
    with pytest.raises(RequestNotSent):
        await coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE)
    handed_out, forced = await asyncio.gather(
        coordinator.refresh(connection.id, demand=RefreshTrigger.HAND_OUT),
        coordinator.refresh(connection.id, demand=RefreshTrigger.FORCED),
        return_exceptions=True,
    )
    assert isinstance(handed_out, NotYet)
    assert isinstance(forced, Connection)
    assert forced.pair_version == 2


# --- breaker ---------------------------------------------------------------------------------------


async def test_a_success_lets_everyone_be_the_probe_again(harness: RefreshHarness) -> None:
    """Who was tried the last time is not passed over the next time that it opens."""
    breaker = harness.lifecycle.breaker
    breaker.refuse("Check the `client_id` parameter")
    breaker.enter("one")
    await breaker.succeeded()
    breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(60)
    assert breaker.refusal("one", demand=RefreshTrigger.FORCED) is None


async def test_a_success_that_cannot_be_written_down_ends_no_hold(harness: RefreshHarness) -> None:
    """Every process must hear of it: until the store takes it, verdicts are held here, too, and the next one tells."""
    await harness.store.suspend_terminal(now=harness.clock.now())
    breaker = harness.lifecycle.breaker
    await breaker.watch()
    harness.failing.away = {"resume_terminal"}
    await breaker.succeeded()
    assert breaker.held
    harness.failing.away = set()
    await breaker.succeeded()
    assert not (await harness.store.shared_state()).terminal_suspended
    assert harness.witness.names() == ["terminal_failures.resumed"]


async def test_verdicts_that_another_process_holds_are_held_before_the_loop_has_heard_of_it(
    harness: RefreshHarness,
) -> None:
    """The refresh was under way when the other one held them: its connection is kept."""
    connection = await harness.connect()
    gated = Gated(harness)
    gated.send.clear()
    coordinator = harness.make_coordinator(amo=cast("AmoClient", gated))
    refreshing = asyncio.create_task(coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await gated.asked.wait()
    await harness.store.suspend_terminal(now=harness.clock.now())
    harness.amo.account.disabled = True
    gated.send.set()
    with pytest.raises(MassFailureSuspected):
        await refreshing
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (Status.ACTIVE, connection.sealed_pair)


async def test_the_first_probe_comes_a_minute_after_verdicts_are_held(harness: RefreshHarness) -> None:
    """What has just died with all the others is not tried again at once."""
    for number in range(5):
        dead = await save(harness.store, a_connection(number + 1))
        await harness.store.claim(a_claim(dead))
        verdict = a_verdict(dead, status=Status.NEEDS_REAUTH, next_refresh_at=None, died_at=harness.clock.now())
        await harness.store.save_verdict(verdict)
    harness.clock.advance(60)
    breaker = harness.lifecycle.breaker
    assert breaker.probe_in == 0
    assert not await breaker.believes()
    assert breaker.probe_in == 60


# --- leases ----------------------------------------------------------------------------------------


async def test_a_store_that_was_away_long_ago_shortens_no_lease(harness: RefreshHarness) -> None:
    """An attempt that began since then has its whole lease: its token is under way."""
    connection = await harness.connect()
    leases = harness.make_lifecycle().leases
    harness.failing.away = {"count"}
    with pytest.raises(StoreUnavailable):
        await harness.failing.count()
    harness.clock.advance(3600)
    await harness.store.claim(a_claim(connection, owner="process-2"))
    assert leases.left(await harness.now(connection)) == 60


# --- inquiry ---------------------------------------------------------------------------------------


async def test_while_deaths_are_held_a_silent_look_up_presents_nothing_however_long(harness: RefreshHarness) -> None:
    """In an old database tokens have been spent: that nobody is served any more is no reason to present one."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.suspend_terminal(now=harness.clock.now())
    await harness.lifecycle.breaker.watch()
    harness.clock.advance(3 * DAY)
    harness.amo.sandbox.look_up_faults.add(Fault.HTTP_500)
    with pytest.raises(IntrospectionUnavailable):
        await harness.refresh(connection, demand=RefreshTrigger.PROBE)
    assert harness.amo.fake.ledger.refreshes() == []


async def test_while_deaths_are_held_each_pair_is_looked_up(harness: RefreshHarness) -> None:
    """What AMO has told of the pair before says nothing of the one that the person has brought meanwhile."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    slots = 0

    async def slot(_priority: object) -> None:
        nonlocal slots
        slots += 1
        if slots == 2:  # the one for the refresh
            await harness.connect(api_domain=API_DOMAIN)

    lifecycle = harness.make_lifecycle(amo=Override(harness.client, slot=slot))
    await harness.store.suspend_terminal(now=harness.clock.now())
    await lifecycle.breaker.watch()
    harness.clock.advance(60)
    stored = await lifecycle.coordinator.refresh(connection.id, demand=RefreshTrigger.PROBE)
    assert (stored.pair_version, harness.amo.sandbox.look_ups) == (3, 2)


async def test_a_probe_whose_look_up_has_no_answer_was_the_probe(harness: RefreshHarness) -> None:
    """An AMO that does not answer is asked once a minute, each time about another connection."""
    for _ in range(3):
        harness.amo.account.user_id += 1
        await harness.connect(api_domain=API_DOMAIN, next_refresh_at=START)
    await harness.store.suspend_terminal(now=harness.clock.now())
    harness.amo.sandbox.look_up_faults.add(*[Fault.HTTP_500] * 50)
    lifecycle = harness.make_lifecycle()
    async with harness.running(lifecycle):
        await harness.pass_time(130, step=5)
    assert harness.amo.sandbox.look_ups == 2
    assert len(lifecycle.breaker.probed) == 2
    assert harness.amo.fake.ledger.refreshes() == []


async def test_a_dead_access_token_does_not_tell_that_an_account_has_not_moved(harness: RefreshHarness) -> None:
    """Where AMO does not answer about the refresh token, nobody is a suspect: the other token may just have ended."""
    connection = await harness.connect(api_domain=API_DOMAIN)

    async def look_up(**_: object) -> IntrospectionResult:
        return IntrospectionResult(standing=TokenState.UNKNOWN)

    async def ask_about(**_: object) -> IntrospectionResult:
        return IntrospectionResult(standing=TokenState.REFUSED)

    lifecycle = harness.make_lifecycle(amo=Override(harness.client, look_up=look_up, ask_about=ask_about))
    harness.amo.sandbox.faults.add(Fault.WRONG_CLIENT)
    with pytest.raises(UnauthorizedWithoutHint):
        await lifecycle.coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE)
    assert lifecycle.breaker.reason is None


# --- checks ----------------------------------------------------------------------------------------


async def test_a_turn_that_another_process_has_taken_is_over(harness: RefreshHarness) -> None:
    """Two processes find the same look-up due: whoever comes second asks nothing, and presents nothing."""
    connection = await harness.given_up()
    harness.clock.advance(DAY)
    harness.amo.account.disabled = True
    for lifecycle in (harness.lifecycle, harness.make_lifecycle(process="process-2")):
        await lifecycle.rechecker.check(connection.id)
    assert harness.amo.sandbox.look_ups == 1


async def test_while_deaths_are_held_nothing_of_one_that_was_given_up_is_erased(harness: RefreshHarness) -> None:
    """It was the first to die of what is not believed, and a hook that anybody may send again names its account."""
    connection = await harness.given_up()
    harness.amo.account.disabled = True
    await harness.store.suspend_terminal(now=harness.clock.now())
    await harness.lifecycle.breaker.watch()
    await harness.lifecycle.switched_off(connection.account_id)
    await harness.look_up_due()
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (Status.NEEDS_REAUTH, connection.sealed_pair)


# --- store -----------------------------------------------------------------------------------------


async def test_a_refresh_leaves_a_hooks_look_up_due(store: Store) -> None:
    """AMO may tell before it acts: that the token was good a moment ago does not settle it."""
    stored = await save(store, a_connection())
    await switch_off(store)
    refreshed = await store.save_refreshed(a_refreshed(stored))
    assert refreshed is not None
    assert refreshed.look_up_at == START


@pytest.mark.parametrize("change", ["postpone", "reactivate", "disconnect", "schedule_recheck"])
async def test_what_was_read_before_a_claim_is_not_written_over_it(store: Store, change: str) -> None:
    """Whatever is decided on a row as it was: where it has changed since, nothing is changed."""
    stored = await save(store, a_connection())
    claimed = await store.claim(a_claim(stored))
    changed = {
        "postpone": lambda: store.postpone(stored, last_error="no_answer", next_refresh_at=START),
        "reactivate": lambda: store.reactivate(stored, next_refresh_at=START),
        "disconnect": lambda: store.disconnect(stored, on_request=True),
        "schedule_recheck": lambda: store.schedule_recheck(stored, at=START),
    }
    assert not await changed[change]()
    assert await store.connection(stored.id) == claimed


async def test_a_hook_after_a_new_grant_counts_however_soon(store: Store) -> None:
    """Off, on and off again within ten minutes: the second one is no repetition of the first."""
    stored = await save(store, a_connection(), iat=1)
    await switch_off(store)
    granted = await save(store, a_connection(connected_at=START + SECOND), iat=2)
    assert (granted.look_up_at, granted.hook_at) == (None, None)
    assert await switch_off(store) == [stored.id]


async def test_the_first_hook_since_a_refresh_brings_the_turn_forward(store: Store, clock: FakeClock) -> None:
    """The account lived after the hook before it; now it was given up, and the new hook explains why."""
    stored = await save(store, a_connection())
    clock.advance(DAY / 4)
    await switch_off(store)
    refreshed = await store.save_refreshed(a_refreshed(stored, at=START + DAYS / 2))
    assert refreshed is not None
    assert await store.schedule_recheck(refreshed, at=None)
    await store.claim(a_claim(await now(store, stored)))
    dead = a_verdict(stored, status=Status.NEEDS_REAUTH, next_refresh_at=None, look_up_at=START + 2 * DAYS)
    await store.save_verdict(dead)
    clock.advance(DAY * 3 / 4)
    await switch_off(store)
    assert (await now(store, stored)).look_up_at == START + DAYS


async def test_an_erasure_does_not_forget_when_a_person_disconnected(store: Store) -> None:
    """Disconnected, connected again, and then erased for a hook: what was granted before all that stays away."""
    stored = await save(store, a_connection(), iat=1)
    late = await store.claim_grant(a_grant("late"), now=START)
    await store.disconnect(stored, on_request=True)
    again = await save(store, a_connection(connected_at=START + 2 * SECOND), iat=2, code="again")
    await store.disconnect(again, on_request=False)
    assert await store.save_connected(NewConnection(grant=late, connection=a_connection(), token_iat=3)) is None


# --- unsaved ---------------------------------------------------------------------------------------


async def test_a_store_that_goes_away_before_it_tells_why_costs_no_pair(harness: RefreshHarness) -> None:
    """Not taken, and nobody can be asked whether something newer is there: the file stays."""
    pending_pair = a_refreshed(a_connection(7))
    harness.rescue.files[name_of(pending_pair)] = seal_pending(pending_pair, harness.cipher)
    harness.failing.away = {"connection"}
    await harness.lifecycle.pending_writes.restore()
    assert harness.rescue.files.keys() == {name_of(pending_pair)}


async def test_what_a_person_has_erased_is_erased_from_the_rescue_folder_too(harness: RefreshHarness) -> None:
    """Disconnected in an old database that was put back, whatever its pair's version: no file outlives that."""
    connection = await harness.connect()
    pending_pair = a_refreshed(connection, pair_version=connection.pair_version + 5)
    harness.rescue.files[name_of(pending_pair)] = seal_pending(pending_pair, harness.cipher)
    assert await harness.store.disconnect(connection, on_request=True)
    await harness.lifecycle.pending_writes.restore()
    assert harness.rescue.files == {}


async def test_a_pair_whose_row_has_gone_while_it_was_paid_for_is_put_in_a_file(harness: RefreshHarness) -> None:
    """Another database was put in the place of ours: the new pair is all that is left of its connection."""
    connection = a_connection(7)
    pending_pair = a_refreshed(connection)
    assert await harness.lifecycle.pending_writes.save(pending_pair, connection=connection) is None
    assert harness.rescue.files.keys() == {name_of(pending_pair)}
    assert harness.witness.names() == ["pair.orphaned"]


async def test_a_file_of_a_later_version_is_told_and_stops_nothing(harness: RefreshHarness) -> None:
    """After a step back to the version before, what only the later one knows is unreadable, and the service starts."""
    pending_pair = a_refreshed(a_connection(7))
    name = name_of(pending_pair)
    later = json.dumps({"refreshed": {"connection_id": pending_pair.connection_id, "scopes": "crm"}})
    harness.rescue.files[name] = harness.cipher.seal(later.encode(), bound_to=f"rescue:{name}")
    await harness.lifecycle.pending_writes.restore()
    assert harness.lifecycle.pending_writes.names == [name]
    assert harness.witness.names() == ["rescue.unreadable"]


async def test_a_file_under_another_name_is_not_read(harness: RefreshHarness) -> None:
    """Renamed by hand it would stand for another pair, and stay for ever: it is told instead."""
    connection = await harness.connect()
    pending_pair = a_refreshed(connection)
    harness.rescue.files[f"{connection.id}-7"] = seal_pending(pending_pair, harness.cipher)
    await harness.lifecycle.pending_writes.restore()
    assert harness.witness.names() == ["rescue.unreadable"]
    assert await harness.now(connection) == connection


# --- hand-out --------------------------------------------------------------------------------------


async def test_what_another_process_has_stored_meanwhile_is_handed_out_as_fresh(harness: RefreshHarness) -> None:
    """This process waits for its slot in vain; the pair that another one has brought is no stale one."""
    connection = await harness.connect()
    harness.clock.advance(DAY - 100)
    queue = Queue(harness)
    lifecycle = harness.make_lifecycle(amo=cast("AmoClient", queue))
    handing_out = asyncio.create_task(lifecycle.access_tokens.token(connection.id, min_ttl=300))
    await queue.asked.wait()
    refreshed = await harness.make_coordinator(process="process-2").refresh(
        connection.id, demand=RefreshTrigger.SCHEDULE
    )
    harness.clock.advance(8)
    handed_out = await handing_out
    assert (handed_out.token.value, handed_out.stale, handed_out.reason) == (
        harness.pair(refreshed).access_token,
        False,
        None,
    )
    lifecycle.core.stop.set()
    await lifecycle.drain()


async def test_an_unsaved_pair_of_one_that_was_disconnected_is_nobodys(harness: RefreshHarness) -> None:
    """A person has erased the connection while its new pair waits for the store: it is not handed out any more."""
    connection = await harness.connect()
    harness.failing.away = {"save_refreshed"}
    refreshing = asyncio.create_task(harness.refresh(connection))
    await harness.witness.until("pair.write_pending")
    assert await harness.store.disconnect(await harness.now(connection), on_request=True)
    for selector in (connection.id, f"account:{connection.account_id}"):
        with pytest.raises(NotFound):
            await harness.lifecycle.access_tokens.token(selector, min_ttl=0)
    harness.failing.away = set()
    await harness.lifecycle.pending_writes.settle()
    with pytest.raises(NotFound):
        await refreshing


async def test_a_pair_that_is_dead_by_the_clock_when_it_comes_is_not_handed_out(harness: RefreshHarness) -> None:
    """The machine slept, or its clock was set, with the answer in hand: whoever asked is told to come again."""
    connection = await harness.connect()
    harness.clock.advance(10)

    async def refresh(**request: Any) -> TokenResponse:
        issued = await harness.client.refresh(**request)
        harness.clock.step(timedelta(days=2))
        return issued

    lifecycle = harness.make_lifecycle(amo=Override(harness.client, refresh=refresh))
    with pytest.raises(NotYet):
        await lifecycle.access_tokens.refresh(connection.id)
    assert (await harness.now(connection)).pair_version == 2


# --- liveness --------------------------------------------------------------------------------------


async def test_doubt_about_an_access_token_outlives_a_refusal_that_passes(harness: RefreshHarness) -> None:
    """Its refresh was lost, and the next attempt was turned away: the token may be dead, and AMO is asked."""
    harness.amo.fake.quirks.refresh_kills_access = True
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.sandbox.faults.add(Fault.NOTHING_AFTER, Fault.UNPAID)
    with pytest.raises(UnknownOutcome):
        await harness.refresh(connection)
    harness.clock.advance(60)
    with pytest.raises(AccountBlocked):
        await harness.refresh(connection)
    assert (await harness.now(connection)).attempt is None
    with pytest.raises(RetryableError):
        await harness.lifecycle.access_tokens.token(connection.id, min_ttl=0)


# --- checks, again ---------------------------------------------------------------------------------


async def test_of_two_processes_that_look_up_at_once_one_presents_the_token(harness: RefreshHarness) -> None:
    """Both hear that AMO knows it: whoever finds the turn taken leaves it at that, for the trial is the last one."""
    harness.amo.fake.quirks.look_up_knows_spent = True
    connection = await harness.given_up()
    harness.amo.spend(grant_type="refresh_token", refresh_token=harness.pair(connection).refresh_token)
    harness.clock.advance(DAY)

    async def look_up(**question: Any) -> IntrospectionResult:
        sighting = await harness.client.look_up(**question)
        await harness.lifecycle.rechecker.check(connection.id)
        return sighting

    other = harness.make_lifecycle(amo=Override(harness.client, look_up=look_up), process="process-2")
    await other.rechecker.check(connection.id)
    assert [entry.status for entry in harness.amo.fake.ledger.refreshes()] == [401, 200, 401]


# --- the loop --------------------------------------------------------------------------------------


async def test_an_attempt_of_another_process_takes_no_place_of_the_loops(harness: RefreshHarness) -> None:
    """Those whose owners have died are left aside until their leases have ended, and the others go meanwhile."""
    claimed = await harness.connect(next_refresh_at=START)
    await harness.store.claim(a_claim(claimed, owner="process-2"))
    harness.amo.account.user_id += 1
    free = await harness.connect(next_refresh_at=START)
    async with harness.running(harness.make_lifecycle(rules=RefreshRules(concurrency=1))):
        await harness.pass_time(30, step=5)
        assert (await harness.now(free)).pair_version == 2


async def test_while_one_probe_waits_for_its_slot_there_is_no_other(harness: RefreshHarness) -> None:
    """A rate limit that is paused for an hour gathers no fleet of probes that would all go at its end."""
    for _ in range(3):
        harness.amo.account.user_id += 1
        await harness.connect(next_refresh_at=START)
    waiting = 0

    async def slot(_priority: object) -> None:
        nonlocal waiting
        waiting += 1
        await harness.clock.sleep(3600)

    lifecycle = harness.make_lifecycle(amo=Override(harness.client, slot=slot))
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(61)
    async with harness.running(lifecycle):
        for _ in range(3):
            await harness.clock.until_sleeping(5)
            harness.clock.advance(5)
        await harness.clock.until_sleeping(5)
        assert waiting == 1


async def test_after_everyone_was_the_probe_a_new_round_begins(harness: RefreshHarness) -> None:
    """The secret is mended after all have been tried: the next probe closes it, without anybody's help."""
    connection = await harness.connect(next_refresh_at=START)
    lifecycle = harness.make_lifecycle()
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.amo.sandbox.faults.add(Fault.NOT_LINKED, Fault.NOT_LINKED)
    async with harness.running(lifecycle):
        await harness.pass_time(300, step=5)
    assert lifecycle.breaker.reason is None
    assert (await harness.now(connection)).pair_version == 2


async def test_a_look_up_that_takes_long_is_made_once_and_waited_for_at_the_end(harness: RefreshHarness) -> None:
    """However often the loop comes round meanwhile; and the store is not closed under it."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.schedule_recheck(connection, at=harness.clock.now())
    asked, began, go_on = 0, asyncio.Event(), asyncio.Event()

    async def look_up(**_: object) -> IntrospectionResult:
        nonlocal asked
        asked += 1
        began.set()
        await go_on.wait()
        return IntrospectionResult(standing=TokenState.GOOD)

    lifecycle = harness.make_lifecycle(amo=Override(harness.client, look_up=look_up))
    running = asyncio.create_task(lifecycle.scheduler.run())
    await began.wait()
    for _ in range(3):
        await harness.clock.until_sleeping(5)
        harness.clock.advance(5)
    await harness.clock.until_sleeping(5)
    assert asked == 1
    lifecycle.core.stop.set()
    await asyncio.wait({running}, timeout=0.1)
    assert not running.done()
    go_on.set()
    await running
    assert (await harness.now(connection)).look_up_at != harness.clock.now()
    assert harness.witness.names() == ["hook.unconfirmed"]
