"""README's reference tables: they are what the code is."""

from pathlib import Path

from tests.reference.markdown import blocks, table, written
from tests.reference.settings import comments_of, known_settings
from tests.reference.tables import all_tables

REPOSITORY = Path(__file__).parent.parent
TABLES = {"fruit": ["| fruit |", "| --- |", "| apple |"]}
TEXT = "before\n<!-- reference: fruit -->\n\n| fruit |\n| --- |\n| pear |\n\n<!-- end -->\nafter\n"


async def test_the_reference_is_what_the_code_is() -> None:
    """Each table of README has its rows from the code, and each block has a table."""
    found = blocks((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert found == await all_tables(REPOSITORY), "run .venv/bin/python -m tests.reference"


def test_the_example_says_what_each_setting_is_for() -> None:
    """A setting without a comment would be an empty cell."""
    comments = comments_of((REPOSITORY / "config.example.toml").read_text(encoding="utf-8"))
    assert list(comments) == [name for name, _, _ in known_settings()]
    assert all(comments.values())


def test_a_block_is_replaced_and_nothing_else() -> None:
    """What stands around it stays, and a second time changes nothing."""
    renewed = written(TEXT, TABLES)
    assert renewed == TEXT.replace("pear", "apple")
    assert written(renewed, TABLES) == renewed
    assert blocks(renewed) == TABLES


def test_a_row_is_one_line_and_a_pipe_ends_no_cell() -> None:
    """What comes from docstrings may be broken into lines, and types have pipes."""
    assert table(["a", "b"], [["x |\n  y", ""]]) == ["| a | b |", "| --- | --- |", r"| x \| y | |"]
