"""What the stand-in issued and what was presented to it: the truth that tests hold the service against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One credential presented to the token endpoint."""

    at: datetime
    kind: str
    """`authorization_code` or `refresh_token`."""
    presented: str = field(repr=False)
    host: str
    status: int | None
    """What the rules answer; `None` where a fault or the limit came before them."""
    hint: str | None = None

    @property
    def spent(self) -> bool:
        """Whether this presentation is the one that spent it."""
        return self.status == 200


@dataclass(frozen=True, kw_only=True, slots=True)
class LookUp:
    """One question about a token, which spends nothing."""

    at: datetime
    kind: str
    """`refresh_token` or `access_token`."""
    host: str
    """Where its account lives; empty where it is not told."""
    status: int


@dataclass(slots=True)
class Ledger:
    """All that happened at the token endpoint, in order, and what was looked up."""

    entries: list[Entry] = field(default_factory=list)
    issued: list[str] = field(default_factory=list, repr=False)
    access_tokens: list[str] = field(default_factory=list, repr=False)
    look_ups: list[LookUp] = field(default_factory=list)

    def exchanges(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == "authorization_code"]

    def refreshes(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == "refresh_token"]

    def doubles(self) -> int:
        """Count presentations of what had been spent before."""
        spent: set[str] = set()
        doubles = 0
        for entry in self.entries:
            doubles += entry.presented in spent
            if entry.spent:
                spent.add(entry.presented)
        return doubles
