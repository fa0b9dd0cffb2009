"""What is taken as an answer of `init`, and what is not."""

from __future__ import annotations

import pytest

from amo_callback.cli.init import read_callback, read_client_id, read_database, read_deep_link


@pytest.mark.parametrize(
    ("text", "uri", "base"),
    [
        ("admin.example.com", "https://admin.example.com/api/amo-crm/callback", "/api/amo-crm"),
        ("https://admin.example.com/", "https://admin.example.com/api/amo-crm/callback", "/api/amo-crm"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/api/amo-crm/callback", "/api/amo-crm"),
        ("https://a.example/crm/api/amo-crm/callback", "https://a.example/crm/api/amo-crm/callback", "/api/amo-crm"),
        ("https://A.example:8443/oauth/callback", "https://A.example:8443/oauth/callback", "/oauth"),
    ],
)
def test_an_address_or_the_redirect_uri_itself_is_taken(text: str, uri: str, base: str) -> None:
    """A redirect URI stays byte for byte; where its path is another one, the service listens there."""
    found = read_callback(text)
    assert (found.redirect_uri, found.base_path) == (uri, base)
    assert found.hook == uri.removesuffix("/callback") + "/hooks/disconnect"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://a.example",
        "ftp://a.example",
        "https://",
        "https://[a.example",
        "https://a.example:port",
        "https://a.example:0",
        "https://u:p@a.example",
        "https://a.example/callback",
        "https://a.example/a b/callback",
        "https://a.example/%zz/callback",
        "https://a.example/x/callback?",
        "https://a.example/x/callback#a",
        "https://a.example/x/callback/",
        "https://пример.example",
        "a.example\x7f",
        "a.example\udc80",
    ],
)
def test_an_address_that_cannot_be_registered_is_refused(text: str) -> None:
    """With a reason, and never a trace."""
    with pytest.raises(ValueError, match=r"^(must|has) ") as raised:
        read_callback(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("read", [read_client_id, read_deep_link, read_database])
@pytest.mark.parametrize("text", ["", "a\udc80", "a:\x1b[2J", "a\nb"])
def test_what_moves_a_cursor_or_is_no_text_is_no_answer(read: object, text: str) -> None:
    """Whatever is asked for."""
    assert callable(read)
    with pytest.raises(ValueError, match=r"^must "):
        read(text)
