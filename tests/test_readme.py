"""README: what it links to is there."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_README = (_ROOT / "README.md").read_text(encoding="utf-8")


def _prose() -> str:
    """Return README without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", _README, flags=re.MULTILINE | re.DOTALL)


def test_links_within_the_page_lead_to_a_heading() -> None:
    """Each `#anchor` is a heading's, as GitHub makes them."""
    headings = re.findall(r"^#{1,4} (.*)$", _prose(), re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = set(re.findall(r"\]\((#[^)]+)\)", _prose()))
    assert len(linked) > 10
    assert linked - anchors == set()


def test_links_to_files_lead_to_a_file() -> None:
    """Each file and picture that the page links to is in the repository."""
    linked = set(re.findall(r"\]\(([\w./-]+)\)|src=\"([^\"]+)\"", _prose()))
    files = {link or picture for link, picture in linked}
    assert ".pictures/demo.png" in files
    assert {file for file in files if not (_ROOT / file).exists()} == set()
