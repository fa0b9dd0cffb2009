"""One refresh, from claim to stored pair: the only place where a refresh token is spent.

AMO's refresh tokens work once. A second presentation, or an answer that is lost, costs the account its
connection, and only a person can mend that. Hence the order, each step committed before the next begins:

0. **Place.** A concurrency place and a slot at the rate limit first: a claim must not age in a queue.
1. **Claim.** One committed statement with a lease, a new attempt id and the fingerprint of what will be
   spent. It is also the write check: a full disk is met before the token is spent, not after.
2. **Spend.** One POST, at once, in a task of its own: neither a caller who hangs up nor a shutdown ends it.
3. **Store.** Only where the pair that it came from is still the stored one.
4. **Tell** whoever watches and whoever waits.
"""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import (
    AmoCallbackError,
    Busy,
    ClientRefused,
    MustMend,
    NeedsReauth,
    NotFound,
    OutcomeOpen,
    ShuttingDown,
    StoreUnavailable,
    Unreadable,
)
from amo_callback.model import (
    Claim,
    Connection,
    Event,
    Issued,
    Level,
    RefreshedPair,
    Status,
    TokenPair,
    fingerprint,
)
from amo_callback.ports import Priority
from amo_callback.schedule import REFRESH_TOKEN_LIFE, refresh_due
from amo_callback.tasks import done_unless
from amo_callback.unsaved import store_paid_for
from amo_callback.verdict import verdict_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.cipher import Cipher
    from amo_callback.model import RefreshRules
    from amo_callback.ports import AmoOAuth, Clock, Observer, Store


