"""The deep link that returns the user to the app, and its errors.

To add an error, add an entry to `DEEP_LINK_ERRORS`, a section to each file of `web/pages/texts`, and an error class to
`errors` (or, if the redirect itself reveals the error, the error's code to `amo.redirect`).

Values are percent-encoded byte by byte as received, except for RFC 3986's unreserved characters. Some parsers read `+`
as a space, and browsers differ in the other characters that they accept in links with an unknown scheme.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import quote_from_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

HandBack = Literal["code", "ticket", "none"]


class DeepLinkError(NamedTuple):
    """An `error` value of the deep link: its meaning for the app, and its form in the public API."""

    meaning: str
    action: str
    """The recommended action of the app."""
    status: int = 400
    message: str = "The code was not accepted: connect again."
    """The message for the user of the app, who may know AMO as Kommo; so it names neither."""


DEEP_LINK_ERRORS: Mapping[str, DeepLinkError] = MappingProxyType(
    {
        "missing_code": DeepLinkError(
            "the redirect contains neither a code nor an error",
            "start again",
            message="No code was returned: connect again.",
        ),
        "access_denied": DeepLinkError(
            "the user declined access", "do nothing, or offer to try again", message="Access was not granted."
        ),
        "invalid_state": DeepLinkError(
            "the state belongs to another authorization request, was already used, or is older than half an hour",
            "start again",
            message="The link belongs to another attempt: connect again.",
        ),
        "invalid_request": DeepLinkError(
            "the redirect was damaged in transit", "start again", message="The link was damaged: connect again."
        ),
        "account_not_allowed": DeepLinkError(
            "the host is neither amoCRM's nor in `amo.allowed_domains`, "
            "or the account is not in `amo.allowed_accounts`",
            "choose another account",
            message="This account cannot be connected here.",
        ),
        "code_expired": DeepLinkError(
            "the code is older than 20 minutes", "start again", message="The code has expired: connect again."
        ),
        "code_used": DeepLinkError(
            "the code was already spent elsewhere",
            "start again",
            message="The code was already used elsewhere: connect again.",
        ),
        "amo_unavailable": DeepLinkError(
            "amoCRM or this service is unavailable or slow",
            "try again in a minute",
            status=503,
            message="Temporarily unavailable: send the same request again.",
        ),
        "rate_limited": DeepLinkError(
            "too many authorization requests or rejected codes from one address or user",
            "try again in a minute",
            status=429,
            message="Too many attempts: try again later.",
        ),
        "auth_failed": DeepLinkError("amoCRM did not accept the code", "start again"),
    }
)
"""All `error` values of the deep link."""
OURS_OR_AMOS = ("amo_unavailable", "auth_failed")
"""Errors whose cause may be this service or AMO, instead of the user or the sender of the callback's link."""


def success_link(base: str, *, hand_back: HandBack, code: bytes, state: bytes | None) -> str:
    """Return the deep link after a success; it always has a `state` parameter, which may be empty."""
    value = b"true" if hand_back == "none" else code
    return _link(base, "success" if hand_back == "none" else "code", value, state or b"")


def failure_link(base: str, *, error: str, state: bytes | None) -> str:
    """Return the deep link after a failure; `error` is a code of this service, never text from AMO."""
    return _link(base, "error", error.encode(), state)


def is_web_link(link: str) -> bool:
    """Return whether a deep link is an http or https URL, which a page must not open automatically.

    A script's navigation never opens an app link: the browser would leave the page for the URL.
    """
    return link.partition(":")[0].lower() in {"http", "https"}


def intent_link(link: str, *, package: str) -> str:
    """Return a deep link as an Android `intent:` URL, which opens only the app `package`.

    The part after `#Intent;` contains no user input, because Android interprets it. The URL has no
    `browser_fallback_url`; with one, Chrome would not ask whether to open the app. Source:
    https://developer.chrome.com/docs/android/intents
    """
    scheme, _, rest = link.partition(":")
    return f"intent:{rest}#Intent;scheme={scheme.lower()};package={package};end"


def _link(base: str, name: str, value: bytes, state: bytes | None) -> str:
    link = f"{base}?{name}={quote_from_bytes(value, safe='')}"
    return link if state is None else f"{link}&state={quote_from_bytes(state, safe='')}"
