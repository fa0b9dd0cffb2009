"""The errors of the service, grouped by who has to act.

A class's docstring is the message for the operator, and its attributes are what the two APIs, the pages and the deep
link say of it; what a word of the deep link means to the app and to the user stands once, in `deeplink`. No message and
no attribute ever holds a token, code, state, key or secret.

Of the answers to a refresh only `UnknownOutcome` leaves open whether the refresh token was spent; every other error
here means that it was not.
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
    """amo-callback failed, and has no more specific error for it."""

    code: ClassVar[str] = "internal_error"
    """Its name in the log, in events and in metrics."""
    deep_link_error: ClassVar[str] = "auth_failed"
    """Its `error` in the deep link, and in the public API unless it has an `app_message`."""
    app_message: ClassVar[str | None] = None
    """The public API's message, where it answers with `http_status` and `code` instead of the deep link's."""
    api_code: str = "internal_error"
    """Its `code` in the private API."""
    http_status: int = 500
    action: str = "try again later: a bug, logged as `http.bug`"
    """What the caller should do."""
    retry_after: float | None = 5.0
    """Seconds after which to try again, where `http_status` is 502 or 503; `None`: `refresh.retry_cap`."""
    members: Mapping[str, object] = MappingProxyType({})
    """Further members of the private API's problem details."""

    status: int | None = None
    """The HTTP status of AMO's answer, where that is what went wrong."""
    request_id: str | None = None
    """AMO's id of that answer: its support can look it up."""
    title: str | None = None
    hint: str | None = None
    """AMO's words in that answer, as they may be logged."""
    rejects_client: bool = False
    """Whether that answer rejects our client id, secret or redirect URI, and not what was presented."""
    refused: str | None = None
    """The kind of value in a callback that is refused."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or self.code))

    @property
    def fields(self) -> dict[str, object]:
        """Its fields in a log line."""
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
    """A bug of amo-callback: see its log."""

    app_message = "Something went wrong on our side. Please try again."


# --- the user has to act -------------------------------------------------------------------------


class UserError(AmoCallbackError):
    """The user has to connect the account again."""

    api_code = "invalid_request"
    http_status = 400
    action = "correct the request (405: its method); `detail` or `message` names the field"


class InvalidRequest(UserError):
    """The callback's query is broken, doubled or too long."""

    code = deep_link_error = "invalid_request"
    refused = "query"


class InvalidState(UserError):
    """The state was not issued here, or is older than half an hour, or was used with another code."""

    code = deep_link_error = "invalid_state"
    refused = "state"


class AccountNotAllowed(UserError):
    """The account, or the host that the callback names, may not connect here."""

    code = deep_link_error = "account_not_allowed"
    refused = "host"

    def __init__(self, account_id: str | None = None) -> None:
        super().__init__()
        if account_id is not None:
            self.refused, self.account_id = "account", account_id


class TooManyAttempts(UserError):
    """One address has sent more codes that AMO did not accept than [limits] allows."""

    code = deep_link_error = "rate_limited"
    http_status = 429
    refused = "address"


class CodeExpired(UserError):
    """The authorization code is older than its 20 minutes."""

    code = deep_link_error = "code_expired"
    refused = "code"


class GrantExpired(UserError):
    """The authorization code was seen here, more than 20 minutes ago."""

    code = deep_link_error = "code_expired"
    http_status = 410
    app_message = "The code has expired: connect again."
    refused = "code"


class CodeUsed(UserError):
    """The authorization code was already spent, and not by us."""

    code = deep_link_error = "code_used"
    refused = "code"


class AuthFailed(UserError):
    """AMO cannot read the authorization code, or refuses it without a reason."""

    code = deep_link_error = "auth_failed"
    refused = "code"


class InvalidRefreshToken(UserError):
    """AMO reports that the refresh token is invalid: the user has to connect the account again."""

    code = "refresh_token_dead"

    def __init__(self, *, expired: bool = False, undecodable: bool = False) -> None:
        super().__init__()
        self.expired = expired
        self.undecodable = undecodable
        """Whether AMO could not read it: so answers also the new owner of a name that the account has left."""


class RefreshRefused(UserError):
    """AMO has refused the connection without a hint for a day, and rejects its token: its user must connect again."""

    code = "refused"


# --- it may work later ---------------------------------------------------------------------------


