"""The access-token hand-out to standard OAuth clients.

Such a client keeps an access token until it expires or AMO rejects it, and then requests the next one, without saying
why. If the client was handed the current token before, AMO may have rejected it. The token is then introspected, which
spends nothing, and refreshed only if AMO rejects it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

from amo_callback.model import TokenState
from amo_callback.tokens.cache import OpenConnection

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.tokens.access_token_check import AccessTokenCheck
    from amo_callback.tokens.access_tokens import AccessTokens, HandOut

MIN_TTL = 300
"""The minimum remaining lifetime of a token in seconds; a token that expires sooner is refreshed first."""
_REPEATED = 10.0
"""Seconds after a hand-out from which a request for the same token suggests that AMO has rejected it."""
_INTROSPECT_EVERY = 60.0
"""The minimum interval in seconds between two introspections of a connection's token."""
_REMEMBERED = 10_000
Place = TypeVar("Place")
Value = TypeVar("Value")


class OAuthTokens:
    """The hand-out of access tokens to standard OAuth clients."""

    def __init__(self, core: Core, *, access_tokens: AccessTokens, check: AccessTokenCheck) -> None:
        self._clock = core.clock
        self._access_tokens = access_tokens
        self._check = check
        self._handed_out: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        """The version of the pair that each API key was handed last, and the time of its first hand-out, by the key's
        name and the connection's id.
        """
        self._introspected: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """The version of the pair that was introspected last, and the time, by the connection's id."""

    async def token(self, selector: str, *, key: str) -> HandOut:
        """Return an access token of the connection that `selector` names, for the API key with the name `key`.

        Raises the same errors as `AccessTokens.token`.
        """
        hand_out = await self._access_tokens.token(selector, min_ttl=MIN_TTL)
        if self._is_repeated(hand_out, key) and self._may_introspect(hand_out):
            found = OpenConnection(connection=hand_out.connection, token=hand_out.token)
            if await self._check.state_of(found, in_doubt=True, max_age=_INTROSPECT_EVERY) is TokenState.REJECTED:
                hand_out = await self._access_tokens.refresh(found.connection.id, rejected=hand_out.token.value)
        place, first = (key, hand_out.connection.id), (hand_out.connection.pair_version, self._clock.monotonic())
        known = self._handed_out.get(place, first)
        _put(self._handed_out, place, known if known[0] == first[0] else first)
        return hand_out

    def _is_repeated(self, hand_out: HandOut, key: str) -> bool:
        version, at = self._handed_out.get((key, hand_out.connection.id), (None, 0.0))
        return version == hand_out.connection.pair_version and self._clock.monotonic() - at > _REPEATED

    def _may_introspect(self, hand_out: HandOut) -> bool:
        """Return whether the pair may be introspected now, or was introspected in the last minute."""
        connection, now = hand_out.connection, self._clock.monotonic()
        version, at = self._introspected.get(connection.id, (None, -math.inf))
        if now - at < _INTROSPECT_EVERY:
            return version == connection.pair_version
        _put(self._introspected, connection.id, (connection.pair_version, now))
        return True


def _put(entries: OrderedDict[Place, Value], place: Place, value: Value) -> None:
    """Put an entry at the end, and drop the oldest entries."""
    entries.pop(place, None)
    entries[place] = value
    while len(entries) > _REMEMBERED:
        entries.popitem(last=False)
