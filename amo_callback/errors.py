"""The errors of the service, grouped by the party that must act.

A class's docstring is the message for operators; its attributes define the error in both APIs, on the pages and in the
deep link. `deeplink` defines the app's recommended action for each deep-link error. No message or attribute contains
a token, code, state, key or secret, except `UnknownOutcome.body`.

If a refresh request raises `UnknownOutcome`, it is unknown whether the request has spent the refresh token. If a
refresh request raises another error, it has not spent the token.
"""

from __future__ import annotations

import inspect
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LOGGED = frozenset({"detail", "status", "title", "hint", "request_id", "refused", "account_id"})
_WAIT = "try again after `Retry-After` seconds"


class AmoCallbackError(Exception):
    """amo-callback failed for an unspecified reason."""

    code: str = "internal_error"
    """The error's name in the log, in events and in metrics."""
    deep_link_error: str = "auth_failed"
    """The `error` in the deep link, and in the public API unless there is an `app_message`."""
    app_message: ClassVar[str | None] = None
    """The message in the public API, if the API returns `http_status` and `code` instead of the deep link's error."""
    api_code: str = "internal_error"
    """The `code` in the private API."""
    http_status: int = 500
    oauth_error: str = "server_error"
    """The `error` that a standard OAuth client receives (https://www.rfc-editor.org/rfc/rfc6749#section-5.2)."""
    action: str = "internal error, logged as `http.bug`: try again later"
    """The action that is recommended to the caller."""
    retry_after: float | None = 5.0
    """The seconds until a retry, if a retry can succeed; `None` means `refresh.retry_cap`."""
    members: Mapping[str, object] = MappingProxyType({})
    """Additional members of the private API's problem details."""

    status: int | None = None
    """The HTTP status of AMO's response, if it caused the error."""
    request_id: str | None = None
    """The request id in AMO's response, which AMO's support can look up."""
    title: str | None = None
    hint: str | None = None
    """The hint in AMO's response. Neither title nor hint contains a secret, so both can be logged."""
    rejects_client: bool = False
    """Whether the response rejects the client id, secret or redirect URI instead of the presented credential."""
    refused: str | None = None
    """The kind of item that was refused in a callback, such as `state`."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or self.code))

    @property
    def fields(self) -> dict[str, object]:
        """The fields of the error in a log line."""
        fields: dict[str, object] = {"error": self.code}
        if self.refused is not None:
            fields["refused"] = self.refused
        fields.update({name: value for name, value in vars(self).items() if name in _LOGGED and value is not None})
        return fields


def error_classes(root: type[AmoCallbackError] = AmoCallbackError) -> Iterator[type[AmoCallbackError]]:
    """Yield every error class, a parent before its children."""
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


class InternalError(AmoCallbackError):
    """An internal error occurred: see the log."""

    app_message = "Internal error. Please try again."


# --- the user has to act -------------------------------------------------------------------------


class UserError(AmoCallbackError):
    """The user has to connect the account again."""

    api_code = oauth_error = "invalid_request"
    http_status = 400
    action = "correct the request; `detail` or `message` names the field"


class InvalidRequest(UserError):
    """The callback's query is malformed, is too long, or repeats a parameter."""

    code = deep_link_error = "invalid_request"
    refused = "query"


class UnsupportedGrantType(InvalidRequest):
    """The grant type is not supported: use refresh_token, with the name of a connection as the refresh token."""

    oauth_error = "unsupported_grant_type"


class InvalidState(UserError):
    """The state was not issued by this service, is older than half an hour, or was used with another code."""

    code = deep_link_error = "invalid_state"
    refused = "state"


class GrantFailed(UserError):
    """The grant has failed, or AMO's redirect contained an error instead of a code."""

    code = deep_link_error = "access_denied"

    def __init__(self, deep_link_error: str) -> None:
        super().__init__()
        self.code = self.deep_link_error = deep_link_error


class AccountNotAllowed(UserError):
    """The account, or the host in the callback, is not allowed."""

    code = deep_link_error = "account_not_allowed"
    refused = "host"

    def __init__(self, account_id: str | None = None) -> None:
        super().__init__()
        if account_id is not None:
            self.refused, self.account_id = "account", account_id


class TooManyAttempts(UserError):
    """Too many authorization requests or rejected codes from one address or user; the limits are set in [limits]."""

    code = deep_link_error = "rate_limited"
    http_status = 429
    refused = "address"

    def __init__(self, retry_after: float) -> None:
        super().__init__()
        self.retry_after = retry_after


class CodeExpired(UserError):
    """The authorization code is older than 20 minutes."""

    code = deep_link_error = "code_expired"
    refused = "code"


class GrantExpired(UserError):
    """The code is older than 20 minutes, its ticket than 10, or the authorization request than 30 minutes."""

    code = deep_link_error = "code_expired"
    http_status = 410
    app_message = "The code or the authorization request has expired: connect again."
    refused = "code"


class CodeUsed(UserError):
    """The authorization code has already been spent."""

    code = deep_link_error = "code_used"
    refused = "code"


