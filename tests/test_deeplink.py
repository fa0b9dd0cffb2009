"""The link back to the app."""

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
def test_values_are_percent_encoded_from_their_bytes(state: bytes, encoded: str) -> None:
    """Everything but unreserved characters is encoded, in both values."""
    assert success_link(BASE, hand_back="code", code=state, state=state) == f"{BASE}?code={encoded}&state={encoded}"
    assert failure_link(BASE, error="e", state=state) == f"{BASE}?error=e&state={encoded}"


def test_state_is_always_in_a_success_and_in_a_failure_only_if_it_came() -> None:
    """The existing app expects `state` in a success, even an empty one."""
    assert success_link(BASE, hand_back="code", code=b"c", state=None) == f"{BASE}?code=c&state="
    assert failure_link(BASE, error="missing_code", state=None) == f"{BASE}?error=missing_code"


@pytest.mark.parametrize(("hand_back", "first"), [("code", "code=c"), ("ticket", "code=c"), ("none", "success=true")])
def test_code_or_ticket_or_nothing_is_handed_back(hand_back: Any, first: str) -> None:
    """The app reads one name, whichever of the two it is handed; with `none` the link says only that it went well."""
    assert success_link(BASE, hand_back=hand_back, code=b"c", state=b"s") == f"{BASE}?{first}&state=s"


@pytest.mark.parametrize(
    ("base", "intent"),
    [
        (BASE, "intent://amo-crm/callback?code=c&state={}#Intent;scheme=foryoure;package=com.example.app;end"),
        ("Com.Example:/amo", "intent:/amo?code=c&state={}#Intent;scheme=com.example;package=com.example.app;end"),
        ("app:/a:b", "intent:/a:b?code=c&state={}#Intent;scheme=app;package=com.example.app;end"),
    ],
)
def test_an_intent_holds_nothing_of_the_persons_among_its_orders(base: str, intent: str) -> None:
    """Behind `#Intent;` stand the scheme, in small letters as Android compares it, the package, and nothing else."""
    state = b"#Intent;scheme=https;package=evil;S.browser_fallback_url=https://evil;end"
    encoded = "%23Intent%3Bscheme%3Dhttps%3Bpackage%3Devil%3BS.browser_fallback_url%3Dhttps%3A%2F%2Fevil%3Bend"
    link = success_link(base, hand_back="code", code=b"c", state=state)
    assert intent_link(link, package="com.example.app") == intent.format(encoded)


def test_errors_that_the_user_cannot_resolve_have_a_status_of_their_own() -> None:
    """An app that retries has to tell what passes from what needs a new attempt."""
    others = {word: error.status for word, error in DEEP_LINK_ERRORS.items() if error.status != 400}
    assert others == {"amo_unavailable": 503, "rate_limited": 429}
