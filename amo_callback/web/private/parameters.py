"""Parameters of a query, each once, and none that nobody knows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from amo_callback.web.private.problems import invalid

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from aiohttp import web

_DEFAULT, _MOST = 50, 200
_LONGEST = 256


class Parameters:
    """A query's parameters; raises `InvalidRequest`, which names the one that is wrong."""

    def __init__(self, request: web.Request, *, known: AbstractSet[str]) -> None:
        self._query = request.query
        for name in self._query:
            if name not in known:
                raise invalid(name[:64], f"is no parameter here; known are {', '.join(sorted(known))}")

    def text(self, name: str) -> str | None:
        """Return a parameter, or `None` where it is not there."""
        given = self._query.getall(name, [])
        if not given:
            return None
        if len(given) > 1 or not 0 < len(given[0]) <= _LONGEST or not given[0].isprintable():
            raise invalid(name, f"once, with 1 to {_LONGEST} printable characters")
        return given[0]

    def number(self, name: str, *, default: int, least: int, most: int) -> int:
        """Return a whole number."""
        given = self._query.getall(name, [str(default)])
        if len(given) > 1 or not re.fullmatch(r"[0-9]{1,9}", given[0]) or not least <= int(given[0]) <= most:
            raise invalid(name, f"a whole number from {least} to {most}")
        return int(given[0])

    def limit(self) -> int:
        """Return how many items are asked for."""
        return self.number("limit", default=_DEFAULT, least=1, most=_MOST)