class RetryableError(AmoCallbackError):
    """It may work later."""

    code = "unavailable"
    api_code = deep_link_error = "amo_unavailable"
    http_status = 503
    action = _WAIT


class UnknownOutcome(RetryableError):
    """AMO's answer is missing or unusable: it is not known whether the credential was spent."""

    code = "outcome_open"

    def __init__(self, detail: str, *, body: bytes = b"") -> None:
        super().__init__()
        self.detail = detail
        self.body = body
        """The body of a good answer in which no pair is found. It may hold one: it is a secret."""


class RequestNotSent(RetryableError):
    """AMO could not be reached: nothing was sent."""

    code = "not_sent"


class IntrospectionUnavailable(RetryableError):
    """AMO answers no introspection: a refresh token that may have been spent is not presented before it does."""

    code = "no_answer"


class AccountBlocked(RetryableError):
    """AMO refuses the account for now: not paid (402), or blocked (403)."""

    code = "account_refused"
    api_code = "amo_refused"
    http_status = 502
    action = "the account is not paid, or amoCRM blocks it: its owner has to settle that with amoCRM"
    retry_after = None

    def __init__(self, status: int, *, is_problem: bool = False) -> None:
        super().__init__()
        self.status = status
        self.is_problem = is_problem
        """Whether the answer is AMO's own problem+json; a block of our address is nginx's HTML."""


class Frozen(RetryableError):
    """Refreshing is frozen: an administrator thaws it with `amo-callback connections thaw`."""

    code = api_code = "frozen"
    action = f"{_WAIT}; an administrator has to thaw it: see `/readyz`"
    retry_after = None


class VendorRateLimited(RetryableError):
    """AMO answers 429, too many requests, to this integration."""

    code = "amo_rate_limited"
    retry_after: float

    def __init__(self, retry_after: float) -> None:
        super().__init__()
        self.retry_after = retry_after


class UnrecognizedError(RetryableError):
    """AMO refuses with words that are on no list: never taken as final."""

    code = "unknown_refusal"
    deep_link_error = "auth_failed"
    hint: str

    def __init__(self, *, status: int, hint: str) -> None:
        super().__init__()
        self.status = status
        self.hint = hint


class UnauthorizedWithoutHint(RetryableError):
    """AMO answers 401 or 404 without a hint: our credentials are wrong, or the account has moved."""

    code = "unexplained_refusal"

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status
        self.accepted: bool | None = None
        """Whether introspection accepts the token; `None`: it is not known."""
        self.same_host = False
        """Whether introspection names the host that has refused."""


class NotYet(RetryableError):
    """A refresh is under way, or its next attempt is not due yet."""

    code = "busy"
    retry_after: float

    def __init__(self, retry_after: float, *, cause_code: str | None = None) -> None:
        super().__init__()
        self.retry_after = retry_after
        self.cause_code = cause_code
        """The code of the error after which it waits: callers get that error's answer, with this wait."""
        cause = next((kind for kind in error_classes() if kind.code == cause_code), RetryableError)
        if issubclass(cause, RetryableError | OperatorError):
            self.api_code, self.http_status, self.action = cause.api_code, cause.http_status, cause.action


class AddressBlocked(NotYet):
    """AMO blocks the address of this server: nothing is refreshed until a probe succeeds."""

    code = "amo_blocked"


class QueueFull(RetryableError):
    """Too many codes are queued. Try again later."""

    code = "crowded"


class MassFailureSuspected(RetryableError):
    """Refreshing is paused: an unusual number of connections failed within 10 minutes. See /readyz."""

    code = "mass_failure"

    def __init__(self, answer: AmoCallbackError | None = None) -> None:
        super().__init__()
        self.answer = answer
        """The terminal failure that is suspended, where there is one."""


class Superseded(RetryableError):
    """Another process has already refreshed this connection, or has begun to."""

    code = "superseded"


class ShuttingDown(RetryableError):
    """The service is stopping and starts nothing new."""

    code = "shutting_down"


class StoreUnavailable(RetryableError):
    """The store cannot be read or written."""

    code = api_code = "store_unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__()
        self.detail = detail


class JwksUnavailable(RetryableError):
    """The key set at app.jwks_url cannot be fetched: the app's JWTs cannot be verified until it can."""

    code = "key_set_unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__()
        self.detail = detail
        """A word of ours for what went wrong."""


