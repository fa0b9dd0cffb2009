"""The reference tables of the README and other documents match the code."""

from tests.reference.markdown import blocks, table, written
from tests.reference.settings import comments_of, known_settings
from tests.reference.tables import DOCUMENTS, REPOSITORY, all_tables

TABLES = {"fruit": ["| fruit |", "| --- |", "| apple |"]}
TEXT = "before\n<!-- reference: fruit -->\n\n| fruit |\n| --- |\n| pear |\n\n<!-- end -->\nafter\n"


def test_reference_matches_code() -> None:
    """Each table is in one document and has the rows of the code, and each block has a table."""
    found = [blocks((REPOSITORY / name).read_text(encoding="utf-8")) for name in DOCUMENTS]
    names = [name for document in found for name in document]
    assert len(names) == len(set(names))
    tables = {name: rows for document in found for name, rows in document.items()}
    assert tables == all_tables(), "run .venv/bin/python -m tests.reference"


def test_example_configuration_explains_each_setting() -> None:
    """Each setting has a comment, which fills its cell."""
    comments = comments_of((REPOSITORY / "config.example.toml").read_text(encoding="utf-8"))
    assert list(comments) == [name for name, _, _ in known_settings()]
    assert all(comments.values())


def test_written_replaces_block_only() -> None:
    """The text around a block stays, and a second run changes nothing."""
    renewed = written(TEXT, TABLES)
    assert renewed == TEXT.replace("pear", "apple")
    assert written(renewed, TABLES) == renewed
    assert blocks(renewed) == TABLES


def test_table_row_is_one_line_with_escaped_pipes() -> None:
    """Line breaks of docstrings are removed, and pipes of types are escaped."""
    assert table(["a", "b"], [["x |\n  y", ""]]) == ["| a | b |", "| --- | --- |", r"| x \| y | |"]
