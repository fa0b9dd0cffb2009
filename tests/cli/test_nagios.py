"""Readiness as a monitoring system takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from amo_callback.cli.nagios import Status, judge, tell_health
from amo_callback.cli.readiness import Ready, Unreachable
from amo_callback.clock import SystemClock
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from tests.conftest import Running

AT = "127.0.0.1:8081"


def _ready(**red: str) -> Ready:
    return Ready(checks=dict.fromkeys(("store", "frozen", "fresh"), True), red=red, seconds=0.0123)


@pytest.mark.parametrize(
    ("found", "status", "line"),
    [
        (_ready(), Status.OK, "AMO-CALLBACK OK - ready, 3 checks | time=0.012s;;;0;10 red=0;;;0;3"),
        (
            _ready(frozen="nothing is spent"),
            Status.WARNING,
            "AMO-CALLBACK WARNING - frozen: nothing is spent | time=0.012s;;;0;10 red=1;;;0;3",
        ),
        (
            _ready(frozen="nothing is spent", fresh="0 of 9"),
            Status.CRITICAL,
            "AMO-CALLBACK CRITICAL - frozen: nothing is spent; fresh: 0 of 9 | time=0.012s;;;0;10 red=2;;;0;3",
        ),
        (
            _ready(store="a | b\nc"),
            Status.CRITICAL,
            "AMO-CALLBACK CRITICAL - store: a / b c | time=0.012s;;;0;10 red=1;;;0;3",
        ),
        (Unreachable(why="refused"), Status.CRITICAL, f"AMO-CALLBACK CRITICAL - {AT}: refused"),
    ],
    ids=["ready", "frozen", "frozen_too_long", "red", "away"],
)
def test_readiness_becomes_one_line_and_a_status(found: Ready | Unreachable, status: Status, line: str) -> None:
    """Only a freeze is no more than a warning; nothing in the line can end it, or begin its figures."""
    assert judge(found, address=AT, patience=10) == (status, line)


async def test_what_is_no_service_of_ours_is_unknown(app: Running) -> None:
    """Nothing can be said of it; the public door has no such route."""
    status, line = await tell_health(app.service.public, clock=SystemClock(), patience=PATIENCE)
    assert status is Status.UNKNOWN
    assert line.startswith(f"AMO-CALLBACK UNKNOWN - {app.service.public}: status 404")


async def test_a_service_that_runs_is_asked(app: Running) -> None:
    """It needs no key."""
    status, line = await tell_health(app.service.private, clock=SystemClock(), patience=PATIENCE)
    assert status is Status.OK
    assert line.startswith("AMO-CALLBACK OK - ready, ")
