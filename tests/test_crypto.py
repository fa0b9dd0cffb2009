"""Sealed records: who can open them, and where."""

import base64
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from amo_callback.crypto import Cipher, derive_key, new_key
from amo_callback.errors import DecryptionFailed
from amo_callback.grant import AuthorizationRequest, GrantSecrets
from amo_callback.model import TokenPair
from tests.builders import DAY, a_connection
from tests.fakes import START

PAIR = TokenPair(
    access_token="the-access-token", refresh_token="the-refresh-token", issued_at=START, expires_at=START + DAY
)
TOKENS = (PAIR.access_token, PAIR.refresh_token)
PAIR_FIELDS = {"access_token": "the-access-token", "refresh_token": "the-refresh-token"}
REQUEST = AuthorizationRequest(user="42", asserted_by_backend=True, challenge="the-challenge", state=b"\xff\0")
REQUEST_FIELDS = {"user": "42", "asserted_by_backend": True, "challenge": "the-challenge", "state": "/wA="}
NOBODYS = AuthorizationRequest()
NOBODYS_FIELDS = {"user": None, "asserted_by_backend": False, "challenge": None, "state": None}
GRANT = GrantSecrets(
    handle="the-handle", code=b"\xfe", state=b"s", domain="a.amocrm.ru", ticket="the-ticket", request=REQUEST
)
GRANT_FIELDS = {
    "handle": "the-handle",
    "code": "/g==",
    "state": "cw==",
    "domain": "a.amocrm.ru",
    "ticket": "the-ticket",
    "request": REQUEST_FIELDS,
}
OLD_GRANT = GrantSecrets(handle="the-handle", code=b"\xfe", state=None, domain="a.amocrm.ru")
OLD_GRANT_FIELDS = {"handle": "the-handle", "code": "/g==", "state": None, "domain": "a.amocrm.ru"}


def test_a_pair_comes_out_as_it_went_in(cipher: Cipher) -> None:
    """Sealing and opening for the same connection loses nothing."""
    assert cipher.open_tokens(cipher.seal_pair(PAIR, connection_id="a"), connection_id="a") == TOKENS


def test_a_pair_does_not_open_for_another_connection(cipher: Cipher) -> None:
    """A row copied over another one by hand is noticed."""
    with pytest.raises(DecryptionFailed):
        cipher.open_tokens(cipher.seal_pair(PAIR, connection_id="a"), connection_id="b")


def test_what_has_been_sealed_stays_readable(cipher: Cipher) -> None:
    """A database outlives its service: the names it is sealed under, and those within, are a promise."""

    def within(sealed: bytes, name: str) -> Any:
        return json.loads(cipher.open(sealed, context=name))

    assert within(cipher.seal_pair(PAIR, connection_id="x"), "connection:x") == PAIR_FIELDS
    assert within(cipher.seal_grant(GRANT, code_hash="x"), "grant:x") == GRANT_FIELDS
    assert within(cipher.seal_request(REQUEST, state_hash="x"), "state:x") == REQUEST_FIELDS
    assert within(cipher.seal_request(NOBODYS, state_hash="x"), "state:x") == NOBODYS_FIELDS
    assert within(cipher.seal_grant(OLD_GRANT, code_hash="x"), "grant:x")["request"] is None
    cipher.open(cipher.seal_canary(), context="canary")


def test_what_was_sealed_before_opens(cipher: Cipher) -> None:
    """Read by the same names, and a grant also where it was sealed before there were tickets and requests."""

    def sealed(fields: object, name: str) -> bytes:
        return cipher.seal(json.dumps(fields).encode(), context=name)

    assert cipher.open_tokens(sealed(PAIR_FIELDS, "connection:x"), connection_id="x") == TOKENS
    assert cipher.open_grant(sealed(GRANT_FIELDS, "grant:x"), code_hash="x") == GRANT
    assert cipher.open_grant(sealed(OLD_GRANT_FIELDS, "grant:x"), code_hash="x") == OLD_GRANT
    assert cipher.open_request(sealed(REQUEST_FIELDS, "state:x"), state_hash="x") == REQUEST
    assert cipher.open_request(sealed(NOBODYS_FIELDS, "state:x"), state_hash="x") == NOBODYS
    cipher.check_canary(sealed("whatever", "canary"))


def test_nothing_opens_as_what_it_is_not(cipher: Cipher) -> None:
    """The kind is part of the name, and whoever comes with another kind's bytes of the same name has nothing."""
    pair = cipher.seal_pair(PAIR, connection_id="x")
    grant = cipher.seal_grant(GRANT, code_hash="x")
    request = cipher.seal_request(REQUEST, state_hash="x")
    for sealed in (grant, request):
        with pytest.raises(DecryptionFailed):
            cipher.open_tokens(sealed, connection_id="x")
    for sealed in (pair, request, cipher.seal_grant(GRANT, code_hash="y")):
        with pytest.raises(DecryptionFailed):
            cipher.open_grant(sealed, code_hash="x")
    for sealed in (pair, grant, cipher.seal_request(REQUEST, state_hash="y")):
        with pytest.raises(DecryptionFailed):
            cipher.open_request(sealed, state_hash="x")
    with pytest.raises(DecryptionFailed):
        cipher.check_canary(pair)