class AuthFailed(UserError):
    """AMO cannot decrypt the authorization code, or rejects the code and gives no reason."""

    code = deep_link_error = "auth_failed"
    refused = "code"


class InvalidRefreshToken(UserError):
    """AMO rejects the refresh token: the user has to connect the account again."""

    code = "refresh_token_dead"

    def __init__(self, *, expired: bool = False, undecodable: bool = False) -> None:
        super().__init__()
        self.expired = expired
        self.undecodable = undecodable
        """Whether AMO could not decode the token. The former host of a moved account returns the same response."""


class RefreshRefused(UserError):
    """AMO has refused the refresh token for a day, and introspection rejects it: the user has to connect again."""

    code = "refused"


# --- the request may succeed later ---------------------------------------------------------------


class RetryableError(AmoCallbackError):
    """The request may succeed later."""

    code = "unavailable"
    api_code = deep_link_error = "amo_unavailable"
    oauth_error = "temporarily_unavailable"
    http_status = 503
    action = _WAIT


class UnknownOutcome(RetryableError):
    """AMO's response is missing or unusable: it is unknown whether the credential was spent."""

    code = "outcome_open"

    def __init__(self, detail: str, *, body: bytes = b"") -> None:
        super().__init__()
        self.detail = detail
        self.body = body
        """The body of a successful response in which no pair was found. It may contain a pair, so it is secret."""


class RequestNotSent(RetryableError):
    """AMO could not be reached, and no request was sent."""

    code = "not_sent"


class IntrospectionUnavailable(RetryableError):
    """AMO does not respond to introspection: a possibly spent refresh token is not presented until AMO responds."""

    code = "no_answer"


class AccountBlocked(RetryableError):
    """AMO temporarily refuses the account, because it is unpaid (402) or blocked (403)."""

    code = "account_refused"
    api_code = "amo_refused"
    http_status = 502
    action = "the account is unpaid or blocked: the account holder has to resolve this with amoCRM"
    retry_after = None

    def __init__(self, status: int, *, is_problem: bool = False) -> None:
        super().__init__()
        self.status = status
        self.is_problem = is_problem
        """Whether the response is AMO's problem+json. If AMO blocks this server, the response is nginx's HTML."""


class Frozen(RetryableError):
    """The connection is frozen: run `amo-callback connections thaw`."""

    code = api_code = "frozen"
    action = f"{_WAIT}; the operator has to thaw the connection: see `/readyz`"
    retry_after = None


class VendorRateLimited(RetryableError):
    """AMO rejects requests of this integration with status 429 (too many requests)."""

    code = "amo_rate_limited"
    retry_after: float

    def __init__(self, retry_after: float) -> None:
        super().__init__()
        self.retry_after = retry_after


class UnrecognizedError(RetryableError):
    """AMO returned an unknown error, which is treated as temporary."""

    code = "unknown_refusal"
    deep_link_error = "auth_failed"
    hint: str

    def __init__(self, *, status: int, hint: str) -> None:
        super().__init__()
        self.status = status
        self.hint = hint


class UnauthorizedWithoutHint(RetryableError):
    """AMO responded with 401 or 404, without a "hint": the client credentials are wrong, or the account has moved."""

    code = "unexplained_refusal"

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status
        self.accepted: bool | None = None
        """Whether introspection accepts the token; `None` if that is unknown."""
        self.same_host = False
        """Whether introspection returns the host that refused the token."""


class NotYet(RetryableError):
    """A refresh is in progress, or the next attempt is not due yet."""

    code = "busy"
    retry_after: float

    def __init__(self, retry_after: float, *, cause_code: str | None = None) -> None:
        super().__init__()
        self.retry_after = retry_after
        self.cause_code = cause_code
        """The code of the error that caused the wait. Callers receive that error, with this error's `retry_after`."""
        cause = next((kind for kind in error_classes() if kind.code == cause_code), RetryableError)
        if issubclass(cause, RetryableError | OperatorError):
            self.api_code, self.http_status, self.action = cause.api_code, cause.http_status, cause.action


class AddressBlocked(NotYet):
    """AMO blocks this server's IP address: refreshing is paused until a probe succeeds."""

    code = "amo_blocked"


class QueueFull(RetryableError):
    """Too many authorization codes are queued: try again later."""

    code = "crowded"


class MassFailureSuspected(RetryableError):
    """Refreshing is paused: an unusual number of connections failed within 10 minutes. See /readyz."""

    code = "mass_failure"

    def __init__(self, answer: AmoCallbackError | None = None) -> None:
        super().__init__()
        self.answer = answer
        """The suspended terminal failure; `None` if there is none."""


class Superseded(RetryableError):
    """Another refresh attempt has replaced this attempt."""

    code = "superseded"


class ShuttingDown(RetryableError):
    """The service is shutting down."""

    code = "shutting_down"


class StoreUnavailable(RetryableError):
    """The store cannot be read or written."""

    code = api_code = "store_unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__()
        self.detail = detail


class JwksUnavailable(RetryableError):
    """The key set at app.jwks_url cannot be fetched: JWTs cannot be verified until the service can fetch it."""

    code = "key_set_unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__()
        self.detail = detail
        """The kind of failure."""


