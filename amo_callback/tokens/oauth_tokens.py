"""The access-token hand-out to standard OAuth clients.

Such a client keeps an access token until it expires or AMO rejects it, and then requests the next one, without saying
why. If the client was handed the current token before, AMO may have rejected it. The token is then introspected, which
spends nothing, and refreshed only if AMO rejects it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

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

    async def token(self, selector: str, *, key: str) -> HandOut:
        """Return an access token of the connection that `selector` names, for the API key with the name `key`.

        Raises the same errors as `AccessTokens.token`.
        """
        hand_out = await self._access_tokens.token(selector, min_ttl=MIN_TTL)
        connection, token = hand_out.connection, hand_out.token
        if self._is_repeated(hand_out, key):
            found = OpenConnection(connection=connection, token=token)
            if await self._check.state_of(found, in_doubt=True, max_age=_INTROSPECT_EVERY) is TokenState.REJECTED:
                hand_out = await self._access_tokens.refresh(connection.id, rejected=token.value)
        self._remember(hand_out, key)
        return hand_out

    def _is_repeated(self, hand_out: HandOut, key: str) -> bool:
        version, at = self._handed_out.get((key, hand_out.connection.id), (None, 0.0))
        return version == hand_out.connection.pair_version and self._clock.monotonic() - at > _REPEATED

    def _remember(self, hand_out: HandOut, key: str) -> None:
        place, first = (key, hand_out.connection.id), (hand_out.connection.pair_version, self._clock.monotonic())
        known = self._handed_out.pop(place, first)
        self._handed_out[place] = known if known[0] == first[0] else first
        while len(self._handed_out) > _REMEMBERED:
            self._handed_out.popitem(last=False)