class Keeper:
    """Keep token pairs fresh, one refresh at a time for each connection."""

    def __init__(
        self,
        *,
        store: Store,
        amo: AmoOAuth,
        cipher: Cipher,
        clock: Clock,
        observer: Observer,
        rules: RefreshRules,
        owner: str,
        random: Callable[[], float],
    ) -> None:
        self._store = store
        self._amo = amo
        self._cipher = cipher
        self._clock = clock
        self._observer = observer
        self._rules = rules
        self._owner = owner
        self._random = random
        self._places = asyncio.Semaphore(rules.concurrency)
        self._flights: dict[str, asyncio.Task[Connection]] = {}
        self._stopping = asyncio.Event()

    async def refresh(self, connection_id: str, *, demand: str, patient: bool = False) -> Connection:
        """Refresh a connection's pair and return it as stored; callers at the same moment share one refresh.

        `demand` says on whose: `schedule`, `hand_out`. A `patient` caller does not ask again before a
        back-off has ended. Raises what kept the pair from being refreshed (`AmoCallbackError`); a caller who
        is cancelled cancels nothing else.
        """
        flight = self._flights.get(connection_id)
        if flight is None:
            flight = asyncio.create_task(
                self._fly(connection_id, demand=demand, patient=patient), name=f"refresh:{connection_id}"
            )
            self._flights[connection_id] = flight
            flight.add_done_callback(lambda landed: self._land(connection_id, landed))
        return await asyncio.shield(flight)

    def stop(self) -> None:
        """Spend nothing from now on; what has been claimed goes on to its end."""
        self._stopping.set()

    async def drain(self) -> None:
        """Wait until what is in flight is stored."""
        while self._flights:
            await asyncio.wait(self._flights.values())

    def _land(self, connection_id: str, flight: asyncio.Task[Connection]) -> None:
        self._flights.pop(connection_id, None)
        error = None if flight.cancelled() else flight.exception()
        if error is not None and not isinstance(error, AmoCallbackError):
            # Told here: whoever asked may be gone.
            self._observer(Event(name="refresh.bug", level=Level.ERROR, connection_id=connection_id, error=error))

    # --- the steps -------------------------------------------------------------------------------

    async def _fly(self, connection_id: str, *, demand: str, patient: bool) -> Connection:
        await self._wanted(connection_id, patient=patient)  # whoever has no business at AMO takes no slot there
        async with self._places:
            await self._slot()
            claimed, pair = await self._claim(await self._wanted(connection_id, patient=patient))
            started = self._clock.monotonic()
            try:
                # Before the spend: the integration that a pair was granted to is the only one that may present
                # it, since to AMO any other is a stranger with a stolen token.
                if claimed.client_id != self._amo.client_id:
                    raise ClientRefused("granted to another client_id")
                issued = await self._amo.refresh(refresh_token=pair.refresh_token, domain=claimed.domain)
            except AmoCallbackError as error:
                told = await self._judge(claimed, error)
                if told is error:
                    raise
                raise told from error
            except BaseException:
                await self._judge(claimed, OutcomeOpen("a bug"))
                raise
            return await self._save(claimed, issued, demand=demand, started=started)

    async def _wanted(self, connection_id: str, *, patient: bool) -> Connection:
        """Return the connection as it is now, if it may be refreshed."""
        connection = await self._store.connection(connection_id)
        if connection is None or connection.status is Status.DISCONNECTED:
            raise NotFound
        if connection.status is Status.NEEDS_REAUTH:
            raise NeedsReauth(connection.reason)
        due, now = connection.next_refresh_at, self._clock.now()
        if patient and connection.failures and due is not None and due > now:
            raise Busy((due - now).total_seconds(), because=connection.last_error)
        return connection

    async def _slot(self) -> None:
        """Wait for a slot at the rate limit, but not for one when the process ends."""
        slot = self._amo.slot(Priority.BACKGROUND)
        if not await done_unless(slot, stop=self._stopping, grace=0, clock=self._clock) or self._stopping.is_set():
            raise ShuttingDown

    async def _claim(self, connection: Connection) -> tuple[Connection, TokenPair]:
        """Take the right to spend the pair's refresh token, in writing."""
        started = self._clock.monotonic()
        now = self._clock.now()
        attempt = uuid.uuid4().hex
        pair = self._cipher.pair_of(connection)
        claimed = await self._store.claim(
            Claim(
                connection_id=connection.id,
                pair_version=connection.pair_version,
                attempt=attempt,
                owner=self._owner,
                at=now,
                until=now + timedelta(seconds=self._rules.lease),
                fingerprint="" if pair is None else fingerprint(pair.refresh_token),
            )
        )
        if claimed is None:
            raise Busy(self._rules.lease)
        if pair is None:
            raise await self._judge(claimed, Unreadable())
        # By the monotonic clock, read before the claim: a process that was stopped meanwhile, or a store that
        # took its time, must not spend a token on a lease that ends under the request.
        left = self._rules.lease - (self._clock.monotonic() - started)
        if left < self._amo.timeout or self._stopping.is_set():
            await self._store.release(connection_id=connection.id, attempt=attempt)
            raise ShuttingDown if self._stopping.is_set() else Busy(1.0)
        return claimed, pair

    async def _save(self, claimed: Connection, issued: Issued, *, demand: str, started: float) -> Connection:
        """Store a pair that has been paid for, before anything else happens; try until it is stored."""
        pair = issued.pair
        refreshed = RefreshedPair(
            connection_id=claimed.id,
            pair_version=claimed.pair_version,
            sealed_pair=self._cipher.seal_pair(pair, connection_id=claimed.id),
            api_domain=issued.account.api_domain or claimed.api_domain,
            issued_at=pair.issued_at,
            expires_at=pair.expires_at,
            refresh_expires_at=pair.issued_at + REFRESH_TOKEN_LIFE,
            next_refresh_at=refresh_due(pair, at=self._rules.at, jitter=self._rules.jitter, random=self._random),
        )
        stored = await store_paid_for(
            lambda: self._store.save_refreshed(refreshed),
            connection_id=claimed.id,
            clock=self._clock,
            observer=self._observer,
        )
        if stored is None:
            self._tell("refresh.superseded", claimed, Level.WARNING)
            return await self._wanted(claimed.id, patient=False)
        self._tell(
            "refresh.succeeded",
            stored,
            demand=demand,
            seconds=round(self._clock.monotonic() - started, 3),
            expires_at=pair.expires_at,
            next_refresh_at=refreshed.next_refresh_at,
        )
        return stored

    # --- verdicts --------------------------------------------------------------------------------

    async def _judge(self, claimed: Connection, error: AmoCallbackError) -> AmoCallbackError:
        """Write down what a refresh without a pair means, end the claim, and return what to tell the caller."""
        verdict = verdict_of(error, claimed=claimed, now=self._clock.now(), rules=self._rules, random=self._random)
        try:
            kept = await self._store.save_verdict(verdict)
        except StoreUnavailable as failed:
            # The claim stays, with what it was spending: after the lease it counts as doubtful.
            self._tell("refresh.verdict_unsaved", claimed, Level.ERROR, error=error.code, store=failed.what)
            return NeedsReauth(verdict.reason) if verdict.status is Status.NEEDS_REAUTH else error
        if not kept:
            self._tell("refresh.superseded", claimed, Level.WARNING, error=error.code)
            return Busy(1.0)
        if verdict.status is Status.NEEDS_REAUTH:
            self._tell("connection.needs_reauth", claimed, Level.WARNING, reason=verdict.reason, error=error.code)
            return NeedsReauth(verdict.reason)
        self._tell(
            "refresh.failed",
            claimed,
            Level.ERROR if isinstance(error, MustMend) else Level.WARNING,
            failures=claimed.failures + 1,
            next_refresh_at=verdict.next_refresh_at,
            **error.fields,
        )
        return error

    def _tell(self, name: str, connection: Connection, level: Level = Level.INFO, **fields: object) -> None:
        self._observer(
            Event(
                name=name,
                level=level,
                connection_id=connection.id,
                fields={"domain": connection.domain, **fields},
            )
        )
