"""The SQL files beside this module, read once at start."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_FOLDER = resources.files("amo_callback.store") / "sql"


def load_statements() -> Mapping[str, str]:
    """Return each statement of `statements.sql` by its name."""
    _, *parts = _NAME.split((_FOLDER / "statements.sql").read_text(encoding="utf-8"))
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def load_migrations() -> Sequence[Sequence[str]]:
    """Return the statements of each numbered migration, the first one first."""
    files = sorted(file.name for file in _FOLDER.iterdir() if re.fullmatch(r"\d{4}_\w+\.sql", file.name))
    return [_split((_FOLDER / name).read_text(encoding="utf-8")) for name in files]


def _split(script: str) -> Sequence[str]:
    return [part for part in (part.strip() for part in re.split(r";$", script, flags=re.MULTILINE)) if part]
