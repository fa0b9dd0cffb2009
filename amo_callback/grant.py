"""A grant: an authorization code on its way from AMO's redirect to a stored pair, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from amo_callback.model import Connection

MAX_CODE = 4096
MAX_STATE = 2048
"""Bytes of an authorization code and of a state, decoded, that are taken at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Redirect:
    """What AMO's redirect says, read from the raw bytes of its query."""

    code: bytes | None = field(default=None, repr=False)
    state: bytes | None = field(default=None, repr=False)
    domain: str | None = None
    """The account's host, checked."""
    error: str | None = None
    """The deep link's word for what is wrong, found before AMO is asked."""
    from_server: bool = False
    """Sent by AMO's own server: no browser, no person."""
    from_widget: bool = False
    """Installed from inside AMO: perhaps no browser."""


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
    doubtful: bool = False
    """Whether an attempt of ours may have spent the code without an answer."""
    expires_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantSecrets:
    """What a grant keeps sealed: what its page hands back, and where its code is exchanged."""

    handle: str = field(repr=False)
    code: bytes = field(repr=False)
    state: bytes | None = field(repr=False)
    domain: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantedPair:
    """A granted pair, sealed in its connection, as it goes into the store together with its grant's end."""

    grant: Grant
    connection: Connection
    token_iat: int | None
    """AMO's time of issue: between two grants of one connection the later one holds."""

    @property
    def connection_id(self) -> str:
        """Whose it is."""
        return self.connection.id


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a person, or the app, is told of a grant."""

    status: GrantStatus
    error: str | None
    code: bytes = field(repr=False)
    state: bytes | None = field(repr=False)
    handle: str = field(repr=False)
    domain: str
    """The account's host, as it was exchanged at."""
    support: str
    """A name for the grant that tells nothing of it: on the page, and in the log."""
    connection_id: str | None = None


def support_code(code_hash: str) -> str:
    """Return what a person may read to whoever supports them, and an administrator finds in the log."""
    return code_hash[:8]
