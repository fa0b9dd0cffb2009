"""The command `rotate-keys`: its output, and a run while the service refreshes."""

from __future__ import annotations

import dataclasses
import json
import signal
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.clock import SystemClock
from amo_callback.crypto import Cipher, new_key
from amo_callback.errors import DecryptionFailed
from amo_callback.model import TokenPair
from amo_callback.refresh.pending_pair import file_name, seal_pending
from amo_callback.store import open_store
from tests.builders import a_connection, a_refreshed
from tests.cli.harness import environ_with, fill
from tests.e2e.process import command
from tests.e2e.processes import staged
from tests.fakes import START

if TYPE_CHECKING:
    from pathlib import Path


URL = "sqlite:///amo-callback.db"
KEYS = "AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS"
PAIR = TokenPair(access_token="access", refresh_token="refresh", issued_at=START, expires_at=START)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A database encrypted with an old key, and a configuration with a new key."""

    folder: Path
    old: str = field(default_factory=new_key, repr=False)
    new: str = field(default_factory=new_key, repr=False)

    def environ(self, keys: str | None = None) -> dict[str, str]:
        """Return the environment with these keys, by default with both."""
        return environ_with(STORAGE__ENCRYPTION_KEYS=keys or f"{self.new}\n{self.old}")

    async def rotate(self, *options: str, keys: str | None = None) -> tuple[int, str, str]:
        result = await command("rotate-keys", *options, folder=self.folder, environ=self.environ(keys))
        assert [key for key in (self.old, self.new) if key in "".join(map(str, result))] == []
        return result

    async def fill(self, count: int) -> None:
        async with open_store(URL, folder=self.folder, clock=SystemClock()) as store:
            await fill(store, Cipher([self.old]), count)

    def run(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / "amo-callback.db")) as database, database:
            return database.execute(statement).fetchall()

    def opened(self, key: str) -> int:
        """Count the connections whose pair a key decrypts."""
        return sum(_opens(Cipher([key]), *row) for row in self.run("SELECT id, sealed_pair FROM connections"))


def _opens(cipher: Cipher, name: str, sealed: bytes) -> bool:
    try:
        return bool(cipher.open_tokens(sealed, connection_id=name))
    except DecryptionFailed:
        return False


@pytest.fixture
def here(tmp_path: Path) -> Place:
    return Place(folder=tmp_path)


async def test_rotate_keys_while_service_refreshes(tmp_path: Path) -> None:
    """With the new key first everything is re-encrypted, and the service then runs with the new key only."""
    old, new = new_key(), new_key()
    async with staged(tmp_path, old, accounts=4, every=1) as stage:
        async with stage.serving() as process:
            await stage.connect(process)
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
        stage.key = f"{new}\n{old}"
        async with stage.serving() as process:
            await stage.until_refreshed()
            status, out, err = await command("rotate-keys", "--json", folder=tmp_path, environ=stage.environ())
            assert (status, err, json.loads(out)["not_needed"]) == (0, "", [2])
            await stage.until_refreshed()
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
        stage.key = new
        async with stage.serving() as process:
            await stage.until_refreshed()
            for account in stage.accounts:
                assert (await stage.token(process, account)).status == 200
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
        assert stage.lost() == []
        assert stage.ledger.doubles() == 0
    status, _, err = await command("serve", folder=tmp_path, environ={**stage.environ(), KEYS: old})
    assert status == 78
    assert "storage.encryption_keys: no configured key decrypts this database" in err


async def test_rotate_keys_reports_records_per_key(here: Place) -> None:
    """A dry run changes nothing; the rotation reports the records per key and the keys that are no longer needed."""
    await here.fill(3)
    status, out, err = await here.rotate("--dry-run")
    assert (status, err) == (0, "")
    table = [line.split("  ") for line in out.splitlines()]
    assert [[cell.strip() for cell in line if cell] for line in table] == [
        ["key", "connections", "grants", "states", "canary", "rescue files"],
        ["1, the newest", "0", "0", "0", "0", "0"],
        ["2", "3", "0", "0", "1", "0"],
    ]
    assert here.opened(here.old) == 3
    status, out, err = await here.rotate()
    assert (status, err) == (0, "")
    assert (
        "\nRe-encrypted records: 4.\nKeys that no record needs anymore: key 2. Remove them from storage.encryption_keys"
        in out
    )
    assert "earlier backups, and exports" in out
    status, out, _ = await here.rotate(keys=here.new)
    assert (status, "Only one key is configured." in out) == (0, True)


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["rotate", "dry-run"])
async def test_rotate_keys_undecryptable_record_exits_1(here: Place, options: tuple[str, ...]) -> None:
    """A record that no key decrypts is named, and the others are re-encrypted."""
    await here.fill(2)
    lost = a_connection(0).id
    here.run(f"UPDATE connections SET sealed_pair = x'00' WHERE id = '{lost}'")  # noqa: S608 -- a constant
    status, out, err = await here.rotate(*options)
    assert (status, err) == (1, "")
    assert f"No key decrypts these records: connection:{lost}" in out
    assert here.opened(here.new) == (0 if options else 1)
    status, out, _ = await here.rotate(*options, "--json")
    assert (status, json.loads(out)["unreadable"]) == (1, {"count": 1, "named": [f"connection:{lost}"]})


async def test_rotate_keys_pending_write_keeps_old_key(here: Place) -> None:
    """A pair in the rescue folder is not changed, and its old key is named as needed, with status 1."""
    await here.fill(1)
    pending_pair = a_refreshed(a_connection(0))
    (here.folder / "rescue").mkdir()
    file = here.folder / "rescue" / file_name(pending_pair)
    sealed = Cipher([here.old]).seal_pair(PAIR, connection_id=pending_pair.connection_id)
    file.write_bytes(content := seal_pending(dataclasses.replace(pending_pair, sealed_pair=sealed), Cipher([here.old])))
    status, out, err = await here.rotate()
    assert (status, err, file.read_bytes()) == (1, "", content)
    assert "Still needed: key 2. Run this command again once the pairs in the rescue folder" in out
    file.unlink()
    status, out, _ = await here.rotate()
    assert (status, "Re-encrypted records: 1.\nKeys that no record needs anymore: key 2." in out) == (0, True)
