"""JSON of another system and raw answers of AMO: the accepted forms, and the errors of invalid input."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.crypto import Cipher, new_key
from amo_callback.errors import CommandFailed
from amo_callback.model import Account, Status, connection_id, fingerprint
from amo_callback.refresh.raw_answers import file_name, grant_file_name
from amo_callback.transfer.export_file import ExportRecord, ParsedRecord, RecordError
from tests.builders import DAY, a_connection, a_refreshed, save
from tests.fakes import START, MemoryRescue
from tests.transfer.samples import CLIENT, READER, a_token, an_entry, keep_raw

if TYPE_CHECKING:
    from amo_callback.model import Connection
    from amo_callback.store import Store

HOST = "a1.amocrm.ru"
ID = connection_id(Account(account_id="1", user_id="1"), HOST)
PRESENTED = "the-token-presented"
ISSUED = {"token_type": "Bearer", "access_token": a_token(1), "refresh_token": "the-next-token", "expires_in": 86400}


def _read(content: bytes) -> list[ParsedRecord | RecordError]:
    return list(READER.read_file(content))


def _one(**more: Any) -> ExportRecord:
    [source] = _read(json.dumps(an_entry(**more)).encode())
    assert isinstance(source, ParsedRecord), source
    return source.record


def _why(**more: Any) -> str:
    [problem] = _read(json.dumps(an_entry(**more)).encode())
    assert isinstance(problem, RecordError)
    assert problem.place == "entry 1"
    return problem.why


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (json.dumps(an_entry()).encode(), ["entry 1"]),
        (json.dumps(an_entry(), indent=2).encode(), ["entry 1"]),
        (json.dumps([an_entry(1), an_entry(2)]).encode(), ["entry 1", "entry 2"]),
        (json.dumps({"connections": [an_entry(1), an_entry(2)]}).encode(), ["entry 1", "entry 2"]),
        (b"\n".join(json.dumps(an_entry(number)).encode() for number in (1, 2)), ["line 1", "line 2"]),
        (b"\xef\xbb\xbf" + json.dumps(an_entry(1)).encode() + b"\r\n\r\n" + json.dumps(an_entry(2)).encode() + b"\r\n",
         ["line 1", "line 3"]),
    ],
)  # fmt: skip
def test_read_file_accepts_object_list_and_lines(content: bytes, places: list[str]) -> None:
    """Each connection is named by its entry or its line."""
    found = _read(content)
    assert [type(one) for one in found] == [ParsedRecord] * len(places)
    assert [one.place for one in found] == places


def test_read_file_takes_account_from_access_token() -> None:
    """Account, user, API host and time of issue come from the token's claims."""
    record = _one()
    assert (record.account_id, record.user_id, record.api_domain) == ("1", "1", "api-b.amocrm.ru")
    assert (record.issued_at, record.expires_at, record.connected_at) == (START, START + DAY, START)
    assert (record.status, record.grant_iat, record.client_id) == (Status.ACTIVE, int(START.timestamp()), CLIENT)
    assert record.refresh_expires_at == START + 90 * DAY


def test_read_file_opaque_token_uses_fields_of_entry() -> None:
    """Without claims the entry's fields name account and user."""
    record = _one(access_token="opaque", account_id=77, user_id="8", expires_at=START.timestamp() + 60)
    assert (record.account_id, record.user_id, record.client_id) == ("77", "8", CLIENT)
    assert (record.issued_at, record.expires_at) == (START + timedelta(seconds=60) - DAY, START + timedelta(seconds=60))


@pytest.mark.parametrize(
    "given",
    [
        {"expires_in": 3600},
        {"expires_in": None, "expires_at": START.timestamp() + 3600},
        {"expires_in": None, "expires_at": "2026-11-23T13:00:00Z"},
        {"expires_in": None, "expires_at": "2026-11-23T16:00:00+03:00"},
        {"expires_in": 86400, "expires_at": "2026-11-23T13:00:00Z"},
    ],
)
def test_read_file_expiry_is_seconds_or_time(given: dict[str, Any]) -> None:
    """`expires_in` counts from now; `expires_at`, in seconds or RFC 3339, takes precedence."""
    assert _one(**given).expires_at == START + timedelta(hours=1)


def test_read_file_expiry_is_limited_by_token() -> None:
    """The token's own expiry limits a stored `expires_in`, which counts from an earlier answer."""
    token = a_token(at=START - DAY / 2)
    assert _one(access_token=token, expires_in=86400).expires_at == START + DAY / 2


def test_read_file_without_refresh_token_uses_access_expiry() -> None:
    """A connection without a refresh token is active until its access token expires, and refused after."""
    for record in (_one(refresh_token=None), _one(refresh_token="")):
        assert (record.status, record.reason, record.refresh_token) == (Status.ACTIVE, None, "")
        assert (record.expires_at, record.refresh_expires_at) == (START + DAY, None)
    old = a_token(at=START - 2 * DAY)
    assert _why(access_token=old, refresh_token=None) == "the access token has expired, and there is no refresh_token"


