"""AMO's OAuth without I/O: what it sends and what its answers mean.

The vendor's pages: https://www.amocrm.ru/developers/content/oauth/oauth (and `/step-by-step`), for Kommo
https://developers.kommo.com/reference/get-token. What no page promises, but integrations report, is
treated as likely and never as a contract: whatever is not understood fails safe.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from amo_callback.errors import (
    AccountRefused,
    AmoCallbackError,
    AuthFailed,
    ClientRefused,
    CodeExpired,
    CodeUsed,
    OutcomeOpen,
    RateLimited,
    RefreshTokenDead,
    UnexplainedRefusal,
    UnknownRefusal,
)
from amo_callback.model import MAX_CODE, MAX_STATE, Account, Issued, Redirect, TokenPair

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_PARAMETERS = 100
ANSWER_LIMIT = 256 * 1024
"""Bytes of an answer that are read at most."""

VENDOR_SUFFIXES = (".amocrm.ru", ".amocrm.com", ".kommo.com")
UNKNOWN_LIFE = timedelta(minutes=15)
"""How long an access token is taken to live where neither the answer nor the token tells."""
RETRY_AFTER = 60.0
MAX_RETRY_AFTER = 3600.0

# --- the redirect --------------------------------------------------------------------------------

_OURS = frozenset({b"code", b"state", b"referer", b"error", b"from_exchange", b"from_widget"})
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def read_redirect(query: bytes, *, default_domain: str | None, allowed_domains: Sequence[str]) -> Redirect:
    """Read the raw query of AMO's redirect.

    It is cut as bytes, since `code` and `state` may be any, and go back to the app as they came. Never
    raises: what is wrong is in `error`, beside as much of the rest as can be trusted (a `state` only where
    it came once, whole and not too long).
    """
    found, broken = _parameters(query)
    state = found.get(b"state")
    code = found.get(b"code")
    if state is not None and len(state) > MAX_STATE:
        state, broken = None, True
    redirect = Redirect(
        state=state,
        from_server=found.get(b"from_exchange") == b"1",
        from_widget=found.get(b"from_widget") == b"1",
    )
    if broken or len(code or b"") > MAX_CODE:
        return _refused(redirect, "invalid_request")
    if found.get(b"error"):
        return _refused(redirect, "access_denied" if found[b"error"] == b"access_denied" else "auth_failed")
    if not code:
        return _refused(redirect, "missing_code")
    referer = found.get(b"referer") or (default_domain or "").encode()
    if not referer:
        return _refused(redirect, "invalid_request")
    domain = check_host(referer, allowed=allowed_domains)
    if domain is None:
        return _refused(redirect, "account_not_allowed")
    if not _is_utf8(code):
        return _refused(redirect, "auth_failed")  # no JSON body can carry it, so AMO never issued it
    return Redirect(
        code=code,
        state=state,
        domain=domain,
        from_server=redirect.from_server,
        from_widget=redirect.from_widget,
    )


def _refused(redirect: Redirect, error: str) -> Redirect:
    return Redirect(
        state=redirect.state,
        error=error,
        from_server=redirect.from_server,
        from_widget=redirect.from_widget,
    )


def _parameters(query: bytes) -> tuple[dict[bytes, bytes], bool]:
    """Return the parameters we read, decoded, and whether the query is broken, doubled or too long."""
    parts = query.split(b"&")
    if len(parts) > MAX_PARAMETERS:
        return {}, True
    found: dict[bytes, bytes] = {}
    doubled: set[bytes] = set()
    broken = False
    for part in parts:
        raw_name, _, raw_value = part.partition(b"=")
        name = _unquote(raw_name)
        if name.partition(b"[")[0] not in _OURS:
            continue
        if b"[" in name or name in found:  # `code[]=…` is a list to some frameworks: nothing of ours is
            doubled.add(name.partition(b"[")[0])
        elif _BROKEN_ESCAPE.search(raw_value):
            doubled.add(name)
        else:
            found[name] = _unquote(raw_value)
    for name in doubled:
        broken = True
        found.pop(name, None)
    return found, broken


def _unquote(value: bytes) -> bytes:
    return unquote_to_bytes(value.replace(b"+", b" "))


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- hosts ---------------------------------------------------------------------------------------

_HOST = re.compile(rb"(?:https?://)?([a-z0-9.-]{1,253})/?", re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def check_host(value: bytes, *, allowed: Sequence[str] = ()) -> str | None:
    """Return the account's host in lower case, or `None` for one that must never see our secret.

    `referer` comes from the browser's address bar, so from anybody, and the client secret is posted to the
    host it names. Good are one DNS label before a suffix of AMO's, and what the operator listed
    (`host` exactly, `.suffix` with one label before it). A bare host, or one with a scheme.
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


