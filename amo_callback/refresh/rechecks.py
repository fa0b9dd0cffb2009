"""Rechecks: scheduled introspections of connections in `needs_reauth`, and of accounts named by AMO's hook.

A connection in `needs_reauth` keeps its pair and is introspected once a day, because AMO may accept the pair again if a
fault at AMO caused the rejection.

AMO calls a hook when the integration is disabled in an account. The hook's signature never changes, so anyone who has
seen one call can repeat it. A call is therefore only a hint: tokens are erased only if introspection rejects them. One
call causes an introspection immediately, and two more later. Further calls leave one introspection pending, which runs
after a pause that begins with the previous introspection. The pause doubles with each response, up to 10 minutes, so a
flood of repeated calls causes few introspections. The last call is always followed by an introspection.

A connection already in `needs_reauth` is introspected at the first call since its last success, and then daily.
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
"""The times after a hook at which the account is introspected again, unless its tokens have been erased."""
_SHORTEST, _LONGEST = timedelta(seconds=5), timedelta(minutes=10)
"""The limits of the pause between an introspection and the next one that a hook may cause."""
_QUIET = timedelta(hours=1)
"""The time without a hook after which the pause is reset to the shortest."""


class Rechecker:
    """Runs the introspections that are due."""

    def __init__(self, core: Core, *, gate: Gate, introspector: Introspector, coordinator: RefreshCoordinator) -> None:
        self._core = core
        self._gate = gate
        self._introspector = introspector
        self._coordinator = coordinator

    async def begin(self, account_id: str) -> Sequence[str]:
        """Schedule introspections of an account's connections after AMO's hook has reported a disabled integration.

        Returns the ids of the connections for which an introspection was scheduled.
        """
        return await self._core.store.record_disabled_hook(account_id, shortest=_SHORTEST, quiet=_QUIET)

    async def check(self, connection_id: str) -> None:
        """Introspect a connection if its recheck is due; raises `RetryableError` if this is not possible now."""
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
        """Wait for a slot, then record that the introspection begins, and return the connection.

        In this order, the introspection also covers hooks that arrive during the wait. Returns `None` if the row has
        changed, or another process has begun the introspection.
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
        fields = {"reason": "the integration is disabled in AMO"}
        erased = connection_event("connection.disconnected", connection, Level.WARNING, fields=fields)
        await self._core.store.disconnect(connection, on_request=False, events=[erased])

    async def _introspect(self, connection: Connection, pair: TokenPair | None) -> tuple[TokenState, TokenState]:
        """Introspect the refresh token and, if it is rejected or cannot be introspected, an unexpired access token.

        Returns the state of the refresh token, and a state for the pair, which is `REJECTED` only if AMO rejects every
        introspected token.
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
            # The encryption key was missing and is available again, so the pair can be refreshed.
            await self._core.store.reactivate(connection, next_refresh_at=now, events=[recovered])
            return
        expires = connection.refresh_expires_at
        again = now + recheck_delay(connection.reason, self._core.rules)
        dead = expires is not None and expires <= now
        if dead or pair is None:
            # No key decrypts the pair, or it has expired by a clock that may be wrong. Nothing is sent to AMO, but the
            # recheck stays scheduled.
            await self._core.store.schedule_recheck(connection, at=again)
            return
        begun = await self._begin(connection)
        if begun is None:
            return
        refresh_token, both = await self._introspect(begun, pair)
        if both is TokenState.REJECTED and _is_named(begun) and self._gate.may_erase(begun):
            await self._erase(begun)
            return
        # A rejected refresh token does not count as accepted, even if AMO accepts the access token. It is presented
        # again only for the reason `refused`, once a day.
        accepted = both is TokenState.VALID and refresh_token is not TokenState.REJECTED
        tried = accepted or (begun.reason is Reason.REFUSED and not _is_early(connection, now))
        again = (begun.rechecked_at or now) + RECHECK_EVERY
        if await self._core.store.schedule_recheck(begun, at=again) and tried:
            await self._try(begun)

    async def _try(self, connection: Connection) -> None:
        """Try to refresh a connection in `needs_reauth` whose token AMO may accept again."""
        try:
            await self._coordinator.refresh(connection.id, trigger=RefreshTrigger.TRIAL, is_fresh_enough=_is_active)
        except (NotYet, RequestNotSent, ShuttingDown):
            # The token was not presented, for example because another connection was the probe.
            await self._recheck_soon(connection.id, status=Status.NEEDS_REAUTH)
        except (NeedsReauth, RetryableError):
            return  # the attempt has recorded the failure

    async def _recheck_soon(self, connection_id: str, *, status: Status) -> None:
        """Schedule the introspection in `retry_cap` seconds, unless the connection's status has changed."""
        connection = await self._core.store.connection(connection_id)
        if connection is not None and connection.status is status:
            soon = self._core.clock.now() + timedelta(seconds=self._core.rules.retry_cap)
            await self._core.store.schedule_recheck(connection, at=soon)


def _is_active(connection: Connection) -> bool:
    """Return whether the connection is active again and therefore does not need the refresh."""
    return connection.status is Status.ACTIVE


def _is_early(connection: Connection, now: datetime) -> bool:
    """Return whether this introspection was caused by a hook and not by the daily schedule."""
    rechecked_at = connection.rechecked_at
    return rechecked_at is not None and now < rechecked_at + RECHECK_EVERY - CLOCK_TOLERANCE


def _is_named(connection: Connection) -> bool:
    """Return whether AMO's hook has named the account since the connection's last success."""
    alive_at = connection.refreshed_at or connection.connected_at
    return connection.disabled_hook_at is not None and connection.disabled_hook_at >= alive_at


def _priority(connection: Connection) -> Priority:
    """Return the priority of an introspection; rechecks of active connections are always caused by a hook."""
    hooked = connection.status is Status.ACTIVE or _is_named(connection)
    return Priority.HOOK_CHECK if hooked else Priority.BACKGROUND


def _next_pause(pause: timedelta | None, state: TokenState) -> timedelta:
    """Return the next pause: the last pause, doubled if AMO has responded, but at most `_LONGEST`."""
    if pause is None or state is TokenState.UNKNOWN:
        return pause or _SHORTEST
    return min(2 * pause, _LONGEST)


def _next_recheck(connection: Connection, state: TokenState, *, began: datetime, pause: timedelta) -> datetime | None:
    """Return the time of the next introspection if no further hook arrives; `None` if no introspection follows."""
    disabled_hook_at = connection.disabled_hook_at or began
    silent = began + _AFTER_HOOK[-1] if state is TokenState.UNKNOWN else None  # repeated until AMO responds
    again = next((disabled_hook_at + after for after in _AFTER_HOOK if disabled_hook_at + after > began), silent)
    return None if again is None else max(again, began + pause)
