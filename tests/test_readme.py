"""The README's links, and the tables of the other documents."""

import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

_ROOT = Path(__file__).parent.parent
_README = (_ROOT / "README.md").read_text(encoding="utf-8")


def _prose() -> str:
    return re.sub(r"^```.*?^```$", "", _README, flags=re.MULTILINE | re.DOTALL)


def test_readme_anchors_exist() -> None:
    """Each `#anchor` is the anchor that GitHub generates for a heading."""
    headings = re.findall(r"^#{1,4} (.*)$", _prose(), re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = set(re.findall(r"\]\((#[^)]+)\)", _prose()))
    assert len(linked) > 10
    assert linked - anchors == set()


def test_readme_linked_files_exist() -> None:
    """Each linked file and picture is in the repository."""
    linked = set(re.findall(r"\]\(([\w./-]+)\)|src=\"([^\"]+)\"", _prose()))
    files = {link or picture for link, picture in linked}
    assert ".pictures/demo.png" in files
    assert {file for file in files if not (_ROOT / file).exists()} == set()


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
