"""What can be set of the stand-in: the integration, how long things live, what is not known of AMO, and faults."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxIntegration:
    client_id: str = "c6190000-0000-4000-8000-000000000000"
    client_secret: str = field(default="sandbox-client-secret-0123456789abcdef", repr=False)
    redirect_uri: str = "http://127.0.0.1:8080/api/amo-crm/callback"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lifetimes:
    """How long things live, in seconds."""

    code: float = 1200.0
    access: float = 86400.0
    refresh: float = 90 * 86400.0


@dataclass(slots=True)
class Quirks:
    """What is not known of AMO: each way can be had, and who relies on neither is right with both."""

    refresh_kills_access: bool = False
    """Whether a refresh ends the access token before it."""
    look_up_knows_spent: bool = False
    """Whether the look-up takes a spent refresh token for a good one."""
    moved_status: int = 404
    """What the old host of a moved account answers, without a hint."""


class Fault(Enum):
    """How the token endpoint misbehaves. `_AFTER`: the credential has been spent by then."""

    HTTP_500 = "500 before spending"
    HTTP_500_AFTER = "500 after spending"
    HTML = "an HTML page with status 502"
    HTML_200 = "an HTML page with status 200"
    HALF_JSON_AFTER = "half a JSON"
    NO_REFRESH_TOKEN_AFTER = "an answer without refresh token"  # noqa: S105 -- because it is a description
    REDIRECT = "a redirect"
    RESET = "the connection closed before anything was looked at"
    HANG = "no answer until the client gives up, and nothing was looked at"
    WRONG_CLIENT = "401 without a hint"
    CLIENT_ID = "400, Check the `client_id` parameter"
    NOT_LINKED = "400, Token is not linked to client"
    HUGE_AFTER = "64 MB"
    NOTHING_AFTER = "the connection closed without an answer"
    HANG_AFTER = "no answer until the client gives up"
    SLOW = "an answer that waits until it is let go"
    TOO_MANY = "429 with Retry-After: 1"
    UNPAID = "402"
    BLOCKED = "403 with nginx's HTML"
    ACCOUNT_BLOCKED = "403 as a problem in JSON"
    TEAPOT = "400 with words that are on no list"


@dataclass(slots=True)
class Faults:
    coming: deque[Fault] = field(default_factory=deque)
    standing: Fault | None = None
    """What all meet for whom none is coming, until it is taken away."""

    def add(self, *faults: Fault) -> None:
        self.coming.extend(faults)

    def next(self) -> Fault | None:
        return self.coming.popleft() if self.coming else self.standing