def test_the_name_ends_where_the_content_begins(cipher: Cipher) -> None:
    """Content may be any bytes, also such as look like the end of a name; a part of the name is not the name."""
    sealed = cipher.seal(b"b\0\0c\0", context="connection:a")
    assert cipher.open(sealed, context="connection:a") == b"b\0\0c\0"
    for name in ("", "connection:", "connection", "connection:aa", "Connection:a", "connection:a\0b"):
        with pytest.raises(DecryptionFailed):
            cipher.open(sealed, context=name)


def test_a_connections_pair_has_the_times_of_its_row(cipher: Cipher) -> None:
    """Sealed bytes hold no times: these are the database's, and taken back where its clock was."""
    sealed = cipher.seal_pair(PAIR, connection_id=a_connection().id)
    row = a_connection(sealed_pair=sealed, access_issued_at=START - DAY, access_expires_at=START + DAY / 3)
    wanted = dataclasses.replace(PAIR, issued_at=START - DAY, expires_at=START + DAY / 3)
    assert cipher.decrypt_pair(row) == wanted
    assert cipher.decrypt_pair(dataclasses.replace(row, access_issued_at=None, access_expires_at=None)) is None


def test_a_connection_whose_pair_no_key_opens_has_none(cipher: Cipher) -> None:
    """Another one's, sealed with a lost key, or erased."""
    for sealed in (
        cipher.seal_pair(PAIR, connection_id="another"),
        Cipher([new_key()]).seal_pair(PAIR, connection_id=a_connection().id),
        None,
    ):
        assert cipher.decrypt_pair(a_connection(sealed_pair=sealed)) is None


@pytest.mark.parametrize(
    "damage", [lambda s: s[:-1], lambda _: b"", lambda s: s[:40] + bytes([s[40] ^ 1]) + s[41:], lambda _: b"\xff"]
)
def test_a_damaged_record_does_not_open(cipher: Cipher, damage: Callable[[bytes], bytes]) -> None:
    """One changed byte is enough."""
    with pytest.raises(DecryptionFailed):
        cipher.open(damage(cipher.seal(b"x" * 50, context="a")), context="a")


def test_the_newest_key_seals_and_any_key_opens() -> None:
    """Keys are rotated by putting a new one first."""
    old, new = new_key(), new_key()
    sealed = Cipher([old]).seal(b"x", context="a")
    assert Cipher([new, old]).open(sealed, context="a") == b"x"
    fresh = Cipher([new, old]).seal(b"x", context="a")
    assert Cipher([new]).open(fresh, context="a") == b"x"
    with pytest.raises(DecryptionFailed):
        Cipher([new]).open(sealed, context="a")


def test_the_key_of_a_record_is_told_and_can_be_changed() -> None:
    """By its place, the newest first; what is sealed again is the same, bound to the same name."""
    keys = [new_key(), new_key(), new_key()]
    cipher = Cipher(keys)
    for number, key in enumerate(keys):
        sealed = Cipher([key]).seal(b"x", context="a")
        assert cipher.key_index(sealed, context="a") == number
        again = cipher.reencrypt(sealed, context="a")
        assert cipher.key_index(again, context="a") == 0
        assert cipher.open(again, context="a") == b"x"
        for work in (cipher.key_index, cipher.reencrypt):
            with pytest.raises(DecryptionFailed):
                work(sealed, context="b")
    with pytest.raises(DecryptionFailed):
        cipher.key_index(Cipher([new_key()]).seal(b"x", context="a"), context="a")


def test_a_key_is_32_random_bytes() -> None:
    """In base64, as the configuration takes them."""
    keys = {new_key() for _ in range(10)}
    assert len(keys) == 10
    assert {len(base64.urlsafe_b64decode(key)) for key in keys} == {32}


def test_the_canary_tells_whether_a_store_can_be_read(cipher: Cipher) -> None:
    """The key that wrote it, and no other."""
    cipher.check_canary(cipher.seal_canary())
    with pytest.raises(DecryptionFailed):
        Cipher([new_key()]).check_canary(cipher.seal_canary())


def test_what_is_sealed_shows_nothing(cipher: Cipher) -> None:
    """Neither the sealed bytes nor a repr shows a token."""
    sealed = cipher.seal_pair(PAIR, connection_id="a")
    for text in (sealed.decode(), repr(PAIR), repr(cipher)):
        assert "the-" not in text


def test_a_passphrase_stands_for_the_key_that_scrypt_makes_of_it() -> None:
    """RFC 7914's own example, of which a key takes the first 32 bytes."""
    key = derive_key("password", salt=b"NaCl", n=1024, r=8, p=16)
    assert base64.urlsafe_b64decode(key).hex() == "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162"
