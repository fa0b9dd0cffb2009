"""A record of the tokens issued and the requests received by the AMO stand-in, for tests of the service."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A credential that was presented to the token endpoint."""

    at: datetime
    kind: str
    """`authorization_code` or `refresh_token`."""
    presented: str = field(repr=False)
    host: str
    status: int | None
    """The status required by AMO's rules; `None` if a fault or the rate limit ended the request first."""
    hint: str | None = None

    @property
    def spent(self) -> bool:
        """Whether this presentation spent the credential."""
        return self.status == 200


@dataclass(frozen=True, kw_only=True, slots=True)
class LookUp:
    """An introspection request."""

    at: datetime
    kind: str
    """`refresh_token` or `access_token`."""
    host: str
    """The account's current host; empty if it was not disclosed."""
    status: int


@dataclass(slots=True)
class Ledger:
    """Presented credentials, issued tokens and introspections, each in order."""

    entries: list[Entry] = field(default_factory=list)
    issued: list[str] = field(default_factory=list, repr=False)
    access_tokens: list[str] = field(default_factory=list, repr=False)
    introspections: list[LookUp] = field(default_factory=list)

    def exchanges(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == "authorization_code"]

    def refreshes(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == "refresh_token"]

    def doubles(self) -> int:
        """Count presentations of credentials that were already spent."""
        spent: set[str] = set()
        doubles = 0
        for entry in self.entries:
            doubles += entry.presented in spent
            if entry.spent:
                spent.add(entry.presented)
        return doubles
