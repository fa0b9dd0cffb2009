"""The shared SQL as PostgreSQL takes it: numbered parameters, its own clock, and phrases that it says otherwise."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_PARAMETER = re.compile(r"(?<!:):(\w+)")
_PHRASES = (
    # Many names at once come as a JSON list.
    (re.compile(r"json_each\((:\w+)\)"), r"jsonb_array_elements_text(CAST(\1 AS JSONB)) AS value"),
    (re.compile(r"\bIS (:\w+)"), r"IS NOT DISTINCT FROM \1"),
    (
        re.compile(r"json_extract\(CAST\((\w+) AS TEXT\), '\$\.(\w+)'\)"),
        r"CAST(CAST(convert_from(\1, 'UTF8') AS JSON) ->> '\2' AS BOOLEAN)",
    ),
)
_CLOCK = "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS BIGINT)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """A statement, and the names of its parameters in their order."""

    text: str
    parameters: Sequence[str]


def translate(text: str) -> Statement:
    """Return a statement with named parameters as one with numbered ones; `:clock` is the database's."""
    for phrase, other in _PHRASES:
        text = phrase.sub(other, text)
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        name = match[1]
        if name == "clock":
            return _CLOCK
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    return Statement(text=_PARAMETER.sub(number, text), parameters=tuple(names))
