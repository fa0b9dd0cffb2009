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
    AccountNotAllowed,
    AmoCallbackError,
    Busy,
    CodeExpired,
    CodeUsed,
    GrantExpired,
    NotFound,
    OutcomeOpen,
    PersonMustAct,
    ShuttingDown,
    StoreUnavailable,
    UnknownRefusal,
)
from amo_callback.model import (
    Connection,
    Event,
    Grant,
    GrantSecrets,
    GrantStatus,
    Issued,
    Level,
    Outcome,
    Status,
    connection_id,
    fingerprint,
)
from amo_callback.ports import Priority
from amo_callback.schedule import REFRESH_TOKEN_LIFE, refresh_due
from amo_callback.tasks import done_within
from amo_callback.unsaved import store_paid_for

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from amo_callback.cipher import Cipher
    from amo_callback.limits import Unproven
    from amo_callback.ports import AmoOAuth, Clock, Observer, Store

_LOOK_AGAIN = 0.25
"""Seconds between two looks at a grant that another process is exchanging."""
_LAST_SLOT = 3.0
"""Seconds that an exchange may still wait for its slot once the process is to end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectRules:
    """How grants are completed."""

    allowed_accounts: Collection[str] = ()
    patience: float = 8.0
    """Seconds after which a person is told that it takes longer; the exchange goes on."""
    code_life: float = 1200.0
    """Seconds that AMO's codes live, and our memory of them."""
    lease: float = 60.0
    refresh_at: float = 0.5
    jitter: float = 0.1