# --- the operator has to act ---------------------------------------------------------------------


class OperatorError(AmoCallbackError):
    """The operator has to change the configuration."""

    code = "configuration"
    api_code = "amo_credentials"
    deep_link_error = "amo_unavailable"
    http_status = 503
    action = f"{_WAIT}; an administrator has to correct the configuration: see `/readyz`"
    retry_after = None


class ConfigurationError(OperatorError):
    """The configuration cannot be used."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class InvalidClient(OperatorError):
    """AMO refuses our client_id, client_secret or redirect_uri: compare them with the integration's page."""

    code = "amo_credentials"
    hint: str

    def __init__(self, hint: str) -> None:
        super().__init__()
        self.hint = hint


class ClientMismatch(OperatorError):
    """The pair was granted to another client_id than the configured one, and only that one may present it."""

    code = "client_mismatch"


class HostNotAllowed(OperatorError):
    """A stored host is neither one of AMO's nor in amo.allowed_domains: nothing is sent to it."""

    code = api_code = "host_not_allowed"
    action = (
        f"{_WAIT}; an administrator has to allow the account's host, which `detail` names, or the account has to "
        "connect again"
    )

    def __init__(self, host: str | None = None) -> None:
        super().__init__(
            f"The stored host {host or '(not a host name)'} is neither one of AMO's nor in amo.allowed_domains: "
            "nothing is sent there. Add it to amo.allowed_domains and restart, or have the account connect again."
        )


class DecryptionFailed(OperatorError):
    """No encryption key decrypts this record, or it was encrypted as another record."""

    code = "unreadable"


# --- the caller has to act -----------------------------------------------------------------------


class NotFound(AmoCallbackError):
    """There is no such connection."""

    code = api_code = "not_found"
    http_status = 404
    app_message = "This code is not known here: connect again."
    action = "check the name or the code: nothing of this name is known here, or it was disconnected"


class Ambiguous(AmoCallbackError):
    """More than one connection fits: name it by its id."""

    code = api_code = "ambiguous"
    http_status = 409
    action = "more than one connection fits, and one must be meant: name it by its id"


class UnknownApiKey(AmoCallbackError):
    """Send a known API key: Authorization: Bearer KEY."""

    code = api_code = "unauthorized"
    http_status = 401
    action = "send a key that is in `api.keys`"

    def __init__(self, *, presented: bool) -> None:
        super().__init__()
        self.presented = presented
        """Whether a key came with the request."""


class Forbidden(AmoCallbackError):
    """The API key may not do this: it lacks the scope."""

    code = api_code = "forbidden"
    http_status = 403
    action = "send a key that has the `scope`"

    def __init__(self, scope: str) -> None:
        super().__init__()
        self.scope = scope
        self.members = {"scope": scope}


class Unauthorized(AmoCallbackError):
    """The app's JWT is missing, has expired, or is not one of the app's."""

    code = api_code = "unauthorized"
    http_status = 401
    app_message = "Send the user's JWT: Authorization: Bearer JWT."
    action = "send the user's JWT, one that has not expired"

    def __init__(self, detail: str) -> None:
        super().__init__()
        self.detail = detail
        """Our name of the check that failed: it distinguishes a wrong app.jwt_audience from a forgery."""

    @property
    def presented(self) -> bool:
        """Whether a JWT came with the request."""
        return self.detail not in {"missing", "header"}


class PkceMismatch(AmoCallbackError):
    """The grant was started with a code challenge, and the code verifier does not fit it."""

    code = api_code = "forbidden"
    http_status = 403
    app_message = "The code_verifier does not fit the code_challenge."
    action = "send the `code_verifier` that fits"


class NeedsReauth(AmoCallbackError):
    """The connection has no valid access token, and only its user can change that."""

    code = api_code = "needs_reauth"
    http_status = 409
    action = "the user has to connect again, at `reconnect_url`; `reason` says why"

    def __init__(self, reason: str | None) -> None:
        super().__init__()
        self.reason = reason
        self.members = {"reason": reason}


class CommandFailed(AmoCallbackError):
    """The command could not do what it was asked to."""

    code = "failed"


class BackupFailed(AmoCallbackError):
    """The database was not backed up, or not restored."""

    code = "not_copied"


class TaskDied(AmoCallbackError):
    """A background task ended that has to run as long as the process."""

    code = "task_died"
