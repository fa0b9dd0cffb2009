"""What can go wrong, arranged by what must happen next.

Each class's docstring is the message an operator reads; data are attributes. No message and no
attribute ever holds a token, code, state, key or secret.

Of the answers to a refresh only `OutcomeOpen` leaves open whether the refresh token was spent; every
other error here means that it was not.
"""

from __future__ import annotations

import inspect
from typing import ClassVar

_TOLD = frozenset({"what", "status", "title", "hint", "request_id", "refused", "account_id"})


class AmoCallbackError(Exception):
    """amo-callback failed in a way it has no better word for."""

    code: ClassVar[str] = "internal_error"
    word: ClassVar[str] = "auth_failed"
    """What the deep link's `error` says of it."""

    status: int | None = None
    """AMO's HTTP status, where an answer of AMO's is what went wrong."""
    request_id: str | None = None
    """AMO's name for that answer: its support can look it up."""
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
        """What a log line tells of it."""
        told: dict[str, object] = {"error": self.code}
        if self.refused is not None:
            told["refused"] = self.refused
        told.update({name: value for name, value in vars(self).items() if name in _TOLD and value is not None})
        return told


# --- ask the person ------------------------------------------------------------------------------


class PersonMustAct(AmoCallbackError):
    """The person has to connect the account again."""


class InvalidRequest(PersonMustAct):
    """The callback's query is broken, doubled or too long."""

    code = word = "invalid_request"
    refused = "query"


class InvalidState(PersonMustAct):
    """The state was not issued here, or is older than half an hour, or was used with another code."""

    code = word = "invalid_state"
    refused = "state"


class AccountNotAllowed(PersonMustAct):
    """The account, or the host that the callback names, is not one that may connect here."""

    code = word = "account_not_allowed"
    refused = "host"

    def __init__(self, account_id: str | None = None) -> None:
        super().__init__()
        if account_id is not None:
            self.refused, self.account_id = "account", account_id


class TooManyUnproven(PersonMustAct):
    """One address has sent more codes than AMO accepted: see [limits]."""

    code = word = "rate_limited"
    refused = "address"


class CodeExpired(PersonMustAct):
    """The authorization code is older than its 20 minutes."""

    code = word = "code_expired"
    refused = "code"


class GrantExpired(PersonMustAct):
    """The authorization code was seen here, more than 20 minutes ago."""

    code = word = "code_expired"
    refused = "code"


class CodeUsed(PersonMustAct):
    """The authorization code was already spent, and not by us."""

    code = word = "code_used"
    refused = "code"


class AuthFailed(PersonMustAct):
    """AMO cannot read the authorization code, or refuses it for a reason it does not tell."""

    code = word = "auth_failed"
    refused = "code"


class RefreshTokenDead(PersonMustAct):
    """AMO says that the refresh token is dead: only the person can mend that, by connecting again."""

    code = "refresh_token_dead"

    def __init__(self, *, expired: bool = False, misread: bool = False) -> None:
        super().__init__()
        self.expired = expired
        self.misread = misread
        """Whether AMO could not read it: so answers also the new owner of a name that the account has left."""


class RefreshRefused(PersonMustAct):
    """AMO has refused the connection without a hint for a day, and rejects its token: its user must connect again."""

    code = "refused"


# --- wait ----------------------------------------------------------------------------------------


class MustWait(AmoCallbackError):
    """It may work later."""

    code = "unavailable"
    word = "amo_unavailable"


class OutcomeOpen(MustWait):
    """AMO's answer is missing or useless: whether the credential was spent is not known."""

    code = "outcome_open"

    def __init__(self, what: str, *, body: bytes = b"") -> None:
        super().__init__()
        self.what = what
        self.body = body
        """The body of a good answer in which no pair is found. It may hold one: it is a secret."""


class NotSent(MustWait):
    """AMO could not be reached: nothing was sent."""

    code = "not_sent"


class NoAnswer(MustWait):
    """AMO answers no look-up: a refresh token that may have been spent is not presented before it does."""

    code = "no_answer"


class AccountRefused(MustWait):
    """AMO refuses the account for now: not paid (402), or blocked (403)."""

    code = "account_refused"

    def __init__(self, status: int, *, is_problem: bool = False) -> None:
        super().__init__()
        self.status = status
        self.is_problem = is_problem
        """Whether the answer is AMO's own problem+json; a block of our address is nginx's HTML."""


class Frozen(MustWait):
    """Nothing is spent until somebody thaws it: `amo-callback connections thaw`."""

    code = "frozen"


class RateLimited(MustWait):
    """AMO answers 429, too many requests, to this integration."""

    code = "amo_rate_limited"

    def __init__(self, retry_after: float) -> None:
        super().__init__()
        self.retry_after = retry_after


