"""All metrics, as they are told to Prometheus."""

from __future__ import annotations

import re

from amo_callback.observe.metrics import Metrics
from tests.builders import a_service_status, a_survey
from tests.fakes import START
from tests.reference.markdown import code, codes, table

_OURS = "amo_callback_"
_FAMILY = re.compile(
    r"# HELP (?P<name>\S+) (?P<about>.*)\n# TYPE (?P=name) (?P<type>\w+)\n(?P<samples>(?:[^#\n].*\n)*)"
)
_LABEL = re.compile(r'[{,](\w+)="')


def metrics() -> list[str]:
    """Return the table of all metrics but those of the process, which every program has."""
    status = a_service_status(survey=a_survey(waiting_since=START))
    text = Metrics().text(status).decode()
    rows = [
        [code(family["name"]), family["type"], codes(_labels(family["samples"])), family["about"].removesuffix(".")]
        for family in _FAMILY.finditer(text)
        if family["name"].startswith(_OURS)
    ]
    return table(["metric", "type", "labels", "what it tells"], rows)


def _labels(samples: str) -> list[str]:
    return [label for label in dict.fromkeys(_LABEL.findall(samples)) if label != "le"]
