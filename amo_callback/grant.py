"""A grant: an authorization code on its way from AMO's redirect to a stored pair, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

from amo_callback.model import fingerprint

if TYPE_CHECKING:
    from datetime import datetime

    from amo_callback.model import Connection

MAX_CODE = 4096
MAX_STATE = 2048
"""Bytes of an authorization code and of a state, decoded, that are taken at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallbackParams:
    """What AMO's redirect says, read from the raw bytes of its query."""

    code: bytes | None = field(default=None, repr=False)
    state: bytes | None = field(default=None, repr=False)
    domain: str | None = None
    """The account's host, checked."""
    error: str | None = None
    """The deep link's word for what is wrong, found before AMO is asked."""
    refused: str | None = None
    refused_host: str | None = None
    """That value, where it is a host that may be logged."""
    support: str | None = None
    from_server: bool = False
    """Sent by AMO's own server: no browser, no person."""
    from_widget: bool = False
    """Installed from inside AMO: perhaps no browser."""


STATE_PREFIX = "ac1."
"""What the states begin with that are issued here; 128 bits follow."""


def is_issued(state: bytes | None) -> bool:
    """Return whether a state has the form of those that are issued here."""
    return state is not None and state.startswith(STATE_PREFIX.encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthorizationRequest:
    """A grant that was started here: for whom, and what proves that its end is where it began."""

    user: str | None = None
    """The app's user; `None` where it began with a plain link."""
    vouched: bool = False
    """Whether a backend has asserted the user."""
    challenge: str | None = field(default=None, repr=False)
    """The S256 code challenge (RFC 7636) whose verifier only the app's instance has that began."""
    state: bytes | None = field(default=None, repr=False)
    """The app's own state: handed back in place of the issued one."""

    @property
    def vouched_owner(self) -> str | None:
        """Who becomes an owner with the grant's end alone; where there is a challenge, its verifier is waited for."""
        return self.user if self.vouched and self.challenge is None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class IssuedState:
    """A grant that was started here, by its state: its request only sealed."""

    state_hash: str
    sealed: bytes | None = field(repr=False)
    """From the code on, what the grant keeps sealed."""
    expires_at: datetime
    code_hash: str | None = None
    """Of the code that came back with it."""


class CodeSource(Enum):
    """Which way a code comes."""

    BROWSER = "browser"
    VENDOR = "vendor"
    """From AMO's own server, or from inside AMO: it may have no state."""
    APP = "app"
    """From the app, after the deep link: it names no state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodePresentation:
    code: bytes = field(repr=False)
    state: bytes | None = field(repr=False, default=None)
    host: str | None = None
    """The account's, as the caller names it; without one it is where the code was seen before, or the default."""
    address: str | None = None
    """Whose unproven codes are limited."""
    arrival: CodeSource = CodeSource.BROWSER
    verifier: str | None = field(repr=False, default=None)

    code_hash: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "code_hash", fingerprint(self.code))


class GrantStatus(StrEnum):
    """How far an authorization code has come."""

    EXCHANGING = "exchanging"
    CONNECTED = "connected"
    REFUSED = "refused"
    FAILED = "failed"
    """Failed for a passing reason: the same code may be tried again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """One authorization code and what became of it; the code itself only sealed."""

    code_hash: str
    handle_hash: str
    sealed: bytes | None = field(repr=False)
    status: GrantStatus
    error: str | None = None
    connection_id: str | None = None
    attempt: str
    lease_until: datetime
    lease_left: float | None = field(default=None, compare=False)
    """Seconds that were left of it, by the store's clock, as this was read."""
    doubtful: bool = False
    """Whether an attempt of ours may have spent the code without an answer."""
    expires_at: datetime
    ticket_hash: str | None = None
    accepted_at: datetime | None = None
    no: int = 0
    """The store's counter of disconnects when the code was first claimed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantSecrets:
    """What a grant keeps sealed: what its page hands back, and where its code is exchanged."""

    handle: str = field(repr=False)
    code: bytes = field(repr=False)
    state: bytes | None = field(repr=False)
    domain: str
    ticket: str = field(default="", repr=False)
    """What may be handed back in place of AMO's code."""
    request: AuthorizationRequest | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewConnection:
    """A granted pair, sealed in its connection, as it goes into the store together with its grant's end."""

    grant: Grant
    connection: Connection
    token_iat: int | None
    """AMO's time of issue: between two grants of one connection the later one holds."""
    owner: str | None = None
    """Whom a backend has vouched for: an owner from now on."""

    @property
    def connection_id(self) -> str:
        return self.connection.id


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantResult:
    """The result of a grant, for the page and the app."""

    status: GrantStatus
    error: str | None
    code: bytes = field(repr=False)
    state: bytes | None = field(repr=False)
    """As it came with the code."""
    handle: str = field(repr=False)
    ticket: str = field(repr=False)
    request: AuthorizationRequest | None
    domain: str
    """The account's host, as it was exchanged at."""
    support: str
    """A name for the grant that reveals nothing of it: on the page, and in the log."""
    connection_id: str | None = None
    grant_no: int = 0
    """The store's counter of disconnects when the code was first claimed."""

    @property
    def app_state(self) -> bytes | None:
        """The state that the app gets back: its own."""
        return self.state if self.request is None or self.request.state is None else self.request.state


def support_code(code_hash: str) -> str:
    """Return the support code, which is on the page and in the log."""
    return code_hash[:8]
