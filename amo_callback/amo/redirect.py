"""Parsing of AMO's redirect to the callback, from the raw bytes of its query, without I/O."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from amo_callback.grant import MAX_CODE, MAX_STATE, CallbackParams, support_code
from amo_callback.hosts import loggable_host, parse_account_host
from amo_callback.model import fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PARAMETERS = 100

_OURS = frozenset({b"code", b"state", b"referer", b"error", b"from_exchange", b"from_widget"})
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def read_redirect(query: bytes, *, default_domain: str | None, allowed_domains: Sequence[str]) -> CallbackParams:
    """Parse the raw query of AMO's redirect.

    The query is parsed as bytes, because `code` and `state` may contain any bytes, and the app must receive them
    unchanged. The function never raises. It reports errors in `error`, along with any values that can be trusted. A
    `state` can be trusted only if it occurs once, has no malformed percent-encoding, and is not too long.
    """
    found, broken = _parameters(query)
    state = found.get(b"state")
    code = found.get(b"code")
    if state is not None and len(state) > MAX_STATE:
        state, broken = None, True
    redirect = CallbackParams(
        state=state,
        from_server=found.get(b"from_exchange") == b"1",
        from_widget=found.get(b"from_widget") == b"1",
    )
    support = support_code(fingerprint(code)) if code else None
    refused = partial(dataclasses.replace, redirect, support=support)
    if broken or len(code or b"") > MAX_CODE:
        return refused(error="invalid_request", refused="query")
    if found.get(b"error"):
        word = "access_denied" if found[b"error"] == b"access_denied" else "auth_failed"
        return refused(error=word, refused="error")
    if not code:
        return refused(error="missing_code", refused="code")
    referer = found.get(b"referer") or (default_domain or "").encode()
    if not referer:
        return refused(error="invalid_request", refused="host")
    domain = parse_account_host(referer, allowed=allowed_domains)
    if domain is None:
        host = None if referer in {code, state} else loggable_host(referer)
        return refused(error="account_not_allowed", refused="host", refused_host=host)
    if not _is_utf8(code):  # JSON cannot contain this code, so AMO cannot have issued it
        return refused(error="auth_failed", refused="code")
    return dataclasses.replace(redirect, code=code, domain=domain)


def _parameters(query: bytes) -> tuple[dict[bytes, bytes], bool]:
    """Return the known parameters, decoded, and whether the query is invalid.

    A query is invalid if it has too many parameters, or if a known parameter is malformed or repeated. An invalid
    parameter is not returned.
    """
    parts = query.split(b"&")
    if len(parts) > MAX_PARAMETERS:
        return {}, True
    found: dict[bytes, bytes] = {}
    spoiled: set[bytes] = set()
    for part in parts:
        raw_name, _, raw_value = part.partition(b"=")
        name = _unquote(raw_name)
        if name.partition(b"[")[0] not in _OURS:
            continue
        # Some frameworks parse `code[]=…` as a list; it is never valid in the callback.
        if b"[" in name or name in found:
            spoiled.add(name.partition(b"[")[0])
        elif _BROKEN_ESCAPE.search(raw_value):
            spoiled.add(name)
        else:
            found[name] = _unquote(raw_value)
    for name in spoiled:
        found.pop(name, None)
    return found, bool(spoiled)


def _unquote(value: bytes) -> bytes:
    return unquote_to_bytes(value.replace(b"+", b" "))


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
