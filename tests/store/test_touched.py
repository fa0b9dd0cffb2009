"""Which connections each statement changes: what is not told of would be remembered as it was."""

from __future__ import annotations

import re

import pytest

from amo_callback.model import Changed
from amo_callback.store.statements import Engine, load_statements
from amo_callback.store.touched import ANY, Touched

STATEMENTS = load_statements(Engine.SQLITE)
TOUCHED = Touched(STATEMENTS)
WRITES = sorted(
    name
    for name, text in STATEMENTS.items()
    if re.search(r"\b(UPDATE|INSERT INTO|DELETE FROM|REPLACE INTO)\s+(connections|owners)\b", text)
)


@pytest.mark.parametrize("name", WRITES)
def test_every_write_of_connections_is_told(name: str) -> None:
    """Whatever values a statement has: with an id it is that one's or any; without one it may be any."""
    assert TOUCHED.by(name, {}, None) == ANY
    for key in ("id", "connection_id"):
        changed = TOUCHED.by(name, {key: "one"}, None)
        assert changed is not None
        assert changed.connections in ({"one"}, None)


def test_a_write_that_changes_many_by_its_own_condition_is_told_of_all() -> None:
    """It names no connection, so none is known."""
    for name in ("believe_deaths", "all_due", "shift_times", "freeze_all", "thaw_all"):
        assert TOUCHED.by(name, {"now": 1, "by": 1, "value": b""}, None) == ANY


def test_a_connection_that_comes_or_gets_an_owner_may_be_anybodys() -> None:
    """What an account or an owner has is another list by it; a refresh changes none."""
    for name in ("save_connected", "bring", "bind_owner", "unbind_owner", "forget_owners"):
        changed = TOUCHED.by(name, {"id": "one", "connection_id": "one"}, None)
        assert changed is not None
        assert changed.belonging
    assert TOUCHED.by("save_refreshed", {"connection_id": "one"}, None) == Changed(
        connections=frozenset({"one"}), belonging=False
    )


def test_what_only_reads_or_writes_elsewhere_is_not_told() -> None:
    """Else every grant and every event would empty the memory."""
    for name in ("connection", "page", "claim_grant", "save_event", "save_notice", "issue_state", "save_seen_at"):
        assert TOUCHED.by(name, {"id": "one"}, None) is None
    assert TOUCHED.by("claim", {"connection_id": "one"}, []) is None  # it has changed nothing
