"""Request building and response parsing for AMO's token endpoint, without I/O.

AMO documents the endpoint at https://www.amocrm.ru/developers/content/oauth/oauth and
https://www.amocrm.ru/developers/content/oauth/step-by-step, and for Kommo at
https://developers.kommo.com/reference/get-token. The authors of other integrations report further behavior, which is
treated as likely but never as guaranteed. An unexpected response must never cause the loss of a credential.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from amo_callback.amo.pair import account_of, find_pair, json_object, lifetime_of, read_claims
from amo_callback.errors import (
    AccountBlocked,
    AmoCallbackError,
    AuthFailed,
    ClientMismatch,
    CodeExpired,
    CodeUsed,
    InvalidClient,
    InvalidRefreshToken,
    UnauthorizedWithoutHint,
    UnknownOutcome,
    UnrecognizedError,
    VendorRateLimited,
)
from amo_callback.hosts import account_url
from amo_callback.model import TokenPair, TokenResponse
from amo_callback.rate_limit import LONGEST_PAUSE
from amo_callback.schedule import retry_after

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

RESPONSE_LIMIT = 256 * 1024
"""The maximum number of response bytes to read."""
TOO_LARGE = "too_large"
"""The reason recorded for a response truncated at `RESPONSE_LIMIT`."""
RETRY_AFTER = 60.0
"""Seconds to wait after a 429 response without a valid `Retry-After` header."""

# --- requests ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Integration:
    """The integration as registered in AMO; every token request must contain `redirect_uri` exactly as registered."""

    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str
    endpoint: str = "https://{domain}"
    authorize_url: str = "https://www.amocrm.ru/oauth"
    allowed_domains: Sequence[str] = ()
    """Hosts, and suffixes of hosts, to which requests may be sent in addition to AMO's own."""
    default_domain: str | None = None
    """The account's host if the callback or the API request does not name a host."""

    def consent_url(self, state: str) -> str:
        """Return the URL of AMO's consent page.

        The URL contains no scope, because the integration's registration in AMO defines the scope.
        """
        query = urlencode({"client_id": self.client_id, "state": state, "mode": "popup"})
        return f"{self.authorize_url}{'&' if '?' in self.authorize_url else '?'}{query}"

    def address(self, domain: str, path: str) -> str:
        """Return the URL of a request to an AMO host; raises `HostNotAllowed`.

        All requests that carry a secret must get their URL from this method.
        """
        return account_url(self.endpoint, domain, allowed=self.allowed_domains) + path


@dataclass(frozen=True, kw_only=True, slots=True)
class AmoRequest:
    """A complete HTTP request to AMO."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # so that the size limit applies to the uncompressed response
}


def exchange_request(integration: Integration, *, code: bytes, domain: str) -> AmoRequest:
    return _token_request(integration, domain, grant_type="authorization_code", code=code.decode())


def refresh_request(integration: Integration, *, refresh_token: str, domain: str) -> AmoRequest:
    return _token_request(integration, domain, grant_type="refresh_token", refresh_token=refresh_token)


def _token_request(integration: Integration, domain: str, **grant: str) -> AmoRequest:
    body = {
        "client_id": integration.client_id,
        "client_secret": integration.client_secret,
        **grant,
        "redirect_uri": integration.redirect_uri,
    }
    return AmoRequest(
        method="POST",
        url=integration.address(domain, "/oauth2/access_token"),
        headers={**HEADERS, "Content-Type": "application/json"},
        body=json.dumps(body).encode(),
    )


# --- responses -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class AmoResponse:
    """A response from AMO, whose body is truncated to `RESPONSE_LIMIT` bytes."""

    status: int
    body: bytes = field(repr=False)
    others: tuple[bytes, ...] = field(default=(), repr=False)
    """Alternative decodings of the body, in case the response's headers are wrong."""
    broken: str | None = None
    """The reason why the response is incomplete; `None` if it is complete."""
    retry_after: str | None = None
    date: str | None = None
    request_id: str | None = None
    is_problem: bool = False
    """Whether the content type is problem+json, which means that the response came from AMO and not from a proxy."""


class GrantType(Enum):
    """The kind of credential that is presented; AMO refuses each kind with different hints."""

    CODE = "authorization_code"
    REFRESH_TOKEN = "refresh_token"  # noqa: S105 -- OAuth's name for the grant type


_REFUSALS: dict[GrantType, tuple[tuple[re.Pattern[str], type[AmoCallbackError]], ...]] = {
    GrantType.CODE: (
        (re.compile(r"authorization code has expired"), CodeExpired),
        (re.compile(r"authorization code has been revoked"), CodeUsed),
        (re.compile(r"cannot decrypt the authorization code"), AuthFailed),
        (re.compile(r"check the `?code`? parameter"), AuthFailed),
    ),
    GrantType.REFRESH_TOKEN: (
        (re.compile(r"token has expired"), InvalidRefreshToken),
        (re.compile(r"token has been revoked"), InvalidRefreshToken),
        (re.compile(r"invalid refresh token"), InvalidRefreshToken),
        (re.compile(r"cannot decrypt the refresh token"), InvalidRefreshToken),
    ),
}
"""AMO's hints for refusals that only the user can resolve; no other hint is treated as final."""

