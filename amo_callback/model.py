"""Immutable domain objects; their reprs contain no secrets."""

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
"""The UUID namespace of connection ids."""


class Status(StrEnum):
    """The status of a connection; only active connections are refreshed."""

    ACTIVE = "active"
    NEEDS_REAUTH = "needs_reauth"
    DISCONNECTED = "disconnected"


class Reason(StrEnum):
    """The reason why the user of a connection has to connect again."""

    REVOKED = "revoked"
    EXPIRED = "expired"
    IN_DOUBT = "in_doubt"
    REFUSED = "refused"
    MISSING = "missing"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPair:
    """An access token, and the single-use refresh token that obtains the next pair."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    issued_at: datetime
    expires_at: datetime

    @property
    def lifetime(self) -> timedelta:
        return self.expires_at - self.issued_at


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """The account of a pair, according to the unverified claims of its access token."""

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
    """An AMO account and user with an encrypted token pair."""

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
    """The current refresh attempt: in progress, with an unknown outcome, or abandoned by a process that exited."""
    lease_owner: str | None = None
    lease_until: datetime | None = None
    presented_token: str | None = None
    """The fingerprint of the refresh token that the attempt presents."""
    possibly_spent_token: str | None = None
    """The fingerprint of a refresh token that an attempt with an unknown outcome may have spent."""
    recheck_at: datetime | None = None
    """The time of the next introspection of the connection's tokens."""
    disabled_hook_at: datetime | None = None
    """The time at which AMO's hook last reported the integration as disabled in the account."""
    rechecked_at: datetime | None = None
    recheck_pause: timedelta | None = None
    """The minimum time between the last introspection and one caused by a further hook."""
    grant_iat: int | None = None
    """AMO's issue time of the first pair of the current grant."""
    refused_since: datetime | None = None
    """The time of the first refusal that `refusals` counts."""
    refusals: int = 0
    """Refusals without a "hint" field for which introspection also rejected the token; 0 once AMO accepts the token."""
    suspended_reason: Reason | None = None
    """The reason for a terminal failure that is suspended because of a mass failure."""
    suspended_token: str | None = None
    """The fingerprint of the refresh token whose failure is suspended."""
    precedence: int = field(default=0, compare=False)
    """The rank among the account's connections; `account:` names the active one with the highest value."""
    frozen: bool = False
    """Whether this connection, or every connection, is frozen."""
    lease_left: float | None = field(default=None, compare=False)
    """The remaining seconds of the attempt's lease, by the store's clock, when the row was read."""
    reactivated: bool = field(default=False, compare=False)
    """Whether the write that returned this row reactivated the connection."""

    @property
    def has_refresh_token(self) -> bool:
        """Whether the connection can be refreshed; an imported long-lived access token has no refresh token."""
        return self.refresh_expires_at is not None

    @property
    def in_doubt(self) -> bool:
        """Whether the refresh token may have been spent; meaningful only after the lease has expired."""
        return self.attempt is not None or self.possibly_spent_token is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """The claim of a connection's row, which permits an attempt to spend the refresh token once."""

    connection_id: str
    row_version: int
    """The version of the row as it was read; the claim fails if the row has changed."""
    attempt: str
    owner: str
    lease: timedelta
    """The length of the lease, for which other processes wait for the attempt; it is counted from the commit."""
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseExtension:
    """The extension of a lease for a second request, which is sent to the moved account's new host."""

    connection_id: str
    attempt: str
    lease: timedelta
    """The length of the lease, counted from the commit."""
    domain: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshedPair:
    """A refreshed and encrypted pair that is to be stored."""

    connection_id: str
    pair_version: int
    """The version of the stored pair to replace; no other version is replaced."""
    sealed_pair: bytes = field(repr=False)
    api_domain: str | None
    issued_at: datetime
    expires_at: datetime
    refresh_expires_at: datetime
    next_refresh_at: datetime
    grant_iat: int | None = None
    """AMO's issue time of the grant, to identify it: after a restore, another grant may have the same pair versions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshRules:
    """The settings of `[refresh]`: when to refresh, and when to retry."""

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
    in_doubt_for: timedelta | None = None
    """The time for which the attempt stays current if its outcome is unknown."""
    next_refresh_at: datetime | None
    needs_reauth_since: datetime | None = None
    recheck_at: datetime | None = None
    refused_at: datetime | None = None
    """The current time, if AMO refuses without a "hint" field and introspection rejects the token; otherwise `None`."""
    suspended_reason: Reason | None = None
    """The reason for a suspended terminal failure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Freeze:
    """A freeze of all connections until they are thawed."""

    at: datetime
    why: str
    may_be_copy: bool = False
    """Whether the store may be a copy or may have been moved; another host may then have refreshed its tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AmoBlock:
    """A block of this server's address by AMO, with the times at which the next probe and code exchange may be sent."""

    since: datetime
    probe_at: datetime
    exchange_at: datetime
    probed: tuple[str, ...] = ()
    """The ids of the connections that have been used as the probe in this round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeNotice:
    """A notice of a write by any process, for caches of connections."""

    connections: frozenset[str] | None
    """The ids of changed connections; `None` if any connection may have changed."""
    membership_changed: bool
    """Whether an account or owner may have gained a connection."""
    erased: bool = False
    """Whether tokens were erased; erased tokens must not be handed out, not even as stale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionFilter:
    """A filter for lists of connections; a field that is `None` matches every connection."""

    account_id: str | None = None
    owner: str | None = None
    status: Status | None = None
    domain: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLimits:
    """The connections that an API key is limited to: those of the accounts, and those of the owners."""

    accounts: frozenset[str]
    """Ids of AMO accounts."""
    owners: frozenset[str]
    """Ids of app users."""


