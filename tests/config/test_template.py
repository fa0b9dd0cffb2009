"""What `init` writes is read as what was decided, whatever it is."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

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
    with pytest.raises(ValueError, match="not text"):
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
