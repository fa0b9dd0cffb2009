"""One attempt at a refresh, from claim to stored pair: the only place where a refresh token is spent.

AMO's refresh tokens work once. A second presentation, or an answer that is lost, costs the account its
connection, and only a person can mend that. Hence the order, each step committed before the next begins:

1. **Claim.** One committed statement with a lease, a new attempt id and the fingerprint of what will be
   spent. It is also the write check: a full disk is met before the token is spent, not after.
2. **Spend.** One POST, at once, in a task of its own: neither a caller who hangs up nor a shutdown ends it.
   An account that moved gets a second one, on a lease extended in writing; after a stop signal it does not.
3. **Store.** Only where the pair that it came from is still the stored one: a late pair wins over a verdict, and
   never over a newer grant or a disconnect.
4. **Tell** whoever watches and whoever waits.

Whether an attempt may be made at all is decided by `coordinator`, what a refusal means by `failure_recorder`; a pair
that the store does not take is kept by `pending_writes`.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.core import record_event
from amo_callback.errors import (
    AmoCallbackError,
    ClientMismatch,
    DecryptionFailed,
    IntrospectionUnavailable,
    InvalidRefreshToken,
    NotFound,
    NotYet,
    RequestNotSent,
    ShuttingDown,
    StoreUnavailable,
    Superseded,
    UnauthorizedWithoutHint,
    UnknownOutcome,
)
from amo_callback.events import Event, Level, connection_event
from amo_callback.model import (
    Claim,
    Connection,
    IntrospectionResult,
    LeaseExtension,
    RefreshedPair,
    RefreshTrigger,
    Status,
    TokenPair,
    TokenResponse,
    TokenState,
    fingerprint,
    short,
)
from amo_callback.refresh.slots import acquire_slot, ensure_slot
from amo_callback.schedule import REFRESH_TOKEN_LIFE, refresh_due

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.refresh.breaker import Breaker
    from amo_callback.refresh.failure_recorder import FailureRecorder
    from amo_callback.refresh.introspector import Introspector
    from amo_callback.refresh.pending_writes import PendingWrites


@dataclass(frozen=True, kw_only=True, slots=True)
class _Claimed:
    """A claim that holds: the right to spend `pair` once, until `not_after` by the monotonic clock."""

    row: Connection
    pair: TokenPair = field(repr=False)
    started: float
    not_after: float
    demand: RefreshTrigger


class RefreshAttempts:
    """Make attempts."""

    def __init__(
        self,
        core: Core,
        *,
        introspector: Introspector,
        failures: FailureRecorder,
        breaker: Breaker,
        pending_writes: PendingWrites,
    ) -> None:
        self._core = core
        self._introspector = introspector
        self._failures = failures
        self._breaker = breaker
        self._pending_writes = pending_writes

    async def make(self, connection: Connection, *, demand: RefreshTrigger, slot_at: float) -> Connection | None:
        """Refresh the pair as it was read, and return it as stored; `None` where it has changed since.

        `slot_at` is the monotonic time at which its slot at the rate limit was granted. Raises what kept the pair from
        being refreshed, once that has been written down.
        """
        try:
            claimed = await self._claim(connection, demand, slot_at)
            if claimed is None:
                return None
            issued = await self._spend(claimed)
        except Superseded:
            return None
        return await self._save(claimed, issued)

    async def _claim(self, connection: Connection, demand: RefreshTrigger, slot_at: float) -> _Claimed | None:
        """Take the right to spend the pair's refresh token, in writing; `None` where another was faster."""
        started = self._core.clock.monotonic()
        pair = self._core.cipher.pair_of(connection)
        claim = Claim(
            connection_id=connection.id,
            row_version=connection.row_version,
            attempt=uuid.uuid4().hex,
            owner=self._core.process,
            lease=timedelta(seconds=self._core.rules.lease),
            fingerprint="" if pair is None else fingerprint(pair.refresh_token),
        )
        try:
            row = await self._core.store.claim(claim, events=_taken_over(connection))
        except StoreUnavailable:
            with suppress(StoreUnavailable):  # it may have been committed, and its answer lost: nothing is presented
                await self._core.store.release(connection_id=claim.connection_id, attempt=claim.attempt)
            raise
        if row is None:
            return None
        if pair is None:
            raise await self._failures.record(row, DecryptionFailed(), demand=demand)
        # By the monotonic clock, read before the claim: a process that was stopped meanwhile, or a store that
        # took its time, must not spend a token on a lease that ends under the request. The slot
        # may be too old by then, too: a store that stalls for a while answers many reads and claims at once.
        not_after = started + self._core.rules.lease - self._core.amo.timeout
        if not await ensure_slot(self._core, granted_at=slot_at, not_after=not_after):
            await self._release(row)
            raise ShuttingDown if self._core.stop.is_set() else NotYet(1.0)
        return _Claimed(row=row, pair=pair, started=started, not_after=not_after, demand=demand)

    async def _release(self, row: Connection) -> None:
        await self._core.store.release(connection_id=row.id, attempt=row.attempt or "")

    async def _spend(self, claimed: _Claimed) -> TokenResponse:
        """Present the refresh token; raises what its refusal means, once that has been written down."""
        try:
            return await self._present(claimed)
        except ShuttingDown:
            await self._release(claimed.row)
            raise
        except AmoCallbackError as error:
            told = await self._failures.record(
                claimed.row, error, demand=claimed.demand, seconds=self._seconds(claimed)
            )
            if told is error:
                raise
            raise told from error
        except BaseException:
            await self._failures.record(
                claimed.row, UnknownOutcome("a bug"), demand=claimed.demand, seconds=self._seconds(claimed)
            )
            raise

    async def _present(self, claimed: _Claimed) -> TokenResponse:
        row, token = claimed.row, claimed.pair.refresh_token
        if row.client_id != self._core.amo.client_id:
            raise ClientMismatch  # to AMO, any other client is a stranger with a stolen token
        try:
            with self._pending_writes.expecting():
                return await self._core.amo.refresh(refresh_token=token, domain=row.domain, not_after=claimed.not_after)
        except UnauthorizedWithoutHint as refused:
            sighting, not_after = await self._follow(claimed, refused)
        except InvalidRefreshToken as refused:
            if not refused.undecodable:
                raise
            sighting, not_after = await self._follow(claimed, refused)
        domain = sighting.domain or ""
        try:
            with self._pending_writes.expecting():
                return await self._core.amo.refresh(refresh_token=token, domain=domain, not_after=not_after)
        except UnauthorizedWithoutHint as refused:
            _explain(refused, sighting, domain=domain)
            raise

    async def _follow(self, claimed: _Claimed, refused: AmoCallbackError) -> tuple[IntrospectionResult, float]:
        """Return where the account has moved, and until when its token may go there; else raise what it means."""
        row = claimed.row
        sighting = await self._introspector.whereabouts(row, claimed.pair)
        if sighting.standing is TokenState.UNKNOWN and isinstance(refused, InvalidRefreshToken):
            raise IntrospectionUnavailable from refused  # it may have moved: who knows its token lives elsewhere
        if sighting.domain in {None, row.domain}:
            if isinstance(refused, UnauthorizedWithoutHint):
                _explain(refused, sighting, domain=row.domain)
            raise refused
        slot_at = await acquire_slot(self._core)
        extension = LeaseExtension(
            connection_id=row.id,
            attempt=row.attempt or "",
            lease=timedelta(seconds=self._core.rules.lease),
            domain=sighting.domain or "",
        )
        started = self._core.clock.monotonic()
        not_after = started + self._core.rules.lease - self._core.amo.timeout
        moved = connection_event("connection.moved", row, told={"moved_to": extension.domain})
        if not await self._core.store.extend(extension, events=[moved]):
            raise refused  # the attempt is no longer ours, which is found when it is recorded
        if not await ensure_slot(self._core, granted_at=slot_at, not_after=not_after):
            raise ShuttingDown if self._core.stop.is_set() else RequestNotSent
        return sighting, not_after

    # --- store -----------------------------------------------------------------------------------

    async def _save(self, claimed: _Claimed, issued: TokenResponse) -> Connection:
        """Store a pair that has been paid for, before anything else happens; try until it is stored."""
        row, pair = claimed.row, issued.pair
        refreshed = RefreshedPair(
            connection_id=row.id,
            pair_version=row.pair_version,
            sealed_pair=self._core.cipher.seal_pair(pair, connection_id=row.id),
            api_domain=issued.account.api_domain or row.api_domain,
            issued_at=pair.issued_at,
            expires_at=pair.expires_at,
            refresh_expires_at=pair.issued_at + REFRESH_TOKEN_LIFE,
            next_refresh_at=refresh_due(
                pair, at=self._core.rules.at, jitter=self._core.rules.jitter, random=self._core.random
            ),
            grant_iat=row.grant_iat,
        )
        told = {
            "demand": claimed.demand,
            "seconds": self._seconds(claimed),
            "token": short(fingerprint(claimed.pair.refresh_token)),
            "next_token": short(fingerprint(pair.refresh_token)),
            "request_id": issued.request_id,
        }
        due = {"expires_at": pair.expires_at, "next_refresh_at": refreshed.next_refresh_at}
        events = [connection_event("refresh.succeeded", row, told={**told, **due})]
        stored = await self._pending_writes.save(refreshed, connection=row, events=events)
        await self._breaker.succeeded()
        if stored is None:
            superseded = connection_event("refresh.superseded", row, Level.WARNING, told=told)
            await record_event(superseded, self._core)
            return await self._newer(row.id)
        return stored

    def _seconds(self, claimed: _Claimed) -> float:
        return round(self._core.clock.monotonic() - claimed.started, 3)

    async def _newer(self, connection_id: str) -> Connection:
        """Return what was stored instead."""
        connection = await self._core.store.connection(connection_id)
        if connection is None or connection.status is Status.DISCONNECTED:
            raise NotFound
        return connection


def _explain(refused: UnauthorizedWithoutHint, sighting: IntrospectionResult, *, domain: str) -> None:
    """Add what introspection says of a refusal without a hint from the host at `domain`."""
    refused.accepted = {TokenState.GOOD: True, TokenState.REFUSED: False}.get(sighting.standing)
    refused.same_host = sighting.domain == domain


def _taken_over(connection: Connection) -> list[Event]:
    """Return what a claim does to an attempt that nobody knows the end of: its token is in doubt from now on."""
    if connection.attempt is None:
        return []
    spending = short(connection.spending) if connection.spending else None
    fields = {"token": spending, "from_process": connection.lease_owner, "lease_until": connection.lease_until}
    return [connection_event("refresh.taken_over", connection, told=fields)]
