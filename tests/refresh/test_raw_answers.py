"""Good answers in which no pair can be read: kept for a person, and their token is not presented on the chance."""

from datetime import timedelta

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import AmoCallbackError, DecryptionFailed, NeedsReauth, UnknownOutcome
from amo_callback.model import Connection, Reason, RefreshTrigger
from amo_callback.refresh.raw_answers import file_name, open_raw
from amo_callback.schedule import REFRESH_TOKEN_LIFETIME
from tests.refresh.harness import API_DOMAIN, DAY, RefreshHarness


async def _unread(harness: RefreshHarness, fault: Fault = Fault.HALF_JSON_AFTER, **more: object) -> Connection:
    """Return a connection that was refreshed, and whose next pair is in an answer that cannot be read."""
    connection = await harness.connect(**{"api_domain": API_DOMAIN, **more})
    await harness.fail(connection, UnknownOutcome, fault)
    return connection


@pytest.mark.parametrize(
    "fault", [Fault.HALF_JSON_AFTER, Fault.NO_REFRESH_TOKEN_AFTER, Fault.HTML_200, Fault.HUGE_AFTER]
)
async def test_a_good_answer_without_a_readable_pair_is_kept_sealed(harness: RefreshHarness, fault: Fault) -> None:
    """It is told at once, holds AMO's very body up to 64 KiB, and is no pair that waits for the store."""
    connection = await _unread(harness, fault)
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
async def test_other_answers_are_not_kept(harness: RefreshHarness, fault: Fault) -> None:
    """A failure, an answer that never came, a refusal: no pair is in them."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, AmoCallbackError, fault)
    assert harness.rescue.files == {}


async def test_an_answer_that_cannot_be_kept_is_told(harness: RefreshHarness) -> None:
    """The disk is full: the log says that the answer is lost."""
    harness.rescue.full = True
    connection = await _unread(harness)
    [lost] = harness.witness.named("raw_answer.lost")
    assert (lost.connection_id, lost.fields["error"]) == (connection.id, "No space left on device")


@pytest.mark.parametrize("api_domain", [API_DOMAIN, None])
async def test_a_kept_answer_waits_until_the_access_token_has_expired(
    harness: RefreshHarness, api_domain: str | None
) -> None:
    """AMO rejects it, or nobody can be asked: a day is left in which a person may recover the pair."""
    harness.amo.fake.quirks.introspection_accepts_spent = False
    connection = await _unread(harness, api_domain=api_domain)
    harness.clock.advance(60)
    for _ in range(int(DAY // 900) - 1):
        await harness.fail(connection, UnknownOutcome)
        assert (await harness.now(connection)).next_refresh_at == harness.clock.now() + timedelta(minutes=15)
        harness.clock.advance(900)
    assert len(harness.presented()) == 1
    harness.clock.advance(900)
    assert (await harness.fail(connection, NeedsReauth)).reason is Reason.IN_DOUBT
    assert len(harness.presented()) == 2


async def test_a_token_with_a_kept_answer_is_presented_where_amo_accepts_it(harness: RefreshHarness) -> None:
    """What came was no answer of AMO's: the token was not spent."""
    connection = await _unread(harness, Fault.HTML_200)
    harness.clock.advance(60)
    assert (await harness.refresh(connection)).pair_version == 2


async def test_a_process_that_begins_later_keeps_a_token_with_a_kept_answer_at_home(harness: RefreshHarness) -> None:
    """The file speaks, not anybody's memory."""
    harness.amo.fake.quirks.introspection_accepts_spent = False
    connection = await _unread(harness)
    harness.clock.advance(60)
    another = harness.make_lifecycle(process="process-2")
    refreshing = harness.begin(connection, by=another.coordinator)
    while not refreshing.done():
        await harness.traffic.until_quiet()
        harness.clock.advance(0.25)
    assert isinstance(refreshing.exception(), UnknownOutcome)
    assert len(harness.presented()) == 1


async def test_a_probe_that_stays_at_home_leaves_the_next_turn_to_another(harness: RefreshHarness) -> None:
    """Where nothing but probes may go, a connection with a kept answer is not chosen again and again."""
    harness.amo.fake.quirks.introspection_accepts_spent = False
    connection = await _unread(harness)
    breaker = harness.lifecycle.breaker
    breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(60)
    await harness.fail(connection, UnknownOutcome, trigger=RefreshTrigger.PROBE)
    assert (breaker.probed, breaker.probe_in) == ({connection.id}, 60)


async def test_a_kept_answer_is_removed_once_a_newer_pair_is_stored(harness: RefreshHarness) -> None:
    """It could bring nothing any more."""
    connection = await _unread(harness, Fault.HTML_200)
    harness.clock.advance(60)
    await harness.lifecycle.raw_answers.watch()
    assert file_name(connection) in harness.rescue.files
    await harness.refresh(connection)
    await harness.lifecycle.raw_answers.watch()
    assert file_name(connection) in harness.rescue.files  # once a minute is enough
    harness.clock.advance(60)
    await harness.lifecycle.raw_answers.watch()
    assert (harness.rescue.files, harness.lifecycle.raw_answers.count) == ({}, 0)


async def test_a_kept_answer_is_removed_when_its_refresh_token_would_be_dead(harness: RefreshHarness) -> None:
    """After 90 days, an exchange's as well."""
    await _unread(harness)
    harness.rescue.files["0123abcd.raw"] = b"an exchange's"
    for age, left in ((REFRESH_TOKEN_LIFETIME, 2), (REFRESH_TOKEN_LIFETIME + timedelta(seconds=1), 0)):
        harness.rescue.age = age.total_seconds()
        harness.clock.advance(60)
        await harness.lifecycle.raw_answers.watch()
        assert (len(harness.rescue.files), harness.lifecycle.raw_answers.count) == (left, left)


async def test_a_folder_that_cannot_be_read_keeps_nobody_from_work(harness: RefreshHarness) -> None:
    """The next look does it."""
    connection = await _unread(harness)

    class Locked:
        def __getattr__(self, name: str) -> object:
            raise PermissionError(13, "Permission denied")

    lifecycle = harness.make_lifecycle(rescue=Locked())
    await lifecycle.raw_answers.watch()
    assert not await lifecycle.raw_answers.has(connection)
