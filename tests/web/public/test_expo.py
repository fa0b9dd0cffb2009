"""The link as an Expo app reads it: expo-linking's `parse` decodes each value twice.

Once as the parameter of a form and once more as a part of an address; where the second fails, that value, all later
ones, the host and the path are lost.
"""

import re
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

import pytest

from tests.service import Running

LONGEST = 2000
"""Characters: above 2048 Windows drops an address without a word."""
SAFE_STATES = ["", "plain", "ab_-XYZ019", "-E_SdxlAzHG9LUOlBF0k6SUXpiPACiXoNsfM0kSaCIE"]


def parse(link: str) -> tuple[str | None, dict[str, str]]:
    """Return a link's host and path, and its parameters, as an Expo app reads them."""
    parts = urlsplit(link)
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True, errors="replace"):
        if re.search(r"%(?![0-9A-Fa-f]{2})", value):
            return None, parameters
        parameters[name] = unquote_to_bytes(value).decode()
    return f"{parts.hostname}{parts.path}", parameters


@pytest.mark.parametrize("state", SAFE_STATES)
@pytest.mark.parametrize("hand_back", ["code", "ticket"])
async def test_an_expo_app_reads_what_is_safe_as_it_is(run: Any, state: str, hand_back: str) -> None:
    """AMO's code, a ticket, and a state of letters, digits, `-` and `_` survive being decoded twice."""
    async with run(APP__HAND_BACK=hand_back) as app:
        code = app.amo.code()
        answer = await app.callback(app.query(code=code, state=state))
        if hand_back == "ticket":
            code = dict(parse_qsl(urlsplit(answer.location).query))["code"]
            assert re.fullmatch(r"[A-Za-z0-9_-]{16,}", code)
        assert parse(answer.location) == ("amo-crm/callback", {"code": code, "state": state})
        assert len(answer.location) <= (LONGEST if hand_back == "code" else 512)


@pytest.mark.parametrize(("error", "word"), [("access_denied", "access_denied"), ("no_such_word", "auth_failed")])
async def test_an_expo_app_reads_an_error(app: Running, error: str, word: str) -> None:
    """A failure's word and state survive too."""
    answer = await app.callback(f"error={error}&state=abc")
    assert parse(answer.location)[1] == {"error": word, "state": "abc"}


@pytest.mark.parametrize("state", ["a+b c", "100%", "%25", "%2B", "a&b=c#d", "й\u2028", "eyJhIjoiYi8rIn0=", "%zz"])
async def test_any_state_survives_one_decoding_and_spoils_no_code(app: Running, state: str) -> None:
    """Whoever decodes once, as the standard says, reads exactly the state that was sent, and no other parameter.

    A state with a `%` breaks Expo's reading, but the code stands before it and is still read.
    """
    code = app.amo.code()
    answer = await app.callback(app.query(code=code, state=state))
    query = urlsplit(answer.location).query
    assert parse_qsl(query, keep_blank_values=True, strict_parsing=True) == [("code", code), ("state", state)]
    assert parse(answer.location)[1]["code"] == code
