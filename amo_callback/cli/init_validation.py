"""Validation of each answer that `init` gets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from amo_callback.config.database_url import url_secrets, validate_url
from amo_callback.config.settings import App, Server
from amo_callback.config.types import HttpsUrl

_CALLBACK = "/callback"
_VISIBLE = re.compile(r"[!-~]+")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Callback:
    """The redirect URI, and the path below which the service listens."""

    redirect_uri: str
    base_path: str

    @property
    def hook(self) -> str:
        """The URL of AMO's "integration disabled" hook."""
        return f"{self.redirect_uri.removesuffix(_CALLBACK)}/hooks/disconnect"


def read_callback(text: str) -> Callback:
    """Read the redirect URI, or the service's address without a path; raises `ValueError`."""
    given = text if "://" in text else f"https://{text}"
    if not _VISIBLE.fullmatch(given):
        raise ValueError("must be an address of visible ASCII characters, as https://admin.example.com")
    parts = _parts(given)
    if "?" in given or "#" in given:
        raise ValueError("must have no ? and no #: AMO adds its own")
    default = Server().base_path
    if parts.path in {"", "/"}:
        return Callback(redirect_uri=f"{given.removesuffix('/')}{default}{_CALLBACK}", base_path=default)
    if not parts.path.endswith(_CALLBACK):
        raise ValueError(f"must have no path, or one that ends in {_CALLBACK}, where the service listens")
    if parts.path.endswith(f"{default}{_CALLBACK}"):
        return Callback(redirect_uri=given, base_path=default)
    base_path = parts.path.removesuffix(_CALLBACK)
    try:
        Server(base_path=base_path)
    except ValidationError:
        raise ValueError(f"must have a plain path before {_CALLBACK}, such as {default}{_CALLBACK}") from None
    return Callback(redirect_uri=given, base_path=base_path)


def read_client_id(text: str) -> str:
    """Read the integration's id; raises `ValueError`."""
    if not _UUID.fullmatch(text):
        raise ValueError(f'must be the "Integration ID", 36 characters like {UUID(int=0)}')
    return text


def read_client_secret(text: str) -> str:
    """Read the integration's secret key; raises `ValueError`, which quotes nothing."""
    if not _VISIBLE.fullmatch(text):
        raise ValueError('must be the "Secret key" alone: one line, without spaces')
    return text


def read_deep_link(text: str) -> str:
    """Read the deep link; raises `ValueError`."""
    if not text.isprintable():
        raise ValueError("must be visible characters alone")
    try:
        return App(deep_link=text).deep_link
    except ValidationError as error:
        if error.errors()[0]["type"] == "string_pattern_mismatch":
            raise ValueError("must be an address like foryoure://amo-crm/callback, without ? and #") from None
        raise ValueError(_reason(error)) from None


def read_database(text: str) -> str:
    """Read the database's URL, without a password; raises `ValueError`, which quotes nothing."""
    if not text.isprintable():
        raise ValueError("must be visible characters alone")
    validate_url(text)
    if url_secrets(text):
        raise ValueError(
            "holds a password, and other users of this machine see the command line: give it without, and write the "
            "whole URL into the configuration afterwards"
        )
    return text


def _parts(address: str) -> SplitResult:
    """Return the parts of an address that the configuration takes; raises `ValueError`."""
    try:
        parts = urlsplit(address)
        if not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:
        raise ValueError("must be an address, and a port a number: https://admin.example.com") from None
    try:
        TypeAdapter[str](HttpsUrl).validate_python(address)
    except ValidationError as error:
        raise ValueError(_reason(error)) from None
    return parts


def _reason(error: ValidationError) -> str:
    return str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")
