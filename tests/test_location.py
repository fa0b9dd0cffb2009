"""Where a database lives."""

from pathlib import Path

from amo_callback.files import location_id


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
