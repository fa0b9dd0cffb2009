"""Databases rebuilt from a file's rows: limits, and files that change while they are read."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from amo_callback.clock import SystemClock
from amo_callback.errors import BackupFailed
from amo_callback.store import backup, open_store
from amo_callback.store.engine import Engine
from amo_callback.store.migrate import load_migrations
from amo_callback.store.rebuild import RestoreLimits, open_given, rebuild
from tests.builders import a_connection, present, save
from tests.fakes import START, unseen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
async def copy(tmp_path: Path) -> Path:
    """Return a backup of three connections."""
    async with open_store("sqlite:///source.db", folder=tmp_path, clock=SystemClock()) as store:
        await store.canary(b"canary")
        for number in range(3):
            await save(store, a_connection(number))
    with backup.open_snapshot(tmp_path / "source.db") as snapshot:
        backup.back_up(snapshot, tmp_path / "copy", now=START)
    return tmp_path / "copy"


def _rebuilt(copy: Path, limits: RestoreLimits) -> int:
    target = copy.with_name("new.db")
    with (
        open_given(copy, limits=limits) as given,
        rebuild(given, target, now=START, progress=unseen, limits=limits) as made,
    ):
        return made.contents.connections


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (RestoreLimits(file=4096), "is larger than 0 MiB, the maximum for a backup"),
        (RestoreLimits(rows=3), r"has 4 rows in \w+, more than the maximum of 3"),
        (RestoreLimits(value=100), "contains a value that is longer than amo-callback can store"),
    ],
)
async def test_rebuild_beyond_limit_is_refused(copy: Path, limits: RestoreLimits, why: str) -> None:
    """A file beyond a limit is refused with that limit, and leaves no file."""
    assert _rebuilt(copy, RestoreLimits(file=2**20, rows=4, value=2**14)) == 3
    before = sorted(copy.parent.iterdir())
    with pytest.raises(BackupFailed, match=why):
        _rebuilt(copy, limits)
    assert sorted(copy.parent.iterdir()) == before


async def test_rebuild_of_file_changed_meanwhile_is_refused(copy: Path) -> None:
    """A file that changes while it is read is refused, because it is inconsistent."""
    with open_given(copy) as given:
        with closing(sqlite3.connect(copy)) as other, other:
            other.execute("DELETE FROM connections")
        with (
            pytest.raises(
                BackupFailed, match="copy changed while it was read: use a backup made by `amo-callback backup`"
            ),
            rebuild(given, copy.with_name("new.db"), now=START, progress=unseen),
        ):
            pytest.fail("it was built")


async def test_rebuild_reports_progress_to_total(copy: Path) -> None:
    """Progress is reported up to the number of rows."""
    seen: list[tuple[str, int, list[int]]] = []

    class Shown:
        def __init__(self, label: str, total: int) -> None:
            seen.append((label, total, []))

        def __enter__(self) -> Callable[[int], None]:
            return seen[-1][2].append

        def __exit__(self, *_: object) -> None:
            pass

    with open_given(copy) as given, rebuild(given, copy.with_name("new.db"), now=START, progress=Shown):
        assert [label for label, _, _ in seen] == ["copied"]
        assert all(done[-1] == total >= 3 for _, total, done in seen)


async def test_rebuild_freezes_database_and_reports_contents(copy: Path) -> None:
    """A rebuilt database is frozen even if the file was not, and reports the file's contents and time."""
    with closing(sqlite3.connect(copy)) as thawed, thawed:
        thawed.execute("DELETE FROM meta WHERE name = 'frozen'")
        thawed.execute("INSERT INTO meta VALUES ('seen_at', CAST('1795435200000000' AS BLOB))")
    with open_given(copy) as given, rebuild(given, copy.with_name("new.db"), now=START, progress=unseen) as made:
        assert (made.contents.connections, made.contents.made_at, made.contents.canary) == (3, START, b"canary")
        async with open_store(f"sqlite:///{made.file}", folder=copy.parent, clock=SystemClock()) as store:
            frozen = present(await store.frozen())
            assert frozen.may_be_copy


async def test_rebuild_of_earlier_schema_is_migrated(copy: Path) -> None:
    """A file is read by its own schema and then migrated in the new database."""
    later = [*load_migrations(Engine.SQLITE), ["ALTER TABLE connections ADD COLUMN later TEXT"]]
    with (
        open_given(copy) as given,
        rebuild(given, copy.with_name("new.db"), now=START, progress=unseen, migrations=later) as made,
        closing(sqlite3.connect(made.file)) as built,
    ):
        assert built.execute("PRAGMA user_version").fetchone() == (2,)
        assert built.execute("SELECT count(*), count(later) FROM connections").fetchone() == (3, 0)
