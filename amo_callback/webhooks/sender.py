"""Signed webhooks over HTTP."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp

from amo_callback import __version__
from amo_callback.webhooks.retry_policy import DeliveryResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from amo_callback.events import QueuedWebhook
    from amo_callback.webhooks.signing import Signer

TIMEOUT = 10.0
"""Seconds for one request, from the look-up of its host to the answer's head."""


@asynccontextmanager
async def open_sender(url: str, signer: Signer, *, patience: float = TIMEOUT) -> AsyncIterator[Sender]:
    """Open a sender with a session of its own."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=patience),
        headers={"User-Agent": f"amo-callback/{__version__}"},
    ) as session:
        yield Sender(url, signer, session=session)


class Sender:
    """A client of the operator's receiver: one request a call, redirects never followed."""

    def __init__(self, url: str, signer: Signer, *, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._signer = signer
        self._session = session

    async def post(self, webhook: QueuedWebhook, *, now: datetime) -> DeliveryResult:
        """Post a webhook; only the response's headers are read, so that no body is too long."""
        message = self._signer.message(webhook, now=now)
        try:
            async with self._session.post(
                self._url, data=message.body, headers=message.headers, allow_redirects=False
            ) as response:
                headers = response.headers
                return DeliveryResult(
                    status=response.status, retry_after=headers.get("Retry-After"), date=headers.get("Date")
                )
        except TimeoutError:
            return DeliveryResult(why="timeout")
        except aiohttp.ClientConnectorCertificateError:
            return DeliveryResult(why="certificate")
        except aiohttp.ClientConnectorError:
            return DeliveryResult(why="unreachable")
        except (aiohttp.ClientError, OSError, ValueError):  # their texts may quote the address
            return DeliveryResult(why="connection_lost")
