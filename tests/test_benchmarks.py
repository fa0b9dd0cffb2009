"""The benchmarks' calculations and reports, without measurements."""

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
def test_percentile_is_measured_value(share: float, found: float) -> None:
    """A percentile is the smallest sample that this share of all samples does not exceed."""
    assert percentile(range(1, 101), share) == found
    assert percentile([7.0], share) == 7.0


def test_table_shows_figures_with_bar() -> None:
    """A row has minimum, median, maximum, the bar, and whether the median reaches it."""
    [first, second, third] = [
        line.split() for line in lines(a_report(SPEED, LAG, Figure(name="x", unit="ms", values=[1]))).splitlines()[1:4]
    ]
    assert first[-7:] == ["ratio", "0.50", "0.65", "0.70", ">=", "0.6", "yes"]
    assert second[-7:] == ["ms", "12346", "12346", "12346", "<=", "20", "NO"]
    assert third[-6:] == ["ms", "1.00", "1.00", "1.00", "-", "-"]


def test_table_with_earlier_report_shows_change() -> None:
    """Beside an earlier report each row has its median and the change, and a new figure has neither."""
    earlier = a_report(dataclasses.replace(SPEED, values=[0.5]), quick=True)
    result = lines(a_report(SPEED, LAG), earlier).splitlines()
    assert result[1].split()[-3:] == ["0.50", "+30", "%"]
    assert result[2].split()[-2:] == ["-", "-"]
    assert "The earlier report is of a quick run." in result


def test_report_marks_quick_run_and_failures() -> None:
    """A quick run is marked, and a failed benchmark is listed with its reason."""
    assert QUICK_NOTE in lines(a_report(SPEED, quick=True))
    assert QUICK_NOTE not in lines(a_report(SPEED))
    assert "sweep FAILED: TimeoutError" in lines(a_report(SPEED, failed={"sweep": "TimeoutError"}))


def test_report_json_round_trip_is_lossless() -> None:
    """A report is read from its JSON unchanged."""
    report = a_report(SPEED, LAG, quick=True, failed={"sweep": "why"})
    assert TypeAdapter(Report).validate_json(json.dumps(dataclasses.asdict(report))) == report


def test_options_of_prefers_given_then_quick_values() -> None:
    """A given option precedes a quick run's value, and that precedes the default."""
    assert QUICK.keys() <= BENCHMARKS.keys()
    assert options_of("claims", [], quick=False) == {"rows": 1_000_000, "due": 1000}
    given = ["claims.rows=7", "sweep.connections=1"]
    assert options_of("claims", given, quick=True) == {"rows": 7, "due": 1000}
    assert options_of("handout", ["handout.seconds=9"], quick=True)["seconds"] == 9.0


def test_longest_lag_counts_lags_begun_in_window() -> None:
    """Only lags that began in the window are counted; an incomplete line is ignored."""
    text = "1.000000 0.900000\n2.000000 0.005000\n3.000000 0.010000\n9.000000 5.000000\n3.5 0.4"
    assert longest_lag(text, 1, 3.5) == pytest.approx(10)
    assert longest_lag(text, 3.1, 3.5) == 0
    assert longest_lag(text, 3.1, 5) == pytest.approx(5000)
