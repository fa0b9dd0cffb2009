"""A grant, completed: an authorization code becomes a stored pair, once, and everyone who asks is told the same.

Browsers prefetch, reload and go back, and the app calls after the browser: one code arrives here many times.
The first one claims it in the store and exchanges it in a task of its own; the others wait for that task, or
for the process that runs it, and a later one reads what became of it. AMO's codes work once, so this is also
what keeps us from asking twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from amo_callback.concurrency import done_within
from amo_callback.errors import (
    AmoCallbackError,
    Frozen,
    GrantExpired,
    InvalidState,
    NotFound,
    PkceMismatch,
    QueueFull,
    ShuttingDown,
    StoreUnavailable,
    UserError,
)
from amo_callback.events import Event, Level
from amo_callback.grant import CodePresentation, GrantStatus
from amo_callback.model import fingerprint
from amo_callback.oauth.code_exchange import CodeExchange
from amo_callback.oauth.grants import Grants
from amo_callback.oauth.limits import priority_of
from amo_callback.refresh.leases import Leases

if TYPE_CHECKING:
    from amo_callback.grant import Grant, GrantResult, GrantSecrets
    from amo_callback.model import Connection
    from amo_callback.oauth.authorization import Authorizations
    from amo_callback.oauth.code_exchange import Exchanger
    from amo_callback.oauth.grants import GrantRules
    from amo_callback.oauth.limits import Limits
    from amo_callback.tokens.lifecycle import Core

_LOOK_AGAIN = 0.25
"""Seconds between two looks at a grant that another process is exchanging."""


class GrantService:
    """Complete grants."""

    def __init__(
        self, core: Core, rules: GrantRules, *, exchanger: Exchanger, authorizations: Authorizations, limits: Limits
    ) -> None:
        self._store = core.store
        self._amo = core.amo
        self._clock = core.clock
        self._observer = core.observer
        self._exchanger = exchanger
        self._authorizations = authorizations
        self._limits = limits
        self._patience = rules.patience
        self._grants = Grants(core, rules)
        self._leases = Leases(length=rules.refresh.lease, store=core.store, clock=core.clock)
        self._flights: dict[str, asyncio.Task[GrantResult]] = {}
        self._pending: dict[str, GrantResult] = {}
        """Where the results of flights will be found, once their grants have been written."""
        self._claimed: set[str] = set()
        self._stopping = asyncio.Event()

    async def complete(self, visit: CodePresentation) -> GrantResult:
        """Return what became of a code, exchanging it if that was not done; `EXCHANGING` after `patience` seconds.

        Who gets there first, decides: the host that is named is checked, and only where AMO is to be asked. Raises
        `UserError` where AMO is not asked, `NotFound`, `QueueFull`, `StoreUnavailable` and `ShuttingDown`. A caller
        who is cancelled cancels nothing else.
        """
        outcome = await self._completed(visit)
        self._authorizations.check(visit, state=outcome.state, request=outcome.request)
        return outcome

    async def _completed(self, visit: CodePresentation) -> GrantResult:
        while True:
            flight, joined = self._flight(visit)
            if not await done_within(flight, seconds=self._patience, clock=self._clock):
                break
            try:
                return flight.result()
            except (UserError, NotFound, PkceMismatch, QueueFull):
                if not joined:
                    raise
                # Another caller's failure (no host, no state, no place): it need not be this one's.
        if visit.code_hash not in self._pending:
            raise StoreUnavailable("late")
        return self._pending[visit.code_hash]

    def _flight(self, visit: CodePresentation) -> tuple[asyncio.Task[GrantResult], bool]:
        """Return the code's one flight, and whether it was under way: never two for a code in one process."""
        flight = self._flights.get(visit.code_hash)
        if flight is not None and not flight.done():
            return flight, True
        flight = asyncio.create_task(self._fly(visit), name=f"grant:{visit.code_hash[:8]}")
        self._flights[visit.code_hash] = flight
        flight.add_done_callback(lambda landed: self._land(visit.code_hash, landed))
        return flight, False

    async def returned(self, handle: str) -> GrantResult:
        """Return what the return address `handle` shows; raises `NotFound` for one that is unknown or over."""
        grant = await self._store.grant_by_handle(fingerprint(handle))
        if grant is None or grant.expires_at <= self._clock.now():
            raise NotFound
        return self._grants.told(grant)

    async def again(self, handle: str, *, address: str | None = None) -> GrantResult:
        """Try once more with the code of the return address `handle`, where it has failed for a passing reason.

        Raises as `returned` and `complete` do.
        """
        grant = await self._store.grant_by_handle(fingerprint(handle))
        if grant is None or grant.expires_at <= self._clock.now():
            raise NotFound
        secrets = self._grants.secrets_of(grant)
        return await self.complete(
            CodePresentation(code=secrets.code, state=secrets.state, host=secrets.domain, address=address)
        )

    async def connection_of(self, outcome: GrantResult) -> Connection | None:
        """Return the connection that a grant led to, as it is now."""
        return await self._store.connection(outcome.connection_id) if outcome.connection_id else None

    def stop(self) -> None:
        """Wait no longer for the rate limit, nor for other processes; who comes in by an open door is served."""
        self._stopping.set()
        self._exchanger.stop()

    async def drain(self) -> None:
        """Begin nothing from now on, and wait until what has been claimed is exchanged and stored."""
        self.stop()
        for code_hash, flight in self._flights.items():
            if code_hash not in self._claimed:
                flight.cancel()  # nobody waits for it any more
        while self._flights:
            await asyncio.wait(self._flights.values())

    def _land(self, code_hash: str, task: asyncio.Task[GrantResult]) -> None:
        if self._flights.get(code_hash) is task:
            del self._flights[code_hash]
            self._pending.pop(code_hash, None)
            self._claimed.discard(code_hash)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, AmoCallbackError):
            self._observer(Event(name="grant.bug", level=Level.ERROR, error=error))

    # --- one grant -------------------------------------------------------------------------------

    async def _fly(self, visit: CodePresentation) -> GrantResult:
        while True:
            grant = await self._store.grant(visit.code_hash)
            if grant is not None and grant.expires_at <= self._clock.now():
                raise GrantExpired
            if grant is None or self._is_abandoned(grant) or grant.status is GrantStatus.FAILED:
                grant, secrets = await self._try(visit, grant)
                if secrets is not None:
                    return self._grants.told(grant, secrets)
                if grant.status is GrantStatus.FAILED:
                    continue  # somebody else was faster, and had no luck: now it is a known one
            if grant.status is not GrantStatus.EXCHANGING or self._stopping.is_set():
                return self._grants.told(grant)
            self._pending[visit.code_hash] = self._grants.told(grant)
            await self._clock.sleep(_LOOK_AGAIN)

    async def _try(self, visit: CodePresentation, before: Grant | None) -> tuple[Grant, GrantSecrets | None]:
        """Claim the code and exchange it; return the grant as it is then, and its secrets where it was ours to end."""
        started = self._clock.monotonic()
        known = None if before is None else self._grants.secrets_of(before)
        if known is None:
            request = await self._authorizations.admit(visit)
        else:
            self._authorizations.check(visit, state=known.state, request=known.request)
            request = known.request
        # Without a host the code is asked about where it was seen before, or at the default.
        domain = self._amo.check_domain(visit.host or (known.domain if known else None))
        fresh, secrets = self._grants.begin(visit, domain=domain, request=request)
        priority = priority_of(request)
        who = f"user {request.user}" if request is not None and request.user is not None else visit.address
        with self._limits.queue.enter(priority, who) as turn:
            reservation = self._limits.codes.reserve(who, among=priority)
            try:
                async with self._limits.queue.write(priority):
                    grant = await self._store.claim_grant(
                        fresh,
                        now=self._clock.now(),
                        over=None if before is None else before.attempt,
                        state_hash=None if known or request is None else fingerprint(visit.state or b""),
                    )
            except (StoreUnavailable, Frozen, InvalidState):
                reservation.release()  # AMO is not asked
                raise
            except asyncio.CancelledError:
                await self._unclaim(fresh)
                reservation.release()
                raise
            if grant.attempt != fresh.attempt:
                reservation.release()  # somebody else was faster
                return grant, None
            secrets = known or secrets  # who tries again keeps what was handed out
            self._claimed.add(visit.code_hash)
            self._pending[visit.code_hash] = self._grants.told(grant, secrets)
            exchange = CodeExchange(
                code=visit.code, domain=domain, request=request, started=started, reservation=reservation, turn=turn
            )
            return await self._exchanger.exchange(grant, exchange), secrets

    async def _unclaim(self, fresh: Grant) -> None:
        """Give back a claim that was written although its flight was let go: nothing was sent for it."""
        grant = await self._store.grant(fresh.code_hash)
        if grant is not None and grant.attempt == fresh.attempt:
            await self._store.finish_grant(
                dataclasses.replace(grant, status=GrantStatus.FAILED, error=ShuttingDown.deep_link_error)
            )

    def _is_abandoned(self, grant: Grant) -> bool:
        """Tell whether the process that tried it has died: its lease has passed since this one first saw it."""
        if grant.status is not GrantStatus.EXCHANGING:
            self._leases.forget(grant.code_hash)
            return False
        return not self._leases.left_of(grant.code_hash, grant.attempt, grant.lease_until, told=grant.lease_left)
