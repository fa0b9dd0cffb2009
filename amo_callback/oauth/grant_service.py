"""One exchange per authorization code, and the same result for every caller.

Browsers prefetch, reload and go back, and the app calls after the browser, so one code may arrive many times. The first
call claims the grant in the store and exchanges the code in a separate task. Concurrent calls wait for that task, or
for the process that runs it; later calls read the stored result. AMO accepts a code only once, so concurrent
calls must not present it twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from amo_callback.concurrency import SingleFlight, wait_at_most
from amo_callback.errors import (
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
from amo_callback.events import report_bug
from amo_callback.grant import CodePresentation, CodeSource, GrantStatus, is_our_state
from amo_callback.model import fingerprint
from amo_callback.oauth.code_exchange import CodeExchange
from amo_callback.oauth.grants import GrantRecords
from amo_callback.oauth.limits import priority_of
from amo_callback.refresh.leases import Leases

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.grant import Grant, GrantResult, GrantSecrets
    from amo_callback.model import Connection
    from amo_callback.oauth.authorization import Authorizations
    from amo_callback.oauth.code_exchange import Exchanger
    from amo_callback.oauth.grants import GrantRules
    from amo_callback.oauth.limits import Limits

_POLL_EVERY = 0.25
"""Seconds between two reads of a grant that another process is exchanging."""


class GrantService:
    """Exchanges presented codes, and returns the results of grants."""

    def __init__(
        self, core: Core, rules: GrantRules, *, exchanger: Exchanger, authorizations: Authorizations, limits: Limits
    ) -> None:
        self._core = core
        self._exchanger = exchanger
        self._authorizations = authorizations
        self._limits = limits
        self._wait_limit = rules.wait_limit
        self._grants = GrantRecords(core, rules)
        self._leases = Leases(length=core.rules.lease, store=core.store, clock=core.clock)
        self._exchanges: SingleFlight[GrantResult] = SingleFlight("grant", on_end=self._ended)
        self._pending: dict[str, GrantResult] = {}
        """The current results of grants whose codes are being exchanged, in this process or another one."""
        self._claimed: set[str] = set()

    async def complete(self, presented: CodePresentation) -> GrantResult:
        """Exchange a code if necessary, and return the result of its grant.

        If the exchange takes longer than `wait_limit` seconds, the status of the result is `EXCHANGING`. The host named
        by the first caller is used; it is checked before anything is sent to AMO. Cancelling a caller does not cancel
        the exchange. Raises `UserError` if this service rejects the code without sending it to AMO; also raises
        `NotFound`, `PkceMismatch`, `QueueFull`, `StoreUnavailable` and `ShuttingDown`.
        """
        try:
            result = await self._completed(presented)
        except InvalidState:
            earlier = await self._with_earlier_code(presented)
            if earlier is None:
                raise
            presented = earlier
            result = await self._completed(presented)
        self._authorizations.check(presented, state=result.state, request=result.request)
        return result

    async def _with_earlier_code(self, presented: CodePresentation) -> CodePresentation | None:
        """Return the presentation with the code that has used up its state, if that code is for the same account.

        A user who goes back in the browser and allows access again brings a second code with the same state. The user
        gets the result of the first code, and the second code is not exchanged.
        """
        if presented.source is not CodeSource.BROWSER or not is_our_state(presented.state):
            return None
        issued = await self._core.store.issued_state(fingerprint(presented.state or b""))
        grant = None if issued is None or not issued.code_hash else await self._core.store.grant(issued.code_hash)
        if grant is None or grant.sealed is None or grant.expires_at <= self._core.clock.now():
            return None
        secrets = self._grants.secrets_of(grant)
        is_same_account = secrets.domain == self._core.amo.check_domain(presented.host)
        return dataclasses.replace(presented, code=secrets.code) if is_same_account else None

    async def _completed(self, presented: CodePresentation) -> GrantResult:
        while True:
            task, started = self._exchanges.start(presented.code_hash, lambda: self._run(presented))
            if not await wait_at_most(task, seconds=self._wait_limit, clock=self._core.clock):
                break
            try:
                return task.result()
            except (UserError, NotFound, PkceMismatch, QueueFull):
                if started:
                    raise
                # Another caller's error, such as a missing host or state, need not apply to this caller.
        if presented.code_hash not in self._pending:
            raise StoreUnavailable("late")
        return self._pending[presented.code_hash]

    async def result(self, handle: str) -> GrantResult:
        """Return the result for a return handle; raises `NotFound` if the handle is unknown or expired."""
        return self._grants.to_result(await self._by_handle(handle))

    async def retry(self, handle: str, *, address: str | None = None) -> GrantResult:
        """Retry the code of a return handle after a temporary failure; raises the errors of `result` and `complete`."""
        secrets = self._grants.secrets_of(await self._by_handle(handle))
        return await self.complete(
            CodePresentation(code=secrets.code, state=secrets.state, host=secrets.domain, address=address)
        )

    async def _by_handle(self, handle: str) -> Grant:
        grant = await self._core.store.grant_by_handle(fingerprint(handle))
        if grant is None or grant.expires_at <= self._core.clock.now():
            raise NotFound
        return grant

    async def connection_of(self, result: GrantResult) -> Connection | None:
        """Return the connection of a grant as it is now stored, if there is one."""
        return await self._core.store.connection(result.connection_id) if result.connection_id else None

    async def drain(self) -> None:
        """Start no more exchanges, and wait until the results of all claimed grants are stored."""
        self._core.stop.set()
        for code_hash, task in self._exchanges:
            if code_hash not in self._claimed:
                task.cancel()  # the grant is not claimed yet
        await self._exchanges.drain()

    def _ended(self, code_hash: str, task: asyncio.Task[GrantResult]) -> None:
        self._pending.pop(code_hash, None)
        self._claimed.discard(code_hash)
        report_bug("grant.bug", task, self._core.observer)

    # --- one grant -------------------------------------------------------------------------------

    async def _run(self, presented: CodePresentation) -> GrantResult:
        while True:
            grant = await self._core.store.grant(presented.code_hash)
            if grant is not None and grant.expires_at <= self._core.clock.now():
                raise GrantExpired
            if grant is None or self._is_abandoned(grant) or grant.status is GrantStatus.FAILED:
                grant, secrets = await self._attempt(presented, grant)
                if secrets is not None:
                    return self._grants.to_result(grant, secrets)
                if grant.status is GrantStatus.FAILED:
                    continue  # another caller claimed the grant first and failed; read the grant again
            if grant.status is not GrantStatus.EXCHANGING or self._core.stop.is_set():
                return self._grants.to_result(grant)
            self._pending[presented.code_hash] = self._grants.to_result(grant)
            await self._core.clock.sleep(_POLL_EVERY)

    async def _attempt(self, presented: CodePresentation, before: Grant | None) -> tuple[Grant, GrantSecrets | None]:
        """Claim the grant and exchange its code; return the grant, and its secrets if this call claimed it."""
        started = self._core.clock.monotonic()
        known = None if before is None else self._grants.secrets_of(before)
        if known is None:
            request = await self._authorizations.admit(presented)
        else:
            self._authorizations.check(presented, state=known.state, request=known.request)
            request = known.request
        # If the caller names no host, the host of an earlier call is used, or the default host if there is none.
        domain = self._core.amo.check_domain(presented.host or (known.domain if known else None))
        fresh, secrets = self._grants.begin(presented, domain=domain, request=request)
        priority = priority_of(request)
        who = f"user {request.user}" if request is not None and request.user is not None else presented.address
        with self._limits.queue.enter(priority, who) as turn:
            reservation = self._limits.codes.reserve(who, among=priority)
            try:
                async with self._limits.queue.write(priority):
                    grant = await self._core.store.claim_grant(
                        fresh,
                        now=self._core.clock.now(),
                        over=None if before is None else before.attempt,
                        state_hash=None if known or request is None else fingerprint(presented.state or b""),
                    )
            except (StoreUnavailable, Frozen, InvalidState):
                reservation.release()  # nothing was sent to AMO
                raise
            except asyncio.CancelledError:
                await self._unclaim(fresh)
                reservation.release()
                raise
            if grant.attempt != fresh.attempt:
                reservation.release()  # another caller claimed the grant first
                return grant, None
            secrets = known or secrets  # a retried code keeps its return handle and ticket
            self._claimed.add(presented.code_hash)
            self._pending[presented.code_hash] = self._grants.to_result(grant, secrets)
            exchange = CodeExchange(
                code=presented.code, domain=domain, request=request, started=started, reservation=reservation, turn=turn
            )
            return await self._exchanger.exchange(grant, exchange), secrets

    async def _unclaim(self, fresh: Grant) -> None:
        """Release a claim that was committed although its task was cancelled; nothing was sent to AMO."""
        grant = await self._core.store.grant(fresh.code_hash)
        if grant is not None and grant.attempt == fresh.attempt:
            await self._core.store.finish_grant(
                dataclasses.replace(grant, status=GrantStatus.FAILED, error=ShuttingDown.deep_link_error)
            )

    def _is_abandoned(self, grant: Grant) -> bool:
        """Return whether the exchange is unfinished and its lease has expired, so its process must have exited."""
        if grant.status is not GrantStatus.EXCHANGING:
            self._leases.forget(grant.code_hash)
            return False
        return not self._leases.remaining_of(
            grant.code_hash, grant.attempt, grant.lease_until, reported=grant.lease_left
        )
