"""What a raw answer may bring into the store: the pair that follows the stored one, or nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.crypto import Cipher, new_key
from amo_callback.errors import CommandFailed
from amo_callback.model import Account, connection_id, fingerprint
from amo_callback.refresh.raw_answers import name_of, name_of_grant
from amo_callback.transfer.export_file import ParsedRecord, RecordError
from tests.builders import a_connection, a_refreshed, save
from tests.fakes import MemoryRescue
from tests.transfer.samples import READER, a_token, keep_raw

if TYPE_CHECKING:
    from amo_callback.model import Connection
    from amo_callback.store import Store

HOST = "a1.amocrm.ru"
ID = connection_id(Account(account_id="1", user_id="1"), HOST)
PRESENTED = "the-token-presented"
ISSUED = {"token_type": "Bearer", "access_token": a_token(1), "refresh_token": "the-next-token", "expires_in": 86400}


async def _kept(store: Store, cipher: Cipher, body: bytes, name: str) -> bytes:
    """Return the file that the service keeps of an answer."""
    rescue = MemoryRescue()
    await keep_raw(store, cipher, rescue, body, name, domain=HOST, presented=fingerprint(PRESENTED))
    return rescue.files[name]


async def _read(store: Store, cipher: Cipher, body: bytes, name: str) -> ParsedRecord | RecordError:
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
    arrival = await _read(store, cipher, body.encode(), name_of(connection))
    assert isinstance(arrival, ParsedRecord)
    record = arrival.record
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
    assert await _read(store, cipher, body, name_of(connection)) == RecordError(
        place=f"{ID}-1.raw", why="no pair can be found in it: the user has to connect again"
    )


async def test_a_connection_that_has_other_tokens_by_now_keeps_them(store: Store, cipher: Cipher) -> None:
    """It was refreshed, or connected again: what the answer holds has been spent, or belongs to nothing."""
    connection = await _connection(store)
    await store.save_refreshed(a_refreshed(connection))
    problem = await _read(store, cipher, _TEXT.encode(), name_of(connection))
    assert isinstance(problem, RecordError)
    assert problem.why == "its connection has other tokens by now, or is not in this database"


async def test_tokens_of_another_account_are_refused(store: Store, cipher: Cipher) -> None:
    """The access token tells whose it is."""
    connection = await _connection(store)
    body = json.dumps({**ISSUED, "access_token": a_token(2)})[:-1].encode()
    assert await _read(store, cipher, body, name_of(connection)) == RecordError(
        place=f"{ID}-1.raw", why="account_id: the access token names another one"
    )


async def test_an_exchanges_answer_brings_a_connection(store: Store, cipher: Cipher) -> None:
    """Whose it is the access token tells, and its host is the one that answered."""
    arrival = await _read(store, cipher, _TEXT[:-1].encode(), name_of_grant("0123abcd"))
    assert isinstance(arrival, ParsedRecord)
    assert (arrival.record.account_id, arrival.record.domain) == ("1", HOST)


async def test_a_file_under_another_name_or_of_another_key_does_not_open(store: Store, cipher: Cipher) -> None:
    """The name is sealed with it: an answer cannot be passed off as another connection's."""
    connection = await _connection(store)
    sealed = await _kept(store, cipher, _TEXT.encode(), name_of(connection))
    for name, key in ((f"{ID}-2.raw", cipher), (name_of(connection), Cipher([new_key()]))):
        with pytest.raises(CommandFailed, match="no encryption key of the configuration opens it"):
            await READER.read_raw(name, sealed, store=store, cipher=key)
