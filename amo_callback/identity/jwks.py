"""Verification of RS256 and ES256 JWTs with the issuer's published key set.

The key set is a JWK Set (JWKS, https://www.rfc-editor.org/rfc/rfc7517).
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
import jwt

from amo_callback import __version__
from amo_callback.errors import JwksUnavailable, Unauthorized
from amo_callback.events import Event, Level
from amo_callback.identity.jwt import Key, read_key_id, verify_with_any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from amo_callback.clock import Clock
    from amo_callback.events import Observer
    from amo_callback.identity.jwt import JwtRules

TIMEOUT = 5.0
"""The timeout of a request for the key set, in seconds; callers wait for the request."""
MAX_ANSWER = 256 * 1024
TTL = 600.0
"""Seconds after which a key set is fetched again."""
STALE_TTL = 86400.0
"""Seconds for which a key set is used if no newer key set can be fetched."""
MIN_REFETCH = 60.0
"""The minimum interval in seconds between fetches for unknown key ids, which any client can send."""
RETRY_BASE, RETRY_CAP = 5.0, 60.0
"""Seconds to wait after failed requests: `RETRY_BASE` after the first, then doubled each time up to `RETRY_CAP`."""
MIN_RSA_BITS = 2048
MAX_KEYS = 100
"""The maximum number of keys in a key set; a token may have to be verified with each key that has the token's `kid`."""
_MAX_CONTAINERS = 20 * MAX_KEYS
"""The maximum number of objects and lists in a key set, which limits the parsing time."""
_NUMBER = re.compile(r"[A-Za-z0-9_-]{1,2048}")
"""A base64url number. Its length is limited, because oversized numbers would slow down every verification."""


@asynccontextmanager
async def open_jwks(
    url: str, *, rules: JwtRules, clock: Clock, observer: Observer, wait_limit: float = TIMEOUT
) -> AsyncIterator[JwksVerifier]:
    """Open a verifier that uses the key set at `url`; the key set is fetched on first use."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,  # a small response could decompress to gigabytes
        timeout=aiohttp.ClientTimeout(total=wait_limit),
        headers={
            "User-Agent": f"amo-callback/{__version__}",
            "Accept": "application/jwk-set+json, application/json",
            "Accept-Encoding": "identity",
        },
    ) as session:
        verifier = JwksVerifier(url, session=session, rules=rules, clock=clock, observer=observer)
        try:
            yield verifier
        finally:
            await verifier.close()


class JwksVerifier:
    """A verifier of JWTs that uses the issuer's published keys.

    The key set is fetched rarely, by one request at a time, regardless of the number and content of presented tokens.
    """

    def __init__(
        self, url: str, *, session: aiohttp.ClientSession, rules: JwtRules, clock: Clock, observer: Observer
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
        """Seconds to wait until the next request after a failed one; 0 after a successful request."""
        self._why = "not_asked"
        self._fetching: asyncio.Task[None] | None = None

    async def verify(self, token: str) -> str:
        """Verify a token and return its user id; raises `Unauthorized` and `JwksUnavailable`."""
        read_key_id(token)  # fetch no keys for a token that is not a JWT
        user = verify_with_any(await self._current(), token, rules=self._rules)
        if user is None and self._since(self._tried_at) >= MIN_REFETCH:
            await self._fetch()
            user = verify_with_any(self._usable(), token, rules=self._rules)
        if user is None:
            if self._wait:  # the last fetch failed, so the token's key may be a new one
                raise JwksUnavailable(self._why)
            raise Unauthorized("key")
        return user

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})

    async def _current(self) -> Sequence[Key]:
        """Return the keys of the current key set.

        A key set that is older than `TTL` is fetched again first, unless the last failure was too recent.
        """
        if self._since(self._fetched_at) >= TTL and self._since(self._tried_at) >= self._wait:
            await self._fetch()
        return self._usable()

    def _usable(self) -> Sequence[Key]:
        if self._since(self._fetched_at) >= STALE_TTL:
            raise JwksUnavailable(self._why)
        return self._keys

    def _since(self, moment: float) -> float:
        return self._clock.monotonic() - moment

    async def _fetch(self) -> None:
        """Fetch the key set once for all waiting callers; the cancellation of a caller does not cancel the request."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch_now(), name="jwks")
        await asyncio.shield(self._fetching)

    async def _fetch_now(self) -> None:
        try:
            keys = await self._request()
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

    async def _request(self) -> Sequence[Key]:
        """Request the key set; raises `JwksUnavailable`, whose message contains no part of the response."""
        body = bytearray()
        try:
            async with self._session.get(self._url, allow_redirects=False) as response:
                if response.status != HTTPStatus.OK:
                    raise JwksUnavailable(f"status_{response.status}")
                async for chunk in response.content.iter_chunked(16 * 1024):
                    body += chunk
                    if len(body) > MAX_ANSWER:
                        raise JwksUnavailable("too_long")
            return read_jwks(bytes(body))
        except TimeoutError:
            raise JwksUnavailable("timeout") from None
        except (aiohttp.ClientError, OSError):
            raise JwksUnavailable("connection") from None
        except ValueError:
            raise JwksUnavailable("no_key_set") from None


def read_jwks(content: bytes) -> Sequence[Key]:
    """Return the usable keys of a key set.

    Raises `ValueError` if the key set is invalid or too large, or if no key is usable.
    """
    if content.count(b"{") + content.count(b"[") > _MAX_CONTAINERS:
        raise ValueError("the key set contains too many objects and lists")
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError("the key set is nested too deeply") from None
    listed = found.get("keys") if isinstance(found, dict) else None
    if isinstance(listed, list) and len(listed) > MAX_KEYS:
        raise ValueError("the key set contains too many keys")
    keys = [key for key in map(_read_key, listed if isinstance(listed, list) else []) if key is not None]
    if not keys:
        raise ValueError("the key set has no usable key")
    return keys


def _read_key(jwk: object) -> Key | None:
    """Parse a public signature key; return `None` if it is not valid or not supported."""
    if not isinstance(jwk, dict) or "d" in jwk:  # anyone can sign with a published private key
        return None
    kid = jwk.get("kid")
    if kid is not None and not isinstance(kid, str):
        return None
    try:
        if jwk.get("kty") == "RSA":
            public = jwt.PyJWK({"kty": "RSA", **_numbers(jwk, "n", "e")}, algorithm="RS256").key
            key = Key(algorithm="RS256", material=public, kid=kid) if public.key_size >= MIN_RSA_BITS else None
        elif jwk.get("kty") == "EC" and jwk.get("crv") == "P-256":
            public = jwt.PyJWK({"kty": "EC", "crv": "P-256", **_numbers(jwk, "x", "y")}, algorithm="ES256").key
            key = Key(algorithm="ES256", material=public, kid=kid)
        else:
            return None
    except (jwt.PyJWTError, ValueError):
        return None
    return key if key is not None and _is_for_signatures(key, jwk) else None


def _is_for_signatures(key: Key, jwk: Mapping[str, object]) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    return (
        jwk.get("use", "sig") == "sig"
        and jwk.get("alg", key.algorithm) == key.algorithm
        and isinstance(operations, list)
        and "verify" in operations
    )


def _numbers(jwk: Mapping[str, object], *names: str) -> dict[str, str]:
    """Return the valid numbers of a JWK by name; PyJWT rejects a key if a number is missing."""
    return {name: value for name in names if isinstance(value := jwk.get(name), str) and _NUMBER.fullmatch(value)}
