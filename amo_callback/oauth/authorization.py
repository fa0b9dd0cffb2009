"""Authorization requests, and the rules for accepting codes."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import InvalidState, NotFound
from amo_callback.grant import (
    STATE_PREFIX,
    AuthorizationRequest,
    CodeSource,
    IssuedState,
    WayBack,
    is_our_state,
    request_fingerprint,
)
from amo_callback.model import fingerprint
from amo_callback.oauth.ownership import check_verifier

if TYPE_CHECKING:
    from datetime import datetime

    from amo_callback.core import Core
    from amo_callback.grant import CodePresentation
    from amo_callback.oauth.grants import GrantRules
    from amo_callback.oauth.limits import StartLimiter

STATE_LIFETIME = timedelta(minutes=30)
_NO_STATE = (None, b"", b"false")
"""The values of a missing state: AMO sends `false` if its consent page was opened without a state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedAuthorization:
    """A started authorization: the URL of AMO's consent page, and the state that the app will receive."""

    authorize_url: str = field(repr=False)
    state: bytes = field(repr=False)
    """The state in the deep link: the app's own state if the request has one, otherwise the issued state."""
    expires_at: datetime


class Authorizations:
    """Starts authorization requests, and checks the state and verifier of presented codes."""

    def __init__(self, core: Core, rules: GrantRules, *, starts: StartLimiter) -> None:
        self._store = core.store
        self._amo = core.amo
        self._cipher = core.cipher
        self._clock = core.clock
        self._rules = rules
        self._starts = starts

    async def start(self, request: AuthorizationRequest, *, address: str | None = None) -> StartedAuthorization:
        """Start an authorization request: issue a state that is valid for 30 minutes and for a single code.

        `address` is the client's address; it is used only for requests without a user. Raises `TooManyAttempts` if one
        user or address starts too many requests, and `QueueFull` if all clients together do.
        """
        state = STATE_PREFIX + self._rules.new_secret()
        state_hash = fingerprint(state)
        app_state = state.encode() if request.state is None else request.state
        issued = IssuedState(
            state_hash=state_hash,
            request_hash=None
            if request.user is None or request.challenge is None
            else request_fingerprint(request.user, app_state),
            sealed=self._cipher.seal_request(request, state_hash=state_hash),
            expires_at=self._clock.now() + STATE_LIFETIME,
        )
        async with self._starts.turn(request, address=address):
            await self._store.issue_state(issued)
        return StartedAuthorization(
            authorize_url=self._amo.consent_url(state),
            state=app_state,
            expires_at=issued.expires_at,
        )

    async def admit(self, presented: CodePresentation) -> AuthorizationRequest | None:
        """Return the authorization request of a new code; `None` for an accepted code without an issued state.

        If only issued states are accepted, a new code from the app raises `NotFound`, and a code without a state is
        accepted only from AMO itself and only if `amo.allowed_accounts` is set. The account is checked after the
        exchange. Raises `InvalidState`, and `PkceMismatch` for a verifier without a known challenge.
        """
        if presented.state is not None and is_our_state(presented.state):
            return await self._unused(presented.state)
        if presented.source is CodeSource.APP:
            if self._rules.issued_only:
                raise NotFound
            check_verifier(None, presented.verifier)
        if not self._rules.issued_only:
            return None
        if presented.source is CodeSource.VENDOR and presented.state in _NO_STATE and self._rules.allowed_accounts:
            return None
        raise InvalidState

    async def _unused(self, state: bytes) -> AuthorizationRequest:
        issued = await self._store.issued_state(fingerprint(state))
        if issued is None or issued.sealed is None or issued.code_hash or issued.expires_at <= self._clock.now():
            raise InvalidState
        return self._cipher.open_request(issued.sealed, state_hash=issued.state_hash)

    def check(self, presented: CodePresentation, *, state: bytes | None, request: AuthorizationRequest | None) -> None:
        """Check that the caller may see the result of a known code.

        If the code came with an issued state, or if only issued states are accepted, a browser must present the state
        that came with the code, because an issued state is known only to one browser. The app must present the verifier
        instead. Raises `InvalidState` or `PkceMismatch`.
        """
        if presented.source is CodeSource.APP:
            check_verifier(request, presented.verifier)
        elif (self._rules.issued_only or is_our_state(state)) and not hmac.compare_digest(
            presented.state or b"", state or b""
        ):
            raise InvalidState

    async def record_refusal(self, state: bytes | None, *, error: str) -> None:
        """Record the error of a redirect without a code, which the app receives when it asks for the result."""
        if is_our_state(state):
            issued = await self._store.issued_state(fingerprint(state or b""))
            if issued is not None and issued.code_hash is None and issued.error is None:
                await self._store.record_refusal(issued.state_hash, error=error)

    async def way_back(self, state: bytes | None) -> WayBack:
        """Return the way back of the request for which `state` was issued, otherwise the default with `state`."""
        if state is None or not is_our_state(state):
            return WayBack(state=state)
        issued = await self._store.issued_state(fingerprint(state))
        if issued is None or issued.sealed is None:
            return WayBack(state=state)
        request: AuthorizationRequest | None
        if issued.code_hash is None:
            request = self._cipher.open_request(issued.sealed, state_hash=issued.state_hash)
        else:
            request = self._cipher.open_grant(issued.sealed, code_hash=issued.code_hash).request
        return WayBack(state=state) if request is None else request.way_back(state)
