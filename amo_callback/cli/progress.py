"""How far it is, on a terminal: one line, written over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

_WIDTH = 30
_SECONDS = 0.1
"""Between two updates."""


class Progress:
    """Tell how many are done, of a total where that is known; nothing where nobody looks at it."""

    def __init__(self, label: str, *, total: int | None = None, stream: TextIO, monotonic: Callable[[], float]) -> None:
        self._label = label
        self._total = total
        self._stream = stream if stream.isatty() else None
        self._monotonic = monotonic
        self._next_at = monotonic()
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._write(self._stream, end="\n")

    def __call__(self, done: int) -> None:
        """Tell that so many are done by now."""
        self._done = done
        if self._stream is not None and self._monotonic() >= self._next_at:
            self._next_at = self._monotonic() + _SECONDS
            self._write(self._stream)

    def _write(self, stream: TextIO, *, end: str = "") -> None:
        stream.write(f"\r{self._label} {self._told()}{end}")
        stream.flush()

    def _told(self) -> str:
        if not self._total:
            return f"{self._done:,}"
        full = min(self._done * _WIDTH // self._total, _WIDTH)
        return f"[{'#' * full}{'.' * (_WIDTH - full)}] {self._done:,} of {self._total:,}"
