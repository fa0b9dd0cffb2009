"""The circuit breaker, which pauses all refreshes after faults that are not specific to one connection.

The breaker opens for two reasons:

- AMO rejects the client credentials. Further requests would only get this server banned.
- A mass failure: so many connections have failed terminally within ten minutes that the failures are suspected to be
  false. Possible causes are a restored backup, the secret of another integration, and an outage of AMO.

A connection is a suspect if AMO's response to its refresh rejects the client credentials, or if AMO refuses its token
without a hint although introspection, which sends no client secret, accepts the token. If the last success is older
than `retry_cap`, two suspects open the breaker (one suspect, if there is only one connection). Ten suspects without a
success in between always open it. The state is stored and survives a restart.

While the breaker is open, one connection is refreshed each minute as the probe. One success closes the breaker.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import InvalidClient, MassFailureSuspected, NotYet, StoreUnavailable
from amo_callback.events import Event, Level
from amo_callback.model import RefreshTrigger

if TYPE_CHECKING:
    from datetime import datetime

    from amo_callback.core import Core
    from amo_callback.refresh.address_block import AddressBlock
    from amo_callback.stats import ConnectionCounts
    from amo_callback.store.meta import SharedState

_SUSPECTS = 2
_SUSPECTS_IN_A_ROW = 10
_PROBE_EVERY = 60.0
_TOGETHER = timedelta(minutes=10)
_DEATHS = 5
_SHARE = 5
"""In a mass failure, more than `1 / _SHARE` of the active and failed connections have failed."""


def is_mass_failure(connection_counts: ConnectionCounts) -> bool:
    """Return whether so many connections have failed recently that further terminal failures must be suspended."""
    return (
        connection_counts.failed >= _DEATHS
        and connection_counts.failed * _SHARE > connection_counts.failed + connection_counts.active
    )


class Breaker:
    """The state of the circuit breaker."""

    def __init__(self, core: Core, *, address_block: AddressBlock) -> None:
        self._core = core
        self.address_block = address_block
        """AMO's block of this server's IP address, which pauses refreshes independently of the breaker."""
        self._retry_cap = timedelta(seconds=core.rules.retry_cap)
        self.probe_every = min(_PROBE_EVERY, core.rules.retry_cap)
        """Seconds between two probes while the breaker is open."""
        self._suspects: dict[str, datetime] = {}
        self._unstored = False
        """Whether the current value of `refused` has yet to be stored."""
        self._terminal_suspended = False
        self.probed: set[str] = set()
        """The connections that have been the probe in this round."""
        self._probed_at = core.clock.monotonic()
        self.refused: str | None = None
        """The description of AMO's rejection of the client credentials; `None` without a rejection."""

    @property
    def terminal_suspended(self) -> bool:
        """Whether a mass failure has suspended terminal failures."""
        return self._terminal_suspended

    @property
    def reason(self) -> str | None:
        """The code of the error that keeps the breaker open; `None` while it is closed."""
        if self.refused is not None:
            return InvalidClient.code
        return MassFailureSuspected.code if self._terminal_suspended else None

    @property
    def probe_in(self) -> float:
        """Seconds until the next probe may be sent."""
        return max(self._probed_at + self.probe_every - self._core.clock.monotonic(), 0.0)

    async def watch(self, state: SharedState | None = None) -> None:
        """Adopt the shared state, which is read from the store unless the caller passes it as `state`."""
        state = await self._core.store.shared_state() if state is None else state
        self._terminal_suspended = state.terminal_suspended
        self.address_block.adopt(state.amo_block)
        if self._unstored:
            await self._store_credentials()
            return
        self._adopt(state.refused_credentials)

    def _adopt(self, refused: str | None) -> None:
        """Adopt the stored value of `refused`, unless this process has yet to store a newer value."""
        if not self._unstored and refused != self.refused:
            self.refused = refused
            self._suspects.clear()
            self._probed_at = self._core.clock.monotonic()

    def refusal(self, connection_id: str, *, trigger: RefreshTrigger) -> NotYet | None:
        """Return an error if the connection must not be refreshed now, not even as the probe; otherwise `None`.

        A caller's forced refresh and the trial of a connection in `needs_reauth` may also be the probe, but only once
        per connection and round, so that the next probe is another connection.
        """
        refusal = self.address_block.refusal(connection_id, trigger=trigger)
        if refusal is not None or self.reason is None:
            return refusal
        takes_turns = trigger in {RefreshTrigger.FORCED, RefreshTrigger.TRIAL} and connection_id not in self.probed
        if (trigger is RefreshTrigger.PROBE or takes_turns) and self.probe_in <= 0:
            return None
        return NotYet(max(self.probe_in, 1.0), cause_code=self.reason)

    def mark_probe(self, connection_id: str) -> None:
        """If the breaker is open, record that a connection is the probe."""
        if self.reason is not None:
            self.probed.add(connection_id)
            self._probed_at = self._core.clock.monotonic()

    def new_round(self) -> None:
        """Start a round in which every connection may be the probe again."""
        self.probed.clear()

    # --- results of refreshes ----------------------------------------------------------------------

    async def succeeded(self) -> None:
        """Close the breaker, because AMO has accepted the client credentials and a refresh token."""
        self.accepted()
        self.new_round()
        await self.address_block.succeeded()
        if self._unstored:
            with suppress(StoreUnavailable):  # `watch` retries this
                await self._store_credentials()
        if self._terminal_suspended:
            with suppress(StoreUnavailable):  # retried after the next success
                await self._core.store.resume_terminal()
                self._terminal_suspended = False
                self._core.observer(Event(name="terminal_failures.resumed"))

    def accepted(self) -> None:
        """Record that AMO has accepted the client credentials."""
        self._suspects.clear()
        if self.refused is not None:
            self.refused, self._unstored = None, True
            self._core.observer(Event(name="amo_credentials.accepted"))

    def refuse(self, hint: str) -> None:
        """Open the breaker, because AMO rejects the client credentials; `hint` describes the rejection."""
        if self.refused is None:
            self.refused, self._unstored = hint, True
            self._probed_at = self._core.clock.monotonic()
            self._core.observer(Event(name="amo_credentials.refused", level=Level.ERROR, fields={"hint": hint}))

    async def suspect(self, connection_id: str, words: str) -> None:
        """Record a connection as a suspect, and open the breaker if there are enough suspects."""
        now = self._core.clock.now()
        successes = await self._core.store.successes(now=now)
        latest = successes.latest  # includes the successes of other processes
        self._suspects = {name: at for name, at in self._suspects.items() if latest is None or at > latest}
        self._suspects[connection_id] = now
        silent = latest is None or now - latest > self._retry_cap
        enough = min(_SUSPECTS, max(successes.refreshable, 1)) if silent else _SUSPECTS_IN_A_ROW
        if len(self._suspects) >= enough:
            self.refuse(words)
            with suppress(StoreUnavailable):  # `watch` retries this
                await self._store_credentials()

    async def _store_credentials(self) -> None:
        refused = self.refused
        if refused is None:
            await self._core.store.accept_credentials()
        else:
            await self._core.store.refuse_credentials(refused)
        self._unstored = self.refused != refused

    async def allows_terminal_failure(self) -> bool:
        """Return whether a terminal failure may be applied; if a mass failure has begun, suspend terminal failures."""
        await self.watch()
        if self._terminal_suspended:
            return False
        now = self._core.clock.now()
        connection_counts = await self._core.store.connection_counts(now=now, since=now - _TOGETHER)
        if not is_mass_failure(connection_counts):
            return True
        await self._core.store.suspend_terminal(now=now)
        self._terminal_suspended, self._probed_at = True, self._core.clock.monotonic()
        fields = {"failed": connection_counts.failed, "active": connection_counts.active}
        self._core.observer(Event(name="terminal_failures.suspended", level=Level.ERROR, fields=fields))
        return False
