"""The tables that are moved from one database to another, and the statements that read and write them as they are.

The columns stand here, not `*`: what is written over has to be named, and a test compares them with both schemas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.moving import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FIRST = {"text": "", "number": -(2**63)}
"""Before any key."""
_CONNECTION = """
    account_id user_id domain api_domain client_id status reason last_error sealed_pair access_issued_at
    access_expires_at refresh_expires_at refreshed_at next_refresh_at failures connected_at grant_iat pair_version
    row_version lease_owner lease_until attempt spending doubtful died_at disconnect_no look_up_at hook_at frozen_at
    warned_days forgotten_no looked_up_at look_up_pause attempted_at refused_since refusals suspended_reason
    suspended_token
"""
_OUTBOX = "id at type connection_id data tries next_try_at last_error lease lease_until parked_at"
_GRANT = """
    handle_hash ticket_hash sealed status error connection_id attempt lease_until doubtful expires_at accepted_at no
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A table's columns."""

    key: Mapping[str, str]
    """The primary key's, each with its kind."""
    others: Sequence[str]
    flags: frozenset[str] = frozenset()
    """Those that are truth values: one of the engines knows only numbers."""
    only: str = "TRUE"
    """Which rows."""

    @property
    def columns(self) -> Sequence[str]:
        """All of them."""
        return [*self.key, *self.others]

    @property
    def first(self) -> Sequence[object]:
        """What is before any key."""
        return [_FIRST[kind] for kind in self.key.values()]


LAYOUTS: Mapping[Table, Layout] = {
    # Where a database lives, when it was seen last and whether it is frozen is told of that place alone.
    Table.MARKS: Layout(key={"name": "text"}, others=["value"], only="name IN ('canary', 'deaths_held')"),
    Table.COUNTERS: Layout(key={"name": "text"}, others=["value"]),
    Table.CONNECTIONS: Layout(key={"id": "text"}, others=_CONNECTION.split()),
    Table.OWNERS: Layout(key={"connection_id": "text", "owner": "text"}, others=["bound_at", "left_no"]),
    Table.GRANTS: Layout(key={"code_hash": "text"}, others=_GRANT.split(), flags=frozenset({"doubtful"})),
    Table.STATES: Layout(key={"state_hash": "text"}, others=["sealed", "expires_at", "used_by"]),
    Table.EVENTS: Layout(key={"id": "number"}, others=["at", "connection_id", "name", "process", "details"]),
    Table.OUTBOX: Layout(key={"number": "number"}, others=_OUTBOX.split()),
}


def move_statements() -> Mapping[str, str]:
    """Return the statements, each by its name: `move_` and what it does with which table."""
    found: dict[str, str] = {}
    for table, layout in LAYOUTS.items():
        found[f"move_read_{table}"] = _read(table, layout)
        found[f"move_count_{table}"] = f"SELECT count(*) FROM {table} WHERE {layout.only};"  # noqa: S608 -- constants
        if table is Table.CONNECTIONS:
            found[f"move_add_{table}"] = f"{_insert(table, layout)}\nON CONFLICT (id) DO NOTHING;"
            found[f"move_replace_{table}"] = _replace_connection(layout)
        else:
            found[f"move_put_{table}"] = _put(table, layout)
            found[f"move_drop_{table}"] = f"DELETE FROM {table} WHERE {_these(layout)};"  # noqa: S608 -- constants
    return found


def _read(table: Table, layout: Layout) -> str:
    keys = ", ".join(layout.key)
    after = ", ".join(f":after_{name}" for name in layout.key)
    return (
        f"SELECT {', '.join(layout.columns)} FROM {table}\n"  # noqa: S608 -- because all of it is constant
        f"WHERE ({keys}) > ({after}) AND {layout.only} ORDER BY {keys} LIMIT :limit;"
    )


def _insert(table: Table, layout: Layout) -> str:
    values = ", ".join(f":{name}" for name in layout.columns)
    return f"INSERT INTO {table} ({', '.join(layout.columns)})\nVALUES ({values})"


def _put(table: Table, layout: Layout) -> str:
    new = ", ".join(f"{name} = excluded.{name}" for name in layout.others)
    return f"{_insert(table, layout)}\nON CONFLICT ({', '.join(layout.key)}) DO UPDATE SET {new};"


def _replace_connection(layout: Layout) -> str:
    """Only over the very pair that was read, and over no later one: that would have been spent there."""
    new = ", ".join(f"{name} = :{name}" for name in layout.others)
    return (
        f"UPDATE connections SET {new}\n"  # noqa: S608 -- because all of it is constant
        "WHERE id = :id AND sealed_pair IS :over_pair AND pair_version = :over_version\n"
        "    AND pair_version <= :pair_version\n"
        "RETURNING id;"
    )


def _these(layout: Layout) -> str:
    return " AND ".join(f"{name} = :{name}" for name in layout.key)
