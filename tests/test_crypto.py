"""Encrypted records, their keys and their contexts."""

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
REQUEST = AuthorizationRequest(
    user="42", asserted_by_backend=True, challenge="the-challenge", state=b"\xff\0", deep_link="app:x"
)
REQUEST_FIELDS = {
    "user": "42", "asserted_by_backend": True, "challenge": "the-challenge", "state": "/wA=", "deep_link": "app:x"
}  # fmt: skip
ANONYMOUS = AuthorizationRequest()
ANONYMOUS_FIELDS = {
    "user": None, "asserted_by_backend": False, "challenge": None, "state": None, "deep_link": None
}  # fmt: skip
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


def test_open_tokens_of_sealed_pair_returns_tokens(cipher: Cipher) -> None:
    """A sealed pair is decrypted for its connection."""
    assert cipher.open_tokens(cipher.seal_pair(PAIR, connection_id="a"), connection_id="a") == TOKENS


def test_open_tokens_of_other_connection_fails(cipher: Cipher) -> None:
    """A pair copied to another connection's row cannot be decrypted."""
    with pytest.raises(DecryptionFailed):
        cipher.open_tokens(cipher.seal_pair(PAIR, connection_id="a"), connection_id="b")


def test_seal_uses_stable_contexts_and_fields(cipher: Cipher) -> None:
    """The contexts and field names of stored records do not change between versions."""

    def within(sealed: bytes, name: str) -> Any:
        return json.loads(cipher.open(sealed, context=name))

    assert within(cipher.seal_pair(PAIR, connection_id="x"), "connection:x") == PAIR_FIELDS
    assert within(cipher.seal_grant(GRANT, code_hash="x"), "grant:x") == GRANT_FIELDS
    assert within(cipher.seal_request(REQUEST, state_hash="x"), "state:x") == REQUEST_FIELDS
    assert within(cipher.seal_request(ANONYMOUS, state_hash="x"), "state:x") == ANONYMOUS_FIELDS
    assert within(cipher.seal_grant(OLD_GRANT, code_hash="x"), "grant:x")["request"] is None
    cipher.open(cipher.seal_canary(), context="canary")


def test_open_reads_earlier_records(cipher: Cipher) -> None:
    """Records of earlier versions are read, even without ticket, request and deep link."""

    def sealed(fields: object, name: str) -> bytes:
        return cipher.seal(json.dumps(fields).encode(), context=name)

    assert cipher.open_tokens(sealed(PAIR_FIELDS, "connection:x"), connection_id="x") == TOKENS
    assert cipher.open_grant(sealed(GRANT_FIELDS, "grant:x"), code_hash="x") == GRANT
    assert cipher.open_grant(sealed(OLD_GRANT_FIELDS, "grant:x"), code_hash="x") == OLD_GRANT
    assert cipher.open_request(sealed(REQUEST_FIELDS, "state:x"), state_hash="x") == REQUEST
    old = {name: value for name, value in ANONYMOUS_FIELDS.items() if name != "deep_link"}
    for fields in (ANONYMOUS_FIELDS, old):
        assert cipher.open_request(sealed(fields, "state:x"), state_hash="x") == ANONYMOUS
    cipher.check_canary(sealed("whatever", "canary"))


def test_open_of_other_record_kind_fails(cipher: Cipher) -> None:
    """A record cannot be decrypted as another kind or under another name."""
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


def test_open_requires_exact_context(cipher: Cipher) -> None:
    """The context must match exactly, and the content may be any bytes."""
    sealed = cipher.seal(b"b\0\0c\0", context="connection:a")
    assert cipher.open(sealed, context="connection:a") == b"b\0\0c\0"
    for name in ("", "connection:", "connection", "connection:aa", "Connection:a", "connection:a\0b"):
        with pytest.raises(DecryptionFailed):
            cipher.open(sealed, context=name)


def test_decrypt_pair_uses_times_of_row(cipher: Cipher) -> None:
    """The times come from the row, because they are moved with the clock."""
    sealed = cipher.seal_pair(PAIR, connection_id=a_connection().id)
    row = a_connection(sealed_pair=sealed, access_issued_at=START - DAY, access_expires_at=START + DAY / 3)
    wanted = dataclasses.replace(PAIR, issued_at=START - DAY, expires_at=START + DAY / 3)
    assert cipher.decrypt_pair(row) == wanted
    assert cipher.decrypt_pair(dataclasses.replace(row, access_issued_at=None, access_expires_at=None)) is None


def test_decrypt_pair_undecryptable_is_none(cipher: Cipher) -> None:
    """A pair of another connection, of a lost key or erased is `None`."""
    for sealed in (
        cipher.seal_pair(PAIR, connection_id="another"),
        Cipher([new_key()]).seal_pair(PAIR, connection_id=a_connection().id),
        None,
    ):
        assert cipher.decrypt_pair(a_connection(sealed_pair=sealed)) is None


@pytest.mark.parametrize(
    "damage", [lambda s: s[:-1], lambda _: b"", lambda s: s[:40] + bytes([s[40] ^ 1]) + s[41:], lambda _: b"\xff"]
)
def test_open_damaged_record_fails(cipher: Cipher, damage: Callable[[bytes], bytes]) -> None:
    """A record with one changed byte cannot be decrypted."""
    with pytest.raises(DecryptionFailed):
        cipher.open(damage(cipher.seal(b"x" * 50, context="a")), context="a")


def test_cipher_seals_with_newest_key_and_opens_with_any() -> None:
    """A key rotation puts a new key first."""
    old, new = new_key(), new_key()
    sealed = Cipher([old]).seal(b"x", context="a")
    assert Cipher([new, old]).open(sealed, context="a") == b"x"
    fresh = Cipher([new, old]).seal(b"x", context="a")
    assert Cipher([new]).open(fresh, context="a") == b"x"
    with pytest.raises(DecryptionFailed):
        Cipher([new]).open(sealed, context="a")


def test_reencrypt_uses_newest_key_and_keeps_context() -> None:
    """The index of a record's key is found, newest first, and re-encryption keeps content and context."""
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


def test_new_key_is_32_random_bytes() -> None:
    """A new key is 32 random bytes in base64, as the configuration requires."""
    keys = {new_key() for _ in range(10)}
    assert len(keys) == 10
    assert {len(base64.urlsafe_b64decode(key)) for key in keys} == {32}


def test_check_canary_of_other_key_fails(cipher: Cipher) -> None:
    """The canary is decrypted only with the key that encrypted it."""
    cipher.check_canary(cipher.seal_canary())
    with pytest.raises(DecryptionFailed):
        Cipher([new_key()]).check_canary(cipher.seal_canary())


def test_sealed_pair_and_repr_contain_no_token(cipher: Cipher) -> None:
    """Neither the encrypted bytes nor a repr contains a token."""
    sealed = cipher.seal_pair(PAIR, connection_id="a")
    for text in (sealed.decode(), repr(PAIR), repr(cipher)):
        assert "the-" not in text


def test_derive_key_matches_rfc_7914() -> None:
    """The first 32 bytes of RFC 7914's example are the key of its passphrase."""
    key = derive_key("password", salt=b"NaCl", n=1024, r=8, p=16)
    assert base64.urlsafe_b64decode(key).hex() == "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162"
