"""The domain's values, frozen; secrets are in no repr."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta


_CONNECTIONS = uuid.UUID("8f0f5a36-5d0c-4f4e-9d0e-2f1c7f8b6a51")
"""The namespace of connection ids."""


class Status(StrEnum):
    """Whether a connection is kept fresh."""

    ACTIVE = "active"
    NEEDS_REAUTH = "needs_reauth"
    DISCONNECTED = "disconnected"


class Reason(StrEnum):
    """Why a connection needs its user again."""

    REVOKED = "revoked"
    EXPIRED = "expired"
    IN_DOUBT = "in_doubt"
    REFUSED = "refused"
    MISSING = "missing"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPair:
    """An access token and the refresh token that replaces it, once."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    issued_at: datetime
    expires_at: datetime

    @property
    def life(self) -> timedelta:
        return self.expires_at - self.issued_at


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """The account of a pair, by the claims of its access token: unverified hints."""

    account_id: str = ""
    user_id: str = ""
    api_domain: str | None = None
    token_iat: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenClaims:
    account: Account
    client_id: str | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenResponse:
    pair: TokenPair
    account: Account
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """One AMO account, connected by one AMO user, and its sealed pair."""

    id: str
    account_id: str
    user_id: str
    domain: str
    api_domain: str | None
    client_id: str
    status: Status
    reason: Reason | None = None
    last_error: str | None = None
    sealed_pair: bytes | None = field(repr=False)
    access_issued_at: datetime | None
    access_expires_at: datetime | None
    refresh_expires_at: datetime | None
    refreshed_at: datetime | None
    next_refresh_at: datetime | None
    failures: int = 0
    connected_at: datetime
    pair_version: int
    row_version: int
    attempt: str | None = None
    """The open attempt: under way, without an answer, or of a process that died."""
    lease_owner: str | None = None
    lease_until: datetime | None = None
    spending: str | None = None
    """The fingerprint of what the open attempt presents."""
    doubtful: str | None = None
    """The fingerprint of a refresh token that may have been spent without an answer."""
    look_up_at: datetime | None = None
    """When its tokens are to be looked up, without spending them."""
    hook_at: datetime | None = None
    """When AMO's hook last said that the integration was switched off there."""
    looked_up_at: datetime | None = None
    look_up_pause: timedelta | None = None
    """The time that must pass between the last look-up and one that a further hook causes."""
    grant_iat: int | None = None
    """AMO's time of issue of the pair that the present grant began with."""
    refused_since: datetime | None = None
    """Since when AMO refuses it without a hint and introspection rejects its token."""
    refusals: int = 0
    """The number of such attempts in a row."""
    suspended_reason: Reason | None = None
    """What a terminal answer meant that a mass failure has suspended."""
    suspended_token: str | None = None
    """The fingerprint of the refresh token that was answered so."""
    connected_no: int = field(default=0, compare=False)
    """The value of the store's counter when it was connected last."""
    frozen: bool = False
    """Whether nothing of it may be spent: it is frozen, or all are."""
    lease_left: float | None = field(default=None, compare=False)
    """Seconds of the open attempt's lease that were left, by the store's clock, as this was read."""
    mended: bool = field(default=False, compare=False)
    """Whether the write that this is the answer to has made it active again."""

    @property
    def has_refresh_token(self) -> bool:
        """Whether it can be refreshed. An imported long-lived access token has no refresh token."""
        return self.refresh_expires_at is not None

    @property
    def in_doubt(self) -> bool:
        """Whether its refresh token may have been spent; only valid once the lease has ended."""
        return self.attempt is not None or self.doubtful is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """The right to spend a connection's refresh token once: written before it is spent."""

    connection_id: str
    row_version: int
    """The row as it was read: an attempt that was extended, or begun, since then is not taken over from."""
    attempt: str
    owner: str
    lease: timedelta
    """For how long the attempt is left alone, from the commit on."""
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseExtension:
    """More time for an attempt whose token goes out a second time, to where the account has moved."""

    connection_id: str
    attempt: str
    lease: timedelta
    """Counted from its commit."""
    domain: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshedPair:
    """A refreshed pair, sealed, as it goes into the store."""

    connection_id: str
    pair_version: int
    """The version that it replaces: it is stored over no other one."""
    sealed_pair: bytes = field(repr=False)
    api_domain: str | None
    issued_at: datetime
    expires_at: datetime
    refresh_expires_at: datetime
    next_refresh_at: datetime
    grant_iat: int | None = None
    """Of which grant it is: in an old database that was put back, the versions are those of another one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshRules:
    """When to refresh and when to try again: the configuration's `[refresh]`."""

    at: float = 0.5
    jitter: float = 0.1
    concurrency: int = 16
    poll_interval: float = 5.0
    lease: float = 60.0
    retry_base: float = 30.0
    retry_cap: float = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshFailure:
    connection_id: str
    attempt: str
    status: Status
    reason: Reason | None = None
    last_error: str
    open_for: timedelta | None = None
    """The refresh token may have been spent: the attempt stays open, undecided, for so long."""
    next_refresh_at: datetime | None
    died_at: datetime | None = None
    look_up_at: datetime | None = None
    refused_at: datetime | None = None
    """Now, where AMO refuses without a hint and introspection rejects the token."""
    suspended_reason: Reason | None = None
    """What a suspended terminal answer means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Freeze:
    """A freeze of all connections: nothing is spent until it is thawed."""

    at: datetime
    why: str
    elsewhere: bool = False
    """Whether what is stored may live, and have been refreshed, elsewhere: it is a copy, or was moved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AmoBlock:
    """A block of our address by AMO: when it began, and when the next requests may leave."""

    since: datetime
    probe_at: datetime
    exchange_at: datetime
    probed: tuple[str, ...] = ()
    """The ids of the connections that have been presented, until each has been."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeNotice:
    """What a write of any process may have changed, for caches of connections."""

    connections: frozenset[str] | None
    """Their ids; `None`: any of them."""
    belonging: bool
    """Whether it may be a connection that its account, or an owner, did not have before."""
    erased: bool = False
    """Whether its tokens were erased: they are not to be handed out even while nothing else is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionFilter:
    """Which connections are listed: what is not named does not matter."""

    account_id: str | None = None
    owner: str | None = None
    status: Status | None = None
    domain: str | None = None


