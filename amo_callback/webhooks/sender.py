"""Signed webhooks over HTTP, as defined by Standard Webhooks (https://www.standardwebhooks.com).

Requests are signed with the project's own library, which receivers use to verify them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import aiohttp
from standardwebhooks import Webhook

from amo_callback import __version__
from amo_callback.clock import rfc3339
from amo_callback.hosts import parse_account_host
from amo_callback.webhooks.retry_policy import DeliveryResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime

    from amo_callback.events import QueuedWebhook

Sender = Callable[["QueuedWebhook", "datetime"], Awaitable[DeliveryResult]]
TIMEOUT = 10.0
"""The timeout of a request in seconds, from the DNS look-up to the response headers."""
_WITH_RECONNECT_URL = frozenset({"connection.needs_reauth", "connection.expiring"})
"""The types of webhooks whose cause the user can resolve by connecting again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    body: bytes
    headers: Mapping[str, str] = field(repr=False)


class Signer:
    """A signer of webhooks.

    Each webhook is signed with every secret, so that a secret can be replaced without rejected deliveries.
    """

    def __init__(self, secrets: Sequence[str], *, reconnect_url: str, allowed_domains: Sequence[str] = ()) -> None:
        self._signers = [Webhook(secret) for secret in secrets]
        self._reconnect_url = reconnect_url
        self._allowed_domains = allowed_domains

    def message(self, webhook: QueuedWebhook, *, now: datetime) -> Message:
        """Return the signed request for a webhook; its id and body are the same in every delivery."""
        body = json.dumps({"type": webhook.type, "timestamp": rfc3339(webhook.at), "data": self._data(webhook)})
        signatures = [signer.sign(msg_id=webhook.id, timestamp=now, data=body) for signer in self._signers]
        return Message(
            body=body.encode(),
            headers={
                "Content-Type": "application/json",
                "webhook-id": webhook.id,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": " ".join(signatures),
            },
        )

    def _data(self, webhook: QueuedWebhook) -> Mapping[str, object]:
        """Return the data; omit a `domain` that is not allowed, because receivers may send tokens to that host."""
        data = dict(webhook.data)
        domain = str(data.get("domain", ""))
        if parse_account_host(domain.encode(errors="replace"), allowed=self._allowed_domains) != domain:
            data.pop("domain", None)
        if webhook.type in _WITH_RECONNECT_URL:
            data["reconnect_url"] = self._reconnect_url
        return data


@asynccontextmanager
async def open_sender(url: str, signer: Signer, *, wait_limit: float = TIMEOUT) -> AsyncIterator[Sender]:
    """Open an HTTP session, and yield the function that sends a webhook."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=wait_limit),
        headers={"User-Agent": f"amo-callback/{__version__}"},
    ) as session:
        yield partial(_send, session, url, signer)


async def _send(
    session: aiohttp.ClientSession, url: str, signer: Signer, webhook: QueuedWebhook, now: datetime
) -> DeliveryResult:
    """Send one request; redirects are not followed, and only the status and headers of the response are read."""
    message = signer.message(webhook, now=now)
    try:
        async with session.post(url, data=message.body, headers=message.headers, allow_redirects=False) as response:
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
    except (aiohttp.ClientError, OSError, ValueError):  # the exception is dropped, because its text may quote the URL
        return DeliveryResult(why="connection_lost")
