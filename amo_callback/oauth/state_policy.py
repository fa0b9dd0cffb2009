"""Which codes are exchanged at all: told by the state that they come with."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from amo_callback.errors import InvalidState, NotFound
from amo_callback.grant import AuthorizationRequest, CodeSource, is_issued
from amo_callback.oauth.ownership import check_verifier

if TYPE_CHECKING:
    from amo_callback.grant import CodePresentation
    from amo_callback.oauth.authorization import Authorizations

_NO_STATE = (None, b"", b"false")
"""AMO sends `false` where it was given none."""


class StatePolicy:
    """Admit codes, and the callers to whom their outcome may be told."""

    def __init__(self, *, authorizations: Authorizations, issued_only: bool, lists_accounts: bool) -> None:
        self._authorizations = authorizations
        self._issued_only = issued_only
        self._lists_accounts = lists_accounts

    async def request_of(self, visit: CodePresentation) -> AuthorizationRequest | None:
        """Return what a code's state stands for, `None` for the app's own; of a code that was never seen.

        Where only issued states are taken, a code without one comes from AMO itself, for a listed account (which is
        checked once AMO has told whose it is). Raises `InvalidState`, `NotFound` for a code that only the app names,
        and `PkceMismatch` where it expects its challenge to be known.
        """
        if visit.state is not None and is_issued(visit.state):
            return await self._authorizations.request_of(visit.state)
        if visit.arrival is CodeSource.APP:
            if self._issued_only:
                raise NotFound
            check_verifier(None, visit.verifier)
        if not self._issued_only:
            return None
        if visit.arrival is CodeSource.VENDOR and visit.state in _NO_STATE and self._lists_accounts:
            return None
        raise InvalidState

    def check(self, visit: CodePresentation, *, state: bytes | None, request: AuthorizationRequest | None) -> None:
        """Check who asks for the outcome of a code that is known, by the state and the request that it came with.

        An issued state is a secret of the browser that brings it: who has only the code is somebody else. Raises
        `InvalidState`. The app names no state: it has the verifier, or `PkceMismatch` is raised.
        """
        if visit.arrival is CodeSource.APP:
            check_verifier(request, visit.verifier)
        elif (self._issued_only or is_issued(state)) and not hmac.compare_digest(visit.state or b"", state or b""):
            raise InvalidState
