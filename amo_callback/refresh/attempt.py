"""Refresh attempts, from the claim to the stored pair; no other module spends refresh tokens.

An AMO refresh token works once. If the token is presented twice, or the response is lost, the user may have to
connect again. An attempt therefore has three steps, each completed before the next begins:

1. **Claim.** One UPDATE commits a lease, a new attempt id and the fingerprint of the token. The UPDATE also proves that
   the store can be written: if the disk is full, the attempt fails before the token is spent.
2. **Present.** One POST request follows immediately, in a task that neither a disconnecting caller nor a shutdown
   cancels. If the account has moved, its old host refuses the token without spending it. A second POST request to the
   new host then follows under an extended lease, unless the process is shutting down.
3. **Store.** The new pair is stored only if the row still has the presented pair. A late pair replaces a recorded
   failure, but never a newer grant or a disconnect.

The coordinator decides whether an attempt begins. `failure_recorder` records attempts that yield no pair, and
`pending_writes` keeps pairs that the store has not committed.
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
    abbreviated,
    fingerprint,
)
from amo_callback.refresh.slots import acquire_slot, ensure_slot
from amo_callback.schedule import REFRESH_TOKEN_LIFETIME, refresh_due

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.refresh.breaker import Breaker
    from amo_callback.refresh.failure_recorder import FailureRecorder
    from amo_callback.refresh.introspector import Introspector
    from amo_callback.refresh.pending_writes import PendingWrites


@dataclass(frozen=True, kw_only=True, slots=True)
class _Claimed:
    """A claimed connection, whose `pair` may be presented once, until the monotonic time `not_after`."""

    row: Connection
    pair: TokenPair = field(repr=False)
    started: float
    not_after: float
    trigger: RefreshTrigger


class RefreshAttempts:
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

    async def run(self, connection: Connection, *, trigger: RefreshTrigger, slot_at: float) -> Connection | None:
        """Refresh `connection` and return the stored row; `None` if the claim is rejected or the attempt superseded.

        `slot_at` is the monotonic time at which the rate-limit slot was granted. If the attempt fails, records the
        failure and raises the resulting error.
        """
        try:
            claimed = await self._claim(connection, trigger, slot_at)
            if claimed is None:
                return None
            issued = await self._spend(claimed)
        except Superseded:
            return None
        return await self._save(claimed, issued)

    async def _claim(self, connection: Connection, trigger: RefreshTrigger, slot_at: float) -> _Claimed | None:
        """Claim the row; `None` if the row has changed, is frozen, or is leased by another attempt."""
        started = self._core.clock.monotonic()
        pair = self._core.cipher.decrypt_pair(connection)
        claim = Claim(
            connection_id=connection.id,
            row_version=connection.row_version,
            attempt=uuid.uuid4().hex,
            owner=self._core.process,
            lease=timedelta(seconds=self._core.rules.lease),
            fingerprint="" if pair is None else fingerprint(pair.refresh_token),
        )
        try:
            row = await self._core.store.claim(claim, events=_takeover_events(connection))
        except StoreUnavailable:
            # The claim may have been committed. It is released, because its token will not be presented.
            with suppress(StoreUnavailable):
                await self._core.store.release(connection_id=claim.connection_id, attempt=claim.attempt)
            raise
        if row is None:
            return None
        if pair is None:
            raise await self._failures.record(row, DecryptionFailed(), trigger=trigger)
        # The deadline counts from before the claim, because the process may have been suspended or the store
        # slow, and the request must end before the lease. The slot may have expired, too: a store that recovers
        # from a stall completes many claims at the same time.
        not_after = started + self._core.rules.lease - self._core.amo.timeout
        if not await ensure_slot(self._core, granted_at=slot_at, not_after=not_after):
            await self._release(row)
            raise ShuttingDown if self._core.stop.is_set() else NotYet(1.0)
        return _Claimed(row=row, pair=pair, started=started, not_after=not_after, trigger=trigger)

    async def _release(self, row: Connection) -> None:
        await self._core.store.release(connection_id=row.id, attempt=row.attempt or "")

    async def _spend(self, claimed: _Claimed) -> TokenResponse:
        """Present the refresh token; if that fails, record the failure and raise the resulting error."""
        try:
            return await self._present(claimed)
        except ShuttingDown:
            await self._release(claimed.row)
            raise
        except AmoCallbackError as error:
            recorded = await self._failures.record(
                claimed.row, error, trigger=claimed.trigger, seconds=self._seconds(claimed)
            )
            if recorded is error:
                raise
            raise recorded from error
        except BaseException:
            await self._failures.record(
                claimed.row, UnknownOutcome("a bug"), trigger=claimed.trigger, seconds=self._seconds(claimed)
            )
            raise

    async def _present(self, claimed: _Claimed) -> TokenResponse:
        row, token = claimed.row, claimed.pair.refresh_token
        if row.client_id != self._core.amo.client_id:
            raise ClientMismatch  # AMO would treat the token as stolen
        try:
            with self._pending_writes.expecting():
                return await self._core.amo.refresh(refresh_token=token, domain=row.domain, not_after=claimed.not_after)
        except UnauthorizedWithoutHint as refused:
            introspection, not_after = await self._locate_account(claimed, refused)
        except InvalidRefreshToken as refused:
            if not refused.undecodable:
                raise
            introspection, not_after = await self._locate_account(claimed, refused)
        domain = introspection.domain or ""
        try:
            with self._pending_writes.expecting():
                return await self._core.amo.refresh(refresh_token=token, domain=domain, not_after=not_after)
        except UnauthorizedWithoutHint as refused:
            _explain(refused, introspection, domain=domain)
            raise

    async def _locate_account(self, claimed: _Claimed, refused: AmoCallbackError) -> tuple[IntrospectionResult, float]:
        """Return the introspection result with the account's new host, and the deadline for a second request.

        Raises `refused` if the account has not moved, and other errors if no second request may be sent.
        """
        row = claimed.row
        introspection = await self._introspector.locate_account(row, claimed.pair)
        if introspection.state is TokenState.UNKNOWN and isinstance(refused, InvalidRefreshToken):
            raise IntrospectionUnavailable from refused  # the account may have moved to a host that accepts the token
        if introspection.domain in {None, row.domain}:
            if isinstance(refused, UnauthorizedWithoutHint):
                _explain(refused, introspection, domain=row.domain)
            raise refused
        slot_at = await acquire_slot(self._core)
        extension = LeaseExtension(
            connection_id=row.id,
            attempt=row.attempt or "",
            lease=timedelta(seconds=self._core.rules.lease),
            domain=introspection.domain or "",
        )
        started = self._core.clock.monotonic()
        not_after = started + self._core.rules.lease - self._core.amo.timeout
        moved = connection_event("connection.moved", row, fields={"moved_to": extension.domain})
        if not await self._core.store.extend(extension, events=[moved]):
            raise refused  # another attempt has replaced this one, which is detected when the failure is recorded
        if not await ensure_slot(self._core, granted_at=slot_at, not_after=not_after):
            raise ShuttingDown if self._core.stop.is_set() else RequestNotSent
        return introspection, not_after

    # --- store -----------------------------------------------------------------------------------

    async def _save(self, claimed: _Claimed, issued: TokenResponse) -> Connection:
        """Store the new pair, retrying as necessary, and return the stored connection.

        This method must not await anything before it passes the pair to `save`.
        """
        row, pair = claimed.row, issued.pair
        refreshed = RefreshedPair(
            connection_id=row.id,
            pair_version=row.pair_version,
            sealed_pair=self._core.cipher.seal_pair(pair, connection_id=row.id),
            api_domain=issued.account.api_domain or row.api_domain,
            issued_at=pair.issued_at,
            expires_at=pair.expires_at,
            refresh_expires_at=pair.issued_at + REFRESH_TOKEN_LIFETIME,
            next_refresh_at=refresh_due(
                pair, at=self._core.rules.at, jitter=self._core.rules.jitter, random=self._core.random
            ),
            grant_iat=row.grant_iat,
        )
        fields = {
            "trigger": claimed.trigger,
            "seconds": self._seconds(claimed),
            "token": abbreviated(fingerprint(claimed.pair.refresh_token)),
            "next_token": abbreviated(fingerprint(pair.refresh_token)),
            "request_id": issued.request_id,
        }
        due = {"expires_at": pair.expires_at, "next_refresh_at": refreshed.next_refresh_at}
        events = [connection_event("refresh.succeeded", row, fields={**fields, **due})]
        stored = await self._pending_writes.save(refreshed, connection=row, events=events)
        await self._breaker.succeeded()
        if stored is None:
            superseded = connection_event("refresh.superseded", row, Level.WARNING, fields=fields)
            await record_event(superseded, self._core)
            return await self._current(row.id)
        return stored

    def _seconds(self, claimed: _Claimed) -> float:
        return round(self._core.clock.monotonic() - claimed.started, 3)

    async def _current(self, connection_id: str) -> Connection:
        """Return the connection as another attempt or grant has stored it; raises `NotFound` if it is disconnected."""
        connection = await self._core.store.connection(connection_id)
        if connection is None or connection.status is Status.DISCONNECTED:
            raise NotFound
        return connection


def _explain(refused: UnauthorizedWithoutHint, introspection: IntrospectionResult, *, domain: str) -> None:
    """Add the introspection result to `refused`; `domain` is the host that refused the token without a hint."""
    refused.accepted = {TokenState.VALID: True, TokenState.REJECTED: False}.get(introspection.state)
    refused.same_host = introspection.domain == domain


def _takeover_events(connection: Connection) -> list[Event]:
    """Return the event for a claim if it replaces an unfinished attempt, whose token may have been spent."""
    if connection.attempt is None:
        return []
    presented_token = abbreviated(connection.presented_token) if connection.presented_token else None
    fields = {"token": presented_token, "from_process": connection.lease_owner, "lease_until": connection.lease_until}
    return [connection_event("refresh.taken_over", connection, fields=fields)]
