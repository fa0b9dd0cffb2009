"""Introspection requests and response parsing, without I/O; introspection never spends a token.

`GET https://{api_domain}/oauth2/account/current/subdomain` with a refresh token and `GET
https://www.amocrm.ru/oauth2/account/subdomain` with an access token both return the account's current host. It is
unknown whether the first rejects a spent refresh token. It is therefore used before a token in doubt is presented
again, but its result is never final.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from amo_callback.amo.pair import json_object
from amo_callback.amo.protocol import HEADERS, AmoRequest
from amo_callback.hosts import parse_account_host
from amo_callback.model import IntrospectionResult, TokenState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.amo.protocol import AmoResponse, Integration

REFRESH_TOKEN_REFUSED = frozenset({400, 401, 404})
ACCESS_TOKEN_DEAD = frozenset({401})

UNKNOWN = IntrospectionResult(state=TokenState.UNKNOWN)
NOT_CHECKED = IntrospectionResult(state=TokenState.NOT_CHECKED)


def refresh_token_request(integration: Integration, *, refresh_token: str, api_domain: str | None) -> AmoRequest | None:
    """Build the request for a refresh token; `None` without an `api_domain` (a pair from before 2024-08-21).

    Raises `HostNotAllowed`.
    """
    if not api_domain:
        return None
    return AmoRequest(
        method="GET",
        url=integration.address(api_domain, "/oauth2/account/current/subdomain"),
        headers={**HEADERS, "X-Refresh-Token": refresh_token},
    )


def access_token_request(integration: Integration, *, access_token: str, domain: str) -> AmoRequest | None:
    """Build the request for an access token, to the main host (such as amocrm.ru) of the account's host.

    Returns `None` if that host is not allowed. Raises `HostNotAllowed` if the account's own host is not allowed.
    """
    integration.address(domain, "")
    host = parse_account_host(f"www.{domain.partition('.')[2]}".encode(), allowed=integration.allowed_domains)
    if host is None:
        return None
    return AmoRequest(
        method="GET",
        url=integration.address(host, "/oauth2/account/subdomain"),
        headers={**HEADERS, "Authorization": f"Bearer {access_token}"},
    )


def read_introspection(
    response: AmoResponse, *, account_id: str, refusals: frozenset[int], allowed: Sequence[str] = ()
) -> IntrospectionResult:
    """Return the result of an introspection; unknown if the response is for another account or not in AMO's format.

    A status in `refusals` counts only with a JSON body, because a bare 401 or 404 may be a proxy's.
    """
    content = None if response.broken else json_object(response.body)
    if response.status in refusals and content is not None:
        return IntrospectionResult(state=TokenState.REJECTED)
    if response.status != 200 or content is None:
        return UNKNOWN
    found = content.get("id")
    if type(found) not in {int, str} or (account_id and str(found) != account_id):
        return UNKNOWN
    domain = content.get("domain")
    host = parse_account_host(domain.encode(errors="replace"), allowed=allowed) if isinstance(domain, str) else None
    return IntrospectionResult(state=TokenState.VALID, domain=host)


def is_hook(integration: Integration, *, account_id: str, client_id: str, signature: str) -> bool:
    """Return whether AMO signed the hook that reports the integration as disabled in an account.

    An account's signature never changes, so the call may be a replay: it is verified by introspection.
    """
    signed = f"{integration.client_id}|{account_id}".encode()
    good = hmac.new(integration.client_secret.encode(), signed, hashlib.sha256).hexdigest()
    return client_id == integration.client_id and hmac.compare_digest(signature.lower().encode(), good.encode())
