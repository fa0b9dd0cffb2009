"""Export of many connections from SQLite, and their import into PostgreSQL.

`AMO_CALLBACK_TEST_CONNECTIONS=100000 python -m pytest tests/e2e/test_large_transfer.py -n0` sets their number.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from amo_callback.clock import SystemClock
from amo_callback.crypto import Cipher, new_key
from amo_callback.model import ConnectionFilter
from amo_callback.store import Store, open_store
from amo_callback.transfer.importer import make_plan
from tests.builders import DAY
from tests.cli.harness import environ_with, typed
from tests.postgres import Databases
from tests.transfer.samples import RULES, a_record, arrivals, written

CONNECTIONS = int(os.environ.get("AMO_CALLBACK_TEST_CONNECTIONS", "2000"))
URL = "sqlite:///amo-callback.db"
_PAGE = 1000


@pytest.mark.timeout(3600)
async def test_large_transfer_from_sqlite_to_postgresql_is_complete(
    tmp_path: Path, postgres: Databases, record_property: Callable[[str, object], None]
) -> None:
    """Owners and pairs are complete, progress is shown, no token is refreshed, and the source stays frozen."""
    keys = {"old": new_key(), "new": new_key()}
    (tmp_path / "new.key").write_text(keys["new"])
    now = SystemClock().now()
    async with open_store(URL, folder=tmp_path, clock=SystemClock()) as store:
        cipher = Cipher([keys["old"]])
        await store.canary(cipher.seal_canary())
        records = [
            a_record(
                number,
                owners={f"user-{number}-{owner}": owner for owner in range(number % 4)},
                issued_at=now,
                expires_at=now + DAY,
                refresh_expires_at=now + 90 * DAY,
            )
            for number in range(CONNECTIONS)
        ]
        plan = await make_plan(arrivals(*records), store=store, cipher=cipher, rules=RULES)
        assert await written(plan, store, cipher) == []
    expected = {record.id: (record.access_token, record.refresh_token, sorted(record.owners)) for record in records}
    async with postgres.fresh() as url:
        began = time.monotonic()
        await _run(tmp_path, keys["old"], URL, "export", "all.export", "--to-key-file", "new.key")
        exported = time.monotonic()
        await _run(tmp_path, keys["new"], url, "import", "all.export", "--yes")
        imported = time.monotonic()
        async with open_store(url, folder=tmp_path, clock=SystemClock()) as store:
            assert await store.frozen() is None
            assert await _contents(store, Cipher([keys["new"]])) == expected
            assert await _events(store) == {"connection.imported": CONNECTIONS}
        async with open_store(URL, folder=tmp_path, clock=SystemClock()) as store:
            assert await store.frozen() is not None
            assert await _contents(store, cipher) == expected
            assert await _events(store) == {"connection.imported": CONNECTIONS, "service.frozen": 1}
    record_property("connections", CONNECTIONS)
    record_property("seconds of the export", round(exported - began, 1))
    record_property("seconds of the import", round(imported - exported, 1))
    record_property("bytes of the file", (tmp_path / "all.export").stat().st_size)


async def _run(folder: Path, key: str, url: str, *arguments: str) -> None:
    """Run a `connections` command on a terminal and check its progress."""
    environ = environ_with(STORAGE__ENCRYPTION_KEYS=key, STORAGE__URL=url) | {"TERM": "xterm"}
    status, shown = await typed("connections", *arguments, folder=folder, environ=environ, answers=[])
    assert (status, f"{CONNECTIONS:,} of {CONNECTIONS:,}" in shown) == (0, True), shown


async def _contents(store: Store, cipher: Cipher) -> dict[str, tuple[str, str, list[str]]]:
    """Return each connection's tokens and owners."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    after = ""
    while page := await store.page(after=after, limit=_PAGE, only=ConnectionFilter()):
        owners = await store.owners_of([one.id for one in page])
        for one in page:
            pair = cipher.decrypt_pair(one)
            assert pair is not None
            found[one.id] = (pair.access_token, pair.refresh_token, sorted(owners[one.id]))
        after = page[-1].id
    return found


async def _events(store: Store) -> dict[str, int]:
    """Count the history's events by name."""
    counts: dict[str, int] = {}
    before = None
    while page := await store.events(before=before, limit=_PAGE):
        for event in page:
            counts[event.name] = counts.get(event.name, 0) + 1
        before = page[-1].id
    return counts
