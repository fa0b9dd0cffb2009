"""Token pairs in plain JSON, from another system's file or a raw answer.

A file contains one object, a list, `{"connections": […]}`, or one object per line.
"""

from __future__ import annotations

import codecs
import dataclasses
import io
import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from amo_callback.errors import CommandFailed, DecryptionFailed
from amo_callback.model import Account, connection_id, fingerprint
from amo_callback.refresh.raw_answers import open_raw, refreshed_by
from amo_callback.schedule import REFRESH_TOKEN_LIFETIME
from amo_callback.transfer.export_file import (
    ExportRecord,
    Host,
    OptionalToken,
    ParsedRecord,
    RecordError,
    Token,
    describe,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from amo_callback.crypto import Cipher
    from amo_callback.model import Connection, TokenClaims
    from amo_callback.store import Store

_LIFE = timedelta(days=1)
"""AMO's current access-token lifetime, assumed if the claims of a token give no plausible lifetime."""
_MAX_AHEAD = timedelta(days=3650)
_MOST_VALUES = 20_000_000
"""The maximum number of commas and brackets in a file that is parsed at once.

Parsed values take up to fifty times their length in memory.
"""
_MEMBER = r'"{}"\s*:\s*"\s*([!#-\[\]-~]+)\s*"'
"""A pattern for a complete member of a JSON object; a truncated value does not match."""
_Identifier = (
    Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    | Annotated[int, Field(ge=0, lt=2**63, json_schema_extra={"format": "int64"})]
)
_Epoch = Annotated[float, Field(ge=0, lt=2**40, allow_inf_nan=False)]


@validated(
    frozen=True,
    kw_only=True,
    config=ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True, use_attribute_docstrings=True),
)
class ImportEntry:
    """A connection from another system."""

    access_token: Token = dataclasses.field(repr=False)
    refresh_token: OptionalToken | None = dataclasses.field(repr=False, default=None)
    """Absent or empty for a long-lived token."""
    expires_in: _Epoch | None = None
    """The lifetime of the access token in seconds from now; ignored beside `expires_at`."""
    expires_at: _Epoch | Annotated[str, Field(max_length=64)] | None = None
    """The expiry of the access token: RFC 3339 with a time zone, or seconds since 1970.

    Neither this nor `expires_in` is required if the access token is a JWT with `exp`.
    """
    domain: Host
    """The account's host."""
    owner: object = None
    """Ignored: a user becomes an owner by connecting in the app."""
    account_id: _Identifier | None = None
    """The id of the AMO account; it must be the one in the access token, if there is one."""
    user_id: _Identifier | None = None
    """The id of the AMO user; it must be the one in the access token, if there is one."""


_ENTRY = TypeAdapter(ImportEntry)


