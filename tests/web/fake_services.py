"""Services in a state that a test sets."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

from amo_callback.model import AmoBlock, Freeze
from amo_callback.stats import StoreStats
from amo_callback.web.composition import Services
from tests.builders import a_survey
from tests.fakes import FakeClock


class FakeLifecycle:
    """A lifecycle of tokens whose parts are all this one object."""

    def __init__(self) -> None:
        self.beat_age = self.failed_for = 0.0
        self.in_flight = self.count = 0
        self.refused: str | None = None
        self.proven = True
        self.held = self.at_risk = False
        self.frozen: Freeze | None = None
        self.block: AmoBlock | None = None
        self.names: Sequence[str] = ()
        self.last: StoreStats | None = a_survey(active=42, fresh=42)
        self.age: float | None = 0.0
        self.seconds: float | None = 0.0
        self.trouble: str | None = None

    @property
    def scheduler(self) -> FakeLifecycle:
        return self

    breaker = address_block = credentials = pending_writes = raw_answers = freeze_switch = stats_poller = (
        coordinator
    ) = scheduler


class FakeServices:
    """What health and watchdog read."""

    def __init__(self, *, poll_interval: float = 5.0) -> None:
        self.lifecycle = FakeLifecycle()
        self.store = SimpleNamespace(last_write_error=None, clock_skew=0.0)
        self.clock = FakeClock()
        self.core = SimpleNamespace(clock=self.clock)
        self.settings = SimpleNamespace(
            refresh=SimpleNamespace(poll_interval=poll_interval), webhook=SimpleNamespace(url=None)
        )

    @property
    def services(self) -> Services:
        return cast("Services", self)