class TokenState(StrEnum):
    VALID = "valid"
    REJECTED = "rejected"
    UNKNOWN = "unknown"
    """AMO gave no usable response."""
    NOT_CHECKED = "not_checked"
    """The token cannot be introspected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntrospectionResult:
    state: TokenState
    domain: str | None = None
    """The account's current host, which is on the allow list."""


class RefreshTrigger(StrEnum):
    SCHEDULE = "schedule"
    HAND_OUT = "hand_out"
    FORCED = "forced"
    PROBE = "probe"
    """A test of whether the reason for pausing all refreshes still applies."""
    TRIAL = "trial"
    """A refresh of a connection in `needs_reauth`, because AMO seems to accept its token."""


def connection_id(account: Account, domain: str) -> str:
    """Return the id of the connection of an AMO account and AMO user.

    The id is a name-based UUID, so that the store need not be read to name a connection or to encrypt its pair. If the
    access token does not name the account, the account's host is used instead.
    """
    return str(uuid.uuid5(_CONNECTIONS, f"{account.account_id or '@' + domain}/{account.user_id}"))


def has_own_id(connection: Connection) -> bool:
    """Return whether a connection's id is derived from its account and user.

    If AMO did not name the account, the id was derived from the account's host, which may have changed since. Such an
    id cannot be checked, so the function returns true.
    """
    account = Account(account_id=connection.account_id, user_id=connection.user_id)
    return not connection.account_id or connection.id == connection_id(account, connection.domain)


def abbreviated(print_: str) -> str:
    """Abbreviate a fingerprint for logs and the history."""
    return print_[:16]


def fingerprint(secret: str | bytes) -> str:
    """Return the fingerprint (SHA-256 in hex) of a code, token or handle."""
    return hashlib.sha256(secret.encode() if isinstance(secret, str) else secret).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedConnection:
    """A connection from another store or system that is being imported."""

    connection: Connection
    replaces: Connection | None
    """The stored connection to replace, as it was read; it is not replaced if it has changed since."""
    owners: Mapping[str, int] = field(default_factory=dict)
    """Owners to add, each with a value of the store's counter."""
