"""`backup` and `restore` as an administrator runs them."""

from __future__ import annotations

import asyncio
import os
import pty
import shutil
import signal
import sqlite3
import stat
import sys
from contextlib import closing, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import pytest

import amo_callback
from amo_callback.clock import SystemClock, rfc3339
from amo_callback.crypto import Cipher, new_key
from amo_callback.store import open_store
from amo_callback.store.engine import Engine, load_migrations
from tests.builders import a_connection, save
from tests.e2e.process import command, process_environment, serving
from tests.fakes import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator


NAME = "amo-callback.db"
KEY = "AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS"
NOBODY = 65534


@pytest.fixture
async def living(tmp_path: Path, environ: dict[str, str]) -> Path:
    """Give a folder with a database of two connections."""
    folder = tmp_path / "living"
    folder.mkdir()
    await _store(folder, environ, 1, 2)
    return folder


@pytest.fixture
async def copy(living: Path, environ: dict[str, str], tmp_path: Path) -> Path:
    """Give a copy of that database, which has gained a third connection since."""
    path = tmp_path / "copy"
    assert (await command("backup", str(path), folder=living, environ=environ))[0] == 0
    await _store(living, environ, 3)
    return path


async def _store(folder: Path, environ: dict[str, str], *numbers: int) -> None:
    async with open_store(f"sqlite:///{NAME}", folder=folder, clock=SystemClock()) as store:
        await store.canary(Cipher([environ[KEY]]).seal_canary())
        for number in numbers:
            await save(store, a_connection(number))


def _counted(database: Path) -> tuple[int, bool]:
    """Return how many connections a database holds, and whether it is frozen."""
    with closing(sqlite3.connect(database)) as opened:
        [number] = opened.execute("SELECT count(*) FROM connections").fetchone()
        return int(number), opened.execute("SELECT 1 FROM meta WHERE name = 'frozen'").fetchone() is not None


async def _answering(answer: str, *arguments: str, folder: Path, environ: dict[str, str]) -> tuple[int, str]:
    """Run the command on a terminal where somebody answers its question; return exit status and standard output."""
    ours, its = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "amo_callback.cli.main", *arguments,
        cwd=folder, env=process_environment(environ), stdin=its, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.write(ours, answer.encode())
    out, _ = await process.communicate()
    os.close(ours)
    os.close(its)
    return process.returncode or 0, out.decode()


async def test_a_backup_is_told_with_what_it_holds(living: Path, environ: dict[str, str], tmp_path: Path) -> None:
    """The copy is named, counted, and frozen; the database is not."""
    told = await command("backup", "../copy", folder=living, environ=environ)
    assert told == (0, "../copy holds 2 connections; put back, it starts frozen\n", "")
    assert _counted(tmp_path / "copy") == (2, True)
    assert _counted(living / NAME) == (2, False)


async def test_restoring_says_what_it_did_and_what_to_do(living: Path, environ: dict[str, str], copy: Path) -> None:
    """Without a terminal `--yes` is enough: the database is replaced, frozen, and the one that was there is named."""
    status, out, err = await command("restore", str(copy), "--yes", folder=living, environ=environ)
    [kept] = living.glob(f"{NAME}.before-restore-*")
    assert (status, err) == (0, "")
    assert out == (
        "2 connections are restored; no token is refreshed until `amo-callback connections thaw --all`\n"
        f"the database that was there is {kept}\n"
    )
    assert (_counted(living / NAME), _counted(kept)) == ((2, True), (3, True))


async def test_without_a_terminal_nobody_is_asked(living: Path, environ: dict[str, str], copy: Path) -> None:
    """Nothing is replaced unless the command line says so."""
    status, out, err = await command("restore", str(copy), folder=living, environ=environ)
    assert (status, out) == (2, "")
    assert err == "amo-callback: restore asks before it replaces the database: say --yes\n"
    assert _counted(living / NAME) == (3, False)


@pytest.mark.parametrize(("answer", "restored"), [("y\n", True), ("n\n", False), ("\n", False), ("\x04", False)])
async def test_on_a_terminal_a_person_decides(
    answer: str, restored: bool, living: Path, environ: dict[str, str], copy: Path  # noqa: FBT001 -- because it is a column of the table above
) -> None:  # fmt: skip
    """The question says what the copy holds, when it was made and what will be; whatever is no yes is a no."""
    made_at = rfc3339(FakeClock().now())
    with closing(sqlite3.connect(copy)) as opened:
        opened.execute("DELETE FROM meta WHERE name = 'frozen'")
        opened.execute("INSERT INTO meta VALUES ('seen_at', CAST('1795435200000000' AS BLOB))")
        opened.commit()
    status, out = await _answering(answer, "restore", str(copy), folder=living, environ=environ)
    assert out.startswith(
        f"{copy} holds 2 connections, as they were at {made_at}.\n"
        f"It takes the place of {living / NAME}, which is kept beside it, and starts frozen: no token is refreshed\n"
        "until `amo-callback connections thaw --all`. Connections refreshed since then have to be connected again.\n"
        "Restore it? [y/N]: "
    )
    assert status == (0 if restored else 1)
    assert out.endswith("nothing was changed\n") is not restored
    assert _counted(living / NAME) == ((2, True) if restored else (3, False))


async def test_keys_that_do_not_open_the_copy_are_refused(living: Path, environ: dict[str, str], copy: Path) -> None:
    """Its connections would look lost: nothing is changed."""
    told = await command("restore", str(copy), "--yes", folder=living, environ={**environ, KEY: new_key()})
    assert told == (78, "", f"amo-callback: storage.encryption_keys: none of them opens {copy}\n")
    assert _counted(living / NAME) == (3, False)


