"""An attempt to refresh: its claim, its requests, and the account that has moved."""

from typing import Any

import pytest

from amo_callback.errors import (
    AmoCallbackError,
    IntrospectionUnavailable,
    InvalidRefreshToken,
    NeedsReauth,
    UnauthorizedWithoutHint,
)
from amo_callback.events import Event
from amo_callback.model import IntrospectionResult, RefreshTrigger, TokenResponse, TokenState
from tests.fakes import Override, answering
from tests.refresh.harness import API_DOMAIN, RefreshHarness, newer_than
from tests.service import HOST

ELSEWHERE = "renamed.amocrm.ru"


GOOD, REFUSED, UNKNOWN, NOT_CHECKED = TokenState.VALID, TokenState.REJECTED, TokenState.UNKNOWN, TokenState.NOT_CHECKED


async def _followed(
    harness: RefreshHarness, refused: AmoCallbackError, introspection: IntrospectionResult
) -> tuple[type[Exception], list[str]]:
    """Have AMO refuse whatever is presented, and tell this of the token; return what is raised, and who was asked."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    asked: list[str] = []

    async def refresh(*, domain: str, **_: object) -> TokenResponse:
        asked.append(domain)
        raise refused

    unknown = answering(IntrospectionResult(state=UNKNOWN))
    amo = Override(
        harness.client,
        refresh=refresh,
        introspect_refresh_token=answering(introspection),
        introspect_access_token=unknown,
    )
    error = await harness.fail(connection, AmoCallbackError, by=harness.make_coordinator(amo=amo))
    return type(error), asked


@pytest.mark.parametrize(
    ("introspection", "asked", "accepted", "same_host"),
    [
        (IntrospectionResult(state=GOOD, domain=HOST), [HOST], True, True),
        (IntrospectionResult(state=GOOD, domain=ELSEWHERE), [HOST, ELSEWHERE], True, True),
        (IntrospectionResult(state=GOOD), [HOST], True, False),
        (IntrospectionResult(state=REFUSED), [HOST], False, False),
        (IntrospectionResult(state=UNKNOWN), [HOST], None, False),
        (IntrospectionResult(state=NOT_CHECKED), [HOST], None, False),
    ],
)
async def test_an_unexplained_refusal_is_followed_where_the_account_has_moved(
    harness: RefreshHarness,
    introspection: IntrospectionResult,
    asked: list[str],
    *,
    accepted: bool | None,
    same_host: bool,
) -> None:
    """The host that has refused last, and what introspection says of the token, decide whose fault it is."""
    refused = UnauthorizedWithoutHint(401)
    assert await _followed(harness, refused, introspection) == (UnauthorizedWithoutHint, asked)
    assert (refused.accepted, refused.same_host) == (accepted, same_host)


@pytest.mark.parametrize(
    ("misread", "introspection", "raised", "asked"),
    [
        (True, IntrospectionResult(state=GOOD, domain=HOST), NeedsReauth, [HOST]),
        (True, IntrospectionResult(state=GOOD, domain=ELSEWHERE), NeedsReauth, [HOST, ELSEWHERE]),
        (True, IntrospectionResult(state=GOOD), NeedsReauth, [HOST]),
        (True, IntrospectionResult(state=REFUSED), NeedsReauth, [HOST]),
        (True, IntrospectionResult(state=UNKNOWN), IntrospectionUnavailable, [HOST]),
        (False, IntrospectionResult(state=GOOD, domain=ELSEWHERE), NeedsReauth, [HOST]),
        (False, IntrospectionResult(state=UNKNOWN), NeedsReauth, [HOST]),
    ],
)
async def test_a_refusal_of_who_could_not_read_the_token_is_believed_where_the_account_lives(
    harness: RefreshHarness,
    *,
    misread: bool,
    introspection: IntrospectionResult,
    raised: type[Exception],
    asked: list[str],
) -> None:
    """Whoever could read it is believed at once, and nobody is asked."""
    assert await _followed(harness, InvalidRefreshToken(undecodable=misread), introspection) == (raised, asked)


async def test_whoever_comes_second_to_a_claim_spends_nothing(harness: RefreshHarness) -> None:
    """Between the last look and the claim another process was faster: its pair is taken, and told as nothing else."""
    connection = await harness.connect()
    faster = harness.make_coordinator(process="process-2", store=harness.store)
    harness.failing.before["claim"] = lambda *_, **__: harness.refresh(
        connection, by=faster, is_fresh_enough=newer_than(connection)
    )
    refreshed = await harness.refresh(connection, is_fresh_enough=newer_than(connection))
    assert (refreshed.pair_version, refreshed.attempt, harness.spent()) == (2, None, 1)
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
    await harness.fail(connection, RuntimeError, by=lifecycle.coordinator, trigger=RefreshTrigger.FORCED)
    assert (await harness.now(connection)).pair_version == 2


async def test_each_request_about_a_moved_account_has_a_slot_of_its_own(harness: RefreshHarness) -> None:
    """AMO bans whoever asks too often: the first request, the look-up and the second request wait for one each."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "renamed.amocrm.ru"
    order: list[str] = []

    async def acquire_slot(_priority: object) -> None:
        order.append("acquire_slot")

    async def introspect_refresh_token(**question: Any) -> IntrospectionResult:
        order.append("look-up")
        return await harness.client.introspect_refresh_token(**question)

    async def refresh(**request: Any) -> TokenResponse:
        order.append("refresh")
        return await harness.client.refresh(**request)

    amo = Override(
        harness.client, acquire_slot=acquire_slot, introspect_refresh_token=introspect_refresh_token, refresh=refresh
    )
    await harness.refresh(connection, by=harness.make_coordinator(amo=amo))
    assert order == ["acquire_slot", "refresh", "acquire_slot", "look-up", "acquire_slot", "refresh"]
