"""A connection as it travels."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from amo_callback.model import Reason, Status, TokenPair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.model import Connection

MAX_TOKEN = 128 * 1024
"""Characters: as much as an answer of AMO's could bring."""
STRICT = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

Token = Annotated[str, Field(min_length=1, max_length=MAX_TOKEN, pattern=r"^[ -~]*$")]
TokenOrNone = Annotated[str, Field(max_length=MAX_TOKEN, pattern=r"^[ -~]*$")]
"""A token, or nothing where there is none."""
Name = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_-]*$")]
Host = Annotated[str, Field(max_length=253)]


@checked(frozen=True, kw_only=True, slots=True, config=STRICT)
class Record:
    """What of a connection another store needs; whoever makes one from outside learns what is wrong with it."""

    id: Annotated[Name, Field(min_length=1)]
    account_id: Name
    user_id: Name
    domain: Host
    api_domain: Host | None
    client_id: Annotated[str, Field(max_length=1024)]
    status: Status
    reason: Reason | None
    access_token: Token = dataclasses.field(repr=False)
    refresh_token: TokenOrNone = dataclasses.field(repr=False)
    issued_at: AwareDatetime
    expires_at: AwareDatetime
    refresh_expires_at: AwareDatetime | None
    refreshed_at: AwareDatetime | None
    connected_at: AwareDatetime
    grant_iat: int | None
    doubtful: str | None
    """The fingerprint of a refresh token that may have been spent: the next host looks it up before it presents it."""
    look_up_at: AwareDatetime | None
    frozen: bool
    """Whether this one was frozen by itself: it may live elsewhere already."""
    owners: tuple[Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00]+$")], ...] = ()
    """Whose it is, among the app's users."""

    @property
    def pair(self) -> TokenPair:
        """Its tokens."""
        return TokenPair(
            access_token=self.access_token,
            refresh_token=self.refresh_token,
            issued_at=self.issued_at,
            expires_at=self.expires_at,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """A record, and where in its file it stands."""

    place: str
    record: Record
    owned: bool = False
    """Whether it names an owner."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is wrong with a file, and where; never what stands there."""

    place: str
    why: str


_RECORD = TypeAdapter(Record)


def record_of(connection: Connection, pair: TokenPair, owners: Sequence[str] = ()) -> Record:
    """Return a connection as it travels; what an open attempt has been spending is doubtful from now on."""
    return Record(
        id=connection.id,
        account_id=connection.account_id,
        user_id=connection.user_id,
        domain=connection.domain,
        api_domain=connection.api_domain,
        client_id=connection.client_id,
        status=connection.status,
        reason=connection.reason,
        access_token=pair.access_token,
        refresh_token=pair.refresh_token,
        issued_at=pair.issued_at,
        expires_at=pair.expires_at,
        refresh_expires_at=connection.refresh_expires_at,
        refreshed_at=connection.refreshed_at,
        connected_at=connection.connected_at,
        grant_iat=connection.grant_iat,
        doubtful=connection.spending or connection.doubtful,
        look_up_at=connection.look_up_at,
        frozen=connection.frozen,
        owners=tuple(owners),
    )


def write_record(record: Record) -> bytes:
    """Return a record as JSON."""
    return _RECORD.dump_json(record)


def read_record(content: bytes) -> Record:
    """Read a record; raises pydantic's `ValidationError`."""
    return _RECORD.validate_json(content)


def faults(error: ValidationError) -> str:
    """Say which fields are wrong and how, never what they hold."""
    told: dict[str, list[str]] = {}
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        text = fault["msg"]
        told.setdefault(str(fault["loc"][0]) if fault["loc"] else "", []).append(text[:1].lower() + text[1:])
    return "; ".join(f"{field}: {', or '.join(texts)}".removeprefix(": ") for field, texts in told.items())
