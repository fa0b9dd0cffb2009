"""The end of a grant: the app presents the code, or the ticket, that its deep link brought, and its user is bound."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from amo_callback.connect.proof import check_verifier, is_proven
from amo_callback.errors import GrantExpired, NotTheirs
from amo_callback.grant import Arrival, GrantStatus, Visit
from amo_callback.model import Status, fingerprint
from amo_callback.ports import Priority

if TYPE_CHECKING:
    from amo_callback.cipher import Cipher
    from amo_callback.connect.completion import Connect
    from amo_callback.grant import AuthorizationRequest, Grant, GrantSecrets, Outcome
    from amo_callback.limits import Unproven
    from amo_callback.model import Connection
    from amo_callback.ports import Clock, Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Presented:
    """What the app presents."""

    code: bytes = field(repr=False)
    """AMO's code, or a ticket of ours."""
    verifier: str | None = field(repr=False, default=None)
    user: str | None = None
    """Whose JWT came with it."""
    host: str | None = None
    """The account's, for a code that was never seen."""
    address: str | None = None


class Redeemer:
    """Tell what became of a grant, any number of times, to whoever proves to be where it began."""

    def __init__(self, *, store: Store, cipher: Cipher, clock: Clock, connect: Connect, unproven: Unproven) -> None:
        self._store = store
        self._cipher = cipher
        self._clock = clock
        self._connect = connect
        self._unproven = unproven

    async def redeem(self, presented: Presented) -> tuple[Outcome, Connection | None]:
        """Return a grant's outcome, and its connection as it is now, the user bound to it.

        Raises `WrongVerifier`, `NotTheirs`, `GrantExpired` (of a ticket, too), and as `Connect.complete`.
        """
        code = presented.code
        known = await self._known(fingerprint(code))
        if known is not None:
            code = known.code
            self._check(known.request, presented)  # first: who cannot prove it has nothing tried for him
        outcome = await self._connect.complete(
            Visit(code=code, host=presented.host, address=presented.address, arrival=Arrival.APP)
        )
        if known is None:
            self._check(outcome.request, presented)  # the callback may have come meanwhile
        connection = await self._bind(outcome, presented) if outcome.status is GrantStatus.CONNECTED else None
        return outcome, connection

    async def _known(self, name: str) -> GrantSecrets | None:
        grant = await self._store.grant(name)
        if grant is None:
            grant = await self._store.grant_by_ticket(name)
            if grant is not None and self._is_over(grant):
                raise GrantExpired
        if grant is None or grant.sealed is None:
            return None
        return self._cipher.open_grant(grant.sealed, code_hash=grant.code_hash)

    def _is_over(self, grant: Grant) -> bool:
        now = self._clock.now()
        return grant.expires_at <= now or grant.ticket_until is None or grant.ticket_until <= now

    def _check(self, request: AuthorizationRequest | None, presented: Presented) -> None:
        """Check the verifier; one that does not fit keeps its address's place among the unproven."""
        if presented.verifier is None and (request is None or request.challenge is None):
            return
        known_user = Priority.STRANGER if presented.user is None else Priority.EXPECTED
        place = self._unproven.take(presented.address, among=known_user)
        check_verifier(request, presented.verifier)
        place.give_back()

    async def _bind(self, outcome: Outcome, presented: Presented) -> Connection | None:
        """Bind who has proved to be an owner, and return the connection as it is then."""
        request, owner = outcome.request, presented.user
        if owner is not None:
            first_only = not is_proven(request, user=owner, state=outcome.handed_back)
        else:
            owner, first_only = request.user if request and request.vouched and request.challenge else None, False
        if owner is not None and outcome.connection_id is not None:
            bound = await self._store.bind(
                outcome.connection_id, owner=owner, at=self._clock.now(), first_only=first_only
            )
            connection = await self._connect.connection_of(outcome)
            if not bound and connection is not None and connection.status is not Status.DISCONNECTED:
                raise NotTheirs
        return await self._connect.connection_of(outcome)
