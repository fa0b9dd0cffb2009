"""What the benchmarks reckon and tell: nothing is measured here."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass

import pytest

from tests.benchmarks.backlog import evenly, randomly
from tests.benchmarks.figures import Bar, Figure, Outcome, Point, percentile
from tests.benchmarks.imports import import_times
from tests.benchmarks.lag import Window, longest_of
from tests.benchmarks.options import add_flags, option, read_options
from tests.benchmarks.plots import ticks
from tests.benchmarks.report import Report, from_json, to_json
from tests.benchmarks.table import QUICK, lines

SPEED = Figure(name="hand-outs, ours/bare", unit="ratio", values=[0.7, 0.5, 0.65], bar=Bar(at_least=0.6))


def a_report(*figures: Figure, quick: bool = False, failed: dict[str, str] | None = None) -> Report:
    curve = [
        Point(callers=1, per_second=100.0, p50=0.5, p99=2.0),
        Point(callers=2, per_second=150.0, p50=0.9, p99=30.0),
    ]
    return Report(
        when="2026-11-23T12:00:00+00:00",
        quick=quick,
        rounds=3,
        versions={"python": "3.11"},
        machine={"cores": 2},
        options={"handout": {"seconds": 4.0}},
        outcomes={"handout": Outcome(figures=list(figures), curves={"ours": curve}, notes=["64 callers"])},
        failed=failed or {},
    )


@pytest.mark.parametrize(("share", "found"), [(0.5, 50), (0.99, 99), (0.999, 100), (1, 100), (0, 1)])
def test_percentile_is_a_value_that_was_measured(share: float, found: float) -> None:
    """A percentile is the least sample that this share of all samples does not exceed."""
    assert percentile(range(1, 101), share) == found


def test_percentile_of_one() -> None:
    """Every percentile of one sample is that sample."""
    assert percentile([7.0], 0.99) == 7.0


def test_the_median_is_held_against_the_bar() -> None:
    """A figure reaches its bar with the median, whatever its worst round was, and without a bar nothing is said."""
    assert (SPEED.least, SPEED.median, SPEED.most, SPEED.reached) == (0.5, 0.65, 0.7, True)
    assert Figure(name="lag", unit="ms", values=[21.0], bar=Bar(at_most=20)).reached is False
    assert Figure(name="lag", unit="ms", values=[21.0]).reached is None


def test_table_tells_what_was_reached() -> None:
    """A row tells least, median, most, the bar, and whether it was reached."""
    slow = Figure(name="p99", unit="ms", values=[12345.6], bar=Bar(at_most=300))
    told = lines(a_report(SPEED, slow))
    [first, second] = [line.split() for line in told.splitlines()[1:3]]
    assert first[-7:] == ["ratio", "0.50", "0.65", "0.70", ">=", "0.6", "yes"]
    assert second[-7:] == ["ms", "12346", "12346", "12346", "<=", "300", "NO"]


def test_table_compares_with_an_earlier_report() -> None:
    """Beside an earlier report each row has its median and the change, and a new figure has neither."""
    earlier = a_report(Figure(name="hand-outs, ours/bare", unit="ratio", values=[0.5]))
    told = lines(a_report(SPEED, Figure(name="p50", unit="ms", values=[1.0])), earlier).splitlines()
    assert told[1].split()[-3:] == ["0.50", "+30", "%"]
    assert told[2].split()[-2:] == ["-", "-"]


def test_quick_run_is_marked() -> None:
    """A quick run says that its figures are not to be quoted, and a later comparison says it of the earlier one."""
    assert QUICK in lines(a_report(SPEED, quick=True))
    assert QUICK not in lines(a_report(SPEED))
    assert "earlier report is of a quick run" in lines(a_report(SPEED), a_report(SPEED, quick=True))


def test_failure_is_told() -> None:
    """A benchmark that failed stands under the table, with why."""
    assert "sweep FAILED: TimeoutError" in lines(a_report(SPEED, failed={"sweep": "TimeoutError"}))


def test_report_comes_back_from_json() -> None:
    """A report that was written is read as it was."""
    report = a_report(SPEED, Figure(name="p50", unit="ms", values=[1.0]), quick=True, failed={"sweep": "why"})
    assert from_json(to_json(report)) == report


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    seconds: float = option(4.0, quick=1.0, told="of each load")
    rows: tuple[int, ...] = option((10, 20), told="in the database")


def test_flags_are_made_of_options() -> None:
    """Each field is a flag; what is given goes before a quick run's value, and that before the default."""
    parser = argparse.ArgumentParser()
    add_flags(parser, "claims", _Options)
    given = vars(parser.parse_args(["--claims-rows", "1", "2", "3"]))
    assert read_options(given, "claims", _Options, quick=False) == _Options(seconds=4.0, rows=(1, 2, 3))
    assert read_options(given, "claims", _Options, quick=True).seconds == 1.0
    given = vars(parser.parse_args(["--claims-seconds", "9"]))
    assert read_options(given, "claims", _Options, quick=True) == _Options(seconds=9.0, rows=(10, 20))


def test_lag_counts_where_it_began() -> None:
    """The longest lag of a window is of those that began in it; a line that is half written is none yet."""
    text = "1.000000 0.900000\n2.000000 0.005000\n3.000000 0.010000\n9.000000 5.000000\n3.5 0.4"
    assert longest_of(text, Window(since=1, until=3.5)) == pytest.approx(10)
    assert longest_of(text, Window(since=3.1, until=3.5)) == 0
    assert longest_of(text, Window(since=3.1, until=5)) == pytest.approx(5000)


def test_imports_are_told_by_package() -> None:
    """The time of all modules of a package is one figure, the longest first."""
    text = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       100 |        100 |   aiohttp.web\n"
        "import time:      2000 |       2100 | aiohttp\n"
        "import time:       300 |        300 | re\n"
        "something else\n"
    )
    assert list(import_times(text).items()) == [("aiohttp", 2.1), ("re", 0.3)]
    assert list(import_times(text, most=1)) == ["aiohttp"]


def test_arrivals() -> None:
    """Requests that come evenly are so far apart as is said; at random they are as many in the long run."""
    assert evenly(2, 2) == [0, 0.5, 1, 1.5]
    dues = randomly(10, 1000, random.Random(1))  # noqa: S311 -- because nothing is secret in it
    assert len(dues) == pytest.approx(10_000, rel=0.05)
    assert dues == sorted(dues)
    assert dues[-1] < 1000


def test_ticks_are_round_and_lie_around() -> None:
    """A plot's axis is marked with round numbers, from one below the least value to one above the most."""
    assert ticks([0.3, 30]) == pytest.approx([0.2, 0.5, 1, 2, 5, 10, 20, 50])
    assert ticks([2.0]) == pytest.approx([2])
