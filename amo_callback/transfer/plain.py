"""Another system's tokens, in plain JSON: one object, a list, `{"connections": […]}`, or an object a line."""

from __future__ import annotations

import codecs
import dataclasses
import io
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from amo_callback.errors import CommandFailed
from amo_callback.model import Account, Status, TokenPair, Told, connection_id
from amo_callback.schedule import REFRESH_TOKEN_LIFE
from amo_callback.transfer.record import Arrival, Host, Problem, Record, Token, TokenOrNone, faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_LIFE = timedelta(days=1)
"""How long AMO's access tokens live today; for tokens that do not tell."""
_MAX_AHEAD = timedelta(days=3650)
_MOST_VALUES = 20_000_000
"""Commas and brackets of a file that is parsed as a whole: a value takes up to fifty times its length in memory."""
_Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | Annotated[int, Field(ge=0, lt=2**63)]
_Epoch = Annotated[float, Field(ge=0, lt=2**40, allow_inf_nan=False)]


@checked(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True))
class _Entry:
    """What another system tells of a connection."""

    access_token: Token = dataclasses.field(repr=False)
    refresh_token: TokenOrNone | None = dataclasses.field(repr=False, default=None)
    expires_in: _Epoch | None = None
    expires_at: _Epoch | Annotated[str, Field(max_length=64)] | None = None
    domain: Host
    owner: object = None
    account_id: _Identifier | None = None
    user_id: _Identifier | None = None


_ENTRY = TypeAdapter(_Entry)


def read_plain(
    content: bytes, *, tell: Callable[[str], Told], client_id: str, now: datetime
) -> Iterator[Arrival | Problem]:
    """Read a file's connections; where a token does not tell for which client it is, it is `client_id`'s."""
    for place, value in _entries(content):
        yield _arrival(place, value, tell=tell, client_id=client_id, now=now)


def read_values(
    values: Iterable[object], *, tell: Callable[[str], Told], client_id: str, now: datetime
) -> Iterator[Arrival | Problem]:
    """Read connections that are parsed already, as `read_plain` reads a list of them."""
    for place, value in _numbered(values):
        yield _arrival(place, value, tell=tell, client_id=client_id, now=now)


def _arrival(
    place: str, value: bytes, *, tell: Callable[[str], Told], client_id: str, now: datetime
) -> Arrival | Problem:
    try:
        entry = _ENTRY.validate_json(value)
        record = _record(entry, tell(entry.access_token), client_id=client_id, now=now)
    except ValidationError as error:
        return Problem(place=place, why=faults(error))
    except _Refused as refused:
        return Problem(place=place, why=str(refused))
    return Arrival(place=place, record=record, owned=entry.owner is not None)


class _Refused(Exception):
    """An entry that is read, but is not taken."""


# --- from bytes to entries -----------------------------------------------------------------------


def _entries(content: bytes) -> Iterator[tuple[str, bytes]]:
    content = content.removeprefix(codecs.BOM_UTF8)
    second = content.find(b"\n") + 1
    if _is_object(content[:second]) and content.find(b"{", second) > 0:
        for number, line in enumerate(io.BytesIO(content), start=1):
            if line.strip():
                yield f"line {number}", line
        return
    yield from _numbered(_list(content))


def _numbered(values: Iterable[object]) -> Iterator[tuple[str, bytes]]:
    for number, value in enumerate(values, start=1):
        yield f"entry {number}", json.dumps(value).encode()


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _list(content: bytes) -> list[Any]:
    if sum(map(content.count, (b",", b"{", b"["))) > _MOST_VALUES:
        raise CommandFailed("holds too much for one file: split it, or write an object a line")
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise CommandFailed(f"line {error.lineno}, column {error.colno}: is no JSON") from None
    except (ValueError, RecursionError):  # not UTF-8, a number of thousands of digits, nested without end
        raise CommandFailed("is no JSON text") from None
    if isinstance(value, dict):
        value = value.get("connections", [value])
    if not isinstance(value, list) or not value:
        raise CommandFailed('holds no connections: wanted is one object, a list, {"connections": […]}, or one a line')
    return value


# --- from an entry to a record -------------------------------------------------------------------


def _record(entry: _Entry, told: Told, *, client_id: str, now: datetime) -> Record:
    pair = _pair(entry, told, now)
    account = Account(
        account_id=_identifier("account_id", entry.account_id, told.account.account_id),
        user_id=_identifier("user_id", entry.user_id, told.account.user_id),
    )
    renewable = bool(pair.refresh_token)
    return Record(
        id=connection_id(account, entry.domain.lower()),
        account_id=account.account_id,
        user_id=account.user_id,
        domain=entry.domain.lower(),
        api_domain=told.account.api_domain,
        client_id=told.client_id or client_id,
        status=Status.ACTIVE,
        reason=None,
        access_token=pair.access_token,
        refresh_token=pair.refresh_token,
        issued_at=pair.issued_at,
        expires_at=pair.expires_at,
        refresh_expires_at=pair.issued_at + REFRESH_TOKEN_LIFE if renewable else None,
        refreshed_at=None,
        connected_at=now,
        grant_iat=told.account.token_iat,
        doubtful=None,
        look_up_at=None,
        frozen=False,
    )


def _pair(entry: _Entry, told: Told, now: datetime) -> TokenPair:
    expires_at = _expiry(entry, told, now)
    if not entry.refresh_token and expires_at <= now:
        raise _Refused("the access token has expired, and there is no refresh_token")
    if expires_at <= now - REFRESH_TOKEN_LIFE:
        raise _Refused("the access token expired more than 90 days ago: the refresh token is dead, too")
    return TokenPair(
        access_token=entry.access_token,
        refresh_token=entry.refresh_token or "",
        issued_at=min(expires_at - _life(told), now),
        expires_at=expires_at,
    )


def _life(told: Told) -> timedelta:
    if told.expires_at is None or told.account.token_iat is None:
        return _LIFE
    life = told.expires_at.timestamp() - told.account.token_iat
    return timedelta(seconds=life) if 0 < life <= _MAX_AHEAD.total_seconds() else _LIFE


def _expiry(entry: _Entry, told: Told, now: datetime) -> datetime:
    given = _given_expiry(entry, now)
    if given is None and told.expires_at is None:
        raise _Refused("expires_in or expires_at: field required, since the access token has no exp")
    # What is said of a token may be old; it knows itself.
    expires_at = min(time for time in (given, told.expires_at) if time is not None)
    if expires_at > now + _MAX_AHEAD:
        raise _Refused("access_token: its exp is more than ten years ahead")
    return expires_at


def _given_expiry(entry: _Entry, now: datetime) -> datetime | None:
    """Return the expiry that the entry names; `None` where it names none."""
    if isinstance(entry.expires_at, str):
        expires_at = _rfc3339(entry.expires_at)
    elif entry.expires_at is not None:
        expires_at = datetime.fromtimestamp(entry.expires_at, tz=UTC) if entry.expires_at < 2**33 else None
    elif entry.expires_in is not None:
        expires_at = now + timedelta(seconds=min(entry.expires_in, 2**33))
    else:
        return None
    if expires_at is None or expires_at > now + _MAX_AHEAD:
        raise _Refused("expires_at, expires_in: neither seconds nor a time of these years (RFC 3339, with its zone)")
    return expires_at


def _rfc3339(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):  # at the ends of the calendar
        return None


def _identifier(name: str, given: str | int | None, told: str) -> str:
    text = "" if given is None else str(given)
    if text and told and text != told:
        raise _Refused(f"{name}: the access token tells another one")
    return told or text
