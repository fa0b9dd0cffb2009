"""A simulation of AMO without I/O: accounts, consent, codes, tokens, introspection and the hook's signature."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from amo_callback.amo.pair import json_object
from amo_callback.amo.sandbox.ledger import Entry, Ledger, LookUp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TOP_LEVEL = "amocrm.ru"
_PROBLEM = "https://developers.amocrm.ru/v3/errors/OAuthProblemJson"


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxIntegration:
    client_id: str = "c6190000-0000-4000-8000-000000000000"
    client_secret: str = field(default="sandbox-client-secret-0123456789abcdef", repr=False)
    redirect_uri: str = "http://127.0.0.1:8080/api/amo-crm/callback"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lifetimes:
    """The lifetimes of codes and tokens, in seconds."""

    code: float = 1200.0
    access: float = 86400.0
    refresh: float = 90 * 86400.0


@dataclass(slots=True)
class Quirks:
    """Undocumented behavior of AMO; the service must work with each alternative."""

    refresh_kills_access: bool = False
    """Whether a refresh invalidates the previous access token."""
    introspection_accepts_spent: bool = False
    """Whether introspection accepts a spent refresh token."""
    moved_status: int = 404
    """The status that a moved account's old host returns, without a hint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxReply:
    status: int
    content: Mapping[str, object]
    content_type: str = "application/json"

    @property
    def body(self) -> bytes:
        return json.dumps(self.content, ensure_ascii=False).encode()


@dataclass(slots=True)
class SandboxAccount:
    id: int
    host: str
    user_id: int
    disabled: bool = False
    gone: bool = False
    """Whether the account was deleted; its host then responds without a hint, and its tokens are rejected."""

    @property
    def valid(self) -> bool:
        return not (self.disabled or self.gone)


@dataclass(slots=True)
class _Code:
    account: SandboxAccount
    expires_at: datetime
    spent: bool = False


@dataclass(slots=True)
class _RefreshToken:
    account: SandboxAccount
    access_token: str = field(repr=False)
    expires_at: datetime
    spent: bool = False


