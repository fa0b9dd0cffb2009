"""Another system's JSON and raw answers of AMO: what is taken of them, and what is wrong with what is not."""

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
def test_one_object_a_list_and_lines_are_read(content: bytes, places: list[str]) -> None:
    """Each connection is told by its entry or its line."""
    found = _read(content)
    assert [type(one) for one in found] == [ParsedRecord] * len(places)
    assert [one.place for one in found] == places


def test_the_access_token_tells_whose_it_is() -> None:
    """Account, user, host of the API and time of issue are its claims; the connection is due as after a refresh."""
    record = _one()
    assert (record.account_id, record.user_id, record.api_domain) == ("1", "1", "api-b.amocrm.ru")
    assert (record.issued_at, record.expires_at, record.connected_at) == (START, START + DAY, START)
    assert (record.status, record.grant_iat, record.client_id) == (Status.ACTIVE, int(START.timestamp()), CLIENT)
    assert record.refresh_expires_at == START + 90 * DAY


def test_a_token_that_tells_nothing_is_taken_by_what_the_entry_says() -> None:
    """Without claims the fields name account and user."""
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
def test_an_expiry_is_told_in_seconds_or_as_a_time(given: dict[str, Any]) -> None:
    """Seconds from now, seconds since 1970 or RFC 3339; the time holds where both are told."""
    assert _one(**given).expires_at == START + timedelta(hours=1)


def test_no_token_lives_longer_than_it_says_itself() -> None:
    """What another system has kept of `expires_in` counts from an answer of long ago."""
    token = a_token(at=START - DAY / 2)
    assert _one(access_token=token, expires_in=86400).expires_at == START + DAY / 2


def test_without_a_refresh_token_it_lives_as_long_as_its_access_token() -> None:
    """It is active until then; of one that has expired nothing is left to bring."""
    for record in (_one(refresh_token=None), _one(refresh_token="")):
        assert (record.status, record.reason, record.refresh_token) == (Status.ACTIVE, None, "")
        assert (record.expires_at, record.refresh_expires_at) == (START + DAY, None)
    old = a_token(at=START - 2 * DAY)
    assert _why(access_token=old, refresh_token=None) == "the access token has expired, and there is no refresh_token"


def test_a_token_that_tells_its_own_expiry_needs_no_other() -> None:
    """AMO's long-lived tokens are copied from its page, which names no `expires_in`: their `exp` says when they end."""
    years = timedelta(days=5 * 365)
    for refresh_token in (None, "refresh-token"):
        record = _one(access_token=a_token(lifetime=years), refresh_token=refresh_token, expires_in=None)
        assert (record.issued_at, record.expires_at) == (START, START + years)
    assert "more than ten years" in _why(access_token=a_token(lifetime=3 * years), expires_in=None)


def test_an_expired_access_token_comes_with_a_refresh_token_that_may_live() -> None:
    """Three months long; after that nothing of it can be alive."""
    assert _one(access_token=a_token(at=START - 80 * DAY)).status is Status.ACTIVE
    assert "more than 90 days ago" in _why(access_token=a_token(at=START - 92 * DAY))


def test_an_owner_is_noted() -> None:
    """It is told in the plan; owners are bound elsewhere."""
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
        ({"expires_in": None, "access_token": "opaque"}, "expires_in or expires_at: field required"),
        ({"expires_in": "86400"}, "expires_in: input should be a valid number"),
        ({"expires_in": -5}, "expires_in: input should be greater than or equal to 0"),
        ({"expires_in": float("nan")}, "expires_in: input should be a finite number"),
        ({"expires_in": True}, "expires_in: input should be a valid number"),
        ({"expires_at": "tomorrow"}, "expires_at, expires_in: neither seconds nor a time"),
        ({"expires_at": "2026-11-23T13:00:00"}, "expires_at, expires_in: neither seconds nor a time"),
        ({"expires_at": START.timestamp() * 1000}, "expires_at: input should be less than"),
        ({"expires_at": 2**34}, "expires_at, expires_in: neither seconds nor a time"),
        ({"expires_at": "9999-12-31T23:59:59Z"}, "expires_at, expires_in: neither seconds nor a time"),
        ({"expires_in": 10**9}, "expires_at, expires_in: neither seconds nor a time"),
        ({"account_id": "2"}, "account_id: the access token names another one"),
        ({"user_id": 99}, "user_id: the access token names another one"),
        ({"account_id": "a b"}, "account_id: string should match pattern"),
    ],
)
def test_what_is_wrong_with_an_entry_is_told_by_its_field(entry: dict[str, Any], why: str) -> None:
    """Missing, of another type, out of bounds: never with what stands there."""
    told = _why(**entry)
    assert told.startswith(why)
    assert not any(isinstance(value, str) and len(value) > 3 and value in told for value in entry.values())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "line 1, column 1: not JSON"),
        (b"{", "line 1, column 2: not JSON"),
        (b'{"access_token": "secret-secret"', "line 1, column 33: not JSON"),
        (b'[{"access_token": "a"},\n {"access_token": "secret-secret}]', "line 2, column 19: not JSON"),
        (b"\xff\xfe\xff", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b'[{"expires_in": ' + b"9" * 5000 + b"}]", "is not JSON"),
        (b"[]", "contains no connections"),
        (b"7", "contains no connections"),
        (b'"text"', "contains no connections"),
        (b'{"connections": {}}', "contains no connections"),
    ],
)
def test_what_is_no_list_of_connections_is_refused_as_a_whole(content: bytes, why: str) -> None:
    """The place is told, never the text that stands there."""
    with pytest.raises(CommandFailed) as raised:
        _read(content)
    assert str(raised.value).startswith(why)
    assert "secret" not in str(raised.value)