class TokenState(StrEnum):
    GOOD = "good"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """AMO gave no usable answer."""
    UNASKED = "unasked"
    """It cannot be introspected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntrospectionResult:
    standing: TokenState
    domain: str | None = None
    """The present host of the account, where our secrets may go."""


class RefreshTrigger(StrEnum):
    SCHEDULE = "schedule"
    HAND_OUT = "hand_out"
    FORCED = "forced"
    PROBE = "probe"
    """To see whether what has stopped all refreshing is over."""
    TRIAL = "trial"
    """Of a connection given up, whose token AMO seems to know."""


def connection_id(account: Account, domain: str) -> str:
    """Return the id of the one connection of an AMO account and AMO user.

    It is derived (a name-based UUID), so a connection can be named, and its pair sealed for it, before
    and without asking the store. Where AMO's token does not name the account, its domain stands for it.
    """
    return str(uuid.uuid5(_CONNECTIONS, f"{account.account_id or '@' + domain}/{account.user_id}"))


def has_own_id(connection: Connection) -> bool:
    """Return whether a connection's id is derived from its account and user.

    Where AMO did not name the account, the id stands for the host at which it connected, which may have changed since.
    """
    account = Account(account_id=connection.account_id, user_id=connection.user_id)
    return not connection.account_id or connection.id == connection_id(account, connection.domain)


def short(print_: str) -> str:
    """Return an abbreviated fingerprint, for people."""
    return print_[:16]


def fingerprint(secret: str | bytes) -> str:
    """Return the fingerprint of a code, token or handle (SHA-256, hex)."""
    return hashlib.sha256(secret.encode() if isinstance(secret, str) else secret).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedConnection:
    """A connection from another store or system, as it goes into this one."""

    connection: Connection
    replaces: Connection | None
    """The stored connection that it replaces, as it was read; any other one stays."""
    owners: Mapping[str, int] = field(default_factory=dict)
    """Added to the owners that are stored, each with a value of the store's counter."""