def test_read_file_long_lived_token_needs_no_expiry() -> None:
    """AMO's long-lived tokens contain their expiry, which is accepted up to ten years."""
    years = timedelta(days=5 * 365)
    for refresh_token in (None, "refresh-token"):
        record = _one(access_token=a_token(lifetime=years), refresh_token=refresh_token, expires_in=None)
        assert (record.issued_at, record.expires_at) == (START, START + years)
    assert "more than ten years" in _why(access_token=a_token(lifetime=3 * years), expires_in=None)


def test_read_file_expired_access_token_needs_refresh_token() -> None:
    """An entry is accepted up to 90 days after its access token's expiry, as its refresh token may be valid."""
    assert _one(access_token=a_token(at=START - 80 * DAY)).status is Status.ACTIVE
    assert "more than 90 days ago" in _why(access_token=a_token(at=START - 92 * DAY))


def test_read_file_notes_owner() -> None:
    """A record is marked if its entry names an owner."""
    [source] = _read(json.dumps(an_entry(owner="user-42")).encode())
    assert isinstance(source, ParsedRecord)
    assert source.names_owner


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"access_token": None}, "access_token: field required"),
        ({"access_token": ""}, "access_token: string should have at least 1 character"),
        ({"access_token": 42}, "access_token: input should be a valid string"),
        ({"access_token": "with\na line"}, "access_token: string should match pattern"),
        ({"access_token": "токен"}, "access_token: string should match pattern"),
        ({"access_token": "x" * 200_000}, "access_token: string should have at most 131072 characters"),
        ({"refresh_token": ["x"]}, "refresh_token: input should be a valid string"),
        ({"refresh_token": "with\ttab"}, "refresh_token: string should match pattern"),
        ({"domain": None}, "domain: field required"),
        ({"domain": 7}, "domain: input should be a valid string"),
        ({"expires_in": None, "access_token": "opaque"}, "expires_in or expires_at is required"),
        ({"expires_in": "86400"}, "expires_in: input should be a valid number"),
        ({"expires_in": -5}, "expires_in: input should be greater than or equal to 0"),
        ({"expires_in": float("nan")}, "expires_in: input should be a finite number"),
        ({"expires_in": True}, "expires_in: input should be a valid number"),
        ({"expires_at": "tomorrow"}, "expires_at or expires_in is invalid or over ten years ahead"),
        ({"expires_at": "2026-11-23T13:00:00"}, "expires_at or expires_in is invalid or over ten years ahead"),
        ({"expires_at": START.timestamp() * 1000}, "expires_at: input should be less than"),
        ({"expires_at": 2**34}, "expires_at or expires_in is invalid or over ten years ahead"),
        ({"expires_at": "9999-12-31T23:59:59Z"}, "expires_at or expires_in is invalid or over ten years ahead"),
        ({"expires_in": 10**9}, "expires_at or expires_in is invalid or over ten years ahead"),
        ({"account_id": "2"}, "account_id differs from the one in the access token"),
        ({"user_id": 99}, "user_id differs from the one in the access token"),
        ({"account_id": "a b"}, "account_id: string should match pattern"),
    ],
)
def test_read_file_invalid_field_is_named_without_value(entry: dict[str, Any], why: str) -> None:
    """A missing, mistyped or out-of-range field is named without its value."""
    result = _why(**entry)
    assert result.startswith(why)
    assert not any(isinstance(value, str) and len(value) > 3 and value in result for value in entry.values())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "line 1, column 1: invalid JSON"),
        (b"{", "line 1, column 2: invalid JSON"),
        (b'{"access_token": "secret-secret"', "line 1, column 33: invalid JSON"),
        (b'[{"access_token": "a"},\n {"access_token": "secret-secret}]', "line 2, column 19: invalid JSON"),
        (b"\xff\xfe\xff", "the file is not valid JSON"),
        (b"[" * 200_000, "the file is not valid JSON"),
        (b'[{"expires_in": ' + b"9" * 5000 + b"}]", "the file is not valid JSON"),
        (b"[]", "the file contains no connections"),
        (b"7", "the file contains no connections"),
        (b'"text"', "the file contains no connections"),
        (b'{"connections": {}}', "the file contains no connections"),
    ],
)
def test_read_file_other_json_is_refused_with_place(content: bytes, why: str) -> None:
    """A file without connections is refused with the place of the error, not its text."""
    with pytest.raises(CommandFailed) as raised:
        _read(content)
    assert str(raised.value).startswith(why)
    assert "secret" not in str(raised.value)


def test_read_file_invalid_lines_are_reported_by_number() -> None:
    """Every line is checked, and each invalid one is reported by its number."""
    good = json.dumps(an_entry()).encode()
    content = b"\n".join([good, b'{"access_token": "secret-secret', b"[]", b"null", good[:-1], b"", good])
    found = _read(content)
    problems = [one for one in found if isinstance(one, RecordError)]
    assert [one.place for one in found] == ["line 1", "line 2", "line 3", "line 4", "line 5", "line 7"]
    assert [one.place for one in problems] == ["line 2", "line 3", "line 4", "line 5"]
    assert not any("secret" in one.why for one in problems)