# --- the operator has to act ---------------------------------------------------------------------


class OperatorError(AmoCallbackError):
    """The operator has to change the configuration."""

    code = "configuration"
    api_code = "amo_credentials"
    deep_link_error = "amo_unavailable"
    oauth_error = "temporarily_unavailable"
    http_status = 503
    action = f"{_WAIT}; the operator has to correct the configuration: see `/readyz`"
    retry_after = None


class ConfigurationError(OperatorError):
    """The configuration cannot be used."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class InvalidClient(OperatorError):
    """AMO rejects client_id, client_secret or redirect_uri: compare them with the integration's settings in AMO."""

    code = "amo_credentials"
    hint: str

    def __init__(self, hint: str) -> None:
        super().__init__()
        self.hint = hint


class ClientMismatch(OperatorError):
    """The token pair was issued to a client id other than amo.client_id: only the original client can refresh it."""

    code = "client_mismatch"


class HostNotAllowed(OperatorError):
    """A stored host is neither a host of AMO nor in amo.allowed_domains: nothing is sent to it."""

    code = api_code = "host_not_allowed"
    action = (
        f"{_WAIT}; the operator has to allow the account's host, which `detail` names, or the user has to connect again"
    )

    def __init__(self, host: str | None = None) -> None:
        super().__init__(
            f"The stored host {host or '(an invalid name)'} is neither a host of AMO nor in amo.allowed_domains: "
            "nothing is sent to the host. Add the host to amo.allowed_domains and restart, or have the user connect "
            "again."
        )


class DecryptionFailed(OperatorError):
    """No encryption key decrypts this record, or the encrypted value belongs to another record."""

    code = "unreadable"


# --- the caller has to act -----------------------------------------------------------------------


class NotFound(AmoCallbackError):
    """There is no such connection."""

    code = api_code = "not_found"
    oauth_error = "invalid_grant"
    http_status = 404
    app_message = "The code or state is unknown: connect again."
    action = "the id, code or state is unknown, or the connection was disconnected: do not repeat the request"


class Pending(AmoCallbackError):
    """AMO has not redirected the user back to the callback yet."""

    code = "pending"
    api_code = NotFound.api_code
    http_status = 404
    app_message = "The user has not returned from the consent page yet: ask again."
    action = _WAIT
    retry_after = 2.0


class Ambiguous(AmoCallbackError):
    """Several connections match: use the id of a connection."""

    code = api_code = "ambiguous"
    http_status = 409
    action = "several connections match: use the id of a connection"


class UnknownApiKey(AmoCallbackError):
    """The API key is missing or unknown; send a key in the header `Authorization: Bearer KEY`."""

    code = api_code = "unauthorized"
    oauth_error = "invalid_client"
    http_status = 401
    action = "send a key that is in `api.keys`"

    def __init__(self, *, presented: bool) -> None:
        super().__init__()
        self.presented = presented
        """Whether the request contained a key."""


class Forbidden(AmoCallbackError):
    """The API key is limited to some connections: the requested one is not one of them, or does not exist."""

    code = api_code = "forbidden"
    oauth_error = "unauthorized_client"
    http_status = 403
    action = "send a key that has the required `scope` and is valid for the connection"

    def __init__(self, scope: str | None = None) -> None:
        super().__init__(None if scope is None else "The API key does not have the required scope.")
        self.scope = scope
        """The scope that the key lacks; `None` if the key is limited to other connections."""
        self.members = {} if scope is None else {"scope": scope}


class Unauthorized(AmoCallbackError):
    """The app's JWT is missing, expired or invalid."""

    code = api_code = "unauthorized"
    http_status = 401
    app_message = "Send the user's JWT in the Authorization header, as a Bearer token."
    action = "send an unexpired JWT of the user"

    def __init__(self, detail: str) -> None:
        super().__init__()
        self.detail = detail
        """The failed check, which distinguishes a wrong app.jwt_audience from a forged JWT."""

    @property
    def presented(self) -> bool:
        """Whether the request contained a JWT."""
        return self.detail not in {"missing", "header"}


class PkceMismatch(AmoCallbackError):
    """The code verifier does not match the code challenge of the authorization request."""

    code = api_code = "forbidden"
    http_status = 403
    app_message = "The code_verifier does not match the code_challenge."
    action = "send the `code_verifier` that matches the `code_challenge`"


class NeedsReauth(AmoCallbackError):
    """The connection has no valid access token: the user has to connect again."""

    code = api_code = "needs_reauth"
    oauth_error = "invalid_grant"
    http_status = 409
    action = "the user has to connect again at `reconnect_url`; `reason` contains the cause"

    def __init__(self, reason: str | None) -> None:
        super().__init__()
        self.reason = reason
        self.members = {"reason": reason}


class CommandFailed(AmoCallbackError):
    """The command failed."""

    code = "failed"


class BackupFailed(AmoCallbackError):
    """The backup or restore failed."""

    code = "not_copied"


class TaskDied(AmoCallbackError):
    """A background task ended unexpectedly."""

    code = "task_died"
