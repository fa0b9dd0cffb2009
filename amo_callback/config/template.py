"""The configuration file that `amo-callback init` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from amo_callback.config.settings import App, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEL = "\x7f"
"""The only character that is valid unescaped in JSON but not in TOML."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitialSecrets:
    """The secrets of a new configuration, for the configuration file itself or for separate files."""

    encryption_key: str = field(repr=False)
    api_keys: str = field(repr=False)
    client_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class InitialConfig:
    """The settings of a new configuration; all other settings have defaults."""

    client_id: str
    redirect_uri: str
    base_path: str = Server().base_path
    deep_link: str = App().default_deep_link
    database: str
    rescue: str | None = None
    secrets_folder: str | None = None


def write_config(config: InitialConfig, secrets: InitialSecrets | None) -> str:
    """Return the text of the configuration file; `secrets` is `None` if they are in separate files."""
    return "\n".join([*_head(config, secrets), *_amo(config, secrets), *_rest(config, secrets), ""])


def toml_string(text: str) -> str:
    """Encode a TOML string; raises `ValueError` for invalid Unicode."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must not contain invalid Unicode")
    return json.dumps(text, ensure_ascii=False).replace(_DEL, "\\u007f")


def _head(config: InitialConfig, secrets: InitialSecrets | None) -> Iterator[str]:
    yield "# Written by `amo-callback init`. For all settings and their defaults, see `amo-callback config example`."
    if secrets is not None:
        yield "# Contains secrets: only its owner can read this file (mode 0600)."
    server = {}
    if config.secrets_folder is not None:
        server["secrets"] = (config.secrets_folder, "folder next to this file: one file per secret, named SECTION.KEY")
    if config.base_path != Server().base_path:
        server["base_path"] = (config.base_path, "the path of amo.redirect_uri, without /callback")
    if server:
        yield from ("", "[server]", *_lines(server))


def _amo(config: InitialConfig, secrets: InitialSecrets | None) -> Iterator[str]:
    yield from ("", "[amo]")
    yield from _lines({"client_id": (config.client_id, '"Integration ID" on the integration\'s page in AMO')})
    if secrets is not None and secrets.client_secret is not None:
        yield from _lines({"client_secret": (secrets.client_secret, '"Secret key" on the same page')})
    elif secrets is not None:
        yield '# client_secret = "…"  # "Secret key" on the same page: uncomment this line and paste the key'
    yield from _lines({"redirect_uri": (config.redirect_uri, "exactly as registered in AMO")})
    yield '# authorize_url = "https://www.kommo.com/oauth"  # uncomment for Kommo'


def _rest(config: InitialConfig, secrets: InitialSecrets | None) -> Iterator[str]:
    yield from ("", "[app]", *_lines({"deep_link": (config.deep_link, "the app's deep link")}))
    storage = {"url": (config.database, "")}
    if config.rescue is not None:
        storage["rescue"] = (
            config.rescue,
            "folder of pending writes; the service and `amo-callback` commands must use the same folder",
        )
    if secrets is not None:
        storage["encryption_keys"] = (
            secrets.encryption_key,
            "keep a copy of this key, but not with the backups of the database",
        )
    yield from ("", "[storage]", *_lines(storage))
    if secrets is not None:
        yield from (
            "",
            "[api]",
            *_lines({"keys": (secrets.api_keys, "one name:key per line; separate lines with \\n")}),
        )


def _lines(section: dict[str, tuple[str, str]]) -> Iterator[str]:
    for key, (value, comment) in section.items():
        yield f"{key} = {toml_string(value)}{f'  # {comment}' if comment else ''}"
