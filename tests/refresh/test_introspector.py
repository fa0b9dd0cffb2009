"""Introspection before a refresh token is presented."""

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import IntrospectionUnavailable, UnauthorizedWithoutHint
from amo_callback.model import IntrospectionResult, RefreshTrigger, TokenState
from tests.fakes import START, Override, answering
from tests.refresh.harness import API_DOMAIN, DAY, RefreshHarness


async def test_while_deaths_are_held_a_silent_look_up_presents_nothing_however_long(harness: RefreshHarness) -> None:
    """In an old database tokens have been spent: that nobody is served any more is no reason to present one."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.suspend_terminal(now=harness.clock.now())
    await harness.lifecycle.breaker.watch()
    harness.clock.advance(3 * DAY)
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
    await harness.fail(connection, IntrospectionUnavailable, trigger=RefreshTrigger.PROBE)
    assert harness.presented() == []


async def test_while_deaths_are_held_each_pair_is_looked_up(harness: RefreshHarness) -> None:
    """What AMO has told of the pair before says nothing of the one that the person has brought meanwhile."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    amo = harness.before_slot(2, lambda: harness.connect(api_domain=API_DOMAIN))  # the slot for the refresh
    lifecycle = harness.make_lifecycle(amo=amo)
    await harness.store.suspend_terminal(now=harness.clock.now())
    await lifecycle.breaker.watch()
    harness.clock.advance(60)
    stored = await harness.refresh(connection, by=lifecycle.coordinator, trigger=RefreshTrigger.PROBE)
    assert (stored.pair_version, harness.amo.sandbox.introspections) == (3, 2)


async def test_a_probe_whose_look_up_has_no_answer_was_the_probe(harness: RefreshHarness) -> None:
    """An AMO that does not answer is asked once a minute, each time about another connection."""
    await harness.connect_users(3, next_refresh_at=START)
    await harness.store.suspend_terminal(now=harness.clock.now())
    harness.amo.sandbox.introspection_faults.add(*[Fault.HTTP_500] * 50)
    async with harness.running(harness.lifecycle):
        await harness.pass_time(130, step=5)
    assert harness.amo.sandbox.introspections == 2
    assert len(harness.lifecycle.breaker.probed) == 2
    assert harness.presented() == []


async def test_a_dead_access_token_does_not_tell_that_an_account_has_not_moved(harness: RefreshHarness) -> None:
    """Where AMO does not answer about the refresh token, nobody is a suspect: the other token may just have ended."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    unknown, refused = (
        answering(IntrospectionResult(state=state)) for state in (TokenState.UNKNOWN, TokenState.REJECTED)
    )
    lifecycle = harness.make_lifecycle(
        amo=Override(harness.client, introspect_refresh_token=unknown, introspect_access_token=refused)
    )
    await harness.fail(connection, UnauthorizedWithoutHint, Fault.WRONG_CLIENT, by=lifecycle.coordinator)
    assert lifecycle.breaker.reason is None
