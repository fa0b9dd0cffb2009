"""What `init` writes is read as what was decided, whatever it is."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amo_callback.cli.init_validation import read_callback, read_client_id, read_database, read_deep_link
from amo_callback.config.template import InitialConfig, InitialSecrets, toml_string, write_config
from amo_callback.crypto import new_key

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT)
@example('\x7f\x00\x1f\x85\u2028"\\\b\f\r\n\t😀')
def test_any_text_is_read_as_it_was(text: str) -> None:
    """Quotes, backslashes, control characters, DEL and what is beyond 16 bits: TOML reads the same again."""
    assert tomllib.loads(f"a = {toml_string(text)}  # b") == {"a": text}


def test_what_is_no_text_is_not_written() -> None:
    """Half a character, as a path or a command line may bring it."""
    with pytest.raises(ValueError, match="no text"):
        toml_string("a\udc80")


@given(TEXT, TEXT.filter(bool))
def test_a_file_holds_what_was_decided_and_nothing_else(name: str, secret: str) -> None:
    """No value breaks out of its place."""
    secrets = InitialSecrets(encryption_key=new_key(), api_keys="a:" + "k" * 32, client_secret=secret)
    decided = InitialConfig(client_id=name, redirect_uri=name, deep_link=name, database=name, base_path="/x")
    assert tomllib.loads(write_config(decided, secrets)) == {
        "server": {"base_path": "/x"},
        "amo": {"client_id": name, "client_secret": secret, "redirect_uri": name},
        "app": {"deep_link": name},
        "storage": {"url": name, "encryption_keys": secrets.encryption_key},
        "api": {"keys": secrets.api_keys},
    }


def test_secrets_are_in_no_repr() -> None:
    """A trace shows none."""
    assert "sekret" not in repr(InitialSecrets(encryption_key="sekret", api_keys="sekret", client_secret="sekret"))


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
