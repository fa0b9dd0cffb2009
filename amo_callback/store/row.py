"""A row, before anything is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Row(Protocol):
    """A row, as both engines' libraries return it."""

    def __getitem__(self, key: Any, /) -> Any:  # noqa: ANN401 -- because a column is of any type
        """Return a column by its name or place."""

    def __iter__(self) -> Iterator[Any]:
        """Go through the values."""

    def keys(self) -> Iterable[str]:
        """Return the columns' names."""
