"""Which connections a statement changes: told to whoever remembers connections, so that nobody who writes has to.

It is read off the statement: the table that it writes, and the ids in its values and in what it returns. Where that
tells no ids, it may be any connection: a statement that is added tomorrow is at worst forgotten too much for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.model import Changed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from amo_callback.store.row import Row

_WRITE = re.compile(r"^(?P<verb>UPDATE|INSERT INTO|DELETE FROM) (?P<table>\w+)", re.MULTILINE)
_RETURNING = re.compile(r"\bRETURNING\b")
_ERASED = "status = 'disconnected'"
_FROZEN = "'frozen'"
"""The one mark of the store's that every connection is read with."""

ANY = Changed(connections=None, belonging=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Write:
    all: bool
    belonging: bool
    erasing: bool
    returning: bool


class Touched:
    """What each statement touches."""

    def __init__(self, statements: Mapping[str, str]) -> None:
        found = {name: _read(text) for name, text in statements.items()}
        self._writes = {name: write for name, write in found.items() if write is not None}

    def by(self, statement: str, values: Mapping[str, object], found: Sequence[Row] | None) -> Changed | None:
        """Return what a statement has changed; `found` is what it returned, `None` where that is not known."""
        write = self._writes.get(statement)
        if write is None or (write.returning and found is not None and not found):
            return None
        if write.all:
            return ANY
        ids = {str(row["id"]) for row in found or () if "id" in row.keys()}  # noqa: SIM118 -- because a row is no mapping
        named = values.get("connection_id", values.get("id"))
        if not ids and named is not None:
            ids = {str(named)}
        return Changed(connections=frozenset(ids), belonging=write.belonging, erased=write.erasing) if ids else ANY


def _read(text: str) -> _Write | None:
    write = _WRITE.search(text)
    if write is None or write["table"] not in {"connections", "owners", "meta"}:
        return None
    if write["table"] == "meta" and _FROZEN not in text:
        return None
    return _Write(
        all=write["table"] == "meta",
        # A connection that comes may be an account's first, and one that gets an owner is not among his yet.
        belonging=write["table"] == "owners" or write["verb"] == "INSERT INTO",
        erasing=_ERASED in text,
        returning=_RETURNING.search(text) is not None,
    )
