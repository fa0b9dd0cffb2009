"""Webhooks in the form of Standard Webhooks."""

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from amo_callback.config.types import read_webhook_secrets
from amo_callback.events import QueuedWebhook
from amo_callback.webhooks.sender import Message, Signer
from tests.fakes import START
from tests.webhooks.receiver import OTHER_SECRET, SECRET

WEBHOOK = QueuedWebhook(
    number=1,
    id="4f1d",
    at=START,
    type="connection.moved",
    connection_id="c",
    data={"connection_id": "c", "domain": "a.amocrm.ru", "owners": ["Ёж"]},
    next_try_at=START,
)


def _message(secrets: Sequence[str]) -> Message:
    return Signer(secrets, reconnect_url="https://a.example/connect").message(WEBHOOK, now=datetime.now(UTC))


def _verify(secret: str, message: Message, body: bytes | None = None) -> object:
    return Webhook(secret).verify(message.body if body is None else body, dict(message.headers))


def test_message_is_verified_by_standardwebhooks() -> None:
    """The library verifies only the signed body, and only with the secret."""
    message = _message([SECRET])
    assert _verify(SECRET, message) == {
        "type": "connection.moved", "timestamp": "2026-11-23T12:00:00Z", "data": dict(WEBHOOK.data),
    }  # fmt: skip
    for secret, body in ((OTHER_SECRET, message.body), (SECRET, message.body + b" ")):
        with pytest.raises(WebhookVerificationError):
            _verify(secret, message, body)


def test_message_omits_domain_that_is_not_allowed() -> None:
    """The domain is omitted, so that receivers send no tokens there; the other fields are unchanged."""
    for domain, allowed, expected in (
        ("evil.example.com", (), None),
        ("evil.example.com", ("evil.example.com",), "evil.example.com"),
        ("a.amocrm.ru@evil.example.com", (), None),
    ):
        signer = Signer([SECRET], reconnect_url="https://a.example/connect", allowed_domains=allowed)
        webhook = dataclasses.replace(WEBHOOK, data={**WEBHOOK.data, "domain": domain})
        data = json.loads(signer.message(webhook, now=START).body)["data"]
        assert (data.get("domain"), data["connection_id"]) == (expected, "c")


def test_message_with_two_secrets_is_verified_by_both() -> None:
    """A receiver may change to a new secret at any time."""
    message = _message([OTHER_SECRET, SECRET])
    assert _verify(SECRET, message) == _verify(OTHER_SECRET, message)


def test_read_webhook_secrets_accepts_one_secret_per_line() -> None:
    """A secret has the prefix and 24 to 64 bytes in base64."""
    longest, too_long = ("whsec_" + "QUFB" * number for number in (21, 22))
    assert read_webhook_secrets(f"{SECRET}\n\n {longest}\n") == [SECRET, longest]
    with pytest.raises(ValueError, match="must contain at least one secret"):
        read_webhook_secrets("")
    for bad in (SECRET.removeprefix("whsec_"), SECRET + "!", SECRET[:-8], too_long):
        with pytest.raises(ValueError, match="line 1 must be whsec_"):
            read_webhook_secrets(bad)


def test_signer_and_message_repr_show_no_secret() -> None:
    """Neither secret nor signature is in any repr."""
    signer = Signer([SECRET], reconnect_url="https://a.example/connect")
    message = signer.message(WEBHOOK, now=START)
    shown = f"{signer!r} {vars(signer)!r} {message!r}"
    assert SECRET[6:] not in shown
    assert message.headers["webhook-signature"] not in shown
