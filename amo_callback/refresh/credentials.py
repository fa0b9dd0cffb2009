"""Detection of wrong client credentials (client id, secret and redirect URI) before the first token pair.

Before the first pair, only rejected code exchanges can show that the client credentials are wrong, because there is
nothing to refresh. After the first pair, the circuit breaker detects wrong credentials from refreshes.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from amo_callback.errors import StoreUnavailable
from amo_callback.events import Event, Level

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.errors import AmoCallbackError

_HOSTS = 2
"""The number of hosts that must reject the client credentials; a single host may do so because of its account."""
_REFUSED_FOR = 3600.0
"""Seconds after the last rejection during which readiness fails."""


class Credentials:
    """A record of whether AMO rejects the client credentials, for reporting only; it pauses no requests."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._hosts: set[str] = set()
        self._expected = False
        self._refused_at: float | None = None
        self._words = ""
        self._reported = False
        self.proven = False
        """Whether a token pair has ever been obtained with this client id."""

    @property
    def refused(self) -> str | None:
        """AMO's status and message if it has rejected the client credentials recently, otherwise `None`."""
        if self._refused_at is None or not self._expected or len(self._hosts) < _HOSTS:
            return None
        return self._words if self._core.clock.monotonic() - self._refused_at < _REFUSED_FOR else None

    async def watch(self) -> None:
        """Check whether any process has obtained the first pair; report if the credentials are no longer rejected."""
        if not self.proven and await self._core.store.pair_obtained(self._core.amo.client_id):
            self.accept()
        if self._reported and self.refused is None:
            self._reported = False
            self._core.observer(Event(name="amo_credentials.no_longer_refused"))

    def accept(self) -> None:
        """Record that a pair was obtained, which proves the client credentials."""
        self.proven = True
        self._refused_at = None
        if self._reported:
            self._reported = False
            self._core.observer(Event(name="amo_credentials.accepted"))

    async def note_refusal(self, error: AmoCallbackError, *, host: str, expected: bool) -> None:
        """Record a code exchange at `host` in which AMO rejected client credentials that no pair has proven.

        `expected` is true if this service started the authorization request, or if `host` is the configured host. In
        all other cases, `host` comes from the browser, and possibly from an attacker.
        """
        if not error.rejects_client or await self._is_proven():
            return
        if len(self._hosts) < _HOSTS:
            self._hosts.add(host)
        self._expected = self._expected or expected
        self._refused_at = self._core.clock.monotonic()
        self._words = " ".join(str(word) for word in (error.status, error.hint or error.title) if word)
        if self.refused is not None and not self._reported:
            self._reported = True
            self._core.observer(Event(name="amo_credentials.refused", level=Level.ERROR, fields=error.fields))

    async def _is_proven(self) -> bool:
        with suppress(StoreUnavailable):
            await self.watch()  # another instance may have obtained a pair
        return self.proven
