"""The deep link to the app."""

from typing import Any

import pytest

from amo_callback.deeplink import DEEP_LINK_ERRORS, failure_link, intent_link, success_link

BASE = "foryoure://amo-crm/callback"


@pytest.mark.parametrize(
    ("state", "encoded"),
    [
        (b"", ""),
        (b"AZaz09-._~", "AZaz09-._~"),
        (b"a b", "a%20b"),
        (b"a+b/c=d", "a%2Bb%2Fc%3Dd"),
        (b"%41", "%2541"),
        (b"\xff\x00\r\n", "%FF%00%0D%0A"),
        ("й".encode(), "%D0%B9"),
    ],
)
def test_deep_link_values_are_percent_encoded(state: bytes, encoded: str) -> None:
    """Every byte but unreserved characters is encoded in both values."""
    assert success_link(BASE, hand_back="code", code=state, state=state) == f"{BASE}?code={encoded}&state={encoded}"
    assert failure_link(BASE, error="e", state=state) == f"{BASE}?error=e&state={encoded}"


def test_deep_link_success_always_has_state() -> None:
    """The app expects `state` in a success, even if empty; a failure has it only if it was given."""
    assert success_link(BASE, hand_back="code", code=b"c", state=None) == f"{BASE}?code=c&state="
    assert failure_link(BASE, error="missing_code", state=None) == f"{BASE}?error=missing_code"


@pytest.mark.parametrize(("hand_back", "first"), [("code", "code=c"), ("ticket", "code=c"), ("none", "success=true")])
def test_deep_link_hands_back_code_ticket_or_nothing(hand_back: Any, first: str) -> None:
    """A code or a ticket is in the same parameter; with `none` the link has only `success=true`."""
    assert success_link(BASE, hand_back=hand_back, code=b"c", state=b"s") == f"{BASE}?{first}&state=s"


@pytest.mark.parametrize(
    ("base", "intent"),
    [
        (BASE, "intent://amo-crm/callback?code=c&state={}#Intent;scheme=foryoure;package=com.example.app;end"),
        ("Com.Example:/amo", "intent:/amo?code=c&state={}#Intent;scheme=com.example;package=com.example.app;end"),
        ("app:/a:b", "intent:/a:b?code=c&state={}#Intent;scheme=app;package=com.example.app;end"),
    ],
)
def test_intent_link_escapes_hostile_state(base: str, intent: str) -> None:
    """After `#Intent;` there are only the scheme in lower case and the package."""
    state = b"#Intent;scheme=https;package=evil;S.browser_fallback_url=https://evil;end"
    encoded = "%23Intent%3Bscheme%3Dhttps%3Bpackage%3Devil%3BS.browser_fallback_url%3Dhttps%3A%2F%2Fevil%3Bend"
    link = success_link(base, hand_back="code", code=b"c", state=state)
    assert intent_link(link, package="com.example.app") == intent.format(encoded)


def test_deep_link_errors_have_status() -> None:
    """A temporary error has its own status, so that an app can retry."""
    others = {word: error.status for word, error in DEEP_LINK_ERRORS.items() if error.status != 400}
    assert others == {"amo_unavailable": 503, "rate_limited": 429}