class _Refused(Exception):
    """A valid entry that cannot be imported."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class JsonReader:
    """A reader of token pairs in JSON; `client_id` is assumed for tokens whose claims contain no client id."""

    claims_of: Callable[[str], TokenClaims]
    client_id: str
    now: datetime

    def read_file(self, content: bytes) -> Iterator[ParsedRecord | RecordError]:
        return self._parse_each(_entries(content))

    def read_values(self, values: Iterable[object]) -> Iterator[ParsedRecord | RecordError]:
        """Read connections from a list of parsed JSON values."""
        return self._parse_each(_numbered(values))

    def _parse_each(self, entries: Iterable[tuple[str, bytes]]) -> Iterator[ParsedRecord | RecordError]:
        return (self._parse(place, value, number) for number, (place, value) in enumerate(entries, start=1))

    def _parse(self, place: str, value: bytes, number: int) -> ParsedRecord | RecordError:
        try:
            entry = _ENTRY.validate_json(value)
            record = self._record(entry, self.claims_of(entry.access_token), number)
        except ValidationError as error:
            return RecordError(place=place, why=describe(error))
        except _Refused as refused:
            return RecordError(place=place, why=str(refused))
        return ParsedRecord(place=place, record=record, names_owner=entry.owner is not None)

    def _record(self, entry: ImportEntry, claims: TokenClaims, number: int) -> ExportRecord:
        expires_at = _expiry(entry, claims, self.now)
        if not entry.refresh_token and expires_at <= self.now:
            raise _Refused("the access token has expired, and there is no refresh_token")
        if expires_at <= self.now - REFRESH_TOKEN_LIFETIME:
            raise _Refused("the access token expired more than 90 days ago, so the refresh token has expired, too")
        issued_at = min(expires_at - _life(claims), self.now)
        account = Account(
            account_id=_identifier("account_id", entry.account_id, claims.account.account_id),
            user_id=_identifier("user_id", entry.user_id, claims.account.user_id),
        )
        return ExportRecord(
            id=connection_id(account, entry.domain.lower()),
            account_id=account.account_id,
            user_id=account.user_id,
            domain=entry.domain.lower(),
            api_domain=claims.account.api_domain,
            client_id=claims.client_id or self.client_id,
            access_token=entry.access_token,
            refresh_token=entry.refresh_token or "",
            issued_at=issued_at,
            expires_at=expires_at,
            refresh_expires_at=issued_at + REFRESH_TOKEN_LIFETIME if entry.refresh_token else None,
            connected_at=self.now,
            grant_iat=claims.account.token_iat,
            precedence=number,
        )

    async def read_raw(self, name: str, sealed: bytes, *, store: Store, cipher: Cipher) -> ParsedRecord | RecordError:
        """Read a raw answer from the rescue folder.

        The answer to a refresh is accepted only if the pair that was refreshed is still the stored pair. Answers are
        parsed less strictly than in the service, because the operator reviews the result. Raises `CommandFailed` if the
        file cannot be decrypted.
        """
        try:
            answer = open_raw(name, sealed, cipher)
        except DecryptionFailed:
            raise CommandFailed(
                f"no configured encryption key decrypts {name}: restore the file's original name or the missing key"
            ) from None
        refreshed, stored = refreshed_by(name), None
        if refreshed is not None:
            stored = await store.connection(refreshed[0])
            if stored is None or stored.pair_version != refreshed[1]:
                return RecordError(place=name, why="the connection has newer tokens, or is not in this database")
        pair = _pair_in(answer.body, presented=answer.presented)
        if pair is None:
            return RecordError(place=name, why="no token pair was found; the user must connect again")
        entry = {**pair, "domain": stored.domain if stored else answer.domain, **_expected_account(stored)}
        parsed = self._parse(name, json.dumps(entry).encode(), 1)
        if isinstance(parsed, RecordError) or stored is None:
            return parsed
        record = dataclasses.replace(
            parsed.record,
            api_domain=parsed.record.api_domain or stored.api_domain,
            # This pair was issued after the stored pair, even if its claims give an earlier time.
            issued_at=max(parsed.record.issued_at, stored.access_issued_at or parsed.record.issued_at),
        )
        return dataclasses.replace(parsed, record=record)


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
        raise CommandFailed("the file is too large for a single JSON value: split it, or write one object per line")
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise CommandFailed(f"line {error.lineno}, column {error.colno}: invalid JSON") from None
    except (ValueError, RecursionError):  # not UTF-8, huge numbers, or nested too deeply
        raise CommandFailed("the file is not valid JSON") from None
    if isinstance(value, dict):
        value = value.get("connections", [value])
    if not isinstance(value, list) or not value:
        raise CommandFailed(
            'the file contains no connections: write one object, a list, {"connections": […]}, or one object per line'
        )
    return value


# --- from an entry to a record -------------------------------------------------------------------


def _life(claims: TokenClaims) -> timedelta:
    if claims.expires_at is None or claims.account.token_iat is None:
        return _LIFE
    lifetime = claims.expires_at.timestamp() - claims.account.token_iat
    return timedelta(seconds=lifetime) if 0 < lifetime <= _MAX_AHEAD.total_seconds() else _LIFE


def _expiry(entry: ImportEntry, claims: TokenClaims, now: datetime) -> datetime:
    given = _given_expiry(entry, now)
    if given is None and claims.expires_at is None:
        raise _Refused('expires_in or expires_at is required, because the access token has no "exp" claim')
    # If the entry and the token name different times, the earlier one is safe: no expired token is handed out.
    expires_at = min(time for time in (given, claims.expires_at) if time is not None)
    if expires_at > now + _MAX_AHEAD:
        raise _Refused("access_token: the exp claim is more than ten years in the future")
    return expires_at


def _given_expiry(entry: ImportEntry, now: datetime) -> datetime | None:
    """Return the expiry in the entry; `None` if there is none."""
    if isinstance(entry.expires_at, str):
        expires_at = _rfc3339(entry.expires_at)
    elif entry.expires_at is not None:
        expires_at = datetime.fromtimestamp(entry.expires_at, tz=UTC) if entry.expires_at < 2**33 else None
    elif entry.expires_in is not None:
        expires_at = now + timedelta(seconds=min(entry.expires_in, 2**33))
    else:
        return None
    if expires_at is None or expires_at > now + _MAX_AHEAD:
        raise _Refused(
            "expires_at or expires_in is invalid or over ten years ahead: use seconds, or RFC 3339 with a time zone"
        )
    return expires_at


def _rfc3339(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):  # out of range
        return None


def _identifier(name: str, given: str | int | None, claimed: str) -> str:
    text = "" if given is None else str(given)
    if text and claimed and text != claimed:
        raise _Refused(f"{name} differs from the one in the access token")
    return claimed or text


# --- raw answers ---------------------------------------------------------------------------------


def _expected_account(stored: Connection | None) -> dict[str, str]:
    """Return the account and user to which the tokens must belong."""
    if stored is None:
        return {}
    expected = {"account_id": stored.account_id, "user_id": stored.user_id}
    return {name: value for name, value in expected.items() if value}


def _pair_in(body: bytes, *, presented: str) -> dict[str, str] | None:
    """Return the access token and the refresh token in the text, except `presented`.

    Returns `None` unless there is exactly one of each.
    """
    text = body.decode(json.detect_encoding(body), errors="replace")
    pair = {}
    for name in ("access_token", "refresh_token"):
        tokens = {token for token in re.findall(_MEMBER.format(name), text) if fingerprint(token) != presented}
        if len(tokens) != 1:
            return None
        pair[name] = tokens.pop()
    return pair
