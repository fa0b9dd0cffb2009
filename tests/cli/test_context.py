"""The command as root: files that it leaves belong to whoever runs the service."""

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
def test_root_acts_as_the_owner_of_the_database_for_a_while(tmp_path: Path, *, exists: bool) -> None:
    """Or, before there is one, as the owner of its folder; afterwards it is root again, whatever happened."""
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
        assert Path.home() == Path(pwd.getpwuid(NOBODY).pw_dir)  # root's is closed to him, and libraries look there
        assert getpass.getuser() == pwd.getpwuid(NOBODY).pw_name
        raise KeyboardInterrupt


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another")
@pytest.mark.parametrize("there", ["rescue", "", "no/such/rescue"])
def test_where_the_database_is_a_server_the_rescue_folder_says_who_the_service_is(tmp_path: Path, there: str) -> None:
    """Or, before there is one, the nearest folder above it."""
    (tmp_path / "rescue").mkdir()
    os.chown(tmp_path / "rescue" if there == "rescue" else tmp_path, NOBODY, NOBODY)
    place = context_in(tmp_path, STORAGE__URL="postgresql://u@h/d", STORAGE__RESCUE=there or "other")
    with acting_as_owner(place.owned):
        assert os.geteuid() == NOBODY
    assert place.location == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another")
def test_an_owner_who_cannot_read_the_program_is_named_and_nothing_fails_halfway(tmp_path: Path) -> None:
    """Installed where root alone may look: one line with what to do and status 1, not a trace from a late import."""
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
            done = subprocess.run(  # noqa: S603 -- because it is this program
                [sys.executable, "-m", "amo_callback.cli.main", *words],
                env=environ,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stdout) == (1, ""), done.stderr
            assert "Traceback" not in done.stderr
            assert f"belongs to {pwd.getpwuid(NOBODY).pw_name}" in done.stderr
            assert "/opt, not /root" in done.stderr
        assert sorted(path.name for path in data.iterdir()) == ["amo-callback.db"]


def test_whoever_owns_the_database_already_stays_who_he_is(tmp_path: Path) -> None:
    """Nothing is to be given up."""
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
def test_where_there_is_no_database_none_is_made(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that was misspelt is a configuration that names the wrong place."""
    (tmp_path / "key").write_text(new_key())
    monkeypatch.chdir(tmp_path)
    environ = {**environ_with(SERVER__PRIVATE="127.0.0.1:1"), "STATE_DIRECTORY": str(tmp_path)}
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(arguments, environ=environ) == 78
    finally:
        signal.signal(signal.SIGTERM, before)  # backup and export have it heard as Ctrl-C
    assert f"there is no database {tmp_path / 'amo-callback.db'}" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["key"]