# --- requests ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Integration:
    """Our registration in AMO. `redirect_uri` goes with both grants, byte for byte as registered."""

    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str
    endpoint: str = "https://{domain}"


@dataclass(frozen=True, kw_only=True, slots=True)
class AmoRequest:
    """A request, ready to be sent as it is."""

    url: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(
        default_factory=lambda: {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # an answer's limit is then a limit on what is unpacked, too
        }
    )


def exchange_request(integration: Integration, *, code: bytes, domain: str) -> AmoRequest:
    """Build the request that spends an authorization code."""
    return _token_request(integration, domain, grant_type="authorization_code", code=code.decode())


def refresh_request(integration: Integration, *, refresh_token: str, domain: str) -> AmoRequest:
    """Build the request that spends a refresh token."""
    return _token_request(integration, domain, grant_type="refresh_token", refresh_token=refresh_token)


def _token_request(integration: Integration, domain: str, **grant: str) -> AmoRequest:
    body = {
        "client_id": integration.client_id,
        "client_secret": integration.client_secret,
        **grant,
        "redirect_uri": integration.redirect_uri,
    }
    base = integration.endpoint.replace("{domain}", domain)
    return AmoRequest(url=f"{base}/oauth2/access_token", body=json.dumps(body).encode())


# --- answers -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer of the token endpoint, read up to `ANSWER_LIMIT` bytes."""

    status: int
    body: bytes = field(repr=False)
    retry_after: str | None = None
    truncated: bool = False


class GrantType(Enum):
    """What was presented: each has refusals of its own."""

    CODE = "authorization_code"
    REFRESH_TOKEN = "refresh_token"  # noqa: S105 -- because OAuth calls the grant type so


_REFUSALS: dict[GrantType, tuple[tuple[re.Pattern[str], type[AmoCallbackError]], ...]] = {
    GrantType.CODE: (
        (re.compile(r"authorization code has expired"), CodeExpired),
        (re.compile(r"authorization code has been revoked"), CodeUsed),
        (re.compile(r"cannot decrypt the authorization code"), AuthFailed),
    ),
    GrantType.REFRESH_TOKEN: (
        (re.compile(r"token has expired"), RefreshTokenDead),
        (re.compile(r"token has been revoked"), RefreshTokenDead),
        (re.compile(r"invalid refresh token"), RefreshTokenDead),
        (re.compile(r"cannot decrypt the refresh token"), RefreshTokenDead),
    ),
}
"""The refusals that are the person's to mend: these words and no others are final."""

_CLIENT_REFUSALS = re.compile(
    r"check the `?\w+`? parameter"
    r"|token is not linked to client"
    r"|authorization code was not issued to this client"
)


def read_answer(answer: Answer, *, grant_type: GrantType, now: datetime, allowed: Sequence[str] = ()) -> Issued:
    """Return the issued pair; raises what the answer means.

    `OutcomeOpen` where it does not tell whether the credential was spent, and `PersonMustAct`, `MustWait` or
    `MustMend` where it was not. Expiry is counted from `now`, our own clock: a constant offset between the
    clocks cancels out.
    """
    if 200 <= answer.status < 300:
        return _issued(answer, now, allowed)
    if answer.status == 429:
        raise RateLimited(_retry_after(answer.retry_after))
    if answer.status in {402, 403}:
        raise AccountRefused(answer.status)
    if not 400 <= answer.status < 500:
        raise OutcomeOpen(f"http_{answer.status}")
    raise _refusal(answer, grant_type)