class UnknownRefusal(MustWait):
    """AMO refuses with words that are on no list: never taken as final."""

    code = "unknown_refusal"
    word = "auth_failed"
    hint: str

    def __init__(self, *, status: int, hint: str) -> None:
        super().__init__()
        self.status = status
        self.hint = hint


class UnexplainedRefusal(MustWait):
    """AMO answers 401 or 404 without a hint: our credentials are wrong, or the account has moved."""

    code = "unexplained_refusal"

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status
        self.accepted: bool | None = None
        """Whether introspection accepts the token; `None`: it is not known."""
        self.same_host = False
        """Whether introspection names the host that has refused."""


class Busy(MustWait):
    """A refresh is under way, or its next try is not due yet."""

    code = "busy"

    def __init__(self, retry_after: float, *, because: str | None = None) -> None:
        super().__init__()
        self.retry_after = retry_after
        self.because = because
        """The code of the error that is being waited out."""


class AddressBlocked(Busy):
    """AMO blocks the address of this server: nothing is refreshed until a probe succeeds."""

    code = "amo_blocked"


class Crowded(MustWait):
    """So many codes wait for AMO that one more would only grow old: it may be sent again."""

    code = "crowded"


class VerdictHeld(MustWait):
    """So many connections died at once that it is not believed: see the check `verdicts` of /readyz."""

    code = "verdicts"

    def __init__(self, answer: AmoCallbackError | None = None) -> None:
        super().__init__()
        self.answer = answer
        """The terminal failure that is suspended, where there is one."""


class Superseded(MustWait):
    """The attempt is no longer ours: a newer pair, or another attempt, has taken its place."""

    code = "superseded"


class ShuttingDown(MustWait):
    """The service is stopping: it begins nothing new."""

    code = "shutting_down"


class StoreUnavailable(MustWait):
    """The store cannot be read or written."""

    code = "store_unavailable"

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what


class KeySetUnavailable(MustWait):
    """The key set at app.jwks_url cannot be had: whose the app's JWTs are is not known until it can."""

    code = "key_set_unavailable"

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        """A word of ours for what went wrong."""


# --- mend the configuration ----------------------------------------------------------------------


class MustMend(AmoCallbackError):
    """The operator has to change the configuration."""

    code = "configuration"
    word = "amo_unavailable"


class ConfigurationError(MustMend):
    """The configuration cannot be used."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ClientRefused(MustMend):
    """AMO refuses our client_id, client_secret or redirect_uri: compare them with the integration's page."""

    code = "amo_credentials"
    hint: str

    def __init__(self, hint: str) -> None:
        super().__init__()
        self.hint = hint


class OtherClient(MustMend):
    """The pair was granted to another client_id than the configured one, and only that one may present it."""

    code = "client_mismatch"


class HostNotAllowed(MustMend):
    """A stored host is neither one of AMO's nor in amo.allowed_domains: nothing is sent to it."""

    code = "host_not_allowed"

    def __init__(self, host: str | None = None) -> None:
        super().__init__(
            f"The stored host {host or '(not a host name)'} is neither one of AMO's nor in amo.allowed_domains: "
            "nothing is sent there. Add it to amo.allowed_domains and restart, or have the account connect again."
        )


class Unreadable(MustMend):
    """No encryption key opens this record, or it was sealed for another one."""

    code = "unreadable"


# --- for whoever asks ----------------------------------------------------------------------------


class NotFound(AmoCallbackError):
    """There is no such connection."""

    code = "not_found"


class Ambiguous(AmoCallbackError):
    """More than one connection fits: name it by its id."""

    code = "ambiguous"


class Forbidden(AmoCallbackError):
    """The API key may not do this: it lacks the scope."""

    code = "forbidden"

    def __init__(self, scope: str) -> None:
        super().__init__()
        self.scope = scope


class Unauthorized(AmoCallbackError):
    """The app's JWT is missing, has expired, or is not one of the app's."""

    code = "unauthorized"

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        """A word of ours for the check that failed: it tells an operator a wrong app.jwt_audience from a forgery."""


class WrongVerifier(AmoCallbackError):
    """The grant was started with a code challenge, and the code verifier does not fit it."""

    code = "forbidden"


class NeedsReauth(AmoCallbackError):
    """The connection has no live token, and only the person can mend that."""

    code = "needs_reauth"

    def __init__(self, reason: str | None) -> None:
        super().__init__()
        self.reason = reason


class CommandFailed(AmoCallbackError):
    """The command could not do what it was asked to."""

    code = "failed"


class NotCopied(AmoCallbackError):
    """The copy of the database was not made, or not put back."""

    code = "not_copied"


class TaskDied(AmoCallbackError):
    """A background task has ended that must live as long as the process."""

    code = "task_died"
