"""Introspection requests and response parsing, without I/O.

Introspection never spends a token. AMO has two introspection endpoints, which both return the account's current host:

- for a refresh token, `GET https://{api_domain}/oauth2/account/current/subdomain`;
- for an access token, `GET https://www.amocrm.ru/oauth2/account/subdomain`.

A refresh token in doubt is introspected before it is presented again. It is unknown whether AMO's introspection rejects
spent refresh tokens, so the result is never final by itself.
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
    """Build the introspection request for a refresh token.

    Returns `None` without an `api_domain`, which pairs issued before 2024-08-21 do not contain. Raises `HostNotAllowed`
    if `api_domain` is not allowed.
    """
    if not api_domain:
        return None
    return AmoRequest(
        method="GET",
        url=integration.address(api_domain, "/oauth2/account/current/subdomain"),
        headers={**HEADERS, "X-Refresh-Token": refresh_token},
    )


def access_token_request(integration: Integration, *, access_token: str, domain: str) -> AmoRequest | None:
    """Build the introspection request for an access token of the account at the host `domain`.

    The request goes to the `www` host of the same domain family, such as www.amocrm.ru. Returns `None` if the `www`
    host is not allowed. Raises `HostNotAllowed` if `domain` is not allowed.
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
    """Return the result of an introspection.

    The token's state is unknown if the response is for another account or not in AMO's format. A status in `refusals`
    counts as a rejection only if the body is a JSON object, because a proxy may also respond with 401 or 404.
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

    The signature for an account never changes, so a signed call may be a replay. The caller must confirm the report by
    introspection.
    """
    signed = f"{integration.client_id}|{account_id}".encode()
    good = hmac.new(integration.client_secret.encode(), signed, hashlib.sha256).hexdigest()
    return client_id == integration.client_id and hmac.compare_digest(signature.lower().encode(), good.encode())
