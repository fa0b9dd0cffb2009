"""Our client id, secret and redirect URI, before they are proven by a first token pair.

Until then no refresh can show that they are wrong, so refused exchanges have to. Afterwards the circuit breaker judges.
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
"""A single host may refuse for a reason of its own."""
_REFUSED_FOR = 3600.0
"""Seconds after the last refusal for which readiness is red."""


class Credentials:
    """The knowledge whether AMO accepts our credentials. It reports, and holds nothing back."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._hosts: set[str] = set()
        self._expected = False
        self._refused_at: float | None = None
        self._words = ""
        self._reported = False
        self.proven = False
        """Whether a token pair was ever obtained with this client id."""

    @property
    def refused(self) -> str | None:
        """AMO's words where it refuses our credentials; `None` where that is not known, or no longer."""
        if self._refused_at is None or not self._expected or len(self._hosts) < _HOSTS:
            return None
        return self._words if self._core.clock.monotonic() - self._refused_at < _REFUSED_FOR else None

    async def watch(self) -> None:
        """Read from the store whether a pair was obtained, by any process, until one was."""
        if not self.proven and await self._core.store.pair_obtained(self._core.amo.client_id):
            self.accept()
        if self._reported and self.refused is None:
            self._reported = False
            self._core.observer(Event(name="amo_credentials.no_longer_refused"))

    def accept(self) -> None:
        """Note that a pair was obtained: whatever was refused before, the credentials are right."""
        self.proven = True
        self._refused_at = None
        if self._reported:
            self._reported = False
            self._core.observer(Event(name="amo_credentials.accepted"))

    async def note_refusal(self, error: AmoCallbackError, *, host: str, expected: bool) -> None:
        """Note an exchange that AMO refused at `host`.

        `expected` says that the grant was started here, or that the host is the configured one: any other host comes
        from the browser, and so from anybody.
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
            await self.watch()  # another instance may have obtained a pair meanwhile
        return self.proven
