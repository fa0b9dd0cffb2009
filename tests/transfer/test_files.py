"""A file that is there whole or not at all."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from amo_callback.errors import CommandFailed
from amo_callback.transfer.export_file import new_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_file_appears_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    """Nothing of it bears its name before it ends."""
    path = tmp_path / "x.export"
    with new_file(path) as file:
        file.write(b"all of it")
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def _write(path: Path, *, then: Callable[[], object]) -> None:
    with new_file(path) as file:
        file.write(b"new")
        then()


@pytest.mark.parametrize("error", [CommandFailed(), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_file_that_was_not_ended_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    """Whatever broke it off."""

    def fail() -> None:
        raise error

    with pytest.raises((CommandFailed, KeyboardInterrupt)):
        _write(tmp_path / "x.export", then=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    """Also one that came meanwhile, and a link that leads nowhere."""
    path, link = tmp_path / "x.export", tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CommandFailed, match="cannot be written: File exists"):
        _write(link, then=lambda: None)
    with pytest.raises(CommandFailed, match="cannot be written: File exists"):
        _write(path, then=lambda: path.write_bytes(b"old"))
    assert path.read_bytes() == b"old"
    assert {each.name for each in tmp_path.iterdir()} == {"link", "x.export"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """With the reason."""
    with pytest.raises(CommandFailed, match="cannot be written: No such file or directory"):
        _write(tmp_path / "nowhere" / "x.export", then=lambda: None)
