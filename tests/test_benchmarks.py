"""What the benchmarks reckon and tell: nothing is measured here."""

import dataclasses
import json

import pytest
from pydantic import TypeAdapter

from tests.benchmarks.__main__ import BENCHMARKS, QUICK, options_of
from tests.benchmarks.client import percentile
from tests.benchmarks.harness import longest_lag
from tests.benchmarks.report import QUICK as QUICK_NOTE
from tests.benchmarks.report import Figure, Outcome, Report, lines

SPEED = Figure(name="hand-outs, ours/bare", unit="ratio", values=[0.7, 0.5, 0.65], at_least=0.6)
LAG = Figure(name="lag", unit="ms", values=[12345.6], at_most=20)


def a_report(*figures: Figure, quick: bool = False, failed: dict[str, str] | None = None) -> Report:
    outcome = Outcome(figures=list(figures), curves={"ours": [[1, 100.0, 0.5, 2.0]]}, notes=["64 callers"])
    machine = {"python": "3.11"}
    return Report(
        when="2026", quick=quick, rounds=3, machine=machine, outcomes={"handout": outcome}, failed=failed or {}
    )


@pytest.mark.parametrize(("share", "found"), [(0.5, 50), (0.99, 99), (0.999, 100), (1, 100), (0, 1)])
def test_percentile_is_a_value_that_was_measured(share: float, found: float) -> None:
    """A percentile is the least sample that this share of all samples does not exceed."""
    assert percentile(range(1, 101), share) == found
    assert percentile([7.0], share) == 7.0


def test_table_shows_each_figure_with_its_bar() -> None:
    """A row has least, median, most, the bar, and whether the median reaches it."""
    [first, second, third] = [
        line.split() for line in lines(a_report(SPEED, LAG, Figure(name="x", unit="ms", values=[1]))).splitlines()[1:4]
    ]
    assert first[-7:] == ["ratio", "0.50", "0.65", "0.70", ">=", "0.6", "yes"]
    assert second[-7:] == ["ms", "12346", "12346", "12346", "<=", "20", "NO"]
    assert third[-6:] == ["ms", "1.00", "1.00", "1.00", "-", "-"]


def test_table_compares_with_an_earlier_report() -> None:
    """Beside an earlier report each row has its median and the change, and a new figure has neither."""
    earlier = a_report(dataclasses.replace(SPEED, values=[0.5]), quick=True)
    told = lines(a_report(SPEED, LAG), earlier).splitlines()
    assert told[1].split()[-3:] == ["0.50", "+30", "%"]
    assert told[2].split()[-2:] == ["-", "-"]
    assert "The earlier report is of a quick run." in told


def test_report_says_what_is_not_to_be_quoted() -> None:
    """A quick run is marked, and a benchmark that failed stands under the table, with why."""
    assert QUICK_NOTE in lines(a_report(SPEED, quick=True))
    assert QUICK_NOTE not in lines(a_report(SPEED))
    assert "sweep FAILED: TimeoutError" in lines(a_report(SPEED, failed={"sweep": "TimeoutError"}))


def test_report_comes_back_from_json() -> None:
    """A report that was written is read as it was."""
    report = a_report(SPEED, LAG, quick=True, failed={"sweep": "why"})
    assert TypeAdapter(Report).validate_json(json.dumps(dataclasses.asdict(report))) == report


def test_options_are_a_benchmarks_parameters() -> None:
    """What is given goes before a quick run's value, and that before the default."""
    assert QUICK.keys() <= BENCHMARKS.keys()
    assert options_of("claims", [], quick=False) == {"rows": 1_000_000, "due": 1000}
    given = ["claims.rows=7", "sweep.connections=1"]
    assert options_of("claims", given, quick=True) == {"rows": 7, "due": 1000}
    assert options_of("handout", ["handout.seconds=9"], quick=True)["seconds"] == 9.0


def test_lag_counts_where_it_began() -> None:
    """The longest lag of a window is of those that began in it; a line that is half written is none yet."""
    text = "1.000000 0.900000\n2.000000 0.005000\n3.000000 0.010000\n9.000000 5.000000\n3.5 0.4"
    assert longest_lag(text, 1, 3.5) == pytest.approx(10)
    assert longest_lag(text, 3.1, 3.5) == 0
    assert longest_lag(text, 3.1, 5) == pytest.approx(5000)
