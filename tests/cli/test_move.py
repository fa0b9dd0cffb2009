"""`connections move` as an administrator runs it: what it says, its exit status, and no password."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from amo_callback.cipher import Cipher, new_key
from amo_callback.cli.main import make_parser
from amo_callback.clock import SystemClock
from amo_callback.errors import CommandFailed
from amo_callback.model import Filter
from amo_callback.store import open_store
from tests.cli.test_transfer import Host, typed
from tests.e2e.process import process_environment
from tests.patience import PATIENCE
from tests.transfer.goods import a_record

if TYPE_CHECKING:
    from pathlib import Path

    from tests.postgres import Databases

NEXT = """\
All of it is in the new database. From now on nothing of the old one is spent.
Next: set storage.url to the new database, and restart the service at once, wherever it runs on the old one.
Keep that until you are sure of the new one, and never thaw it: tokens that two databases refresh are lost to both.
"""
PASSWORD = "a-password-of-the-database"


@pytest.fixture
def here(tmp_path: Path) -> Host:
    return Host(folder=tmp_path, key=new_key())


async def _tokens(host: Host, url: str) -> dict[str, str]:
    """Return the refresh token of each account in a database, and see that it is not frozen."""
    cipher = Cipher([host.key])
    async with open_store(url, folder=host.folder, clock=SystemClock()) as store:
        assert await store.frozen() is None
        pairs = {one.account_id: cipher.pair_of(one) for one in await store.page(after="", limit=99, only=Filter())}
    return {name: pair.refresh_token for name, pair in pairs.items() if pair is not None}


async def test_everything_moves_to_postgresql(here: Host, postgres: Databases) -> None:
    """By a URL in a file, whose password is nowhere shown; run again, nothing is written over."""
    await here.fill(a_record(1), a_record(2))
    async with postgres.fresh() as url:
        name = here.file("new.url", url.replace("postgres@", f"postgres:{PASSWORD}@") + "\n")
        status, out, err = await here.run("move", "--to-file", name, "--yes")
        assert (status, err) == (0, "")
        assert out.split() == (f"2 connections 0 owners 0 grants 0 states 3 events 0 outbox {NEXT}").split()
        assert await _tokens(here, url) == {"1": "refresh-token-of-1", "2": "refresh-token-of-2"}
        assert here.is_frozen()
        status, out, again = await here.run("move", "--to-file", name, "--yes")
        assert (status, out) == (1, "")
        assert "all of it was moved there already: set storage.url to the new database" in again
        assert PASSWORD not in err + out + again


REFUSED = {
    "no place for a password, all": ["--to", f"postgresql://me:{PASSWORD}@db.example/amo"],
    "no place for a password": ["--to", f"postgresql://me@db.example/amo?password={PASSWORD}"],
    "new database's URL must begin with": ["--to", f"mysql://me:{PASSWORD}@db.example/amo"],
    "new database's URL is no URL": ["--to", f"postgresql://me:{PASSWORD}@[db.example/amo"],
    "database.s URL must begin with": ["--to", "sqlite:///"],
    "nowhere: cannot be read: No such file": ["--to-file", "nowhere"],
}


@pytest.mark.parametrize("words", REFUSED)
def test_where_nothing_can_go_is_refused(here: Host, words: str) -> None:
    """Before anything is opened, and without quoting what may be a password."""
    options = make_parser("connections").parse_args(["connections", "move", "--yes", *REFUSED[words]])
    with pytest.raises(CommandFailed, match=words) as raised:
        options.run(options, here.environ())
    assert PASSWORD not in str(raised.value)


async def test_a_database_that_is_away_is_told_as_the_new_one(here: Host) -> None:
    """The old one stays as it is; and so it does where nobody can be asked."""
    await here.fill(a_record())
    status, out, err = await here.run("move", "--to", "postgresql://me@127.0.0.1:1/amo", "--yes")
    assert (status, out) == (1, "")
    assert "amo-callback: the new database cannot be reached: " in err
    status, out, err = await here.run("move", "--to", "sqlite:///new.db")
    assert (status, out) == (1, "")
    assert "there is no terminal to ask on: say --yes; nothing was moved" in err
    assert not here.is_frozen()


async def test_a_person_is_asked_first(here: Host) -> None:
    """A word that is not yes changes nothing."""
    await here.fill(a_record())
    status, shown = await typed(here, "move", "--to", "sqlite:///new.db", lines=["nonsense"])
    assert (status, here.is_frozen()) == (1, False)
    assert f"1 connections, and all that belongs to them, go to {here.folder}/new.db." in shown
    assert "Nothing was moved." in shown
    status, shown = await typed(here, "move", "--to", "sqlite:///new.db", lines=["y"])
    assert (status, "set storage.url" in shown, here.is_frozen()) == (0, True, True)
    assert await _tokens(here, "sqlite:///new.db") == {"1": "refresh-token-of-1"}


async def test_one_that_is_stopped_says_how_it_was_left_and_goes_on(here: Host) -> None:
    """The old database stays frozen, the new one too; run again, it ends."""
    await here.fill(a_record())
    with closing(sqlite3.connect(here.folder / "amo-callback.db")) as database, database:
        database.execute("UPDATE connections SET attempt = 'of a dead process', spending = 'a token'")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "amo_callback.cli.main", "connections", "move", "--to", "sqlite:///new.db", "--yes",
        cwd=here.folder, env=process_environment(here.environ()),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    waiting = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
    assert waiting == b"Waiting for refreshes that are under way, 60 s at most.\n"
    process.send_signal(signal.SIGTERM)
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert (process.returncode, b"Traceback" in err) == (130, False)
    assert b"the old database stays frozen; run it again to go on where it was" in err
    async with open_store("sqlite:///new.db", folder=here.folder, clock=SystemClock()) as new:
        assert (await new.frozen() is not None, await new.coming()) == (True, True)
    environ = {"REFRESH__LEASE": "1.5", "AMO__TIMEOUT": "1"}
    status, out, told = await here.run("move", "--to", "sqlite:///new.db", "--yes", **environ)
    assert (status, told) == (0, "")
    assert out.endswith(NEXT)
    assert await _tokens(here, "sqlite:///new.db") == {"1": "refresh-token-of-1"}


async def test_what_a_person_has_to_know_of_it_is_said(here: Host) -> None:
    """Pairs that no key opens; and that the new one is frozen, because the old one was."""
    await here.fill(a_record(1), a_record(2))
    with closing(sqlite3.connect(here.folder / "amo-callback.db")) as database, database:
        database.execute("UPDATE connections SET sealed_pair = x'00' WHERE id = ?", [a_record(1).id])
    async with open_store("sqlite:///amo-callback.db", folder=here.folder, clock=SystemClock()) as old:
        await old.freeze_all(why="somebody wanted it")
    status, out, err = await here.run("move", "--to", "sqlite:///new.db", "--yes")
    assert (status, err) == (0, "")
    assert "Was frozen already: somebody wanted it\n" in out
    assert f"No key opens these pairs, there as here: {a_record(1).id}\n" in out
    assert "The new one is frozen, too, as the old one was, until it is thawed: somebody wanted it\n" in out
