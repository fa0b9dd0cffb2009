"""The pair in an answer, looked for in bounded work."""

import json

from amo_callback.amo.pair import find_pair

PAIR = {"access_token": "access", "refresh_token": "next", "expires_in": 86400}


def _found(body: bytes) -> bool:
    return find_pair([body], presented="spent") is not None


def test_a_pair_is_found_among_other_text_and_other_objects() -> None:
    """Before it, after it and around it."""
    pair = json.dumps(PAIR).encode()
    assert _found(pair)
    assert _found(b"<p>{ a brace</p>" + pair + b"<p>{}</p>")
    assert _found(b"[" + b"{}," * 9000 + pair + b",{}" * 9000 + b"]")


def test_a_text_with_very_many_objects_or_lists_is_not_looked_through() -> None:
    """To parse it takes seconds, during which nobody else is answered: it is kept, for a person."""
    pair = json.dumps(PAIR).encode()
    assert not _found(pair + b"[" * 20_000)
    assert not _found(b"{}" * 20_000 + pair)


def test_a_text_that_takes_long_to_parse_again_and_again_is_given_up() -> None:
    """What is parsed from each brace, up to the pair, is no more in all than twice the text."""

    def nested(depth: int) -> bytes:
        return b'{"a":' * depth + b'"' + b"x" * 100_000 + b'" "refresh_token" ' + json.dumps(PAIR).encode()

    assert _found(nested(1))
    assert not _found(nested(16))