async def test_a_copy_of_a_newer_version_is_refused(living: Path, environ: dict[str, str], copy: Path) -> None:
    """The message says what to install."""
    with closing(sqlite3.connect(copy)) as newer:
        newer.execute("PRAGMA user_version = 99")
    status, _, err = await command("restore", str(copy), "--yes", folder=living, environ=environ)
    assert status == 1
    known = len(load_migrations(Engine.SQLITE))
    assert f"{copy} is of another version of amo-callback (schema 99, known here: {known}): install that version" in err
    assert _counted(living / NAME) == (3, False)


async def test_where_there_is_no_database_there_is_nothing_to_back_up(tmp_path: Path, environ: dict[str, str]) -> None:
    """The setting is named, and no database is made on the way."""
    told = await command("backup", "copy", folder=tmp_path, environ=environ)
    assert told == (78, "", f"amo-callback: storage.url: there is no database {tmp_path / NAME}\n")
    assert list(tmp_path.iterdir()) == []


async def test_where_there_is_no_folder_nothing_is_restored(living: Path, environ: dict[str, str], copy: Path) -> None:
    """The setting is named."""
    elsewhere = {**environ, "AMO_CALLBACK_STORAGE__URL": "sqlite:///nowhere/x.db"}
    told = await command("restore", str(copy), "--yes", folder=living, environ=elsewhere)
    assert told == (78, "", f"amo-callback: storage.url: there is no folder {living / 'nowhere'}\n")


async def test_a_file_that_is_there_is_not_overwritten(living: Path, environ: dict[str, str], copy: Path) -> None:
    """The message names the file and the reason, and the older copy stays."""
    status, _, err = await command("backup", str(copy), folder=living, environ=environ)
    assert status == 1
    assert err.startswith(f"amo-callback: {copy}: File exists")
    assert _counted(copy) == (2, True)


async def test_while_the_service_runs_it_is_backed_up_and_not_restored(
    living: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """The way back begins with stopping the service, and the message says so."""
    async with serving(environ, living) as service:
        await service.until("service.started")
        assert (await command("backup", "../copy", folder=living, environ=environ))[0] == 0
        status, _, err = await command("restore", "../copy", "--yes", folder=living, environ=environ)
        assert status == 1
        assert err.startswith(f"amo-callback: {living / NAME} is in use: stop the service first")
        service.signal(signal.SIGTERM)
        assert await service.ended() == 0
    assert (await command("restore", "../copy", "--yes", folder=living, environ=environ))[0] == 0
    assert _counted(tmp_path / "copy")[1]


async def test_a_backup_that_is_stopped_leaves_nothing_half_made(
    living: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """Whenever SIGTERM comes, there is the whole copy under its name, or nothing."""
    with closing(sqlite3.connect(living / NAME)) as large, large:
        large.execute("CREATE TABLE ballast AS SELECT randomblob(40000000) AS x")
    target = tmp_path / "backups" / "copy"
    target.parent.mkdir()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "amo_callback.cli.main", "backup", target, cwd=living, env=process_environment(environ)
    )
    while process.returncode is None and not list(target.parent.iterdir()):  # noqa: ASYNC110 -- because it becomes so in another process
        await asyncio.sleep(0.001)
    with suppress(ProcessLookupError):
        process.terminate()
    assert await process.wait() in {130, 0}
    assert [file.name for file in target.parent.iterdir() if not file.name.startswith(".")] in ([], ["copy"])
    assert not target.exists() or _counted(target) == (2, True)


# --- as root -------------------------------------------------------------------------------------


@pytest.fixture
def roots(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Give a folder of the service's user, and one that only root may enter."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not all(parent.stat().st_mode & stat.S_IXOTH for parent in Path(amo_callback.__file__).parents):
        pytest.skip("needs a package that the service's user may read")
    folder = Path(mkdtemp())  # where the service's user may go, unlike the tests' own
    folder.chmod(0o755)
    services, admins = folder / "services", tmp_path / "admins"
    services.mkdir()
    admins.mkdir(mode=0o700)
    yield services, admins
    shutil.rmtree(folder)


async def test_root_leaves_no_file_of_its_own_beside_the_database(
    roots: tuple[Path, Path], environ: dict[str, str]
) -> None:
    """Copies are root's, in a folder where the service may not go; whatever is beside the database is the service's."""
    services, admins = roots
    await _store(services, environ, 1)
    _give_away(services)
    assert (await command("backup", str(admins / "copy"), folder=services, environ=environ))[0] == 0
    assert _owners(services) == {NOBODY}
    assert (await command("restore", str(admins / "copy"), "--yes", folder=services, environ=environ))[0] == 0
    assert (_owners(services), len(list(services.iterdir()))) == ({NOBODY}, 2)
    (services / NAME).unlink()
    assert (await command("restore", str(admins / "copy"), "--yes", folder=services, environ=environ))[0] == 0
    assert (_owners(services), _counted(services / NAME)) == ({NOBODY}, (1, True))
    assert {stat.S_IMODE(file.stat().st_mode) for file in services.iterdir()} == {0o600}
    assert (_owners(admins), [file.name for file in admins.iterdir()]) == ({0}, ["copy"])


def _give_away(folder: Path) -> None:
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY, NOBODY)


def _owners(folder: Path) -> set[int]:
    return {file.stat().st_uid for file in folder.iterdir()}
