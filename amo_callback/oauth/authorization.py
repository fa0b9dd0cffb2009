"""Authorization requests, and the rules by which a code is accepted."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import InvalidState, NotFound
from amo_callback.grant import STATE_PREFIX, AuthorizationRequest, CodeSource, IssuedState, is_our_state
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
"""AMO sends `false` where it was given none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedAuthorization:
    """AMO's consent page for the user, and the state that the app will receive."""

    authorize_url: str = field(repr=False)
    state: bytes = field(repr=False)
    """The state that the deep link will carry: the app's own, otherwise the issued one."""
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
        """Issue a state that is valid for half an hour and one code.

        `address` is the caller's, if no user is known. Raises `TooManyAttempts`, and `QueueFull` if too many requests
        are started at once.
        """
        state = STATE_PREFIX + self._rules.new_secret()
        state_hash = fingerprint(state)
        issued = IssuedState(
            state_hash=state_hash,
            sealed=self._cipher.seal_request(request, state_hash=state_hash),
            expires_at=self._clock.now() + STATE_LIFETIME,
        )
        async with self._starts.turn(request, address=address):
            await self._store.issue_state(issued)
        return StartedAuthorization(
            authorize_url=self._amo.consent_url(state),
            state=state.encode() if request.state is None else request.state,
            expires_at=issued.expires_at,
        )

    async def admit(self, presented: CodePresentation) -> AuthorizationRequest | None:
        """Return the authorization request of a new code's state; `None` for a state of the app's own.

        If only issued states are accepted, a code without a state must come from AMO itself, for an allowed account
        (which is checked after the exchange). Raises `InvalidState`, `NotFound` for a code that only the app presents,
        and `PkceMismatch` for a verifier without a known challenge.
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

        A browser must present the state that came with the code: an issued state is a secret of that browser. Raises
        `InvalidState`. The app presents the verifier instead; raises `PkceMismatch`.
        """
        if presented.source is CodeSource.APP:
            check_verifier(request, presented.verifier)
        elif (self._rules.issued_only or is_our_state(state)) and not hmac.compare_digest(
            presented.state or b"", state or b""
        ):
            raise InvalidState

    async def app_state(self, state: bytes | None) -> bytes | None:
        """Return the state for the app: its own, if it gave one."""
        if state is None or not is_our_state(state):
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
