"""One code exchange, from a claimed grant to a stored pair. No other module spends authorization codes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from amo_callback.concurrency import wait_or_stop
from amo_callback.core import record_event
from amo_callback.errors import (
    AccountNotAllowed,
    AmoCallbackError,
    CodeExpired,
    CodeUsed,
    NotYet,
    RequestNotSent,
    ShuttingDown,
    UnknownOutcome,
    UserError,
)
from amo_callback.events import Event, Level
from amo_callback.grant import Grant, GrantStatus, NewConnection, support_code
from amo_callback.model import Connection, Status, TokenResponse, connection_id
from amo_callback.oauth.limits import priority_of
from amo_callback.refresh.raw_answers import grant_file_name
from amo_callback.schedule import REFRESH_TOKEN_LIFETIME, refresh_due

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from amo_callback.core import Core
    from amo_callback.grant import AuthorizationRequest
    from amo_callback.oauth.grants import GrantRules
    from amo_callback.oauth.limits import Reservation
    from amo_callback.refresh.address_block import AddressBlock
    from amo_callback.refresh.credentials import Credentials
    from amo_callback.refresh.pending_writes import PendingWrites
    from amo_callback.refresh.raw_answers import RawAnswers

_LAST_SLOT = 1.0
"""The maximum number of seconds for which an exchange waits for its rate-limit slot at shutdown.

The other steps of an exchange have their own limits. The sum of all limits is within systemd's stop timeout.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeParts:
    """The components of the token lifecycle that an exchange uses."""

    pending_writes: PendingWrites
    raw_answers: RawAnswers
    credentials: Credentials
    address_block: AddressBlock
    connected: Callable[[Connection], None]
    """Called after AMO has accepted a code and its pair has been stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeExchange:
    """An authorization code that is about to be exchanged."""

    code: bytes = field(repr=False)
    domain: str
    """The account's validated host."""
    request: AuthorizationRequest | None
    """The authorization request, if this service started the flow."""
    started: float
    """The monotonic time from which the lease is counted, taken before the grant was claimed."""
    reservation: Reservation
    """The caller's rate-limit reservation."""
    turn: asyncio.Lock = field(compare=False, repr=False)
    """The lock of the caller's user or address, held while the code waits for a rate-limit slot."""


