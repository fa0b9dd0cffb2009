"""Introspection before a refresh token is presented."""

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import IntrospectionUnavailable, UnauthorizedWithoutHint
from amo_callback.model import IntrospectionResult, RefreshTrigger, TokenState
from tests.fakes import START, Override, answering
from tests.refresh.harness import API_DOMAIN, DAY, RefreshHarness


async def test_introspection_unanswered_in_mass_failure_presents_nothing(harness: RefreshHarness) -> None:
    """During a mass failure a token is not presented without an answered introspection, however long that lasts."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.suspend_terminal(now=harness.clock.now())
    await harness.lifecycle.breaker.watch()
    harness.clock.advance(3 * DAY)
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
    await harness.fail(connection, IntrospectionUnavailable, trigger=RefreshTrigger.PROBE)
    assert harness.presented() == []


async def test_introspection_in_mass_failure_is_repeated_for_new_pair(harness: RefreshHarness) -> None:
    """During a mass failure the pair of a new grant is introspected before it is presented."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    amo = harness.before_slot(2, lambda: harness.connect(api_domain=API_DOMAIN))  # slot of the refresh
    lifecycle = harness.make_lifecycle(amo=amo)
    await harness.store.suspend_terminal(now=harness.clock.now())
    await lifecycle.breaker.watch()
    harness.clock.advance(60)
    stored = await harness.refresh(connection, by=lifecycle.coordinator, trigger=RefreshTrigger.PROBE)
    assert (stored.pair_version, harness.amo.sandbox.introspections) == (3, 2)


async def test_introspection_unanswered_counts_as_probe(harness: RefreshHarness) -> None:
    """An unanswered introspection counts as the minute's probe, and the next probe is another connection."""
    await harness.connect_users(3, next_refresh_at=START)
    await harness.store.suspend_terminal(now=harness.clock.now())
    harness.amo.sandbox.introspection_faults.add(*[Fault.HTTP_500] * 50)
    async with harness.running(harness.lifecycle):
        await harness.pass_time(130, step=5)
    assert harness.amo.sandbox.introspections == 2
    assert len(harness.lifecycle.breaker.probed) == 2
    assert harness.presented() == []


async def test_introspection_rejected_access_token_makes_no_suspect(harness: RefreshHarness) -> None:
    """A rejected access token does not make a connection suspect if the refresh token's state is unknown."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    unknown, refused = (
        answering(IntrospectionResult(state=state)) for state in (TokenState.UNKNOWN, TokenState.REJECTED)
    )
    lifecycle = harness.make_lifecycle(
        amo=Override(harness.client, introspect_refresh_token=unknown, introspect_access_token=refused)
    )
    await harness.fail(connection, UnauthorizedWithoutHint, Fault.WRONG_CLIENT, by=lifecycle.coordinator)
    assert lifecycle.breaker.reason is None
