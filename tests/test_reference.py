"""README's reference tables: they are what the code is."""

from pathlib import Path

import pytest

from tests.reference.markdown import blocks, complaints, table, written
from tests.reference.settings import comments_of, known_settings
from tests.reference.tables import all_tables

REPOSITORY = Path(__file__).parent.parent
TABLES = {"fruit": ["| fruit |", "| --- |", "| apple |"]}
TEXT = "before\n<!-- reference: fruit -->\n\n| fruit |\n| --- |\n| pear |\n\n<!-- end -->\nafter\n"


async def test_the_reference_is_what_the_code_is() -> None:
    """Each table of README has its rows from the code; the message tells the command that writes them."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    found = complaints(readme, await all_tables(REPOSITORY))
    assert not found, "\n".join(["", *found])


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
    assert complaints(renewed, TABLES) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (TEXT, "'fruit': it is '| pear |', and should be '| apple |': run .venv/bin/python -m tests.reference"),
        (TEXT.replace("| pear |\n", ""), "'fruit': it is None, and should be '| apple |': run"),
        (TEXT.replace("pear |", "apple |\n| pear |"), "'fruit': it is '| pear |', and should be None: run"),
        ("", "no block 'fruit': <!-- reference: fruit -->"),
        (TEXT.replace(": fruit", ": trees") + written(TEXT, TABLES), "a block 'trees', for which there is no table"),
    ],
    ids=["another-row", "a-row-less", "a-row-more", "no-block", "no-table"],
)
def test_whatever_differs_is_told_with_what_mends_it(text: str, complaint: str) -> None:
    """The first line that differs, or the block that is missing or that nothing is made for."""
    [found] = complaints(text, TABLES)
    assert complaint in found


def test_a_row_is_one_line_and_a_pipe_ends_no_cell() -> None:
    """What comes from docstrings may be broken into lines, and types have pipes."""
    assert table(["a", "b"], [["x |\n  y", ""]]) == ["| a | b |", "| --- | --- |", r"| x \| y | |"]
