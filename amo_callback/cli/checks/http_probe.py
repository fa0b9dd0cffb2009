"""Others, asked over HTTP: one request, a short wait, redirects never followed, no text of an error's kept."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from amo_callback import __version__
from amo_callback.cli.api_client import connection_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime

    from amo_callback.clock import Clock

_LIMIT = 256 * 1024
"""Bytes of an answer that are read at most."""
CERTIFICATE = "its certificate is not valid for it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """What was answered, and when: in the middle between question and answer."""

    status: int
    at: datetime
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoResponse:
    """Why there was no answer."""

    why: str


@asynccontextmanager
async def open_probe(*, clock: Clock, patience: float) -> AsyncIterator[HttpProbe]:
    """Open a session that gives each question so many seconds."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": f"amo-callback/{__version__}", "Accept-Encoding": "identity"},
    ) as session:
        yield HttpProbe(session, clock=clock, patience=patience)


class HttpProbe:
    """Ask, and tell what came."""

    def __init__(self, session: aiohttp.ClientSession, *, clock: Clock, patience: float) -> None:
        self._session = session
        self._clock = clock
        self._patience = patience

    async def ask(self, method: str, url: str, *, headers: Mapping[str, str] | None = None) -> Response | NoResponse:
        """Send one request without credentials."""
        try:
            async with asyncio.timeout(self._patience):
                return await self._ask(method, url, headers or {})
        except TimeoutError:
            return NoResponse(why=f"no answer within {self._patience:g} s")
        except aiohttp.ClientConnectorCertificateError:
            return NoResponse(why=CERTIFICATE)
        except aiohttp.ClientConnectorDNSError:
            return NoResponse(why="its name is not known here")
        except aiohttp.ClientConnectorError as error:
            return NoResponse(why=connection_error(error))
        except (aiohttp.ClientError, OSError, ValueError):  # their texts may quote what was sent or received
            return NoResponse(why="no HTTP answer")

    async def _ask(self, method: str, url: str, headers: Mapping[str, str]) -> Response:
        asked = self._clock.now()
        async with self._session.request(method, url, headers=headers, allow_redirects=False) as response:
            at = asked + (self._clock.now() - asked) / 2
            body = bytearray()
            async for chunk in response.content.iter_chunked(16 * 1024):
                body += chunk
                if len(body) > _LIMIT:
                    break
            return Response(status=response.status, at=at, headers=response.headers, body=bytes(body))
