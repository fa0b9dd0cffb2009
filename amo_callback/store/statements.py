"""The SQL files beside this module, read once at start: each statement once, where both engines agree."""

from __future__ import annotations

import re
from enum import StrEnum
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.resources.abc import Traversable


class Engine(StrEnum):
    """Whose SQL it is: the name of its folder."""

    SQLITE = "sqlite"
    POSTGRES = "postgres"


_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_SAYS_NOTHING = re.compile(r"(--.*\n?)*")
"""What an engine need not do: a statement that is empty, but for why."""
_FOLDER = resources.files("amo_callback.store") / "sql"


def load_statements(engine: Engine) -> Mapping[str, str]:
    """Return each statement by its name: those that both engines run alike, and the engine's own."""
    both, own = (_read(folder / "statements.sql") for folder in (_FOLDER, _FOLDER / engine))
    if twice := both.keys() & own.keys():
        raise ValueError(f"written twice: {', '.join(sorted(twice))}")
    return {**both, **own}


def load_migrations(engine: Engine) -> Sequence[Sequence[str]]:
    """Return the statements of each numbered migration, the first one first."""
    folder = _FOLDER / engine
    files = sorted(file.name for file in folder.iterdir() if re.fullmatch(r"\d{4}_\w+\.sql", file.name))
    return [_split((folder / name).read_text(encoding="utf-8")) for name in files]


def _read(file: Traversable) -> Mapping[str, str]:
    _, *parts = _NAME.split(file.read_text(encoding="utf-8"))
    texts = (part.strip() for part in parts[1::2])
    return {name: "" if _SAYS_NOTHING.fullmatch(text) else text for name, text in zip(parts[::2], texts, strict=True)}


def _split(script: str) -> Sequence[str]:
    return [part for part in (part.strip() for part in re.split(r";$", script, flags=re.MULTILINE)) if part]