def test_read_file_large_list_is_refused_before_parsing() -> None:
    """A list that would need too much memory is refused; one object per line is read line by line."""
    with pytest.raises(CommandFailed, match="is too large for a single JSON value"):
        next(READER.read_file(b"[" + b"0," * 20_000_000 + b"0]"))


# --- raw answers -----------------------------------------------------------------------------------


async def _kept(store: Store, cipher: Cipher, body: bytes, name: str) -> bytes:
    """Return the file in which the service keeps an answer."""
    rescue = MemoryRescue()
    await keep_raw(store, cipher, rescue, body, name, domain=HOST, presented=fingerprint(PRESENTED))
    return rescue.files[name]


async def _read_raw(store: Store, cipher: Cipher, body: bytes, name: str) -> ParsedRecord | RecordError:
    sealed = await _kept(store, cipher, body, name)
    return await READER.read_raw(name, sealed, store=store, cipher=cipher)


async def _connection(store: Store, **more: Any) -> Connection:
    return await save(store, a_connection(id=ID, account_id="1", user_id="1", domain=HOST, **more))


_TEXT = json.dumps(ISSUED)


@pytest.mark.parametrize(
    "body",
    [
        _TEXT[:-1],
        _TEXT.replace(', "expires_in": 86400', ', "expires'),
        "<pre>" + _TEXT.replace("{", "").replace("}", ""),
        json.dumps({**ISSUED, "refresh_token": " the-next-token "})[:-1],
        json.dumps({**ISSUED, "asked": {"refresh_token": PRESENTED}})[:-2],
    ],
    ids=["without its end", "cut in a number", "without braces", "with spaces", "with the presented token"],
)
async def test_read_raw_finds_only_pair_in_damaged_text(store: Store, cipher: Cipher, body: str) -> None:
    """The only access token and the only refresh token of a damaged text are read."""
    connection = await _connection(store, api_domain="api-c.amocrm.ru")
    source = await _read_raw(store, cipher, body.encode(), file_name(connection))
    assert isinstance(source, ParsedRecord)
    record = source.record
    assert (record.id, record.domain, record.api_domain) == (ID, HOST, "api-b.amocrm.ru")
    assert (record.access_token, record.refresh_token) == (ISSUED["access_token"], "the-next-token")


@pytest.mark.parametrize(
    "body",
    [
        b"<h1>Maintenance</h1>",
        _TEXT[: _TEXT.index("the-next") + 5].encode(),
        json.dumps({**ISSUED, "refresh_token": PRESENTED}).encode(),
        (_TEXT + _TEXT.replace("the-next", "another")).encode(),
        b"\xff\xfe\x00" * 100,
    ],
    ids=["a page", "a token that is cut off", "the token presented", "two pairs", "noise"],
)
async def test_read_raw_without_certain_pair_is_refused(store: Store, cipher: Cipher, body: bytes) -> None:
    """A file without exactly one complete new pair is refused; the error says that the user must connect."""
    connection = await _connection(store)
    assert await _read_raw(store, cipher, body, file_name(connection)) == RecordError(
        place=f"{ID}-1.raw", why="no token pair was found; the user must connect again"
    )


async def test_read_raw_of_connection_with_newer_pair_is_refused(store: Store, cipher: Cipher) -> None:
    """A connection that was refreshed or connected since keeps its tokens."""
    connection = await _connection(store)
    await store.save_refreshed(a_refreshed(connection))
    problem = await _read_raw(store, cipher, _TEXT.encode(), file_name(connection))
    assert isinstance(problem, RecordError)
    assert problem.why == "the connection has newer tokens, or is not in this database"


async def test_read_raw_of_other_account_is_refused(store: Store, cipher: Cipher) -> None:
    """An access token of another account is refused."""
    connection = await _connection(store)
    body = json.dumps({**ISSUED, "access_token": a_token(2)})[:-1].encode()
    assert await _read_raw(store, cipher, body, file_name(connection)) == RecordError(
        place=f"{ID}-1.raw", why="account_id differs from the one in the access token"
    )


async def test_read_raw_of_exchange_returns_new_connection(store: Store, cipher: Cipher) -> None:
    """The account comes from the access token, and the host from the rescue file."""
    source = await _read_raw(store, cipher, _TEXT[:-1].encode(), grant_file_name("0123abcd"))
    assert isinstance(source, ParsedRecord)
    assert (source.record.account_id, source.record.domain) == ("1", HOST)


async def test_read_raw_with_other_name_or_key_is_refused(store: Store, cipher: Cipher) -> None:
    """The file's name is authenticated, so that an answer cannot be used for another connection."""
    connection = await _connection(store)
    sealed = await _kept(store, cipher, _TEXT.encode(), file_name(connection))
    for name, key in ((f"{ID}-2.raw", cipher), (file_name(connection), Cipher([new_key()]))):
        with pytest.raises(CommandFailed, match="no configured encryption key decrypts "):
            await READER.read_raw(name, sealed, store=store, cipher=key)
