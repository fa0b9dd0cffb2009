"""Due introspections of connections in `needs_reauth`, and of accounts named by AMO's hook.

A connection in `needs_reauth` keeps its pair and is introspected once a day, because AMO may accept it again after a
fault at AMO.

AMO calls a hook when the integration is disabled in an account. The hook's signature never changes, so anyone who has
seen one call can repeat it. It is therefore only a hint: tokens are erased only if AMO itself rejects them. A hook
causes one introspection immediately and two later. Further hooks leave a single introspection pending, which runs after
a pause since the last one. The pause grows while AMO accepts the token, so a flood of repeated hooks causes few
introspections, and the last hook is always followed by one.

A connection already in `needs_reauth` is introspected at the first hook since its last success, and then daily.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import (
    DecryptionFailed,
    HostNotAllowed,
    NeedsReauth,
    NotYet,
    RequestNotSent,
    RetryableError,
    ShuttingDown,
)
from amo_callback.events import Level, connection_event
from amo_callback.model import Connection, Reason, RefreshTrigger, Status, TokenPair, TokenState
from amo_callback.rate_limit import Priority
from amo_callback.refresh.failure_policy import RECHECK_EVERY, recheck_delay
from amo_callback.refresh.slots import acquire_slot
from amo_callback.schedule import CLOCK_TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.core import Core
    from amo_callback.refresh.coordinator import RefreshCoordinator
    from amo_callback.refresh.gate import Gate
    from amo_callback.refresh.introspector import Introspector

_AFTER_HOOK = (timedelta(minutes=1), timedelta(minutes=10))
"""When an account that the hook named, and whose tokens AMO accepted, is introspected again."""
_SHORTEST, _LONGEST = timedelta(seconds=5), timedelta(minutes=10)
"""The pause after an introspection before a further hook may cause another."""
_QUIET = timedelta(hours=1)
"""The time without a hook after which the pause is the shortest again."""


class Rechecker:
    """Runs due introspections."""

    def __init__(self, core: Core, *, gate: Gate, introspector: Introspector, coordinator: RefreshCoordinator) -> None:
        self._core = core
        self._gate = gate
        self._introspector = introspector
        self._coordinator = coordinator

    async def begin(self, account_id: str) -> Sequence[str]:
        """Schedule introspections of an account's connections because AMO's hook says that the integration is disabled.

        Returns the ids of connections that had none pending.
        """
        return await self._core.store.record_disabled_hook(account_id, shortest=_SHORTEST, quiet=_QUIET)

    async def check(self, connection_id: str) -> None:
        """Introspect a connection if that is due; raises `RetryableError` if it cannot be done now."""
        connection = await self._core.store.connection(connection_id)
        if connection is None or connection.recheck_at is None or connection.recheck_at > self._core.clock.now():
            return
        pair = self._core.cipher.decrypt_pair(connection)
        try:
            if connection.status is Status.NEEDS_REAUTH:
                await self._check_needs_reauth(connection, pair)
            else:
                await self._check_hook(connection, pair)
        except HostNotAllowed:  # nothing was sent
            await self._recheck_soon(connection_id, status=connection.status)

    async def _begin(self, connection: Connection) -> Connection | None:
        """Wait for a slot, then begin the introspection, so that it covers hooks that arrived during the wait.

        Returns `None` if the row has changed, or another process has begun the introspection.
        """
        await acquire_slot(self._core, _priority(connection))
        again_in = (connection.recheck_pause or _SHORTEST) + timedelta(seconds=self._core.rules.lease)
        return await self._core.store.begin_recheck(connection, again_in=again_in)

    # --- the hook --------------------------------------------------------------------------------

    async def _check_hook(self, connection: Connection, pair: TokenPair | None) -> None:
        begun = await self._begin(connection)
        if begun is None:
            return
        _, state = await self._introspect(begun, pair)
        if state is TokenState.REJECTED and self._gate.may_erase(begun):
            await self._erase(begun)
            return
        pause = _next_pause(begun.recheck_pause, state)
        again = _next_recheck(begun, state, began=begun.rechecked_at or self._core.clock.now(), pause=pause)
        unconfirmed = connection_event(
            "hook.unconfirmed", begun, Level.WARNING, fields={"token_state": state, "again_at": again}
        )
        await self._core.store.schedule_recheck(begun, at=again, pause=pause, events=[unconfirmed])

    async def _erase(self, connection: Connection) -> None:
        """Erase tokens that AMO rejects, unless the row has changed since it was read."""
        erased = connection_event(
            "connection.disconnected", connection, Level.WARNING, fields={"reason": "disabled in AMO"}
        )
        await self._core.store.disconnect(connection, on_request=False, events=[erased])

    async def _introspect(self, connection: Connection, pair: TokenPair | None) -> tuple[TokenState, TokenState]:
        """Introspect the refresh token and, if AMO does not accept it, an access token that should be valid.

        Returns the state of the refresh token and that of both: tokens may be erased only if AMO rejects both.
        """
        if pair is None:
            return TokenState.NOT_CHECKED, TokenState.NOT_CHECKED
        first = TokenState.NOT_CHECKED
        if connection.has_refresh_token:
            first = (await self._introspector.introspect_refresh_token(connection, pair, priority=None)).state
        if first not in {TokenState.REJECTED, TokenState.NOT_CHECKED} or self._core.clock.now() >= pair.expires_at:
            return first, first
        priority = _priority(connection)
        second = (
            await self._introspector.introspect_access_token(connection, pair.access_token, priority=priority)
        ).state
        return first, first if second is TokenState.NOT_CHECKED else second

    # --- connections in needs_reauth --------------------------------------------------------------

    async def _check_needs_reauth(self, connection: Connection, pair: TokenPair | None) -> None:
        now = self._core.clock.now()
        if connection.attempt is not None and connection.reason is not Reason.IN_DOUBT:
            if not self._gate.lease_left(connection):
                doubted = connection_event(
                    "connection.in_doubt", connection, fields={"from_process": connection.lease_owner}
                )
                await self._core.store.mark_in_doubt(connection, events=[doubted])
            raise NotYet(1.0)  # the row has changed, or the lease has not expired
        if pair is not None and connection.last_error == DecryptionFailed.code:
            recovered = connection_event("connection.recovered", connection)
            await self._core.store.reactivate(connection, next_refresh_at=now, events=[recovered])  # the key is back
            return
        expires = connection.refresh_expires_at
        again = now + recheck_delay(connection.reason, self._core.rules)
        dead = expires is not None and expires <= now
        if dead or pair is None:
            # Expired by this machine's clock, which may be wrong: nothing is sent to AMO, but it stays scheduled.
            await self._core.store.schedule_recheck(connection, at=again)
            return
        begun = await self._begin(connection)
        if begun is None:
            return
        refresh_token, both = await self._introspect(begun, pair)
        if both is TokenState.REJECTED and _is_named(begun) and self._gate.may_erase(begun):
            await self._erase(begun)
            return
        # A refresh token that AMO rejects is not presented again, even if the access token is still accepted.
        accepted = both is TokenState.VALID and refresh_token is not TokenState.REJECTED
        tried = accepted or (begun.reason is Reason.REFUSED and not _is_early(connection, now))
        again = (begun.rechecked_at or now) + RECHECK_EVERY
        if await self._core.store.schedule_recheck(begun, at=again) and tried:
            await self._try(begun)

    async def _try(self, connection: Connection) -> None:
        """Present a token that AMO seems to accept again; if it is rejected, it is not tried again."""
        try:
            await self._coordinator.refresh(connection.id, trigger=RefreshTrigger.TRIAL, is_fresh_enough=_is_active)
        except (NotYet, RequestNotSent, ShuttingDown):
            # It was not presented, for example because another connection was the probe.
            await self._recheck_soon(connection.id, status=Status.NEEDS_REAUTH)
        except (NeedsReauth, RetryableError):
            return  # it was recorded with the attempt

    async def _recheck_soon(self, connection_id: str, *, status: Status) -> None:
        """Postpone the introspection by `retry_cap`, unless the connection's status has changed."""
        connection = await self._core.store.connection(connection_id)
        if connection is not None and connection.status is status:
            soon = self._core.clock.now() + timedelta(seconds=self._core.rules.retry_cap)
            await self._core.store.schedule_recheck(connection, at=soon)


