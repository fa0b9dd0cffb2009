"""A grant, started: a state of ours for AMO's consent page, and what it stands for."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import InvalidState, QueueFull, TooManyAttempts
from amo_callback.grant import STATE_PREFIX, AuthorizationRequest, IssuedState, is_issued
from amo_callback.model import fingerprint
from amo_callback.rate_limit import Priority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from amo_callback.amo.client import AmoClient
    from amo_callback.clock import Clock
    from amo_callback.crypto import Cipher
    from amo_callback.oauth.limits import AdmissionQueue, AttemptLimiter
    from amo_callback.store import Store

STATE_LIFE = timedelta(minutes=30)


def priority_of(request: AuthorizationRequest | None) -> Priority:
    """Return who goes first: a link alone, which anybody can follow, is less than a user who is known."""
    if request is None:
        return Priority.STRANGER
    return Priority.STARTED if request.user is None else Priority.EXPECTED


_ALL = "all links"


class StartLimiter:
    """How many grants may be started: by one user, by one address, and by plain links in all.

    Anybody can follow a link, from as many addresses as he has, and each costs the store a write.
    """

    def __init__(self, *, each: AttemptLimiter, links: AttemptLimiter, queue: AdmissionQueue) -> None:
        self._each = each
        self._links = links
        self._queue = queue

    @asynccontextmanager
    async def turn(self, request: AuthorizationRequest, *, address: str | None) -> AsyncIterator[None]:
        """Be the only one of the kind meanwhile; raises `TooManyAttempts`, `QueueFull`, `StoreUnavailable`."""
        priority = priority_of(request)
        who = f"user {request.user}" if request.user is not None else address
        with self._queue.enter(priority, who):
            if not request.vouched:
                self._each.reserve(who, among=priority)
            if request.user is None:
                self._reserve_link(address, priority)
            async with self._queue.write(priority):
                yield

    def _reserve_link(self, address: str | None, priority: Priority) -> None:
        """Reserve one of all links; the second half of them is for the first of each address."""
        half_is_used = 2 * self._links.count(_ALL) >= self._links.attempts
        if half_is_used and address is not None and self._each.count(address, among=priority) > 1:
            raise QueueFull
        try:
            self._links.reserve(_ALL)
        except TooManyAttempts:
            raise QueueFull from None  # it is not this address that has sent too many


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedAuthorization:
    """Where the person goes to allow access, and what the app will get back."""

    authorize_url: str = field(repr=False)
    state: bytes = field(repr=False)
    """The state that the deep link will carry: the app's own, or the issued one."""
    expires_at: datetime


class Authorizations:
    """Start grants, and know them again."""

    def __init__(
        self,
        *,
        store: Store,
        amo: AmoClient,
        cipher: Cipher,
        clock: Clock,
        starts: StartLimiter,
        new_secret: Callable[[], str],
    ) -> None:
        self._store = store
        self._amo = amo
        self._cipher = cipher
        self._clock = clock
        self._starts = starts
        self._new_secret = new_secret

    async def start(self, request: AuthorizationRequest, *, address: str | None = None) -> StartedAuthorization:
        """Issue a state, good for half an hour and one code.

        `address` is whose it is where no user is known. Raises `TooManyAttempts`, and `QueueFull` where too many others
        start at the same time.
        """
        state = STATE_PREFIX + self._new_secret()
        state_hash = fingerprint(state)
        issued = IssuedState(
            state_hash=state_hash,
            sealed=self._cipher.seal_request(request, state_hash=state_hash),
            expires_at=self._clock.now() + STATE_LIFE,
        )
        async with self._starts.turn(request, address=address):
            await self._store.issue_state(issued)
        return StartedAuthorization(
            authorize_url=self._amo.consent_address(state),
            state=state.encode() if request.state is None else request.state,
            expires_at=issued.expires_at,
        )

    async def request_of(self, state: bytes) -> AuthorizationRequest:
        """Return what an issued state stands for; raises `InvalidState` for one that is unknown, used or over."""
        issued = await self._store.issued_state(fingerprint(state))
        if issued is None or issued.sealed is None or issued.code_hash or issued.expires_at <= self._clock.now():
            raise InvalidState
        return self._cipher.open_request(issued.sealed, state_hash=issued.state_hash)

    async def handed_back(self, state: bytes | None) -> bytes | None:
        """Return the state that the app gets back for the one that came: its own, where it gave one."""
        if state is None or not is_issued(state):
            return state
        issued = await self._store.issued_state(fingerprint(state))
        if issued is None or issued.sealed is None:
            return state
        request: AuthorizationRequest | None
        if issued.code_hash is None:
            request = self._cipher.open_request(issued.sealed, state_hash=issued.state_hash)
        else:
            request = self._cipher.open_grant(issued.sealed, code_hash=issued.code_hash).request
        return state if request is None or request.state is None else request.state
