"""Redemption: the app presents a code, a ticket or a state with its verifier, and its user may become an owner."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import GrantExpired, GrantFailed, NotFound, Pending, PkceMismatch
from amo_callback.grant import CodePresentation, CodeSource, GrantStatus, request_fingerprint
from amo_callback.model import fingerprint
from amo_callback.oauth.grants import GrantRecords
from amo_callback.oauth.ownership import Binding, binding_of, check_verifier
from amo_callback.rate_limit import Priority

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.grant import Grant, GrantResult, GrantSecrets, IssuedState
    from amo_callback.model import Connection
    from amo_callback.oauth.grant_service import GrantService
    from amo_callback.oauth.grants import GrantRules
    from amo_callback.oauth.limits import Limits, Reservation

TICKET_LIFETIME = timedelta(minutes=10)
"""The lifetime of a ticket, counted from AMO's acceptance of the code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RedeemRequest:
    """A code, ticket or state that the app presents."""

    code: bytes = field(repr=False, default=b"")
    """AMO's authorization code, or a ticket."""
    state: bytes | None = field(repr=False, default=None)
    """The app's state of an authorization request that was started for `user`, if the app has received no code."""
    verifier: str | None = field(repr=False, default=None)
    user: str | None = None
    """The user named by the JWT in the request, if there is one."""
    host: str | None = None
    """The account's host, which is used if the code has not been exchanged yet."""
    address: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Redeemed:
    """The result of a grant for the caller that presented its code or ticket."""

    result: GrantResult
    connection: Connection | None
    """The connection as it is now stored, if the grant succeeded."""
    is_owner: bool = True
    """Whether the user of the JWT, or the user asserted by a backend, is an owner; true if there is neither."""


class Redeemer:
    """Returns a grant's result, any number of times, to callers that present its code, ticket or state."""

    def __init__(self, core: Core, rules: GrantRules, *, service: GrantService, limits: Limits) -> None:
        self._store = core.store
        self._clock = core.clock
        self._issued_only = rules.issued_only
        self._grants = GrantRecords(core, rules)
        self._service = service
        self._attempts = limits.codes
        self._polls = limits.polls

    async def redeem(self, presented: RedeemRequest) -> Redeemed:
        """Return the result of a grant, and make the calling user an owner if the proof suffices.

        Raises `PkceMismatch`, `GrantExpired` (also for an expired ticket), `TooManyAttempts`, and the other errors of
        `GrantService.complete`. For a state, also raises `Pending`, `GrantFailed`, and `NotFound` if it is
        not the state of an authorization request of this user with a challenge.
        """
        if presented.state is None:
            known = await self._known(fingerprint(presented.code))
        else:
            known = await self._started(presented.state, presented)
        presentation = CodePresentation(
            code=presented.code if known is None else known.code,
            verifier=presented.verifier,
            host=presented.host,
            address=presented.address,
            source=CodeSource.APP,
        )
        reservation = self._reserve(presented, known)
        try:
            result = await self._service.complete(presentation)
        except PkceMismatch:
            raise  # the reservation remains, to limit guesses of the verifier
        except BaseException:
            reservation.release()
            raise
        reservation.release()
        if result.status is not GrantStatus.CONNECTED or result.connection_id is None:
            return Redeemed(result=result, connection=None)
        is_owner = await self._bind(result, result.connection_id, presented.user)
        return Redeemed(result=result, connection=await self._service.connection_of(result), is_owner=is_owner)

    async def _known(self, name: str) -> GrantSecrets | None:
        """Return the secrets of the grant whose ticket or code has the fingerprint `name`; tickets take precedence."""
        grant = await self._store.grant_by_ticket(name)
        if grant is not None and self._is_over(grant):
            raise GrantExpired
        grant = grant or await self._store.grant(name)
        if grant is None or grant.sealed is None:
            return None
        return self._grants.secrets_of(grant)

    async def _started(self, state: bytes, presented: RedeemRequest) -> GrantSecrets:
        """Return the secrets of the grant of an authorization request; raises an error if there is no grant."""
        user = presented.user or ""
        self._polls.reserve(f"user {user}", among=Priority.KNOWN_USER)
        issued = await self._store.latest_request(request_fingerprint(user, state))
        if issued is None:
            raise NotFound
        if issued.code_hash is None:
            self._check_waiting(issued, presented)
            raise Pending if issued.error is None else GrantFailed(issued.error)
        grant = await self._store.grant(issued.code_hash)
        if grant is None or grant.sealed is None or grant.expires_at <= self._clock.now():
            if grant is not None and grant.status is GrantStatus.REFUSED and grant.error is not None:
                raise GrantFailed(grant.error)
            raise GrantExpired
        return self._grants.secrets_of(grant)

    def _check_waiting(self, issued: IssuedState, presented: RedeemRequest) -> None:
        """Check the verifier of a request without a code; raises `GrantExpired` after the request has expired."""
        if issued.sealed is None or issued.expires_at <= self._clock.now():
            if issued.error is None:
                raise GrantExpired
            return  # the challenge may have been erased, and the error contains no secret
        reservation = self._attempts.reserve(f"user {presented.user}", among=Priority.KNOWN_USER)
        request = self._grants.request_of(issued)
        check_verifier(request, presented.verifier)  # after a mismatch, the reservation remains
        reservation.release()

    def _is_over(self, grant: Grant) -> bool:
        now = self._clock.now()
        return grant.expires_at <= now or grant.accepted_at is None or grant.accepted_at + TICKET_LIFETIME <= now

    def _reserve(self, presented: RedeemRequest, known: GrantSecrets | None) -> Reservation:
        """Make a reservation if a verifier is presented or required, because the verifier may be a guess."""
        asked = known is not None and known.request is not None and known.request.challenge is not None
        if presented.verifier is None and not asked:
            return self._attempts.reserve(None)
        if presented.user is None:
            return self._attempts.reserve(presented.address)
        return self._attempts.reserve(f"user {presented.user}", among=Priority.KNOWN_USER)

    async def _bind(self, result: GrantResult, connection_id: str, user: str | None) -> bool:
        """Make the user an owner if the proof suffices, and return whether the user is now an owner."""
        request, first_only = result.request, False
        if user is not None:
            binding = binding_of(request, user=user, state=result.app_state, takes_app_states=not self._issued_only)
            if binding is Binding.NONE:
                return user in (await self._store.owners_of([connection_id]))[connection_id]
            first_only = binding is Binding.FIRST_OWNER
        elif request is not None and request.asserted_by_backend and request.challenge is not None:
            user = request.user
        if user is None:
            return True
        return await self._store.bind(
            connection_id, owner=user, code_hash=fingerprint(result.code), first_only=first_only
        )