class Exchanger:
    """Exchanges the codes of claimed grants, and stores the new pairs."""

    def __init__(self, core: Core, rules: GrantRules, parts: ExchangeParts) -> None:
        self._core = core
        self._rules = rules
        self._pending_writes = parts.pending_writes
        self._raw_answers = parts.raw_answers
        self._credentials = parts.credentials
        self._address_block = parts.address_block
        self._connected = parts.connected

    async def exchange(self, grant: Grant, exchange: CodeExchange) -> Grant:
        """Exchange the code of a claimed grant, store the pair, and return the finished grant.

        Raises `StoreUnavailable` if a refusal cannot be stored. A pair is kept in memory until it is stored. At
        shutdown, `ShuttingDown` is raised as soon as an unsaved pair is in a rescue file.
        """
        try:
            issued = await self._spend(exchange)
        except AmoCallbackError as error:
            await self._raw_answers.keep(grant_file_name(grant.code_hash), error, domain=exchange.domain)
            if isinstance(error, RequestNotSent | ShuttingDown | NotYet):
                exchange.reservation.release()  # nothing was sent to AMO
            ended = _failed(grant, error)
            self._report_failure(ended, error, exchange.domain)
            expected = exchange.request is not None or exchange.domain == self._rules.default_domain
            await self._credentials.note_refusal(error, host=exchange.domain, expected=expected)
            await self._core.store.finish_grant(ended)
            return ended
        except BaseException:
            bug = UnknownOutcome("a bug")
            ended = _failed(grant, bug)
            self._report_failure(ended, bug, exchange.domain)
            await self._core.store.finish_grant(ended)
            raise
        return await self._save(grant, exchange, issued)

    async def _spend(self, exchange: CodeExchange) -> TokenResponse:
        """Present the code and return AMO's response; raises the corresponding error if AMO refuses the code.

        Raises `AccountNotAllowed`, and discards the pair, if AMO accepts the code for an account that is not allowed.
        """
        await self._slot(exchange)
        not_after = exchange.started + self._core.rules.lease - self._core.amo.timeout
        with self._pending_writes.expecting():
            issued = await self._core.amo.exchange(code=exchange.code, domain=exchange.domain, not_after=not_after)
        self._credentials.accept()
        if self._rules.allowed_accounts and issued.account.account_id not in self._rules.allowed_accounts:
            exchange.reservation.release()
            await self._address_block.succeeded()
            raise AccountNotAllowed(issued.account.account_id)
        return issued

    async def _save(self, grant: Grant, exchange: CodeExchange, issued: TokenResponse) -> Grant:
        """Store the new pair before doing anything else, and return the finished grant."""
        connection = self._granted(issued, exchange.domain)
        ended = dataclasses.replace(
            grant,
            status=GrantStatus.CONNECTED,
            connection_id=connection.id,
            accepted_at=connection.connected_at,
        )
        granted = NewConnection(
            grant=ended,
            connection=connection,
            token_iat=issued.account.token_iat,
            owner=exchange.request.asserted_owner if exchange.request else None,
        )
        connected = _connected(connection)
        try:
            if await self._pending_writes.save(granted, connection=connection, events=[connected]) is None:
                # A later grant was stored first, or the connection was disconnected.
                ended = await self._core.store.grant(grant.code_hash) or ended
                superseded = Event(
                    name="grant.superseded",
                    level=Level.WARNING,
                    connection_id=connection.id,
                    fields={"support_code": support_code(grant.code_hash), "word": ended.error},
                )
                await record_event(superseded, self._core)
            else:
                self._connected(connection)
        finally:
            exchange.reservation.release()  # last, because nothing may delay storing the pair
        await self._address_block.succeeded()
        return ended

    async def _slot(self, exchange: CodeExchange) -> None:
        """Wait for a rate-limit slot, as long as a request can still finish within the claim's lease.

        After the lease, another process may hold the claim. A code that stops waiting uses no slot. Raises `NotYet` if
        it is too late to send the request, and `ShuttingDown` at shutdown.
        """
        slot = self._turn(exchange)
        left = self._left(exchange.started)
        served = await wait_or_stop(
            slot, stop=self._core.stop, grace=_LAST_SLOT, clock=self._core.clock, limit=max(left, 0.0)
        )
        if self._left(exchange.started) <= 0:
            raise NotYet(0)
        if not served:
            raise ShuttingDown

    async def _turn(self, exchange: CodeExchange) -> None:
        async with exchange.turn:
            await self._address_block.exchange_turn()
            await self._core.amo.acquire_slot(priority_of(exchange.request))

    def _left(self, started: float) -> float:
        """Return the seconds until it is too late to send a request."""
        return self._core.rules.lease - self._core.amo.timeout - (self._core.clock.monotonic() - started)

    def _granted(self, issued: TokenResponse, domain: str) -> Connection:
        pair, account = issued.pair, issued.account
        name = connection_id(account, domain)
        return Connection(
            id=name,
            account_id=account.account_id,
            user_id=account.user_id,
            domain=domain,
            api_domain=account.api_domain,
            client_id=self._core.amo.client_id,
            status=Status.ACTIVE,
            sealed_pair=self._core.cipher.seal_pair(pair, connection_id=name),
            access_issued_at=pair.issued_at,
            access_expires_at=pair.expires_at,
            refresh_expires_at=pair.issued_at + REFRESH_TOKEN_LIFETIME,
            refreshed_at=None,
            next_refresh_at=refresh_due(
                pair, at=self._core.rules.at, jitter=self._core.rules.jitter, random=self._core.random
            ),
            connected_at=pair.issued_at,
            pair_version=1,
            row_version=1,
        )

    def _report_failure(self, grant: Grant, error: AmoCallbackError, domain: str) -> None:
        level = Level.INFO if isinstance(error, UserError) else Level.WARNING
        fields = {"support_code": support_code(grant.code_hash), "domain": domain, "word": grant.error, **error.fields}
        self._core.observer(Event(name="grant.failed", level=level, fields=fields))


def _connected(connection: Connection) -> Event:
    fields = {
        "account_id": connection.account_id,
        "domain": connection.domain,
        "expires_at": connection.access_expires_at,
        "next_refresh_at": connection.next_refresh_at,
    }
    return Event(name="connection.connected", connection_id=connection.id, fields=fields)


def _failed(grant: Grant, error: AmoCallbackError) -> Grant:
    """Return the grant as failed, or as refused if the same code must not be tried again."""
    if isinstance(error, CodeUsed) and grant.possibly_spent:
        # Most likely, an earlier exchange by this service, with an unknown outcome, has spent the code.
        error = CodeExpired()
    final = isinstance(error, UserError)
    return dataclasses.replace(
        grant,
        status=GrantStatus.REFUSED if final else GrantStatus.FAILED,
        error=error.deep_link_error,
        possibly_spent=grant.possibly_spent or isinstance(error, UnknownOutcome),
    )
