"""A page's markup, parsed for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = frozenset({"meta", "link", "img", "br", "input"})


@dataclass(frozen=True, slots=True)
class Markup:
    """The elements of a page, in order, and the text between them."""

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: dict[str, list[str]] = field(default_factory=dict)
    """The text in the elements, by tag name."""

    @classmethod
    def read(cls, html: str) -> Markup:
        """Read a page, and fail if an element is not closed."""
        reader = _Reader()
        reader.feed(html)
        reader.close()
        assert reader.open == []
        return reader.markup

    def named(self, name: str) -> list[dict[str, str]]:
        """Return the elements with this tag name."""
        return [element for found, element in self.elements if found == name]

    def find(self, name: str) -> dict[str, str] | None:
        """Return the element with this id."""
        return next((element for _, element in self.elements if element.get("id") == name), None)

    def id(self, name: str) -> dict[str, str]:
        """Return the element with this id, which must exist."""
        found = self.find(name)
        assert found is not None, name
        return found

    def text_of(self, name: str) -> str:
        """Return the text in the elements with this tag name."""
        return " ".join(self.text.get(name, []))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.markup = Markup()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        self.markup.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.markup.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open:
            self.markup.text.setdefault(self.open[-1], []).append(data.strip())
