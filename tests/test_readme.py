"""The documents' links and tables."""

import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

_ROOT = Path(__file__).parent.parent
_DOCUMENTS = [_ROOT / "README.md", *sorted((_ROOT / "amo_callback/docs").iterdir())]


def _prose(document: Path) -> str:
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def _anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub generates for a document's headings."""
    headings = re.findall(r"^#{1,4} (.*)$", _prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda document: document.name)
def test_document_links_lead_to_files_and_headings(document: Path) -> None:
    """Each link between documents leads to a file in the repository, and its anchor to a heading of that file."""
    links = re.findall(r"\]\(([\w./-]*)(?:#([^)]+))?\)", _prose(document))
    for path, anchor in links:
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), path
        assert not anchor or anchor in _anchors(target), (path, anchor)


def test_readme_pictures_and_links_are_found() -> None:
    """The README links to its own headings, to pictures and to the other documents."""
    links = set(re.findall(r"\]\(([\w./#-]+)\)|src=\"([^\"]+)\"", _prose(_ROOT / "README.md")))
    names = {link or picture for link, picture in links}
    assert {".pictures/demo.png", ".pictures/return.png", "#run", "amo_callback/docs/mobile-app.md"} <= names
    assert {name for name in names if "#" not in name and not (_ROOT / name).exists()} == set()


def test_glossary_modules_exist() -> None:
    """Each term names an existing module."""
    text = (_ROOT / "amo_callback/docs/glossary.md").read_text(encoding="utf-8")
    modules = re.findall(r"^\| [^|`]+ \| [^|]+ \| `([\w.]+)` \|$", text, re.MULTILINE)
    assert len(modules) == text.count("\n| ") - 2
    assert [module for module in modules if find_spec(f"amo_callback.{module}") is None] == []


def test_security_document_lists_runtime_dependencies() -> None:
    """The table in `security.md` lists every runtime dependency, including indirect ones."""
    text = (_ROOT / "amo_callback/docs/security.md").read_text(encoding="utf-8").lower()
    rows = re.findall(r"^\| ([^|]+) \| [^|]* \| [^|]* \| [^|]* \|$", text, re.MULTILINE)
    result = {name for row in rows for name in re.findall(r"[\w-]+", row)}
    found: set[str] = set()
    coming = {Requirement("amo-callback[postgres]")}
    while coming:
        found |= {one.name for one in coming}
        coming = {one for known in coming for one in _needed(known) if one.name not in found}
    assert {name.lower().replace("_", "-") for name in found} - result == {"amo-callback"}


def _needed(package: Requirement) -> set[Requirement]:
    """Return a package's requirements in this environment, including those of its extras."""
    needs = map(Requirement, metadata.requires(package.name) or [])
    extras = package.extras or {""}
    return {
        one for one in needs if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
    }
