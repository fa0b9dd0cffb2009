"""The configuration file that `init` writes."""

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
def test_toml_string_of_any_text_is_read_back_unchanged(text: str) -> None:
    """Quotes, backslashes, control characters, DEL and characters beyond 16 bits are preserved."""
    assert tomllib.loads(f"a = {toml_string(text)}  # b") == {"a": text}


def test_toml_string_of_lone_surrogate_raises() -> None:
    """A lone surrogate, which a path or a command line may contain, is refused."""
    with pytest.raises(ValueError, match="invalid Unicode"):
        toml_string("a\udc80")


@given(TEXT, TEXT.filter(bool))
def test_write_config_contains_exactly_the_given_values(name: str, secret: str) -> None:
    """No value can terminate its TOML string or add a setting."""
    secrets = InitialSecrets(encryption_key=new_key(), api_keys="a:" + "k" * 32, client_secret=secret)
    config = InitialConfig(client_id=name, redirect_uri=name, deep_link=name, database=name, base_path="/x")
    assert tomllib.loads(write_config(config, secrets)) == {
        "server": {"base_path": "/x"},
        "amo": {"client_id": name, "client_secret": secret, "redirect_uri": name},
        "app": {"deep_link": name},
        "storage": {"url": name, "encryption_keys": secrets.encryption_key},
        "api": {"keys": secrets.api_keys},
    }


def test_initial_secrets_repr_shows_no_secret() -> None:
    """The repr, which a traceback may show, contains no secret."""
    assert "sekret" not in repr(InitialSecrets(encryption_key="sekret", api_keys="sekret", client_secret="sekret"))
