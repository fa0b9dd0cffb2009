"""Messages over HTTP: the thin edge under `dispatcher`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp

from amo_callback import __version__
from amo_callback.webhooks.retry_policy import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amo_callback.webhook import Message

TIMEOUT = 10.0
"""Seconds for one request, from the look-up of its host to the answer's head."""


@asynccontextmanager
async def open_sender(url: str, *, patience: float = TIMEOUT) -> AsyncIterator[Sender]:
    """Open a session of its own: no other request waits for a place in it."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=patience),
        headers={"User-Agent": f"amo-callback/{__version__}"},
    ) as session:
        yield Sender(url, session=session)


class Sender:
    """Post to the operator's receiver: one request a call, redirects never followed."""

    def __init__(self, url: str, *, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def post(self, message: Message) -> Answer:
        """Post a message, and return what came of it; only the answer's head is read, so that no body is too long."""
        try:
            async with self._session.post(
                self._url, data=message.body, headers=message.headers, allow_redirects=False
            ) as response:
                headers = response.headers
                return Answer(status=response.status, retry_after=headers.get("Retry-After"), date=headers.get("Date"))
        except TimeoutError:
            return Answer(why="timeout")
        except aiohttp.ClientConnectorCertificateError:
            return Answer(why="certificate")
        except aiohttp.ClientConnectorError:
            return Answer(why="unreachable")
        except (aiohttp.ClientError, OSError, ValueError):  # their texts may quote the address
            return Answer(why="connection_lost")