_REJECTED_CLIENT = re.compile(r"check the `?(?:client_id|client_secret|redirect_uri)`? parameter")
"""AMO's hints for wrong client credentials, which are also indicated by a problem+json 401 without a hint."""
_OTHER_CLIENT = re.compile(r"token is not linked to client|authorization code was not issued to this client")
"""AMO's hints for a credential that was issued to another client.

In a response to a refresh request, they mean that the token pair belongs to another client id. They do not mean that
the client credentials are wrong.
"""
_CLIENT_REFUSALS = re.compile(rf"check the `?(?!refresh_token\b)\w+`? parameter|{_OTHER_CLIENT.pattern}")


def read_token_response(
    response: AmoResponse, *, grant_type: GrantType, now: datetime, presented: str = "", allowed: Sequence[str] = ()
) -> TokenResponse:
    """Return the pair in a response to a `presented` credential, or raise the corresponding error.

    Each error carries the response's status and request id, AMO's title and hint, and whether AMO rejected the client
    credentials. The error is `UnknownOutcome` if the credential may have been spent; otherwise it is a `UserError`,
    `RetryableError` or `OperatorError`. Expiry is computed from `now`, the time of this service's clock, so a constant
    clock skew to AMO has no effect.
    """
    try:
        return _read(response, grant_type, presented, now, allowed)
    except AmoCallbackError as error:
        _describe(error, response)
        raise


def _describe(error: AmoCallbackError, response: AmoResponse) -> None:
    """Add the details of the response to an error, for the log and the operator."""
    problem = json_object(response.body)
    title, hint = (_words((problem or {}).get(name)) for name in ("title", "hint"))
    error.status, error.request_id = response.status, _request_id(response)
    error.title, error.hint = title or None, error.hint or hint or None
    if hint:
        error.rejects_client = response.status in {400, 401} and bool(_REJECTED_CLIENT.match(hint.lower()))
    else:
        error.rejects_client = response.status == 401 and response.is_problem and problem is not None


def _read(
    response: AmoResponse, grant_type: GrantType, presented: str, now: datetime, allowed: Sequence[str]
) -> TokenResponse:
    if 200 <= response.status < 300:
        return _issued(response, presented, now, allowed)
    if response.broken not in {None, TOO_LARGE}:
        raise UnknownOutcome(response.broken)
    if response.status == 429:
        raise VendorRateLimited(pause_after(response, now=now))
    if response.status in {402, 403}:
        raise AccountBlocked(response.status, is_problem=response.is_problem)
    if response.status not in {400, 401, 404}:
        raise UnknownOutcome(f"http_{response.status}")  # the credential may have been spent
    raise _refusal(response, grant_type)


def _issued(response: AmoResponse, presented: str, now: datetime, allowed: Sequence[str]) -> TokenResponse:
    content = find_pair((response.body, *response.others), presented=presented)
    if content is None:
        useless = "not_json" if json_object(response.body) is None else "no_pair"
        raise UnknownOutcome(response.broken or useless, body=response.body)
    access, refresh = content.access_token, content.refresh_token
    claims = read_claims(access)
    return TokenResponse(
        pair=TokenPair(
            access_token=access,
            refresh_token=refresh,
            issued_at=now,
            expires_at=now + lifetime_of(content.expires_in, claims),
        ),
        account=account_of(claims, allowed=allowed),
        request_id=_request_id(response),
    )


def _refusal(response: AmoResponse, grant_type: GrantType) -> AmoCallbackError:
    problem = json_object(response.body) or {}
    hint = _words(problem.get("hint"))
    known = hint.lower().rstrip(".")
    if response.status in {400, 401}:
        for pattern, error in _REFUSALS[grant_type]:
            if pattern.fullmatch(known):
                if error is InvalidRefreshToken:
                    return InvalidRefreshToken(
                        expired=known == "token has expired",
                        undecodable=known in {"invalid refresh token", "cannot decrypt the refresh token"},
                    )
                return error()
        if grant_type is GrantType.REFRESH_TOKEN and _OTHER_CLIENT.match(known):
            return ClientMismatch()
        if _CLIENT_REFUSALS.match(known):
            return InvalidClient(hint)
    if not hint and response.status == 404 and grant_type is GrantType.CODE:
        return AuthFailed()  # AMO has no account at the host that the browser named
    if not hint and response.status in {401, 404}:
        return UnauthorizedWithoutHint(response.status)
    return UnrecognizedError(status=response.status, hint=hint or _words(problem.get("title")))


def _request_id(response: AmoResponse) -> str | None:
    """Return AMO's request id; `None` if it is missing or unsafe to log."""
    name = response.request_id or ""
    return name if re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", name) else None


_LONG_WORD = re.compile(r"[^\s]{24,}")


def _words(text: object) -> str:
    """Return response text that is safe to log: shortened, with any word long enough to be a secret replaced by `…`."""
    if not isinstance(text, str):
        return ""
    return _LONG_WORD.sub("…", "".join(c if c.isprintable() else " " for c in text[:1000])).strip()[:120]


def pause_after(response: AmoResponse, *, now: datetime) -> float:
    """Return the pause in seconds after a 429 response.

    The pause is AMO's `Retry-After`, but at least a second and at most ten minutes. Without a valid `Retry-After`, the
    pause is one minute.
    """
    asked = retry_after(response.retry_after, date=response.date, now=now)
    return RETRY_AFTER if asked is None else min(max(asked, 1.0), LONGEST_PAUSE)
