"""Deep links as an Expo app reads them: expo-linking's `parse` decodes each value twice.

The first decoding is for form parameters, the second for URL components. If the second fails, that value, all later
values, the host and the path are lost.
"""

import re
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

import pytest

from tests.service import Running

LONGEST = 2000
"""Maximum length in characters: Windows silently drops an address of more than 2048."""
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
async def test_expo_link_safe_code_ticket_and_state_survive(run: Any, state: str, hand_back: str) -> None:
    """AMO's code, a ticket, and a state of letters, digits, `-` and `_` survive double decoding."""
    async with run(APP__HAND_BACK=hand_back) as app:
        code = app.amo.code()
        answer = await app.callback(app.query(code=code, state=state))
        if hand_back == "ticket":
            code = dict(parse_qsl(urlsplit(answer.location).query))["code"]
            assert re.fullmatch(r"[A-Za-z0-9_-]{16,}", code)
        assert parse(answer.location) == ("amo-crm/callback", {"code": code, "state": state})
        assert len(answer.location) <= (LONGEST if hand_back == "code" else 512)


@pytest.mark.parametrize(("error", "word"), [("access_denied", "access_denied"), ("no_such_word", "auth_failed")])
async def test_expo_link_error_and_state_survive(app: Running, error: str, word: str) -> None:
    """A failure's error word and state survive double decoding."""
    answer = await app.callback(f"error={error}&state=abc")
    assert parse(answer.location)[1] == {"error": word, "state": "abc"}


@pytest.mark.parametrize("state", ["a+b c", "100%", "%25", "%2B", "a&b=c#d", "й\u2028", "eyJhIjoiYi8rIn0=", "%zz"])
async def test_deep_link_any_state_survives_single_decoding(app: Running, state: str) -> None:
    """An app that decodes once, as the standard says, reads exactly the sent state and no other parameter.

    A state with a `%` breaks Expo's reading, but the code precedes it and is still read.
    """
    code = app.amo.code()
    answer = await app.callback(app.query(code=code, state=state))
    query = urlsplit(answer.location).query
    assert parse_qsl(query, keep_blank_values=True, strict_parsing=True) == [("code", code), ("state", state)]
    assert parse(answer.location)[1]["code"] == code
