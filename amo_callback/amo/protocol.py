"""AMO's token endpoint without I/O: our requests, and what its answers mean.

The vendor's pages: https://www.amocrm.ru/developers/content/oauth/oauth (and `/step-by-step`), for Kommo
https://developers.kommo.com/reference/get-token. What no page promises, but integrations report, is
treated as likely and never as a contract: whatever is not understood fails safe.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from amo_callback.amo.pair import account_of, find_pair, json_object, life_of, read_claims
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

ANSWER_LIMIT = 256 * 1024
"""Bytes of an answer that are read at most."""
TOO_LARGE = "too_large"
"""Why an answer breaks off of which more has come than is read."""
RETRY_AFTER = 60.0
"""Seconds to wait after a 429 without a readable `Retry-After`."""

# --- requests ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Integration:
    """Our registration in AMO. `redirect_uri` goes with both grants, byte for byte as registered."""

    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str
    endpoint: str = "https://{domain}"
    authorize_url: str = "https://www.amocrm.ru/oauth"
    allowed_domains: Sequence[str] = ()
    """Hosts beyond AMO's own that requests may go to."""
    default_domain: str | None = None
    """The account's host where a request names none."""

    def consent_address(self, state: str) -> str:
        """Return the consent page; the scope is fixed in the integration."""
        query = urlencode({"client_id": self.client_id, "state": state, "mode": "popup"})
        return f"{self.authorize_url}{'&' if '?' in self.authorize_url else '?'}{query}"

    def address(self, domain: str, path: str) -> str:
        """Return the URL of a request to a host of AMO's; raises `HostNotAllowed`.

        Every request that carries a secret gets its URL here.
        """
        return account_url(self.endpoint, domain, allowed=self.allowed_domains) + path


@dataclass(frozen=True, kw_only=True, slots=True)
class AmoRequest:
    """A request, ready to be sent as it is."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # an answer's limit is then a limit on what is unpacked, too
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


# --- answers -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer of AMO's, read up to `ANSWER_LIMIT` bytes."""

    status: int
    body: bytes = field(repr=False)
    others: tuple[bytes, ...] = field(default=(), repr=False)
    """What the body may be besides, where its headers are wrong."""
    broken: str | None = None
    """Why it ends before its end, where it does."""
    retry_after: str | None = None
    date: str | None = None
    request_id: str | None = None
    is_problem: bool = False
    """Whether its type is problem+json: AMO's own words, not a proxy's page."""


class GrantType(Enum):
    """What was presented: each has refusals of its own."""

    CODE = "authorization_code"
    REFRESH_TOKEN = "refresh_token"  # noqa: S105 -- because OAuth calls the grant type so


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
"""The refusals that only the user can resolve: these words and no others are final."""

_REJECTED_CLIENT = re.compile(r"check the `?(?:client_id|client_secret|redirect_uri)`? parameter")
"""AMO's hints for a wrong client, whatever was presented; a problem+json 401 without a hint means the same."""
_CLIENT_REFUSALS = re.compile(
    r"check the `?(?!refresh_token\b)\w+`? parameter"
    r"|token is not linked to client"
    r"|authorization code was not issued to this client"
)
_OTHER_CLIENT = re.compile(r"token is not linked to client|authorization code was not issued to this client")
"""Of a refresh token these words speak of that token alone."""


def read_answer(
    answer: Answer, *, grant_type: GrantType, now: datetime, presented: str = "", allowed: Sequence[str] = ()
) -> TokenResponse:
    """Return the pair that was issued for what was `presented`; raises what the answer means.

    Each error knows the answer's status and request id, AMO's words, and whether these reject our client.
    `UnknownOutcome` where it is not known whether the credential was spent, and `UserError`, `RetryableError` or
    `OperatorError` where it was not. Expiry is counted from `now`, our own clock: a constant offset between the
    clocks cancels out.
    """
    try:
        return _read(answer, grant_type, presented, now, allowed)
    except AmoCallbackError as error:
        _describe(error, answer)
        raise


def _describe(error: AmoCallbackError, answer: Answer) -> None:
    """Add to an error what the log and the operator need of the answer."""
    problem = json_object(answer.body)
    title, hint = (_words((problem or {}).get(name)) for name in ("title", "hint"))
    error.status, error.request_id = answer.status, _request_id(answer)
    error.title, error.hint = title or None, error.hint or hint or None
    if hint:
        error.rejects_client = answer.status in {400, 401} and bool(_REJECTED_CLIENT.match(hint.lower()))
    else:
        error.rejects_client = answer.status == 401 and answer.is_problem and problem is not None


def _read(
    answer: Answer, grant_type: GrantType, presented: str, now: datetime, allowed: Sequence[str]
) -> TokenResponse:
    if 200 <= answer.status < 300:
        return _issued(answer, presented, now, allowed)
    if answer.broken not in {None, TOO_LARGE}:
        raise UnknownOutcome(answer.broken)
    if answer.status == 429:
        raise VendorRateLimited(pause_after(answer, now=now))
    if answer.status in {402, 403}:
        raise AccountBlocked(answer.status, is_problem=answer.is_problem)
    if answer.status not in {400, 401, 404}:
        raise UnknownOutcome(f"http_{answer.status}")  # of no other status it is known that nothing was spent
    raise _refusal(answer, grant_type)


def _issued(answer: Answer, presented: str, now: datetime, allowed: Sequence[str]) -> TokenResponse:
    content = find_pair((answer.body, *answer.others), presented=presented)
    if content is None:
        useless = "not_json" if json_object(answer.body) is None else "no_pair"
        raise UnknownOutcome(answer.broken or useless, body=answer.body)
    access, refresh = content.access_token, content.refresh_token
    claims = read_claims(access)
    return TokenResponse(
        pair=TokenPair(
            access_token=access,
            refresh_token=refresh,
            issued_at=now,
            expires_at=now + life_of(content.expires_in, claims),
        ),
        account=account_of(claims, allowed=allowed),
        request_id=_request_id(answer),
    )


def _refusal(answer: Answer, grant_type: GrantType) -> AmoCallbackError:
    problem = json_object(answer.body) or {}
    hint = _words(problem.get("hint"))
    known = hint.lower().rstrip(".")
    if answer.status in {400, 401}:
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
    if not hint and answer.status == 404 and grant_type is GrantType.CODE:
        return AuthFailed()  # there is no account at the host that the browser named
    if not hint and answer.status in {401, 404}:
        return UnauthorizedWithoutHint(answer.status)
    return UnrecognizedError(status=answer.status, hint=hint or _words(problem.get("title")))


def _request_id(answer: Answer) -> str | None:
    """Return AMO's name for an answer, where it is one that may be logged."""
    name = answer.request_id or ""
    return name if re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", name) else None


_LONG_WORD = re.compile(r"[^\s]{24,}")


def _words(text: object) -> str:
    """Return an answer's text as it may be logged: short, and without anything as long as a secret."""
    if not isinstance(text, str):
        return ""
    return _LONG_WORD.sub("…", "".join(c if c.isprintable() else " " for c in text[:1000])).strip()[:120]


def pause_after(answer: Answer, *, now: datetime) -> float:
    """Return the length of the pause after a 429: what AMO asks for, at most ten minutes, else a minute."""
    asked = retry_after(answer.retry_after, date=answer.date, now=now)
    return RETRY_AFTER if asked is None else min(max(asked, 1.0), LONGEST_PAUSE)
