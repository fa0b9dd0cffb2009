"""A simulated year of rotations with random faults, in which lost connections are connected again."""

import itertools
import random
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.amo.sandbox.fake_amo import Lifetimes, SandboxAccount
from amo_callback.crypto import Cipher
from amo_callback.model import Reason, RefreshRules, Status
from amo_callback.store import open_store
from tests.fakes import FakeClock, RecordingObserver
from tests.refresh.simulation import FAULTS, Process, Simulation

ACCESS_LIFETIME = timedelta(days=2)
"""The lifetime of an access token; a refresh at half of it rotates the pair once a day."""
RECONNECTED_AFTER = timedelta(hours=6)


class Coverage:
    """The periods in which each account has a valid access token in the store."""

    def __init__(self) -> None:
        self.until: dict[str, datetime] = {}
        self.gaps = timedelta(0)

    def stored(self, name: str, now: datetime, expires_at: datetime) -> None:
        """Record that a token was stored."""
        self.gaps += max(now - self.until.get(name, now), timedelta(0))
        self.until[name] = expires_at


class Year(Simulation):
    """A simulation without gates, with random faults at AMO and users who reconnect lost connections."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, gated=False, lifetimes=Lifetimes(access=ACCESS_LIFETIME.total_seconds()), **more)
        self.generator = random.Random(2026)  # noqa: S311 -- because faults are not secrets
        self.random = self.generator.random
        self.rules = RefreshRules(poll_interval=1800.0, jitter=0.02)
        self.lost: dict[str, datetime] = {}
        self.rotations = self.losses = 0
        self.coverage = Coverage()
        self.witness = RecordingObserver()  # events of commits; other events are reported by the process
        self.store.observe(self.witness)

    async def grant(self, account: SandboxAccount) -> None:
        await super().grant(account)
        self.coverage.stored(self.name(account), self.clock.now(), self.clock.now() + ACCESS_LIFETIME)

    async def execute(self, process: Process, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = await super().execute(process, name, args, kwargs)
        if name == "save_refreshed" and result is not None:
            self.coverage.stored(result.id, self.clock.now(), result.access_expires_at)
        return result

    def fault(self) -> Fault | None:
        return self.generator.choice(FAULTS) if self.generator.random() < 0.01 else None

    async def run_for(self, days: int) -> None:
        """Let `days` pass, from one due time to the next."""
        end = self.clock.now() + timedelta(days=days)
        while self.clock.now() < end:
            await self.settle()
            await self._reconnect_lost()
            wakes = [left for left in self.clock.sleeping() if left > 0]
            reconnections = [(at + RECONNECTED_AFTER - self.clock.now()).total_seconds() for at in self.lost.values()]
            self.clock.advance(max(min([*wakes, *reconnections], default=1800.0), 0.001))

    async def _reconnect_lost(self) -> None:
        witnesses = (self.witness, *(process.witness for process in self.processes))
        for event in itertools.chain.from_iterable(witness.events for witness in witnesses):
            name = event.connection_id or ""
            if event.name == "connection.needs_reauth":
                assert event.fields["reason"] is Reason.IN_DOUBT
            if event.name in {"connection.needs_reauth", "raw_answer.kept"}:
                self.lost.setdefault(name, self.clock.now())
            if event.name == "refresh.succeeded":
                self.lost.pop(name, None)
                self.rotations += 1
        for witness in witnesses:
            witness.events.clear()
        for account in self.accounts:
            since = self.lost.get(self.name(account))
            if since is not None and self.clock.now() >= since + RECONNECTED_AFTER:
                await self._check_hand_out(self.name(account))
                del self.lost[self.name(account)]
                await self.grant(account)
                self.losses += 1
                self.processes[0].lifecycle.scheduler.wake()

    async def _check_hand_out(self, name: str) -> None:
        """Check that the backend still receives a valid token six hours after the loss."""
        if not self.fake.quirks.refresh_kills_access:
            given = await self.processes[0].lifecycle.access_tokens.token(name, min_ttl=0)
            assert self.fake.live_account(given.token.value) is not None


@pytest.fixture
async def year(tmp_path: Path, cipher: Cipher, rounds: int) -> AsyncIterator[Year]:
    clock = FakeClock()
    async with open_store("sqlite:///simulation.db", folder=tmp_path, clock=clock) as store:
        simulation = Year(store, cipher, clock=clock, accounts=5 * rounds)
        for account in simulation.accounts:
            await simulation.grant(account)
        yield simulation
        await simulation.close()


@pytest.mark.timeout(3600)
async def test_simulated_year_with_faults_leaves_no_account_without_valid_token(
    year: Year, rounds: int, record_property: Any
) -> None:
    """One request in a hundred fails; every loss is reported, and the old token is valid until the reconnection."""
    process = year.start()
    for _ in range(365 * rounds // 40):
        await year.run_for(1)
    for account in year.accounts:
        row = await year.row(year.name(account))
        assert row.status is Status.ACTIVE or row.id in year.lost
        year.coverage.stored(row.id, year.clock.now(), year.clock.now())
    assert year.rotations > 0
    assert year.coverage.gaps == timedelta(0)
    assert not process.lifecycle.pending_writes.names
    record_property("connections", len(year.accounts))
    record_property("rotations", year.rotations)
    record_property("lost answers mended by a person", year.losses)
    record_property("minutes without a live token", year.coverage.gaps.total_seconds() / 60)