def _is_active(connection: Connection) -> bool:
    """Return whether the user has connected again."""
    return connection.status is Status.ACTIVE


def _is_early(connection: Connection, now: datetime) -> bool:
    """Return whether a hook caused this introspection, and not the daily schedule."""
    rechecked_at = connection.rechecked_at
    return rechecked_at is not None and now < rechecked_at + RECHECK_EVERY - CLOCK_TOLERANCE


def _is_named(connection: Connection) -> bool:
    """Return whether AMO's hook has named the account since it last worked."""
    alive_at = connection.refreshed_at or connection.connected_at
    return connection.disabled_hook_at is not None and connection.disabled_hook_at >= alive_at


def _priority(connection: Connection) -> Priority:
    """Return the introspection's priority; an active connection is introspected only because of a hook."""
    hooked = connection.status is Status.ACTIVE or _is_named(connection)
    return Priority.HOOK_CHECK if hooked else Priority.BACKGROUND


def _next_pause(pause: timedelta | None, state: TokenState) -> timedelta:
    """Return the pause after an introspection: twice the last one, unless AMO gave no response."""
    if pause is None or state is TokenState.UNKNOWN:
        return pause or _SHORTEST
    return min(2 * pause, _LONGEST)


def _next_recheck(connection: Connection, state: TokenState, *, began: datetime, pause: timedelta) -> datetime | None:
    """Return when a connection named by a hook is introspected again if there is no further hook."""
    disabled_hook_at = connection.disabled_hook_at or began
    silent = began + _AFTER_HOOK[-1] if state is TokenState.UNKNOWN else None  # until AMO gives an answer
    again = next((disabled_hook_at + after for after in _AFTER_HOOK if disabled_hook_at + after > began), silent)
    return None if again is None else max(again, began + pause)
