"""The command as root: its files belong to the service's user."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import amo_callback
from amo_callback.cli.context import acting_as_owner
from amo_callback.cli.main import main
from amo_callback.crypto import new_key
from tests.cli.harness import context_in, environ_with

NOBODY = 65534
PACKAGE = Path(amo_callback.__file__).parent


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another")
@pytest.mark.parametrize("exists", [True, False])
def test_acting_as_owner_switches_to_database_owner(tmp_path: Path, *, exists: bool) -> None:
    """Root acts as the owner of the database, or of its folder if there is no database, and becomes root afterwards."""
    database = tmp_path / "amo-callback.db"
    if exists:
        database.touch()
    os.chown(database if exists else tmp_path, NOBODY, NOBODY)
    before = (os.geteuid(), os.getegid(), os.getgroups(), dict(os.environ))
    with pytest.raises(KeyboardInterrupt):
        _be_interrupted_as_nobody(database)
    assert (os.geteuid(), os.getegid(), os.getgroups(), dict(os.environ)) == before


def _be_interrupted_as_nobody(database: Path) -> None:
    with acting_as_owner(database):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (NOBODY, NOBODY, [])
        assert Path.home() == Path(pwd.getpwuid(NOBODY).pw_dir)  # libraries read it; root's is inaccessible
        assert getpass.getuser() == pwd.getpwuid(NOBODY).pw_name
        raise KeyboardInterrupt


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another")
@pytest.mark.parametrize("there", ["rescue", "", "no/such/rescue"])
def test_acting_as_owner_with_server_uses_rescue_folder(tmp_path: Path, there: str) -> None:
    """With a database server, root acts as the owner of the rescue folder or of its nearest existing parent."""
    (tmp_path / "rescue").mkdir()
    os.chown(tmp_path / "rescue" if there == "rescue" else tmp_path, NOBODY, NOBODY)
    place = context_in(tmp_path, STORAGE__URL="postgresql://u@h/d", STORAGE__RESCUE=there or "other")
    with acting_as_owner(place.owned):
        assert os.geteuid() == NOBODY
    assert place.location == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another")
def test_acting_as_owner_unreadable_program_fails_early(tmp_path: Path) -> None:
    """If the owner cannot read the program, the command reports it in one line before any import fails."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        home = folder / "root"
        shutil.copytree(PACKAGE, home / "amo_callback", ignore=shutil.ignore_patterns("__pycache__"))
        home.chmod(0o700)
        data = folder / "data"
        data.mkdir()
        environ = environ_with(STORAGE__URL=f"sqlite:///{data}/amo-callback.db") | {
            "PYTHONPATH": str(home),
            "PATH": os.environ["PATH"],
        }
        (data / "amo-callback.db").touch()
        for path in (data, data / "amo-callback.db"):
            os.chown(path, NOBODY, NOBODY)
        for words in (["connections", "list"], ["events"]):
            done = subprocess.run(  # noqa: S603 -- this program
                [sys.executable, "-m", "amo_callback.cli.main", *words],
                env=environ,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stdout) == (1, ""), done.stderr
            assert "Traceback" not in done.stderr
            assert f"switches to {pwd.getpwuid(NOBODY).pw_name}, the owner of" in done.stderr
            assert "/opt, not /root" in done.stderr
        assert sorted(path.name for path in data.iterdir()) == ["amo-callback.db"]


def test_acting_as_owner_of_own_database_changes_nothing(tmp_path: Path) -> None:
    """A user who owns the database keeps the same ids and groups."""
    before = (os.geteuid(), os.getegid(), os.getgroups())
    with acting_as_owner(tmp_path / "amo-callback.db"):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["backup", "copy"],
        ["rotate-keys"],
        ["connections", "list"],
        ["connections", "export", "x.export", "--to-key-file", "key"],
    ],
)
def test_command_without_database_creates_none(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing database is a configuration error, because the folder may be misspelt."""
    (tmp_path / "key").write_text(new_key())
    monkeypatch.chdir(tmp_path)
    environ = {**environ_with(SERVER__PRIVATE="127.0.0.1:1"), "STATE_DIRECTORY": str(tmp_path)}
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(arguments, environ=environ) == 78
    finally:
        signal.signal(signal.SIGTERM, before)  # backup and export handle SIGTERM as Ctrl-C
    assert f"storage.url: {tmp_path / 'amo-callback.db'} does not exist" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["key"]
