"""The link as the app reads it, which for an Expo app means: decoded twice."""

import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.conftest import Running
from tests.web.expo import parse

LONGEST = 2000
"""Characters: above 2048 Windows drops an address without a word."""


@pytest.mark.parametrize("state", ["", "plain", "ab_-XYZ019", "-E_SdxlAzHG9LUOlBF0k6SUXpiPACiXoNsfM0kSaCIE"])
async def test_an_expo_app_reads_what_is_safe_as_it_is(app: Running, state: str) -> None:
    """AMO's code, and a state of letters, digits, `-` and `_`, survive being decoded twice."""
    code = app.amo.code()
    answer = await app.callback(app.query(code=code, state=state))
    read = parse(answer.location)
    assert (read.hostname, read.path) == ("amo-crm", "callback")
    assert read.parameters == {"code": code, "state": state}
    assert len(answer.location) <= LONGEST


@pytest.mark.parametrize("state", ["", "ab_-XYZ019", "-E_SdxlAzHG9LUOlBF0k6SUXpiPACiXoNsfM0kSaCIE"])
async def test_an_expo_app_reads_a_ticket_as_it_is(run: Any, state: str) -> None:
    """A ticket is made of what survives any number of decodings, and so is a state made likewise."""
    async with run(APP__HAND_BACK="ticket") as app:
        answer = await app.callback(app.query(state=state))
        ticket = dict(parse_qsl(urlsplit(answer.location).query))["code"]
        assert re.fullmatch(r"[A-Za-z0-9_-]{16,}", ticket)
        assert parse(answer.location).parameters == {"code": ticket, "state": state}
        assert len(answer.location) <= 512


@pytest.mark.parametrize("error", ["access_denied", "no_such_word"])
async def test_an_expo_app_reads_an_error(app: Running, error: str) -> None:
    """A failure's word and state survive too."""
    answer = await app.callback(f"error={error}&state=abc")
    word = error if error == "access_denied" else "auth_failed"
    assert parse(answer.location).parameters == {"error": word, "state": "abc"}


@pytest.mark.parametrize("state", ["a+b c", "100%", "%25", "%2B", "a&b=c#d", "й\u2028", "eyJhIjoiYi8rIn0=", "%zz"])
async def test_any_state_survives_one_decoding(app: Running, state: str) -> None:
    """Whoever decodes once, as the standard says, reads exactly the state that was sent, and no other parameter."""
    code = app.amo.code()
    answer = await app.callback(app.query(code=code, state=state))
    query = urlsplit(answer.location).query
    assert parse_qsl(query, keep_blank_values=True, strict_parsing=True) == [("code", code), ("state", state)]


async def test_what_comes_first_is_safe_from_a_bad_state(app: Running) -> None:
    """A state with a `%` breaks Expo's reading, but the code stands before it and is still read."""
    code = app.amo.code()
    answer = await app.callback(app.query(code=code, state="100%"))
    assert parse(answer.location).parameters == {"code": code}
