"""Rows for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under their heads, in columns; what is not known is a dash, and nothing moves the cursor."""
    lines = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(value: object) -> str:
    return printable("-" if value is None or value == "" else str(value))


def printable(text: str) -> str:
    """Return a text that moves no cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)
