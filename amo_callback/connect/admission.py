"""Which codes are exchanged at all: told by the state that they come with."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from amo_callback.errors import InvalidState, NotFound
from amo_callback.grant import Arrival, AuthorizationRequest, is_issued

if TYPE_CHECKING:
    from amo_callback.connect.authorization import Authorizations
    from amo_callback.grant import Visit

_NO_STATE = (None, b"", b"false")
"""AMO sends `false` where it was given none."""


class Admission:
    """Admit codes, and the callers to whom their outcome may be told."""

    def __init__(self, *, authorizations: Authorizations, issued_only: bool, lists_accounts: bool) -> None:
        self._authorizations = authorizations
        self._issued_only = issued_only
        self._lists_accounts = lists_accounts

    async def request_of(self, visit: Visit) -> AuthorizationRequest | None:
        """Return what a code's state stands for, `None` for the app's own; of a code that was never seen.

        Where only issued states are taken, a code without one comes from AMO itself, for a listed account (which is
        checked once AMO has told whose it is). Raises `InvalidState`, `NotFound` for a code that only the app names.
        """
        if visit.state is not None and is_issued(visit.state):
            return await self._authorizations.request_of(visit.state)
        if not self._issued_only:
            return None
        if visit.arrival is Arrival.APP:
            raise NotFound
        if visit.arrival is Arrival.VENDOR and visit.state in _NO_STATE and self._lists_accounts:
            return None
        raise InvalidState

    def check_same_state(self, visit: Visit, state: bytes | None) -> None:
        """Raise `InvalidState` where a code that is known came with another state than the first time.

        An issued state is a secret of the browser that brings it: who has only the code is somebody else. The app
        names no state: what it may have is told by its verifier.
        """
        if visit.arrival is Arrival.APP or not (self._issued_only or is_issued(state)):
            return
        if not hmac.compare_digest(visit.state or b"", state or b""):
            raise InvalidState