@dataclass(slots=True)
class _Flight:
    task: asyncio.Task[Outcome] | None = None
    pending: Outcome | None = field(default=None, repr=False)
    """Where the result will be found, once the grant has been written."""


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
        unproven: Unproven,
        rules: ConnectRules,
        random: Callable[[], float],
        new_handle: Callable[[], str],
        connected: Callable[[], None],
    ) -> None:
        self._store = store
        self._amo = amo
        self._cipher = cipher
        self._clock = clock
        self._observer = observer
        self._unproven = unproven
        self._rules = rules
        self._random = random
        self._new_handle = new_handle
        self._connected = connected
        self._flights: dict[str, _Flight] = {}
        self._stopping = asyncio.Event()

    async def complete(
        self, *, code: bytes, state: bytes | None, domain: str | None, address: str | None = None
    ) -> Outcome:
        """Return what became of a code, exchanging it if that was not done; `EXCHANGING` after `patience`.

        Without a `domain` (checked before) a code that was seen is asked about where it was seen, another one
        at the default. `address` is whose unproven codes are limited. Raises `GrantExpired`, `InvalidRequest`,
        `TooManyUnproven` and `StoreUnavailable`. A caller who is cancelled cancels nothing else.
        """
        code_hash = fingerprint(code)
        flight = self._flights.get(code_hash)
        if flight is None:
            flight = self._flights[code_hash] = _Flight()
            flight.task = asyncio.create_task(
                self._fly(flight, code_hash, code=code, state=state, domain=domain, address=address),
                name=f"grant:{code_hash[:8]}",
            )
            flight.task.add_done_callback(lambda landed: self._land(code_hash, landed))
        if flight.task is not None and await done_within(flight.task, seconds=self._rules.patience, clock=self._clock):
            return flight.task.result()
        if flight.pending is None:
            raise StoreUnavailable("late")
        return flight.pending

    async def returned(self, handle: str) -> Outcome:
        """Return what the return address `handle` shows; raises `NotFound` for one that is unknown or over."""
        grant = await self._store.grant_by_handle(fingerprint(handle))
        if grant is None or grant.expires_at <= self._clock.now():
            raise NotFound
        return self._told(grant)

    async def connection_of(self, outcome: Outcome) -> Connection | None:
        """Return the connection that a grant led to, as it is now."""
        return await self._store.connection(outcome.connection_id) if outcome.connection_id else None

    def stop(self) -> None:
        """Wait no longer for the rate limit; what has been sent goes on to its end."""
        self._stopping.set()

    async def drain(self) -> None:
        """Wait until what is in flight is stored."""
        while self._flights:
            await asyncio.wait([flight.task for flight in self._flights.values() if flight.task])

    def _land(self, code_hash: str, task: asyncio.Task[Outcome]) -> None:
        self._flights.pop(code_hash, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, AmoCallbackError):
            self._observer(Event(name="grant.bug", level=Level.ERROR, error=error))

    # --- one grant -------------------------------------------------------------------------------

    async def _fly(
        self,
        flight: _Flight,
        code_hash: str,
        *,
        code: bytes,
        state: bytes | None,
        domain: str | None,
        address: str | None,
    ) -> Outcome:
        while True:
            grant = await self._store.grant(code_hash)
            if grant is not None and grant.expires_at <= self._clock.now():
                raise GrantExpired
            if grant is None or self._may_try(grant):
                host = domain or (self._secrets(grant).domain if grant else self._amo.check_domain(None))
                self._unproven.take(address)
                fresh = self._begun(code_hash, code=code, state=state, domain=host)
                grant = await self._store.claim_grant(fresh, now=self._clock.now())
                if grant.attempt == fresh.attempt:
                    flight.pending = self._told(grant)
                    return self._told(await self._exchange(grant, code=code, domain=host, address=address))
                self._unproven.give_back(address)
            if grant.status is not GrantStatus.EXCHANGING:
                return self._told(grant)
            flight.pending = self._told(grant)
            await self._clock.sleep(_LOOK_AGAIN)

    def _may_try(self, grant: Grant) -> bool:
        abandoned = grant.status is GrantStatus.EXCHANGING and grant.lease_until <= self._clock.now()
        return abandoned or grant.status is GrantStatus.FAILED

    def _begun(self, code_hash: str, *, code: bytes, state: bytes | None, domain: str) -> Grant:
        secrets = GrantSecrets(handle=self._new_handle(), code=code, state=state, domain=domain)
        now = self._clock.now()
        return Grant(
            code_hash=code_hash,
            handle_hash=fingerprint(secrets.handle),
            sealed=self._cipher.seal_grant(secrets, code_hash=code_hash),
            status=GrantStatus.EXCHANGING,
            attempt=uuid.uuid4().hex,
            lease_until=now + timedelta(seconds=self._rules.lease),
            expires_at=now + timedelta(seconds=self._rules.code_life),
        )

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
            connection_id=grant.connection_id,
        )

    def _secrets(self, grant: Grant) -> GrantSecrets:
        return self._cipher.open_grant(grant.sealed or b"", code_hash=grant.code_hash)

    # --- its exchange ----------------------------------------------------------------------------

    async def _exchange(self, grant: Grant, *, code: bytes, domain: str, address: str | None) -> Grant:
        try:
            await self._slot()
            issued = await self._amo.exchange(code=code, domain=domain)
            self._unproven.give_back(address)
            if self._rules.allowed_accounts and issued.account.account_id not in self._rules.allowed_accounts:
                raise AccountNotAllowed
        except AmoCallbackError as error:
            ended = _failed(grant, error)
            self._tell_failed(ended, error, domain)
            await self._store.finish_grant(ended)
            return ended
        except BaseException:
            await self._store.finish_grant(_failed(grant, OutcomeOpen("a bug")))
            raise
        connection = self._granted(issued, domain)
        ended = dataclasses.replace(grant, status=GrantStatus.CONNECTED, connection_id=connection.id)
        await store_paid_for(
            lambda: self._store.save_connected(ended, connection, token_iat=issued.account.token_iat),
            connection_id=connection.id,
            clock=self._clock,
            observer=self._observer,
        )
        self._observer(
            Event(
                name="connection.connected",
                connection_id=connection.id,
                fields={
                    "account_id": connection.account_id,
                    "domain": domain,
                    "expires_at": connection.access_expires_at,
                    "next_refresh_at": connection.next_refresh_at,
                },
            )
        )
        self._connected()
        return ended

    async def _slot(self) -> None:
        """Wait for a slot at the rate limit; not for as long as the claim lasts, nor as the process ends."""
        started = self._clock.monotonic()
        slot = asyncio.ensure_future(self._amo.slot(Priority.PEOPLE))
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({slot, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not await done_within(slot, seconds=_LAST_SLOT, clock=self._clock):
                raise ShuttingDown
        finally:
            slot.cancel()
            stop.cancel()
        await slot
        if self._clock.monotonic() - started > self._rules.lease - self._amo.timeout:
            raise Busy(0)  # by the end of the request somebody else might hold the claim

    def _granted(self, issued: Issued, domain: str) -> Connection:
        pair, account = issued.pair, issued.account
        name = connection_id(account, domain)
        return Connection(
            id=name,
            account_id=account.account_id,
            user_id=account.user_id,
            domain=domain,
            api_domain=account.api_domain,
            client_id=self._amo.client_id,
            status=Status.ACTIVE,
            sealed_pair=self._cipher.seal_pair(pair, connection_id=name),
            access_issued_at=pair.issued_at,
            access_expires_at=pair.expires_at,
            refresh_expires_at=pair.issued_at + REFRESH_TOKEN_LIFE,
            refreshed_at=None,
            next_refresh_at=refresh_due(
                pair, at=self._rules.refresh_at, jitter=self._rules.jitter, random=self._random
            ),
            connected_at=pair.issued_at,
            pair_version=1,
            row_version=1,
        )

    def _tell_failed(self, grant: Grant, error: AmoCallbackError, domain: str) -> None:
        level = Level.INFO if isinstance(error, PersonMustAct) else Level.WARNING
        fields = {"domain": domain, "word": grant.error, "error": error.code}
        fields |= {name: vars(error)[name] for name in ("what", "status", "hint") if name in vars(error)}
        self._observer(Event(name="grant.failed", level=level, fields=fields))


def _failed(grant: Grant, error: AmoCallbackError) -> Grant:
    """Return how a grant ends without a pair: for good, or so that the same code may be tried again."""
    if isinstance(error, CodeUsed) and grant.doubtful:
        # An attempt of ours ended without an answer: most likely it is what spent the code.
        error = CodeExpired()
    final = isinstance(error, PersonMustAct | UnknownRefusal)
    return dataclasses.replace(
        grant,
        status=GrantStatus.REFUSED if final else GrantStatus.FAILED,
        error=error.word,
        doubtful=grant.doubtful or isinstance(error, OutcomeOpen),
    )
