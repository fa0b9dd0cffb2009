"""The alert rules are valid for Prometheus, tested and documented, and each has an action."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from amo_callback.observe.metrics import Metrics
from tests.builders import a_service_status, some_stats
from tests.fakes import START

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RULES = ROOT / "amo_callback" / "deploy" / "prometheus-rules.yml"
CASES = HERE / "prometheus-rules.test.yml"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROMTOOL = shutil.which("promtool")

ALERTS = re.findall(
    r"^      - alert: (\w+)\n((?:(?!      - alert: ).*\n)*)", RULES.read_text(encoding="utf-8"), re.MULTILINE
)


def _promtool(*arguments: str) -> None:
    command = [str(PROMTOOL), *arguments]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)  # noqa: S603 -- the tool under test
    assert done.returncode == 0, done.stdout + done.stderr


needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


@needs_promtool
def test_alert_rules_are_valid_for_prometheus() -> None:
    """`promtool` accepts the rules."""
    _promtool("check", "rules", str(RULES))


@needs_promtool
def test_alert_rules_fire_as_test_cases_expect() -> None:
    """The test cases beside this file pass."""
    _promtool("test", "rules", str(CASES))


def test_alert_rules_have_test_case_and_readme_row() -> None:
    """Every alert has a test case and a row in the README, and no other alert is named there."""
    names = {name for name, _ in ALERTS}
    assert names
    assert set(re.findall(r"\bAmoCallback\w+", CASES.read_text(encoding="utf-8"))) == names
    assert set(re.findall(r"^\| `(AmoCallback\w+)` \|", README, re.MULTILINE)) == names


@pytest.mark.parametrize("rule", [rule for _, rule in ALERTS], ids=[name for name, _ in ALERTS])
def test_alert_rule_has_severity_summary_and_action(rule: str) -> None:
    """Each rule has a severity, a summary and an action."""
    assert re.search(r"labels: \{severity: (critical|warning)\}", rule)
    assert "summary: " in rule
    assert "action: " in rule


def test_callbacks_alert_counts_faults_of_service_or_amo() -> None:
    """Errors of the user or of the link's author raise no alert."""
    [rule] = [rule for name, rule in ALERTS if name == "AmoCallbackCallbacksFailing"]
    assert 'outcome=~"amo_unavailable|auth_failed"' in rule


def _exposed() -> set[str]:
    text = Metrics().text(a_service_status(stats=some_stats(waiting_since=START))).decode()
    return {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE amo_callback_")}


def test_alert_rules_use_existing_metrics() -> None:
    """Every metric in a rule exists, because a renamed one would silence its alert."""
    asked = set(re.findall(r"\bamo_callback_\w+(?=\{| |\[|$)", "\n".join(rule for _, rule in ALERTS)))
    assert asked
    assert asked <= _exposed()
