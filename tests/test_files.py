"""Files that somebody names: only regular ones are opened, and only as much is read as was agreed on."""

import os
from pathlib import Path

import pytest

from amo_callback.files import location_id, open_regular, read_regular


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    """A byte more is an error that says the limit, however much longer the file is."""
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_regular(file, limit=5) == b"12345"
    for length in (6, 2**40):
        os.truncate(file, length)
        with pytest.raises(OSError, match="Longer than 5 bytes"):
            read_regular(file, limit=5)


def test_pipes_devices_and_folders_are_not_opened(tmp_path: Path) -> None:
    """Nor through a link: each is an error at once, for reading as for writing."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link", "/dev/zero", "."):
        for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT):
            with pytest.raises(OSError, match=r"Not a regular file|Is a directory"):
                open_regular(tmp_path / name, flags)


def test_a_link_is_followed_only_where_that_is_wanted(tmp_path: Path) -> None:
    """An administrator may name one; in a folder of ours nobody puts one."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", limit=1) == b"x"
    with pytest.raises(OSError, match="Not a regular file"):
        read_regular(tmp_path / "link", limit=1, flags=os.O_RDONLY | os.O_NOFOLLOW)


def test_a_file_that_is_made_is_the_owners_alone(tmp_path: Path) -> None:
    """Whatever the process's umask."""
    before = os.umask(0)
    try:
        os.close(open_regular(tmp_path / "new", os.O_WRONLY | os.O_CREAT))
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_a_database_is_at_home_on_one_machine_in_one_folder(tmp_path: Path) -> None:
    """Another machine, or another folder on the same one, is another place; a way that leads there is not."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("a" * 32 + "\n")
    other.write_text("b" * 32 + "\n")
    home = location_id(tmp_path / "a.db", machine_id=one)
    (tmp_path / "link").symlink_to(tmp_path)
    assert location_id(tmp_path / "link" / "." / "a.db", machine_id=one) == home
    assert location_id(tmp_path / "a.db", machine_id=other) != home
    assert location_id(tmp_path / "folder" / "a.db", machine_id=one) != home


def test_a_machine_without_a_name_still_tells_its_folders_apart(tmp_path: Path) -> None:
    """As in a container: the folder alone is compared."""
    nameless = tmp_path / "none"
    assert location_id(tmp_path / "a.db", machine_id=nameless) != location_id(tmp_path / "b.db", machine_id=nameless)


def test_the_mark_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    """Neither its id, which is nobody's business, nor the path."""
    known = tmp_path / "id"
    known.write_text("c" * 32)
    mark = location_id(tmp_path / "a.db", machine_id=known)
    assert (len(mark), "ccc" in mark, "a.db" in mark) == (64, False, False)
