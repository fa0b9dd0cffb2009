"""Files named by a setting or a command: only regular files are opened, and reads are limited."""

import os
from pathlib import Path

import pytest

from amo_callback.files import location_id, open_regular, read_regular


def test_read_regular_over_limit_fails(tmp_path: Path) -> None:
    """A file longer than the limit is an error that names the limit."""
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_regular(file, limit=5) == b"12345"
    for length in (6, 2**40):
        os.truncate(file, length)
        with pytest.raises(OSError, match="Larger than 5 bytes"):
            read_regular(file, limit=5)


def test_open_regular_pipe_device_or_folder_fails(tmp_path: Path) -> None:
    """A pipe, a device or a folder is an immediate error, also behind a link."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link", "/dev/zero", "."):
        for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT):
            with pytest.raises(OSError, match=r"Not a regular file|Is a directory"):
                open_regular(tmp_path / name, flags)


def test_read_regular_follows_link_unless_disabled(tmp_path: Path) -> None:
    """A link is followed for the operator's files, but not in the service's own folders."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", limit=1) == b"x"
    with pytest.raises(OSError, match="Not a regular file"):
        read_regular(tmp_path / "link", limit=1, flags=os.O_RDONLY | os.O_NOFOLLOW)


def test_open_regular_creates_file_with_mode_600(tmp_path: Path) -> None:
    """A new file has mode 600 for any umask."""
    before = os.umask(0)
    try:
        os.close(open_regular(tmp_path / "new", os.O_WRONLY | os.O_CREAT))
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_location_id_depends_on_machine_and_folder(tmp_path: Path) -> None:
    """Another machine or folder has another location, and a link to the folder does not."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("a" * 32 + "\n")
    other.write_text("b" * 32 + "\n")
    home = location_id(tmp_path / "a.db", machine_id=one)
    (tmp_path / "link").symlink_to(tmp_path)
    assert location_id(tmp_path / "link" / "." / "a.db", machine_id=one) == home
    assert location_id(tmp_path / "a.db", machine_id=other) != home
    assert location_id(tmp_path / "folder" / "a.db", machine_id=one) != home


def test_location_id_without_machine_id_uses_folder(tmp_path: Path) -> None:
    """Without a machine id, as in a container, only the folder is compared."""
    nameless = tmp_path / "none"
    assert location_id(tmp_path / "a.db", machine_id=nameless) != location_id(tmp_path / "b.db", machine_id=nameless)


def test_location_id_contains_no_machine_id_or_path(tmp_path: Path) -> None:
    """Neither the machine id nor the path is in the location."""
    known = tmp_path / "id"
    known.write_text("c" * 32)
    mark = location_id(tmp_path / "a.db", machine_id=known)
    assert (len(mark), "ccc" in mark, "a.db" in mark) == (64, False, False)