def _issued(answer: Answer, now: datetime, allowed: Sequence[str]) -> Issued:
    if answer.truncated:
        raise OutcomeOpen("too_large")
    content = _json_object(answer.body)
    if content is None:
        raise OutcomeOpen("not_json")
    access, refresh = content.get("access_token"), content.get("refresh_token")
    if not (_is_token(access) and _is_token(refresh)):
        raise OutcomeOpen("no_pair")
    claims = _claims(str(access))
    return Issued(
        pair=TokenPair(
            access_token=str(access),
            refresh_token=str(refresh),
            issued_at=now,
            expires_at=now + _life(content.get("expires_in"), claims),
        ),
        account=_account(claims, allowed),
    )


def _refusal(answer: Answer, grant_type: GrantType) -> AmoCallbackError:
    problem = _json_object(answer.body) or {}
    hint = _words(problem.get("hint"))
    known = hint.lower().rstrip(".")
    if answer.status in {400, 401}:
        for pattern, error in _REFUSALS[grant_type]:
            if pattern.fullmatch(known):
                if error is RefreshTokenDead:
                    return RefreshTokenDead(expired=known == "token has expired")
                return error()
        if _CLIENT_REFUSALS.match(known):
            return ClientRefused(hint)
    if not hint and answer.status == 404 and grant_type is GrantType.CODE:
        return AuthFailed()  # no account lives at the host that the browser named
    if not hint and answer.status in {401, 404}:
        return UnexplainedRefusal(answer.status)
    return UnknownRefusal(status=answer.status, hint=hint or _words(problem.get("title")))


def _json_object(body: bytes) -> dict[str, object] | None:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _is_token(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value.isascii() and value.isprintable()


_LONG_WORD = re.compile(r"[^\s]{24,}")


def _words(text: object) -> str:
    """Return an answer's text as it may be logged: short, and without anything as long as a secret."""
    if not isinstance(text, str):
        return ""
    return _LONG_WORD.sub("…", "".join(c if c.isprintable() else " " for c in text[:1000])).strip()[:120]


def _retry_after(value: str | None) -> float:
    """Read `Retry-After` in seconds; a minute where it is missing, a date or absurd."""
    if value is None or not re.fullmatch(r"[0-9]{1,9}", value):
        return RETRY_AFTER
    return min(max(float(value), 1.0), MAX_RETRY_AFTER)


# --- claims --------------------------------------------------------------------------------------


def _claims(access_token: str) -> dict[str, object]:
    """Return the claims of an access token, unverified: hints from a party we called over TLS."""
    parts = access_token.split(".")
    if len(parts) != 3:
        return {}
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
    except ValueError:
        return {}
    return _json_object(payload) or {}


def _account(claims: dict[str, object], allowed: Sequence[str]) -> Account:
    api_domain = claims.get("api_domain")
    issued = claims.get("iat")
    return Account(
        account_id=_identifier(claims.get("account_id")),
        user_id=_identifier(claims.get("sub")),
        api_domain=check_host(api_domain.encode(), allowed=allowed) if isinstance(api_domain, str) else None,
        token_iat=issued if type(issued) is int and 0 <= issued < 2**53 else None,
    )


def _identifier(value: object) -> str:
    text = str(value) if type(value) in {int, str} else ""
    return text if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text) else ""


_MAX_LIFE = timedelta(days=3650)


def _life(expires_in: object, claims: dict[str, object]) -> timedelta:
    """Return how long the access token lives.

    A pair has been paid for with the old one: it is kept, whatever else the answer lacks.
    """
    issued, expires = claims.get("iat"), claims.get("exp")
    told = expires_in
    if not _is_life(told) and type(issued) is int and type(expires) is int:
        told = expires - issued
    return timedelta(seconds=int(str(told))) if _is_life(told) else UNKNOWN_LIFE


def _is_life(value: object) -> bool:
    return type(value) is int and 0 < value <= _MAX_LIFE.total_seconds()
