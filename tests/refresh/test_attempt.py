"""Refresh attempts: the claim, the requests, and moved accounts."""

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

NEW_HOST = "renamed.amocrm.ru"


VALID, REJECTED, UNKNOWN, NOT_CHECKED = (
    TokenState.VALID,
    TokenState.REJECTED,
    TokenState.UNKNOWN,
    TokenState.NOT_CHECKED,
)


async def _refresh_refused(
    harness: RefreshHarness, refused: AmoCallbackError, introspection: IntrospectionResult
) -> tuple[type[Exception], list[str]]:
    """Have AMO refuse every refresh with this introspection; return the error type and the requested hosts."""
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
        (IntrospectionResult(state=VALID, domain=HOST), [HOST], True, True),
        (IntrospectionResult(state=VALID, domain=NEW_HOST), [HOST, NEW_HOST], True, True),
        (IntrospectionResult(state=VALID), [HOST], True, False),
        (IntrospectionResult(state=REJECTED), [HOST], False, False),
        (IntrospectionResult(state=UNKNOWN), [HOST], None, False),
        (IntrospectionResult(state=NOT_CHECKED), [HOST], None, False),
    ],
)
async def test_attempt_refusal_without_hint_is_retried_at_new_host(
    harness: RefreshHarness,
    introspection: IntrospectionResult,
    asked: list[str],
    *,
    accepted: bool | None,
    same_host: bool,
) -> None:
    """A refusal without a hint is retried at a new host, and carries the result of the introspection."""
    refused = UnauthorizedWithoutHint(401)
    assert await _refresh_refused(harness, refused, introspection) == (UnauthorizedWithoutHint, asked)
    assert (refused.accepted, refused.same_host) == (accepted, same_host)


@pytest.mark.parametrize(
    ("undecodable", "introspection", "raised", "asked"),
    [
        (True, IntrospectionResult(state=VALID, domain=HOST), NeedsReauth, [HOST]),
        (True, IntrospectionResult(state=VALID, domain=NEW_HOST), NeedsReauth, [HOST, NEW_HOST]),
        (True, IntrospectionResult(state=VALID), NeedsReauth, [HOST]),
        (True, IntrospectionResult(state=REJECTED), NeedsReauth, [HOST]),
        (True, IntrospectionResult(state=UNKNOWN), IntrospectionUnavailable, [HOST]),
        (False, IntrospectionResult(state=VALID, domain=NEW_HOST), NeedsReauth, [HOST]),
        (False, IntrospectionResult(state=UNKNOWN), NeedsReauth, [HOST]),
    ],
)
async def test_attempt_undecodable_token_is_final_after_introspection(
    harness: RefreshHarness,
    *,
    undecodable: bool,
    introspection: IntrospectionResult,
    raised: type[Exception],
    asked: list[str],
) -> None:
    """A refusal of an undecodable token is applied only after introspection; any other is applied at once."""
    assert await _refresh_refused(harness, InvalidRefreshToken(undecodable=undecodable), introspection) == (
        raised,
        asked,
    )


async def test_attempt_failed_claim_returns_pair_of_other_process(harness: RefreshHarness) -> None:
    """If another process refreshes before the claim, its pair is returned and no event is added."""
    connection = await harness.connect()
    faster = harness.make_coordinator(process="process-2", store=harness.store)
    harness.failing.before["claim"] = lambda *_, **__: harness.refresh(
        connection, by=faster, is_fresh_enough=newer_than(connection)
    )
    refreshed = await harness.refresh(connection, is_fresh_enough=newer_than(connection))
    assert (refreshed.pair_version, refreshed.attempt, harness.spent()) == (2, None, 1)
    assert harness.witness.names() == ["refresh.succeeded"]


async def test_attempt_success_stores_pair_before_closing_breaker(harness: RefreshHarness) -> None:
    """An observer that fails when the circuit breaker closes does not prevent the pair's storage."""
    connection = await harness.connect()

    def observer(event: Event) -> None:
        if event.name == "amo_credentials.accepted":
            raise RuntimeError("the observer fails")

    lifecycle = harness.make_lifecycle(observer=observer)
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(60)
    await harness.fail(connection, RuntimeError, by=lifecycle.coordinator, trigger=RefreshTrigger.FORCED)
    assert (await harness.now(connection)).pair_version == 2


async def test_attempt_moved_account_takes_a_slot_for_each_request(harness: RefreshHarness) -> None:
    """The first request, the introspection and the second request each wait for a slot."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "renamed.amocrm.ru"
    order: list[str] = []

    async def acquire_slot(_priority: object) -> None:
        order.append("acquire_slot")

    async def introspect_refresh_token(**question: Any) -> IntrospectionResult:
        order.append("introspection")
        return await harness.client.introspect_refresh_token(**question)

    async def refresh(**request: Any) -> TokenResponse:
        order.append("refresh")
        return await harness.client.refresh(**request)

    amo = Override(
        harness.client, acquire_slot=acquire_slot, introspect_refresh_token=introspect_refresh_token, refresh=refresh
    )
    await harness.refresh(connection, by=harness.make_coordinator(amo=amo))
    assert order == ["acquire_slot", "refresh", "acquire_slot", "introspection", "acquire_slot", "refresh"]
