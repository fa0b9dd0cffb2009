"""Markdown tables with one line per row, and the generated blocks of a text."""

import re
from collections.abc import Iterable, Mapping, Sequence

_BLOCK = re.compile(r"(<!-- reference: (?P<name>[a-z -]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
_BARE_PIPE = re.compile(r"(?<!\\)\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]


def code(text: object) -> str:
    return f"`{text}`"


def codes(texts: Iterable[object]) -> str:
    return ", ".join(map(code, texts))


def blocks(text: str) -> dict[str, list[str]]:
    return {match["name"]: match["body"].strip("\n").splitlines() for match in _BLOCK.finditer(text)}


def written(text: str, tables: Mapping[str, Sequence[str]]) -> str:
    """Return a text with these tables in its blocks; blocks without a table are unchanged."""

    def renewed(match: re.Match[str]) -> str:
        if match["name"] not in tables:
            return match[0]
        body = "\n".join(tables[match["name"]])
        return f"{match[1]}\n{body}\n\n{match[4]}"

    return _BLOCK.sub(renewed, text)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |".replace("|  |", "| |")


def _cell(text: str) -> str:
    return _BARE_PIPE.sub(r"\|", " ".join(text.split()))
