"""Raw answers: successful answers without a readable pair are kept, and delay the next presentation."""

from datetime import timedelta

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import AmoCallbackError, DecryptionFailed, NeedsReauth, UnknownOutcome
from amo_callback.model import Connection, Reason, RefreshTrigger
from amo_callback.refresh.raw_answers import file_name, open_raw
from amo_callback.schedule import REFRESH_TOKEN_LIFETIME
from tests.refresh.harness import API_DOMAIN, DAY, RefreshHarness


async def _connect_with_raw_answer(
    harness: RefreshHarness, fault: Fault = Fault.HALF_JSON_AFTER, **more: object
) -> Connection:
    """Connect, and refresh with an answer that contains no readable pair."""
    connection = await harness.connect(**{"api_domain": API_DOMAIN, **more})
    await harness.fail(connection, UnknownOutcome, fault)
    return connection


@pytest.mark.parametrize(
    "fault", [Fault.HALF_JSON_AFTER, Fault.NO_REFRESH_TOKEN_AFTER, Fault.HTML_200, Fault.HUGE_AFTER]
)
async def test_raw_answer_is_kept_sealed_and_not_pending(harness: RefreshHarness, fault: Fault) -> None:
    """A successful answer without a readable pair is reported and sealed, up to 64 KiB, and is no pending write."""
    connection = await _connect_with_raw_answer(harness, fault)
    [(name, sealed)] = harness.rescue.files.items()
    assert name == f"{connection.id}-1.raw"
    answer = open_raw(name, sealed, harness.cipher)
    assert len(answer.body) == 64 * 1024 if fault is Fault.HUGE_AFTER else answer.body
    assert answer.body not in sealed
    assert answer.domain == connection.domain
    [kept] = harness.witness.named("raw_answer.kept")
    assert (kept.connection_id, kept.fields["file"]) == (connection.id, name)
    await harness.lifecycle.pending_writes.restore()
    assert (harness.lifecycle.pending_writes.names, harness.lifecycle.raw_answers.count) == ([], 1)
    with pytest.raises(DecryptionFailed):
        open_raw(f"{connection.id}-2.raw", sealed, harness.cipher)


@pytest.mark.parametrize("fault", [Fault.HTTP_500_AFTER, Fault.NOTHING_AFTER, Fault.REDIRECT, Fault.WRONG_CLIENT])
async def test_raw_answer_of_failure_is_not_kept(harness: RefreshHarness, fault: Fault) -> None:
    """A failure, a missing answer or a refusal is not kept, because it contains no pair."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, AmoCallbackError, fault)
    assert harness.rescue.files == {}


async def test_raw_answer_full_disk_is_reported_as_lost(harness: RefreshHarness) -> None:
    """An answer that cannot be written to a full disk is reported as lost."""
    harness.rescue.full = True
    connection = await _connect_with_raw_answer(harness)
    [lost] = harness.witness.named("raw_answer.lost")
    assert (lost.connection_id, lost.fields["error"]) == (connection.id, "No space left on device")


@pytest.mark.parametrize("api_domain", [API_DOMAIN, None])
async def test_raw_answer_delays_presentation_until_access_token_expiry(
    harness: RefreshHarness, api_domain: str | None
) -> None:
    """A token with a raw answer that introspection does not accept is presented after the access token expires."""
    harness.amo.fake.quirks.introspection_accepts_spent = False
    connection = await _connect_with_raw_answer(harness, api_domain=api_domain)
    harness.clock.advance(60)
    for _ in range(int(DAY // 900) - 1):
        await harness.fail(connection, UnknownOutcome)
        assert (await harness.now(connection)).next_refresh_at == harness.clock.now() + timedelta(minutes=15)
        harness.clock.advance(900)
    assert len(harness.presented()) == 1
    harness.clock.advance(900)
    assert (await harness.fail(connection, NeedsReauth)).reason is Reason.IN_DOUBT
    assert len(harness.presented()) == 2


async def test_raw_answer_accepted_token_is_presented(harness: RefreshHarness) -> None:
    """A token with a raw answer is presented if introspection accepts it."""
    connection = await _connect_with_raw_answer(harness, Fault.HTML_200)
    harness.clock.advance(60)
    assert (await harness.refresh(connection)).pair_version == 2


async def test_raw_answer_is_respected_by_another_process(harness: RefreshHarness) -> None:
    """Another process finds the raw answer's file and does not present the token."""
    harness.amo.fake.quirks.introspection_accepts_spent = False
    connection = await _connect_with_raw_answer(harness)
    harness.clock.advance(60)
    another = harness.make_lifecycle(process="process-2")
    refreshing = harness.begin(connection, by=another.coordinator)
    while not refreshing.done():
        await harness.traffic.until_quiet()
        harness.clock.advance(0.25)
    assert isinstance(refreshing.exception(), UnknownOutcome)
    assert len(harness.presented()) == 1


async def test_raw_answer_unsent_probe_counts_as_probe(harness: RefreshHarness) -> None:
    """A connection whose raw answer prevents its probe is not the next probe."""
    harness.amo.fake.quirks.introspection_accepts_spent = False
    connection = await _connect_with_raw_answer(harness)
    breaker = harness.lifecycle.breaker
    breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(60)
    await harness.fail(connection, UnknownOutcome, trigger=RefreshTrigger.PROBE)
    assert (breaker.probed, breaker.probe_in) == ({connection.id}, 60)


async def test_raw_answer_is_removed_after_newer_pair_is_stored(harness: RefreshHarness) -> None:
    """A raw answer is removed within a minute after a newer pair is stored."""
    connection = await _connect_with_raw_answer(harness, Fault.HTML_200)
    harness.clock.advance(60)
    await harness.lifecycle.raw_answers.watch()
    assert file_name(connection) in harness.rescue.files
    await harness.refresh(connection)
    await harness.lifecycle.raw_answers.watch()
    assert file_name(connection) in harness.rescue.files  # checked once a minute
    harness.clock.advance(60)
    await harness.lifecycle.raw_answers.watch()
    assert (harness.rescue.files, harness.lifecycle.raw_answers.count) == ({}, 0)


async def test_raw_answer_is_removed_after_90_days(harness: RefreshHarness) -> None:
    """A raw answer of a refresh or of an exchange is removed after 90 days."""
    await _connect_with_raw_answer(harness)
    harness.rescue.files["0123abcd.raw"] = b"an exchange's"
    for age, left in ((REFRESH_TOKEN_LIFETIME, 2), (REFRESH_TOKEN_LIFETIME + timedelta(seconds=1), 0)):
        harness.rescue.age = age.total_seconds()
        harness.clock.advance(60)
        await harness.lifecycle.raw_answers.watch()
        assert (len(harness.rescue.files), harness.lifecycle.raw_answers.count) == (left, left)


async def test_raw_answers_unreadable_folder_raises_no_error(harness: RefreshHarness) -> None:
    """An unreadable rescue folder raises no error and counts as one without a raw answer."""
    connection = await _connect_with_raw_answer(harness)

    class Locked:
        def __getattr__(self, name: str) -> object:
            raise PermissionError(13, "Permission denied")

    lifecycle = harness.make_lifecycle(rescue=Locked())
    await lifecycle.raw_answers.watch()
    assert not await lifecycle.raw_answers.has(connection)
