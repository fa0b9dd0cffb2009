"""The alert rules: that they are good Prometheus, that each fires where it should, and that each tells what to do."""

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
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)  # noqa: S603 -- because it is the tool that a test asks
    assert done.returncode == 0, done.stdout + done.stderr


needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


@needs_promtool
def test_the_rules_are_good_prometheus() -> None:
    """Prometheus takes them."""
    _promtool("check", "rules", str(RULES))


@needs_promtool
def test_each_alert_fires_where_it_should_and_nowhere_else() -> None:
    """The cases beside this file come out as they say."""
    _promtool("test", "rules", str(CASES))


def test_each_alert_has_a_case_and_a_row_in_the_readme() -> None:
    """No alert is written that was never seen to fire, and none is told of that there is not."""
    names = {name for name, _ in ALERTS}
    assert names
    assert set(re.findall(r"\bAmoCallback\w+", CASES.read_text(encoding="utf-8"))) == names
    assert set(re.findall(r"^\| `(AmoCallback\w+)` \|", README, re.MULTILINE)) == names


@pytest.mark.parametrize("rule", [rule for _, rule in ALERTS], ids=[name for name, _ in ALERTS])
def test_each_alert_says_how_bad_it_is_and_what_to_do(rule: str) -> None:
    """A severity, a summary and an action."""
    assert re.search(r"labels: \{severity: (critical|warning)\}", rule)
    assert "summary: " in rule
    assert "action: " in rule


def test_the_callbacks_alert_counts_the_words_that_are_ours_or_amos() -> None:
    """An error of the user or of the sender of the link raises no alert."""
    [rule] = [rule for name, rule in ALERTS if name == "AmoCallbackCallbacksFailing"]
    assert 'outcome=~"amo_unavailable|auth_failed"' in rule


def _exposed() -> set[str]:
    text = Metrics().text(a_service_status(stats=some_stats(waiting_since=START))).decode()
    return {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE amo_callback_")}


def test_the_rules_ask_for_metrics_that_there_are() -> None:
    """A metric that was renamed would leave an alert silent for ever."""
    asked = set(re.findall(r"\bamo_callback_\w+(?=\{| |\[|$)", "\n".join(rule for _, rule in ALERTS)))
    assert asked
    assert asked <= _exposed()