def test_junk_among_good_lines_is_told_by_its_line() -> None:
    """Every line is looked at, whatever stood before it."""
    good = json.dumps(an_entry()).encode()
    content = b"\n".join([good, b'{"access_token": "secret-secret', b"[]", b"null", good[:-1], b"", good])
    found = _read(content)
    problems = [one for one in found if isinstance(one, RecordError)]
    assert [one.place for one in found] == ["line 1", "line 2", "line 3", "line 4", "line 5", "line 7"]
    assert [one.place for one in problems] == ["line 2", "line 3", "line 4", "line 5"]
    assert not any("secret" in one.why for one in problems)


def test_a_list_that_would_take_all_memory_is_refused_before_it_is_parsed() -> None:
    """What a value takes is many times its length in the file; an object a line is read one after the other."""
    with pytest.raises(CommandFailed, match="is too large for one JSON text"):
        next(READER.read_file(b"[" + b"0," * 20_000_000 + b"0]"))


# --- raw answers: the pair that follows the stored one, or nothing ---------------------------------


async def _kept(store: Store, cipher: Cipher, body: bytes, name: str) -> bytes:
    """Return the file that the service keeps of an answer."""
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
    ids=["without its end", "cut in a number", "without braces", "with spaces", "beside the one presented"],
)
async def test_a_pair_is_found_with_less_care(store: Store, cipher: Cipher, body: str) -> None:
    """The only access token and the only refresh token of the text, whatever is around them."""
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
async def test_what_holds_no_certain_pair_brings_nothing(store: Store, cipher: Cipher, body: bytes) -> None:
    """Its user has to connect again, which the command says."""
    connection = await _connection(store)
    assert await _read_raw(store, cipher, body, file_name(connection)) == RecordError(
        place=f"{ID}-1.raw", why="it contains no pair: the user has to connect again"
    )


async def test_a_connection_that_has_other_tokens_by_now_keeps_them(store: Store, cipher: Cipher) -> None:
    """It was refreshed, or connected again: what the answer holds has been spent, or belongs to nothing."""
    connection = await _connection(store)
    await store.save_refreshed(a_refreshed(connection))
    problem = await _read_raw(store, cipher, _TEXT.encode(), file_name(connection))
    assert isinstance(problem, RecordError)
    assert problem.why == "its connection has newer tokens, or is not in this database"


async def test_tokens_of_another_account_are_refused(store: Store, cipher: Cipher) -> None:
    """The access token tells whose it is."""
    connection = await _connection(store)
    body = json.dumps({**ISSUED, "access_token": a_token(2)})[:-1].encode()
    assert await _read_raw(store, cipher, body, file_name(connection)) == RecordError(
        place=f"{ID}-1.raw", why="account_id: the access token names another one"
    )


async def test_an_exchanges_answer_brings_a_connection(store: Store, cipher: Cipher) -> None:
    """Whose it is the access token tells, and its host is the one that answered."""
    source = await _read_raw(store, cipher, _TEXT[:-1].encode(), grant_file_name("0123abcd"))
    assert isinstance(source, ParsedRecord)
    assert (source.record.account_id, source.record.domain) == ("1", HOST)


async def test_a_file_under_another_name_or_of_another_key_does_not_open(store: Store, cipher: Cipher) -> None:
    """The name is sealed with it: an answer cannot be passed off as another connection's."""
    connection = await _connection(store)
    sealed = await _kept(store, cipher, _TEXT.encode(), file_name(connection))
    for name, key in ((f"{ID}-2.raw", cipher), (file_name(connection), Cipher([new_key()]))):
        with pytest.raises(CommandFailed, match="no configured encryption key decrypts it"):
            await READER.read_raw(name, sealed, store=store, cipher=key)
