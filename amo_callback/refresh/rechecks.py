"""Tokens looked up, not spent: of connections that were given up, and of accounts that AMO's hook named.

A connection that needs its person keeps its pair, and is looked up once a day: AMO may have been ill, and it heals.
AMO's hook says that the integration was switched off in an account; but its signature never changes, so whoever
has seen one can send it again. So it is a hint: only where AMO itself knows the token no more are the tokens erased.
One that was given up already has its turn now at the first hook since it lived, and then once a day as before.

A hook causes a look-up now, and two more later. Further hooks leave one look-up pending, which is made when a pause
since the last one is over. The pause grows while AMO accepts the token, so a flood of replays costs few look-ups, and
the last hook is always followed by one.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import HostNotAllowed, NeedsReauth, NotYet, RequestNotSent, RetryableError, ShuttingDown
from amo_callback.events import Level, connection_event
from amo_callback.model import Connection, Reason, RefreshTrigger, Status, TokenPair, TokenState
from amo_callback.rate_limit import Priority
from amo_callback.refresh.failure_policy import LOOK_UP_EVERY, look_again_in
from amo_callback.refresh.slots import acquire_slot
from amo_callback.schedule import CLOCK_TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.core import Core
    from amo_callback.refresh.coordinator import RefreshCoordinator
    from amo_callback.refresh.gate import Gate
    from amo_callback.refresh.introspector import Introspector

_AFTER_HOOK = (timedelta(minutes=1), timedelta(minutes=10))
"""When an account that the hook named, and that still lives, is looked up again."""
_SHORTEST, _LONGEST = timedelta(seconds=5), timedelta(minutes=10)
"""The pause after a look-up, before a further hook causes the next one."""
_QUIET = timedelta(hours=1)
"""The time without a hook after which the pause is the shortest again."""


class Rechecker:
    """Look up whose turn it is."""

    def __init__(self, core: Core, *, gate: Gate, introspector: Introspector, coordinator: RefreshCoordinator) -> None:
        self._core = core
        self._gate = gate
        self._introspector = introspector
        self._coordinator = coordinator

    async def begin(self, account_id: str) -> Sequence[str]:
        """Have an account's connections looked up: AMO says that the integration was switched off there.

        Returns the ids of those whose look-up was not pending already.
        """
        return await self._core.store.record_disabled_hook(account_id, shortest=_SHORTEST, quiet=_QUIET)

    async def check(self, connection_id: str) -> None:
        """Look up a connection whose look-up is due; raises `RetryableError` where that cannot be done now."""
        connection = await self._core.store.connection(connection_id)
        if connection is None or connection.look_up_at is None or connection.look_up_at > self._core.clock.now():
            return
        pair = self._core.cipher.pair_of(connection)
        try:
            if connection.status is Status.NEEDS_REAUTH:
                await self._check_given_up(connection, pair)
            else:
                await self._check_hook(connection, pair)
        except HostNotAllowed:  # nothing was asked
            await self._look_up_soon(connection_id, status=connection.status)

    async def _begin(self, connection: Connection) -> Connection | None:
        """Wait for a slot, then begin the look-up, so that it covers the hooks that came while it waited.

        Returns `None` where the connection has changed since it was read, or another process has begun the look-up.
        """
        await acquire_slot(self._core, _priority(connection))
        again_in = (connection.look_up_pause or _SHORTEST) + timedelta(seconds=self._core.rules.lease)
        return await self._core.store.begin_recheck(connection, again_in=again_in)

    # --- the hook --------------------------------------------------------------------------------

    async def _check_hook(self, connection: Connection, pair: TokenPair | None) -> None:
        begun = await self._begin(connection)
        if begun is None:
            return
        _, standing = await self._standings(begun, pair)
        if standing is TokenState.REFUSED and self._gate.may_erase(begun):
            await self._erase(begun)
            return
        pause = _next_pause(begun.look_up_pause, standing)
        again = _next_look_up(begun, standing, began=begun.looked_up_at or self._core.clock.now(), pause=pause)
        unconfirmed = connection_event(
            "hook.unconfirmed", begun, Level.WARNING, told={"standing": standing, "again_at": again}
        )
        await self._core.store.schedule_recheck(begun, at=again, pause=pause, events=[unconfirmed])

    async def _erase(self, connection: Connection) -> None:
        """Erase tokens that AMO knows no more; what a grant brings holds, whenever it is stored.

        Where something has changed since the connection was read, it is looked at again.
        """
        erased = connection_event(
            "connection.disconnected", connection, Level.WARNING, told={"reason": "switched off in AMO"}
        )
        await self._core.store.disconnect(connection, on_request=False, events=[erased])

    async def _standings(self, connection: Connection, pair: TokenPair | None) -> tuple[TokenState, TokenState]:
        """Ask about the refresh token, and where that is not accepted about an access token that should be valid.

        Returns the standing of the refresh token, and that of both: only where AMO rejects both may tokens be erased.
        """
        if pair is None:
            return TokenState.UNASKED, TokenState.UNASKED
        first = TokenState.UNASKED
        if connection.has_refresh_token:
            first = (await self._introspector.about_refresh_token(connection, pair, priority=None)).standing
        if first not in {TokenState.REFUSED, TokenState.UNASKED} or self._core.clock.now() >= pair.expires_at:
            return first, first
        priority = _priority(connection)
        second = (
            await self._introspector.about_access_token(connection, pair.access_token, priority=priority)
        ).standing
        return first, first if second is TokenState.UNASKED else second

    # --- given up --------------------------------------------------------------------------------

    async def _check_given_up(self, connection: Connection, pair: TokenPair | None) -> None:
        now = self._core.clock.now()
        if connection.attempt is not None and connection.reason is not Reason.IN_DOUBT:
            if not self._gate.lease_left(connection):
                doubted = connection_event(
                    "connection.in_doubt", connection, told={"from_process": connection.lease_owner}
                )
                await self._core.store.mark_in_doubt(connection, events=[doubted])
            raise NotYet(1.0)  # looked at again: the row is another one now, or its lease runs
        if pair is not None and connection.last_error == "unreadable":
            recovered = connection_event("connection.recovered", connection)
            await self._core.store.reactivate(connection, next_refresh_at=now, events=[recovered])  # the key is back
            return
        expires = connection.refresh_expires_at
        again = now + look_again_in(connection.reason, self._core.rules)
        dead = expires is not None and expires <= now
        if dead or pair is None:
            # Dead by our own clock, which may be wrong: nothing is asked of AMO, but it is not forgotten either.
            await self._core.store.schedule_recheck(connection, at=again)
            return
        begun = await self._begin(connection)
        if begun is None:
            return
        refresh_token, both = await self._standings(begun, pair)
        if both is TokenState.REFUSED and _is_named(begun) and self._gate.may_erase(begun):
            await self._erase(begun)
            return
        # A refresh token that AMO rejects is not presented once more, even where the access token is still accepted.
        accepted = both is TokenState.GOOD and refresh_token is not TokenState.REFUSED
        tried = accepted or (begun.reason is Reason.REFUSED and not _is_early(connection, now))
        again = (begun.looked_up_at or now) + LOOK_UP_EVERY
        if await self._core.store.schedule_recheck(begun, at=again) and tried:
            await self._try(begun)

    async def _try(self, connection: Connection) -> None:
        """Present a token that AMO seems to know after all; where it does not, that was the last time."""
        try:
            await self._coordinator.refresh(connection.id, demand=RefreshTrigger.TRIAL, satisfied=_is_active)
        except (NotYet, RequestNotSent, ShuttingDown):
            # It was not presented: another connection was the probe, perhaps.
            await self._look_up_soon(connection.id, status=Status.NEEDS_REAUTH)
        except (NeedsReauth, RetryableError):
            return  # it was recorded with the attempt

    async def _look_up_soon(self, connection_id: str, *, status: Status) -> None:
        """Put the look-up off by `retry_cap`, unless the connection has another status by now."""
        connection = await self._core.store.connection(connection_id)
        if connection is not None and connection.status is status:
            soon = self._core.clock.now() + timedelta(seconds=self._core.rules.retry_cap)
            await self._core.store.schedule_recheck(connection, at=soon)


def _is_active(connection: Connection) -> bool:
    """Tell whether nobody need try any more: the person has connected again meanwhile."""
    return connection.status is Status.ACTIVE


def _is_early(connection: Connection, now: datetime) -> bool:
    """Tell whether a hook causes this look-up, and not the day that has passed since the last one."""
    looked_up_at = connection.looked_up_at
    return looked_up_at is not None and now < looked_up_at + LOOK_UP_EVERY - CLOCK_TOLERANCE


def _is_named(connection: Connection) -> bool:
    """Tell whether AMO's hook has named its account since it last proved alive."""
    alive_at = connection.refreshed_at or connection.connected_at
    return connection.hook_at is not None and connection.hook_at >= alive_at


def _priority(connection: Connection) -> Priority:
    """Return the priority of a look-up: of an active connection only a hook causes one."""
    hooked = connection.status is Status.ACTIVE or _is_named(connection)
    return Priority.HOOK_CHECK if hooked else Priority.BACKGROUND


def _next_pause(pause: timedelta | None, standing: TokenState) -> timedelta:
    """Return the pause after a look-up: longer than the last one, unless AMO gave no answer."""
    if pause is None or standing is TokenState.UNKNOWN:
        return pause or _SHORTEST
    return min(2 * pause, _LONGEST)


def _next_look_up(
    connection: Connection, standing: TokenState, *, began: datetime, pause: timedelta
) -> datetime | None:
    """Return when a connection that its hook named is looked up again, if no further hook comes."""
    hook_at = connection.hook_at or began
    silent = began + _AFTER_HOOK[-1] if standing is TokenState.UNKNOWN else None  # until AMO gives an answer
    again = next((hook_at + after for after in _AFTER_HOOK if hook_at + after > began), silent)
    return None if again is None else max(again, began + pause)
