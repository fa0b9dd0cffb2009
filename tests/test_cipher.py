"""Sealed records: who can open them, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from amo_callback.cipher import Cipher, new_key
from amo_callback.errors import Unreadable
from amo_callback.model import TokenPair
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Callable

PAIR = TokenPair(access_token="the-access-token", refresh_token="the-refresh-token", issued_at=START, expires_at=START)


def test_a_pair_comes_out_as_it_went_in(cipher: Cipher) -> None:
    """Sealing and opening for the same connection loses nothing."""
    assert cipher.open_pair(cipher.seal_pair(PAIR, connection_id="a"), connection_id="a") == PAIR


def test_a_pair_does_not_open_for_another_connection(cipher: Cipher) -> None:
    """A row copied over another one by hand is noticed."""
    with pytest.raises(Unreadable):
        cipher.open_pair(cipher.seal_pair(PAIR, connection_id="a"), connection_id="b")


@pytest.mark.parametrize(
    "damage", [lambda s: s[:-1], lambda _: b"", lambda s: s[:40] + bytes([s[40] ^ 1]) + s[41:], lambda _: b"\xff"]
)
def test_a_damaged_record_does_not_open(cipher: Cipher, damage: Callable[[bytes], bytes]) -> None:
    """One changed byte is enough."""
    with pytest.raises(Unreadable):
        cipher.open(damage(cipher.seal(b"x" * 50, bound_to="a")), bound_to="a")


def test_the_newest_key_seals_and_any_key_opens() -> None:
    """Keys are rotated by putting a new one first."""
    old, new = new_key(), new_key()
    sealed = Cipher([old]).seal(b"x", bound_to="a")
    assert Cipher([new, old]).open(sealed, bound_to="a") == b"x"
    fresh = Cipher([new, old]).seal(b"x", bound_to="a")
    assert Cipher([new]).open(fresh, bound_to="a") == b"x"
    with pytest.raises(Unreadable):
        Cipher([new]).open(sealed, bound_to="a")


def test_the_canary_tells_whether_a_store_can_be_read(cipher: Cipher) -> None:
    """The key that wrote it, and no other."""
    cipher.check_canary(cipher.seal_canary())
    with pytest.raises(Unreadable):
        Cipher([new_key()]).check_canary(cipher.seal_canary())


def test_what_is_sealed_shows_nothing(cipher: Cipher) -> None:
    """Neither the sealed bytes nor a repr shows a token."""
    sealed = cipher.seal_pair(PAIR, connection_id="a")
    for text in (sealed.decode(), repr(PAIR), repr(cipher)):
        assert "the-" not in text
