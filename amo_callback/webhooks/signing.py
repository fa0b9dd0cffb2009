"""A webhook as a signed message, as Standard Webhooks has it (https://www.standardwebhooks.com): no I/O.

Signing is left to that project's own library, which receivers verify with: one module of the standard library's HMAC,
typed, with nothing of its own to install since 1.1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from standardwebhooks import Webhook

from amo_callback.clock import rfc3339
from amo_callback.hosts import check_host

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from amo_callback.events import QueuedWebhook

_ENDS_IN_A_PERSON = frozenset({"connection.needs_reauth", "connection.expiring"})
"""The events that the user resolves by connecting again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """A request to the receiver."""

    body: bytes
    headers: Mapping[str, str] = field(repr=False)


class Signer:
    """A signer of webhooks: with every secret, so that one can be replaced without a gap."""

    def __init__(self, secrets: Sequence[str], *, reconnect_url: str, allowed_domains: Sequence[str] = ()) -> None:
        self._signers = [Webhook(secret) for secret in secrets]
        self._reconnect_url = reconnect_url
        self._allowed_domains = allowed_domains

    def message(self, webhook: QueuedWebhook, *, now: datetime) -> Message:
        """Return the signed request; id and body are the same at each try."""
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
        """Return the data, without a stored `domain` that is not allowed: receivers send tokens there."""
        data = dict(webhook.data)
        domain = str(data.get("domain", ""))
        if check_host(domain.encode(errors="replace"), allowed=self._allowed_domains) != domain:
            data.pop("domain", None)
        if webhook.type in _ENDS_IN_A_PERSON:
            data["reconnect_url"] = self._reconnect_url
        return data
