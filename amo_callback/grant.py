"""A grant, from the presentation of an authorization code to a stored pair, as immutable values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

from amo_callback.model import fingerprint

if TYPE_CHECKING:
    from datetime import datetime

    from amo_callback.model import Connection

MAX_CODE = 4096
"""The maximum decoded length of an authorization code, in bytes."""
MAX_STATE = 2048
"""The maximum decoded length of a state, in bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallbackParams:
    """The parameters of AMO's redirect."""

    code: bytes | None = field(default=None, repr=False)
    state: bytes | None = field(default=None, repr=False)
    domain: str | None = None
    """The account's validated host."""
    error: str | None = None
    """The error for the deep link, if AMO reports one or a parameter is invalid."""
    refused: str | None = None
    refused_host: str | None = None
    """The refused host, if it may be logged."""
    support: str | None = None
    from_server: bool = False
    """Whether AMO's own server sent the request, without a browser or user."""
    from_widget: bool = False
    """Whether the integration was installed inside AMO, possibly without a browser."""


STATE_PREFIX = "ac1."
"""The prefix of issued states, before 128 random bits."""


def is_our_state(state: bytes | None) -> bool:
    """Return whether a state has the form of an issued state."""
    return state is not None and state.startswith(STATE_PREFIX.encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class WayBack:
    """The state and the deep link with which the user returns to the app."""

    state: bytes | None = field(default=None, repr=False)
    deep_link: str | None = None
    """The deep link that the authorization request names; a stored one may no longer be configured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthorizationRequest:
    """An authorization request that this service started."""

    user: str | None = None
    """The app user; `None` for a plain link."""
    asserted_by_backend: bool = False
    """Whether a backend has asserted the user."""
    challenge: str | None = field(default=None, repr=False)
    """The S256 code challenge (RFC 7636); only the app instance that started the request has the verifier."""
    state: bytes | None = field(default=None, repr=False)
    """The app's own state, which the app receives instead of the issued state."""
    deep_link: str | None = None
    """One of the configured deep links; `None` for the default."""

    def way_back(self, state: bytes | None) -> WayBack:
        """Return the way back for a received `state`, which the app's own state replaces."""
        return WayBack(state=state if self.state is None else self.state, deep_link=self.deep_link)

    @property
    def asserted_owner(self) -> str | None:
        """The backend-asserted user, who becomes an owner when the grant succeeds; `None` if a verifier is required."""
        return self.user if self.asserted_by_backend and self.challenge is None else None


def request_fingerprint(user: str, app_state: bytes) -> str:
    """Return the fingerprint by which an app finds its user's authorization request without a code."""
    return fingerprint(user.encode() + b"\0" + app_state)


@dataclass(frozen=True, kw_only=True, slots=True)
class IssuedState:
    """The stored authorization request of an issued state."""

    state_hash: str
    sealed: bytes | None = field(repr=False)
    """The encrypted request; after a code arrives, the grant's encrypted secrets."""
    expires_at: datetime
    request_hash: str | None = None
    """The fingerprint of the user and the app's state, if the app can present them instead of a code."""
    code_hash: str | None = None
    """The fingerprint of the code that came with the state."""
    error: str | None = None
    """The error of the code's grant, or of a redirect without a code."""


class CodeSource(Enum):
    """The sender of a code."""

    BROWSER = "browser"
    VENDOR = "vendor"
    """AMO's own server, or an installation inside AMO; the state may be missing."""
    APP = "app"
    """The app, which received the code in the deep link; no state is presented."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodePresentation:
    """A presented code and its parameters."""

    code: bytes = field(repr=False)
    state: bytes | None = field(repr=False, default=None)
    host: str | None = None
    """The host that the caller names; `None` for the host of an earlier presentation or the default host."""
    address: str | None = None
    """The client address to which the code limit applies."""
    source: CodeSource = CodeSource.BROWSER
    verifier: str | None = field(repr=False, default=None)

    code_hash: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "code_hash", fingerprint(self.code))


class GrantStatus(StrEnum):
    """The status of a grant."""

    EXCHANGING = "exchanging"
    CONNECTED = "connected"
    REFUSED = "refused"
    FAILED = "failed"
    """A temporary failure: the same code can be tried again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """A stored grant; the code itself is encrypted."""

    code_hash: str
    handle_hash: str
    sealed: bytes | None = field(repr=False)
    status: GrantStatus
    error: str | None = None
    connection_id: str | None = None
    attempt: str
    lease_until: datetime
    lease_left: float | None = field(default=None, compare=False)
    """The remaining seconds of the lease, by the store's clock, when the row was read."""
    possibly_spent: bool = False
    """Whether an exchange with an unknown outcome may have spent the code."""
    expires_at: datetime
    ticket_hash: str | None = None
    accepted_at: datetime | None = None
    no: int = 0
    """The value of the store's counter when the code was first claimed."""
    connected_no: int | None = None
    """The value of the store's counter when the grant's pair was stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantSecrets:
    """The encrypted part of a grant."""

    handle: str = field(repr=False)
    code: bytes = field(repr=False)
    state: bytes | None = field(repr=False)
    domain: str
    ticket: str = field(default="", repr=False)
    """The replacement for AMO's code in the deep link."""
    request: AuthorizationRequest | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewConnection:
    """The connection and encrypted pair of a successful grant, stored together with the finished grant."""

    grant: Grant
    connection: Connection
    token_iat: int | None
    """AMO's issue time of the pair; if two grants are for the same connection, the later pair is kept."""
    owner: str | None = None
    """The backend-asserted user, who becomes an owner."""

    @property
    def connection_id(self) -> str:
        return self.connection.id


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantResult:
    """The result of a grant for the page and the app."""

    status: GrantStatus
    error: str | None
    code: bytes = field(repr=False)
    state: bytes | None = field(repr=False)
    """The state that came with the code."""
    handle: str = field(repr=False)
    ticket: str = field(repr=False)
    request: AuthorizationRequest | None
    domain: str
    """The account's host."""
    support: str
    """A support code for the page and the log; it contains no secret."""
    connection_id: str | None = None
    abandoned: bool = False
    """Whether the process that exchanged the code has exited without a result."""

    @property
    def way_back(self) -> WayBack:
        return WayBack(state=self.state) if self.request is None else self.request.way_back(self.state)

    @property
    def app_state(self) -> bytes | None:
        """The state for the app: the app's own state if the request has one, otherwise the received state."""
        return self.way_back.state


def support_code(code_hash: str) -> str:
    """Return the support code of a grant, which appears on the page and in the log."""
    return code_hash[:8]