class FakeAmo:
    def __init__(
        self, *, integration: SandboxIntegration, now: Callable[[], datetime], lifetimes: Lifetimes | None = None
    ) -> None:
        self.integration = integration
        self.ledger = Ledger()
        self.lifetimes = lifetimes or Lifetimes()
        self.quirks = Quirks()
        self.now = now
        """AMO's clock, which may differ from the service's."""
        self._key = secrets.token_bytes(32)
        self._accounts: dict[int, SandboxAccount] = {}
        self._codes: dict[str, _Code] = {}
        self._refresh_tokens: dict[str, _RefreshToken] = {}
        self._access_tokens: dict[str, tuple[SandboxAccount, datetime]] = {}

    # --- accounts --------------------------------------------------------------------------------

    def open_account(self, host: str, *, account_id: int | None = None, user_id: int | None = None) -> SandboxAccount:
        number = account_id or 31920194 + len(self._accounts)
        account = SandboxAccount(id=number, host=host, user_id=user_id or 700_000 + number % 100_000)
        self._accounts[number] = account
        return account

    @property
    def accounts(self) -> list[SandboxAccount]:
        return list(self._accounts.values())

    def account_at(self, host: str) -> SandboxAccount | None:
        return next((one for one in self._accounts.values() if one.host == host and not one.gone), None)

    # --- consent ---------------------------------------------------------------------------------

    def allow(self, account: SandboxAccount) -> str:
        """Allow access as the account's user, and return the authorization code.

        This re-enables a disabled integration; earlier tokens stay revoked.
        """
        if account.disabled:
            self._revoke(account)
            account.disabled = False
        code = "def50200" + secrets.token_hex(340)
        self._codes[code] = _Code(account, self.now() + timedelta(seconds=self.lifetimes.code))
        return code

    def _revoke(self, account: SandboxAccount) -> None:
        for token in self._refresh_tokens.values():
            token.spent = token.spent or token.account is account
        for name in [name for name, (owner, _) in self._access_tokens.items() if owner is account]:
            del self._access_tokens[name]

    # --- the token endpoint ----------------------------------------------------------------------

    def token(self, host: str, *, body: bytes, content_type: str) -> SandboxReply:
        """Respond to `POST https://{host}/oauth2/access_token`."""
        request = json_object(body) if content_type == "application/json" else None
        if request is None:
            return client_unknown()  # AMO responds to a form as if the client were unknown
        kind, presented = _presented(request)
        reply = self._answer(host, request, kind, presented)
        hint = reply.content.get("hint")
        self._note(host, kind, presented, status=reply.status, hint=hint if isinstance(hint, str) else None)
        return reply

    def turned_away(self, host: str, *, body: bytes) -> None:
        """Record a credential that was presented but not examined."""
        kind, presented = _presented(json_object(body) or {})
        self._note(host, kind, presented, status=None, hint=None)

    def _note(self, host: str, kind: str, presented: object, *, status: int | None, hint: str | None) -> None:
        if isinstance(presented, str):
            entry = Entry(at=self.now(), kind=kind, presented=presented, host=host, status=status, hint=hint)
            self.ledger.entries.append(entry)

    def _answer(self, host: str, request: Mapping[str, object], kind: str, presented: object) -> SandboxReply:
        for name in ("client_id", "client_secret", "redirect_uri", "grant_type"):
            if not isinstance(request.get(name), str):
                return problem(400, f"Check the `{name}` parameter")
        known = self.integration
        mine = (known.client_id, known.client_secret, known.redirect_uri)
        if (request["client_id"], request["client_secret"], request["redirect_uri"]) != mine:
            return client_unknown()
        account = self.account_at(host)
        if account is None:
            return problem(self.quirks.moved_status, None)
        if not isinstance(presented, str) or not presented:
            return problem(400, "Check the `code` parameter" if kind == "authorization_code" else None)
        if kind == "authorization_code":
            return self._exchange(account, presented)
        if kind == "refresh_token":
            return self._refresh(account, presented)
        return problem(400, "Check the `grant_type` parameter")

    def _exchange(self, account: SandboxAccount, presented: str) -> SandboxReply:
        code = self._codes.get(presented)
        if code is None or code.account is not account:
            return problem(400, "Cannot decrypt the authorization code")
        if code.expires_at <= self.now():
            return problem(400, "Authorization code has expired")
        if code.spent:
            return problem(400, "Authorization code has been revoked")
        code.spent = True
        return self._issue(account)

    def _refresh(self, account: SandboxAccount, presented: str) -> SandboxReply:
        token = self._refresh_tokens.get(presented)
        if token is None or token.account is not account:
            return problem(400, "Cannot decrypt the refresh token")
        if token.spent or account.disabled:
            return problem(401, "Token has been revoked")
        if token.expires_at <= self.now():
            return problem(401, "Token has expired")
        token.spent = True
        if self.quirks.refresh_kills_access:
            self._access_tokens.pop(token.access_token, None)
        return self._issue(account)

    def _issue(self, account: SandboxAccount) -> SandboxReply:
        now = self.now()
        access = self._jwt(account, now)
        refresh = "def50200" + secrets.token_hex(340)
        self._access_tokens[access] = (account, now + timedelta(seconds=self.lifetimes.access))
        expires = now + timedelta(seconds=self.lifetimes.refresh)
        self._refresh_tokens[refresh] = _RefreshToken(account, access, expires)
        self.ledger.issued.append(refresh)
        self.ledger.access_tokens.append(access)
        return SandboxReply(
            status=200,
            content={
                "token_type": "Bearer",
                "expires_in": int(self.lifetimes.access),
                "access_token": access,
                "refresh_token": refresh,
                "server_time": int(now.timestamp()),
            },
        )

    def _jwt(self, account: SandboxAccount, now: datetime) -> str:
        claims = {
            "aud": self.integration.client_id,
            "jti": secrets.token_hex(32),
            "iat": int(now.timestamp()),
            "nbf": int(now.timestamp()),
            "exp": int((now + timedelta(seconds=self.lifetimes.access)).timestamp()),
            "sub": str(account.user_id),
            "account_id": account.id,
            "base_domain": TOP_LEVEL,
            "api_domain": f"api-b.{TOP_LEVEL}",
            "scopes": ["crm", "files", "notifications"],
        }
        head = _segment({"typ": "JWT", "alg": "HS256"}) + "." + _segment(claims)
        signature = hmac.digest(self._key, head.encode(), hashlib.sha256)
        return f"{head}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"

    # --- introspection and the API ---------------------------------------------------------------

    def pairs_of(self, account: SandboxAccount) -> int:
        return sum(token.account is account for token in self._refresh_tokens.values())

    def is_good(self, refresh_token: str) -> bool:
        token = self._refresh_tokens.get(refresh_token)
        return token is not None and not token.spent and token.account.valid and token.expires_at > self.now()

    def live_account(self, access_token: str) -> SandboxAccount | None:
        found = self._access_tokens.get(access_token)
        if found is None or found[1] <= self.now() or not found[0].valid:
            return None
        return found[0]

    def forget(self, access_token: str) -> None:
        """Invalidate an access token before it expires; the API then responds to it with 401."""
        self._access_tokens.pop(access_token, None)

    def current_subdomain(self, refresh_token: str) -> SandboxReply:
        """Respond to `GET https://{api_domain}/oauth2/account/current/subdomain`; this spends no token."""
        token = self._refresh_tokens.get(refresh_token)
        if token is None or not token.account.valid or token.expires_at <= self.now():
            return self._looked_up("refresh_token", None)
        is_known = not token.spent or self.quirks.introspection_accepts_spent
        return self._looked_up("refresh_token", token.account if is_known else None)

    def subdomain(self, access_token: str) -> SandboxReply:
        """Respond to `GET https://www.amocrm.ru/oauth2/account/subdomain`."""
        return self._looked_up("access_token", self.live_account(access_token))

    def _looked_up(self, kind: str, account: SandboxAccount | None) -> SandboxReply:
        if account is None:
            host, reply = "", problem(401, "Token has been revoked" if kind == "refresh_token" else None)
        else:
            host = account.host
            label, _, top = host.partition(".")
            place = {"id": account.id, "subdomain": label, "domain": host, "top_level_domain": top}
            reply = SandboxReply(status=200, content=place)
        self.ledger.introspections.append(LookUp(at=self.now(), kind=kind, host=host, status=reply.status))
        return reply

    # --- the "disabled" hook ---------------------------------------------------------------------

    def hook_query(self, account: SandboxAccount) -> dict[str, str]:
        """Return the query of the hook with which AMO reports a disabled integration."""
        client_id = self.integration.client_id
        signature = hmac.new(
            self.integration.client_secret.encode(), f"{client_id}|{account.id}".encode(), hashlib.sha256
        )
        return {"account_id": str(account.id), "client_uuid": client_id, "signature": signature.hexdigest()}


def _presented(request: Mapping[str, object]) -> tuple[str, object]:
    """Return the grant type of a request, and the credential that the request presents."""
    kind = str(request.get("grant_type"))
    return kind, request.get({"authorization_code": "code", "refresh_token": "refresh_token"}.get(kind, ""))


def _segment(content: Mapping[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


# --- responses in AMO's format ---------------------------------------------------------------------


def problem(status: int, hint: str | None, *, title: str = "Bad request", detail: str = "") -> SandboxReply:
    """Return a problem response in AMO's format; if `hint` is `None`, the response has no hint."""
    content: dict[str, object] = {"title": title, "type": _PROBLEM, "status": status, "detail": detail}
    if hint is not None:
        content["hint"] = hint
    return SandboxReply(status=status, content=content, content_type="application/problem+json")


def client_unknown() -> SandboxReply:
    """Return AMO's response to an unknown client, which has no hint."""
    return problem(401, None, title="Некорректный клиент", detail="Авторизация клиента не прошла")
