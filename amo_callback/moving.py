"""All that is in a database on its way into another one: rows as they are, and what differs between the two."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Key = tuple[str | int, ...]
"""What a row is named by; keys are in the order of their rows, in Python as in the databases."""


class Table(StrEnum):
    """What is moved, in the order in which that is done."""

    MARKS = "meta"
    """Those of them that belong to the records, not to the place where they are."""
    COUNTERS = "counters"
    CONNECTIONS = "connections"
    OWNERS = "owners"
    GRANTS = "grants"
    STATES = "states"
    EVENTS = "events"
    OUTBOX = "outbox"


class Target(StrEnum):
    """What a database is to a move that is to go there."""

    NEW = "new"
    BEGUN = "begun"
    """It was begun, and goes on."""
    DONE = "done"
    """All of it is there already."""
    TAKEN = "taken"
    """It holds something else."""
    THAWED = "thawed"
    """It was begun, and somebody has thawed it since: what it holds may have been spent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A row, with all its columns."""

    key: Key
    values: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What makes a stretch of a table the same in both databases."""

    table: Table
    new: Sequence[Record] = ()
    changed: Sequence[tuple[Record, Record]] = ()
    """Each as it was read where it goes, and as it is to be."""
    gone: Sequence[Record] = ()
    """There, and no longer here."""

    def __len__(self) -> int:
        return len(self.new) + len(self.changed) + len(self.gone)


def compare(
    table: Table, here: Sequence[Record], there: Sequence[Record], *, limit: int
) -> tuple[Step, Sequence[Record], Key | None]:
    """Compare two pages of at most `limit` rows that begin at the same key.

    Returns what is to be written, the rows here that were compared, and the key after which to go on (`None` at the
    end). After the last row of a full page more may follow: so no more is judged than both pages reach.
    """
    ends = [page[-1].key for page in (here, there) if len(page) == limit]
    until = min(ends) if ends else None
    ours = {record.key: record for record in here if until is None or record.key <= until}
    theirs = {record.key: record for record in there if until is None or record.key <= until}
    step = Step(
        table=table,
        new=[record for key, record in ours.items() if key not in theirs],
        changed=[
            (theirs[key], record)
            for key, record in ours.items()
            if key in theirs and theirs[key].values != record.values
        ],
        gone=[record for key, record in theirs.items() if key not in ours],
    )
    return step, list(ours.values()), until
