"""One HTTP request to another server: a time limit, no redirects, no credentials, no text of an error."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import aiohttp

from amo_callback import __version__
from amo_callback.cli.api_client import connection_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from datetime import datetime

    from amo_callback.clock import Clock

    HttpProbe = Callable[..., Awaitable["ProbeResponse | NoResponse"]]
    """Takes a method, a URL, and `headers` if there are any."""

_LIMIT = 256 * 1024
"""Bytes of a response that are read at most."""
CERTIFICATE = "its certificate is not valid for it"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeResponse:
    """A response, and its time: the middle between request and response."""

    status: int
    at: datetime
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoResponse:
    """Why there was no response."""

    why: str


@asynccontextmanager
async def open_probe(*, clock: Clock, patience: float) -> AsyncIterator[HttpProbe]:
    """Open a session; each request may take so many seconds."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": f"amo-callback/{__version__}", "Accept-Encoding": "identity"},
    ) as session:
        yield partial(_probe, session, clock, patience)


async def _probe(
    session: aiohttp.ClientSession,
    clock: Clock,
    patience: float,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
) -> ProbeResponse | NoResponse:
    try:
        async with asyncio.timeout(patience):
            asked = clock.now()
            async with session.request(method, url, headers=headers, allow_redirects=False) as response:
                at = asked + (clock.now() - asked) / 2
                body = bytearray()
                async for chunk in response.content.iter_chunked(16 * 1024):
                    body += chunk
                    if len(body) > _LIMIT:
                        break
                return ProbeResponse(status=response.status, at=at, headers=response.headers, body=bytes(body))
    except TimeoutError:
        return NoResponse(why=f"no answer within {patience:g} s")
    except aiohttp.ClientConnectorCertificateError:
        return NoResponse(why=CERTIFICATE)
    except aiohttp.ClientConnectorDNSError:
        return NoResponse(why="its name is not known here")
    except aiohttp.ClientConnectorError as error:
        return NoResponse(why=connection_error(error))
    except (aiohttp.ClientError, OSError, ValueError):  # their texts may quote what was sent or received
        return NoResponse(why="no HTTP answer")
