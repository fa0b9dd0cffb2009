"""The hosts to which the client secret and tokens may be sent."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from amo_callback.errors import HostNotAllowed

if TYPE_CHECKING:
    from collections.abc import Sequence

VENDOR_SUFFIXES = (".amocrm.ru", ".amocrm.com", ".kommo.com")

_HOST = re.compile(rb"(?:https?://)?([a-z0-9.-]{1,253})/?", re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

_LOGGABLE = re.compile(
    rb"(?:https?://)?((?:[a-z0-9-]{1,63}\.){0,6}(?:[a-z]{2,20}|xn--[a-z0-9-]{1,16}|[0-9]{1,3}))(?::[0-9]{1,5})?(?:/.*)?",
    re.IGNORECASE | re.DOTALL,
)
_LONGEST_LOGGED = 64


def loggable_host(value: bytes) -> str | None:
    """Return the host in a refused value; `None` if the value may be a secret, such as a token.

    The last label has at most 20 letters, so a bare secret of 128 random bits or more is never returned.
    """
    match = _LOGGABLE.fullmatch(value)
    return match[1].decode("ascii").lower() if match is not None and len(match[1]) <= _LONGEST_LOGGED else None


def parse_account_host(value: bytes, *, allowed: Sequence[str] = ()) -> str | None:
    """Return the account's host in lower case; `None` if it must not receive secrets.

    The browser's user controls the `referer` parameter, and the client secret is posted to the host that it names.
    A host is accepted if it consists of one DNS label and one of AMO's suffixes, or if it is in the operator's list
    (`host` exactly, or `.suffix` with one label before it). The value may have a scheme.
    """
    match = _HOST.fullmatch(value)
    if match is None:
        return None
    host = match[1].decode("ascii").lower()
    for pattern in (*VENDOR_SUFFIXES, *allowed):
        if pattern.startswith("."):
            if host.endswith(pattern) and _LABEL.fullmatch(host.removesuffix(pattern)):
                return host
        elif host == pattern:
            return host
    return None


def crm_name(host: str) -> str:
    """Return the name by which the users of AMO's hosts know AMO."""
    return "Kommo" if f".{host}".endswith(".kommo.com") else "amoCRM"


def account_url(endpoint: str, host: str, *, allowed: Sequence[str] = ()) -> str:
    """Return an endpoint's URL, with `{domain}` replaced by `host`; raises `HostNotAllowed`.

    A stored host is checked each time it is used, because a write to the database must not determine where secrets are
    sent.
    """
    value = host.encode(errors="replace")
    if parse_account_host(value, allowed=allowed) != host:
        raise HostNotAllowed(loggable_host(value))
    return endpoint.replace("{domain}", host)
