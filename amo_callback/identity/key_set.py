"""The issuer's published keys over HTTP: the thin edge under `users` and `jwk`."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp

from amo_callback import __version__
from amo_callback.errors import JwksUnavailable, Unauthorized
from amo_callback.event import Event, Level
from amo_callback.identity.jwk import read_key_set
from amo_callback.identity.signatures import claims_signed_by_one
from amo_callback.identity.users import read_token, user_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from amo_callback.identity.signatures import Key
    from amo_callback.identity.users import UserRules
    from amo_callback.ports import Clock, Observer

TIMEOUT = 5.0
"""Seconds for one request; somebody waits for it with his token in his hand."""
MAX_ANSWER = 256 * 1024
FRESH = 600.0
"""Seconds for which a set is taken as it is."""
KEPT = 86400.0
"""Seconds for which it is used at most while no newer one can be had."""
LOOK_AGAIN = 60.0
"""Seconds between looks for a key that a token names and the set does not have: anybody can name one."""
RETRY_BASE, RETRY_CAP = 5.0, 60.0
"""Seconds between requests that fail: doubling, up to the second."""


@asynccontextmanager
async def open_key_set(
    url: str, *, rules: UserRules, clock: Clock, observer: Observer, patience: float = TIMEOUT
) -> AsyncIterator[KeySet]:
    """Open the key set at an address; it is fetched when it is first needed."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,  # a few bytes can be made to unpack to all our memory
        timeout=aiohttp.ClientTimeout(total=patience),
        headers={
            "User-Agent": f"amo-callback/{__version__}",
            "Accept": "application/jwk-set+json, application/json",
            "Accept-Encoding": "identity",
        },
    ) as session:
        key_set = KeySet(url, session=session, rules=rules, clock=clock, observer=observer)
        try:
            yield key_set
        finally:
            await key_set.close()


class KeySet:
    """Verify what is signed with a key of the issuer's published set (RS256, ES256).

    However many tokens come, and whatever they say, the set is asked for rarely, and by one request at a time.
    """

    def __init__(
        self, url: str, *, session: aiohttp.ClientSession, rules: UserRules, clock: Clock, observer: Observer
    ) -> None:
        self._url = url
        self._session = session
        self._rules = rules
        self._clock = clock
        self._observer = observer
        self._keys: Sequence[Key] = ()
        self._fetched_at = -math.inf
        self._tried_at = -math.inf
        self._wait = 0.0
        """Seconds to wait after the last try; some where it failed."""
        self._why = "not_asked"
        self._fetching: asyncio.Task[None] | None = None

    async def user_of(self, token: str) -> str:
        """Return the id of the user whose JWT this is; raises `Unauthorized`, `JwksUnavailable`."""
        read = read_token(token)
        claims = claims_signed_by_one(await self._current(), read)
        if claims is None and self._since(self._tried_at) >= LOOK_AGAIN:
            await self._fetch()
            claims = claims_signed_by_one(self._usable(), read)
        if claims is None:
            if self._wait:  # the key may be a new one, which we could not get
                raise JwksUnavailable(self._why)
            raise Unauthorized("key")
        return user_in(claims, rules=self._rules, now=self._clock.now())

    async def close(self) -> None:
        """Give up a request that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})

    async def _current(self) -> Sequence[Key]:
        """Return the keys, asked for again where they are old and the last failure is long enough ago."""
        if self._since(self._fetched_at) >= FRESH and self._since(self._tried_at) >= self._wait:
            await self._fetch()
        return self._usable()

    def _usable(self) -> Sequence[Key]:
        if self._since(self._fetched_at) >= KEPT:
            raise JwksUnavailable(self._why)
        return self._keys

    def _since(self, moment: float) -> float:
        return self._clock.monotonic() - moment

    async def _fetch(self) -> None:
        """Ask for the set; whoever comes meanwhile waits for the same answer, and may go without harm to the others."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch_now(), name="key_set")
        await asyncio.shield(self._fetching)

    async def _fetch_now(self) -> None:
        try:
            keys = await self._ask()
        except JwksUnavailable as error:
            if not self._wait:
                self._observer(Event(name="key_set.failing", level=Level.ERROR, fields=error.fields))
            self._wait = min(max(2 * self._wait, RETRY_BASE), RETRY_CAP)
            self._why = error.detail
        else:
            if self._wait:
                self._observer(Event(name="key_set.recovered"))
            self._wait = 0.0
            self._keys, self._fetched_at = keys, self._clock.monotonic()
        finally:
            self._tried_at = self._clock.monotonic()
            self._fetching = None

    async def _ask(self) -> Sequence[Key]:
        """Fetch the set; raises `JwksUnavailable`, which quotes nothing of what was received."""
        body = bytearray()
        try:
            async with self._session.get(self._url, allow_redirects=False) as response:
                if response.status != HTTPStatus.OK:
                    raise JwksUnavailable(f"status_{response.status}")
                async for chunk in response.content.iter_chunked(16 * 1024):
                    body += chunk
                    if len(body) > MAX_ANSWER:
                        raise JwksUnavailable("too_long")
            return read_key_set(bytes(body))
        except TimeoutError:
            raise JwksUnavailable("timeout") from None
        except (aiohttp.ClientError, OSError):
            raise JwksUnavailable("connection") from None
        except ValueError:
            raise JwksUnavailable("no_key_set") from None
