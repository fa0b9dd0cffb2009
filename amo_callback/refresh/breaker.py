"""The circuit breaker: it stops all refreshing where the fault cannot be each connection's own.

It opens for two reasons. AMO does not take our credentials: to go on would only get us banned. Or so many connections
die at once that it is not believed: an old database put back, another integration's secret and an ill AMO look exactly
like that.

A connection is suspect where AMO says that our client data are wrong, or refuses it without a hint although
introspection, which sends no client secret, accepts it. Two suspects, or all connections there are, open the breaker
once the last success is older than `retry_cap`; ten suspects in a row open it at once. That it is open is stored, so
that a restart does not forget it.

While it is open, everything is kept, and one connection after the other is tried, one every minute. One success closes
it.
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
"""More than one in so many."""


def is_epidemic(fleet: ConnectionCounts) -> bool:
    """Tell whether so many have died that one more is not believed."""
    return fleet.died >= _DEATHS and fleet.died * _SHARE > fleet.died + fleet.living


class Breaker:
    """Tell whether anything may be refreshed."""

    def __init__(self, core: Core, *, address_block: AddressBlock) -> None:
        self._core = core
        self.address_block = address_block
        """Stops all refreshing by itself, with probes of its own."""
        self._retry_cap = timedelta(seconds=core.rules.retry_cap)
        self.probe_every = min(_PROBE_EVERY, core.rules.retry_cap)
        """Seconds."""
        self._suspects: dict[str, datetime] = {}
        self._unstored = False
        """Whether the store does not know `refused` yet."""
        self._held = False
        self.probed: set[str] = set()
        """The probes of this round."""
        self._probed_at = core.clock.monotonic()
        self.refused: str | None = None
        """What AMO says against our credentials, where it does."""

    @property
    def held(self) -> bool:
        """Whether verdicts are held."""
        return self._held

    @property
    def reason(self) -> str | None:
        """Why it is open, as an error's code; `None` where it is closed."""
        if self.refused is not None:
            return InvalidClient.code
        return MassFailureSuspected.code if self._held else None

    @property
    def probe_in(self) -> float:
        """Seconds until the next probe may go."""
        return max(self._probed_at + self.probe_every - self._core.clock.monotonic(), 0.0)

    async def watch(self, state: SharedState | None = None) -> None:
        """Take over whether it is open, as some process has stored it; the state is read unless it is given."""
        state = await self._core.store.shared_state() if state is None else state
        self._held = state.terminal_suspended
        self.address_block.adopt(state.amo_block)
        if self._unstored:
            await self._store_credentials()
            return
        self._adopt(state.refused_credentials)

    def _adopt(self, refused: str | None) -> None:
        """Take over what the store says, unless this process has found something else meanwhile."""
        if not self._unstored and refused != self.refused:
            self.refused = refused
            self._suspects.clear()
            self._probed_at = self._core.clock.monotonic()

    def refusal(self, connection_id: str, *, demand: RefreshTrigger) -> NotYet | None:
        """Return why this connection may not be refreshed now, nor be the probe.

        A caller's forced refresh may be the probe, or the trial of a connection that was given up; each once a
        round, so that the next one is another.
        """
        refusal = self.address_block.refusal(connection_id, demand=demand)
        if refusal is not None or self.reason is None:
            return refusal
        takes_turns = demand in {RefreshTrigger.FORCED, RefreshTrigger.TRIAL} and connection_id not in self.probed
        if (demand is RefreshTrigger.PROBE or takes_turns) and self.probe_in <= 0:
            return None
        return NotYet(max(self.probe_in, 1.0), cause_code=self.reason)

    def enter(self, connection_id: str) -> None:
        """Note who is the probe, where it is open."""
        if self.reason is not None:
            self.probed.add(connection_id)
            self._probed_at = self._core.clock.monotonic()

    def new_round(self) -> None:
        """Let everyone be the probe again."""
        self.probed.clear()

    # --- what refreshes have found ---------------------------------------------------------------

    async def succeeded(self) -> None:
        """Close: AMO has taken our credentials and a refresh token, so whatever was wrong is over."""
        self.accepted()
        self.new_round()
        await self.address_block.succeeded()
        if self._unstored:
            with suppress(StoreUnavailable):  # `watch` tries again
                await self._store_credentials()
        if self._held:
            with suppress(StoreUnavailable):  # the next success tells it again
                await self._core.store.resume_terminal()
                self._held = False
                self._core.observer(Event(name="terminal_failures.resumed"))

    def accepted(self) -> None:
        """Note that AMO has taken our credentials."""
        self._suspects.clear()
        if self.refused is not None:
            self.refused, self._unstored = None, True
            self._core.observer(Event(name="amo_credentials.accepted"))

    def refuse(self, hint: str) -> None:
        """Open, with AMO's words against our credentials."""
        if self.refused is None:
            self.refused, self._unstored = hint, True
            self._probed_at = self._core.clock.monotonic()
            self._core.observer(Event(name="amo_credentials.refused", level=Level.ERROR, fields={"hint": hint}))

    async def suspect(self, connection_id: str, words: str) -> None:
        """Add a suspect, with AMO's words, and open where there are enough."""
        now = self._core.clock.now()
        successes = await self._core.store.successes(now=now)
        latest = successes.latest  # also of other processes
        self._suspects = {name: at for name, at in self._suspects.items() if latest is None or at > latest}
        self._suspects[connection_id] = now
        silent = latest is None or now - latest > self._retry_cap
        enough = min(_SUSPECTS, max(successes.refreshable, 1)) if silent else _SUSPECTS_IN_A_ROW
        if len(self._suspects) >= enough:
            self.refuse(words)
            with suppress(StoreUnavailable):  # `watch` tries again
                await self._store_credentials()

    async def _store_credentials(self) -> None:
        refused = self.refused
        if refused is None:
            await self._core.store.accept_credentials()
        else:
            await self._core.store.refuse_credentials(refused)
        self._unstored = self.refused != refused

    async def believes(self) -> bool:
        """Tell whether one more connection may be given up."""
        await self.watch()
        if self._held:
            return False
        now = self._core.clock.now()
        fleet = await self._core.store.fleet(now=now, since=now - _TOGETHER)
        if not is_epidemic(fleet):
            return True
        await self._core.store.suspend_terminal(now=now)
        self._held, self._probed_at = True, self._core.clock.monotonic()
        fields = {"died": fleet.died, "living": fleet.living}
        self._core.observer(Event(name="terminal_failures.suspended", level=Level.ERROR, fields=fields))
        return False
