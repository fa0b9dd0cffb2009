"""A grant, completed: an authorization code becomes a stored pair, once, and everyone who asks is told the same.

Browsers prefetch, reload and go back, and the app calls after the browser: one code arrives here many times.
The first one claims it in the store and exchanges it in a task of its own; the others wait for that task, or
for the process that runs it, and a later one reads what became of it. AMO's codes work once, so this is also
what keeps us from asking twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import (
    AmoCallbackError,
    Frozen,
    GrantExpired,
    NotFound,
    OutcomeOpen,
    PersonMustAct,
    ShuttingDown,
    StoreUnavailable,
)
from amo_callback.event import Event, Level
from amo_callback.grant import Grant, GrantSecrets, GrantStatus, Outcome, support_code
from amo_callback.model import Connection, fingerprint
from amo_callback.tasks import done_within

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.cipher import Cipher
    from amo_callback.custody.leases import Leases
    from amo_callback.exchange import Exchanger
    from amo_callback.limits import Unproven
    from amo_callback.ports import AmoOAuth, Clock, Observer, Store

_LOOK_AGAIN = 0.25
"""Seconds between two looks at a grant that another process is exchanging."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectRules:
    """How long things are waited for and remembered, in seconds."""

    patience: float = 8.0
    """After which a person is told that it takes longer; the exchange goes on."""
    code_life: float = 1200.0
    """How long AMO's codes live, and our memory of them."""
    lease: float = 60.0
    """How long a claimed grant is one process's alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Visit:
    """What one caller brings: who gets there first, decides."""

    code: bytes = field(repr=False)
    code_hash: str
    state: bytes | None = field(repr=False)
    host: str | None
    address: str | None


class Connect:
    """Complete grants."""

    def __init__(
        self,
        *,
        store: Store,
        amo: AmoOAuth,
        cipher: Cipher,
        clock: Clock,
        observer: Observer,
        exchanger: Exchanger,
        unproven: Unproven,
        leases: Leases,
        rules: ConnectRules,
        new_handle: Callable[[], str],
    ) -> None:
        self._store = store
        self._amo = amo
        self._cipher = cipher
        self._clock = clock
        self._observer = observer
        self._exchanger = exchanger
        self._unproven = unproven
        self._leases = leases
        self._rules = rules
        self._new_handle = new_handle
        self._flights: dict[str, asyncio.Task[Outcome]] = {}
        self._pending: dict[str, Outcome] = {}
        """Where the results of flights will be found, once their grants have been written."""
        self._claimed: set[str] = set()
        self._stopping = asyncio.Event()

    async def complete(
        self, *, code: bytes, state: bytes | None, host: str | None, address: str | None = None
    ) -> Outcome:
        """Return what became of a code, exchanging it if that was not done; `EXCHANGING` after `patience`.

        `host` is the account's as the caller names it: it is checked, and only where AMO is to be asked; without
        one a code is asked about where it was seen before, or at the default. `address` is whose unproven codes
        are limited. Raises `PersonMustAct` where AMO is not asked, `StoreUnavailable` and `ShuttingDown`. A
        caller who is cancelled cancels nothing else.
        """
        visit = _Visit(code=code, code_hash=fingerprint(code), state=state, host=host, address=address)
        while True:
            flight, joined = self._flight(visit)
            if not await done_within(flight, seconds=self._rules.patience, clock=self._clock):
                break
            try:
                return flight.result()
            except PersonMustAct:
                if not joined:
                    raise
                # Another caller's failure (no host, no place): it need not be this one's.
        if visit.code_hash not in self._pending:
            raise StoreUnavailable("late")
        return self._pending[visit.code_hash]

    def _flight(self, visit: _Visit) -> tuple[asyncio.Task[Outcome], bool]:
        """Return the code's one flight, and whether it was under way: never two for a code in one process."""
        flight = self._flights.get(visit.code_hash)
        if flight is not None and not flight.done():
            return flight, True
        flight = asyncio.create_task(self._fly(visit), name=f"grant:{visit.code_hash[:8]}")
        self._flights[visit.code_hash] = flight
        flight.add_done_callback(lambda landed: self._land(visit.code_hash, landed))
        return flight, False

    async def returned(self, handle: str) -> Outcome:
        """Return what the return address `handle` shows; raises `NotFound` for one that is unknown or over."""
        grant = await self._store.grant_by_handle(fingerprint(handle))
        if grant is None or grant.expires_at <= self._clock.now():
            raise NotFound
        return self._told(grant)

    async def again(self, handle: str, *, address: str | None = None) -> Outcome:
        """Try once more with the code of the return address `handle`, where it has failed for a passing reason.

        Raises as `returned` and `complete` do.
        """
        grant = await self._store.grant_by_handle(fingerprint(handle))
        if grant is None or grant.expires_at <= self._clock.now():
            raise NotFound
        secrets = self._secrets(grant)
        return await self.complete(code=secrets.code, state=secrets.state, host=secrets.domain, address=address)

    async def connection_of(self, outcome: Outcome) -> Connection | None:
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

    def _land(self, code_hash: str, task: asyncio.Task[Outcome]) -> None:
        if self._flights.get(code_hash) is task:
            del self._flights[code_hash]
            self._pending.pop(code_hash, None)
            self._claimed.discard(code_hash)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, AmoCallbackError):
            self._observer(Event(name="grant.bug", level=Level.ERROR, error=error))

    # --- one grant -------------------------------------------------------------------------------

    async def _fly(self, visit: _Visit) -> Outcome:
        while True:
            grant = await self._store.grant(visit.code_hash)
            if grant is not None and grant.expires_at <= self._clock.now():
                raise GrantExpired
            abandoned = self._abandoned(grant)
            if grant is None or abandoned or grant.status is GrantStatus.FAILED:
                started = self._clock.monotonic()
                fresh, domain = self._begun(visit, grant)
                place = self._unproven.take(visit.address)
                try:
                    grant = await self._store.claim_grant(fresh, now=self._clock.now(), abandoned=abandoned)
                except (StoreUnavailable, Frozen):
                    place.give_back()
                    raise
                except asyncio.CancelledError:
                    await self._unclaim(fresh)
                    raise
                if grant.attempt == fresh.attempt:
                    self._claimed.add(visit.code_hash)
                    self._pending[visit.code_hash] = self._told(grant)
                    ended = await self._exchanger.exchange(
                        grant, code=visit.code, domain=domain, started=started, place=place
                    )
                    return self._told(ended)
                place.give_back()  # somebody else was faster
            if grant.status is not GrantStatus.EXCHANGING or self._stopping.is_set():
                return self._told(grant)
            self._pending[visit.code_hash] = self._told(grant)
            await self._clock.sleep(_LOOK_AGAIN)

    async def _unclaim(self, fresh: Grant) -> None:
        """Give back a claim that was written although its flight was let go: nothing was sent for it."""
        grant = await self._store.grant(fresh.code_hash)
        if grant is not None and grant.attempt == fresh.attempt:
            await self._store.finish_grant(
                dataclasses.replace(grant, status=GrantStatus.FAILED, error=ShuttingDown.word)
            )

    def _abandoned(self, grant: Grant | None) -> str | None:
        """Return the attempt whose process has died, for its lease has passed since this one first saw it."""
        if grant is None:
            return None
        if grant.status is not GrantStatus.EXCHANGING:
            self._leases.forget(grant.code_hash)
            return None
        left = self._leases.left_of(grant.code_hash, grant.attempt, grant.lease_until)
        return None if left else grant.attempt

    def _begun(self, visit: _Visit, before: Grant | None) -> tuple[Grant, str]:
        """Return the grant as it begins, and the account's host, checked."""
        known = self._secrets(before).domain if before else None
        domain = self._amo.check_domain(visit.host or known)
        secrets = GrantSecrets(handle=self._new_handle(), code=visit.code, state=visit.state, domain=domain)
        now = self._clock.now()
        grant = Grant(
            code_hash=visit.code_hash,
            handle_hash=fingerprint(secrets.handle),
            sealed=self._cipher.seal_grant(secrets, code_hash=visit.code_hash),
            status=GrantStatus.EXCHANGING,
            attempt=uuid.uuid4().hex,
            lease_until=now + timedelta(seconds=self._rules.lease),
            expires_at=now + timedelta(seconds=self._rules.code_life),
        )
        return grant, domain

    def _told(self, grant: Grant) -> Outcome:
        secrets = self._secrets(grant)
        status, error = grant.status, grant.error
        if status is GrantStatus.EXCHANGING and grant.lease_until <= self._clock.now():
            status, error = GrantStatus.FAILED, OutcomeOpen.word  # whoever tried has died
        return Outcome(
            status=status,
            error=error,
            code=secrets.code,
            state=secrets.state,
            handle=secrets.handle,
            domain=secrets.domain,
            support=support_code(grant.code_hash),
            connection_id=grant.connection_id,
        )

    def _secrets(self, grant: Grant) -> GrantSecrets:
        return self._cipher.open_grant(grant.sealed or b"", code_hash=grant.code_hash)
