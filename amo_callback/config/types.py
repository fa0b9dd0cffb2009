"""Types of settings. Validation errors never quote a secret."""

from __future__ import annotations

import base64
import re
from ipaddress import IPv6Network, ip_network
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, WithJsonSchema
from pydantic_settings import NoDecode

from amo_callback.appearance import check_accent
from amo_callback.config.database_url import LOOPBACK, validate_url
from amo_callback.identity import read_api_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FILE_MODE = re.compile(r"0?[0-7]{3}")
_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+")
_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


_WEBHOOK_PREFIX = "whsec_"
_SECRET_LEAST, _SECRET_MOST = 24, 64
"""The minimum and maximum size of a webhook secret in bytes, as defined by Standard Webhooks."""


def _listen_address(value: str) -> str:
    if value.startswith("unix:/"):
        return value
    match = _ADDRESS.fullmatch(value)
    if match is None or int(match["port"]) > 65535:
        raise ValueError('must be "host:port" or "unix:/path"')
    return value


def read_webhook_secrets(text: str) -> Sequence[str]:
    """Parse webhook secrets, one per line, newest first; raises `ValueError` with the number of the invalid line."""
    lines = text.split()
    if not lines:
        raise ValueError("must contain at least one secret")
    for number, line in enumerate(lines, start=1):
        if not _is_webhook_secret(line):
            raise ValueError(
                f"line {number} must be {_WEBHOOK_PREFIX} followed by the base64 encoding of {_SECRET_LEAST} "
                f'to {_SECRET_MOST} bytes, as printed by echo "{_WEBHOOK_PREFIX}$(openssl rand -base64 32)"'
            )
    return lines


def _is_webhook_secret(line: str) -> bool:
    try:
        size = len(base64.b64decode(line.removeprefix(_WEBHOOK_PREFIX), validate=True))
    except ValueError:
        return False
    return line.startswith(_WEBHOOK_PREFIX) and _SECRET_LEAST <= size <= _SECRET_MOST


def _file_mode(value: str) -> str:
    if not _FILE_MODE.fullmatch(value):
        raise ValueError('must be an octal mode in quotes, such as "0660" (owner and group) or "0600" (owner only)')
    return value


def _https_url(value: str) -> str:
    """Require https, or http on this machine, because secrets must not be sent unencrypted."""
    if not value.isprintable() or " " in value:
        raise ValueError("must not contain white space or control characters")
    parts = urlsplit(value)
    if parts.fragment or parts.port == 0:  # `parts.port` itself rejects ports above 65535
        raise ValueError("must have no fragment (#), and its port, if any, must be between 1 and 65535")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user name or password")
    if parts.scheme == "https" and parts.hostname:
        return value
    if parts.scheme == "http" and parts.hostname in LOOPBACK:
        return value
    raise ValueError("must begin with https:// (or with http:// for 127.0.0.1, ::1 and localhost)")


def _secret(check: Callable[[str], object]) -> AfterValidator:
    """Return a validator that calls `check` with the secret; `check` raises `ValueError` if the secret is invalid."""

    def validate(value: SecretStr) -> SecretStr:
        check(value.get_secret_value())
        return value

    return AfterValidator(validate)


def _check_encryption_keys(text: str) -> None:
    lines = text.split()
    if not lines:
        raise ValueError("must contain at least one key; `amo-callback keygen` generates one")
    for number, line in enumerate(lines, start=1):
        try:
            good = len(base64.urlsafe_b64decode(line)) == 32
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"line {number} is not a key; `amo-callback keygen` generates one")


def _check_jwt_secret(text: str) -> None:
    from amo_callback.identity.jwt import read_secret  # noqa: PLC0415 -- loaded only if JWTs are configured

    read_secret(text)


def _split(value: object) -> object:
    """Split text from the environment or a secret file at commas and white space; return other values unchanged."""
    return tuple(re.findall(r"[^\s,]+", value)) if isinstance(value, str) else value


_NAME = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}")


def _domains(values: tuple[str, ...]) -> tuple[str, ...]:
    """Accept hosts, and suffixes with at least two labels: with `.com`, any site could receive the client secret."""
    lowered = tuple(value.lower() for value in values)
    for value in lowered:
        if not _NAME.fullmatch(value.removeprefix(".")):
            raise ValueError(f'{value!r} must be a host or a suffix of at least two labels, such as ".example.com"')
    return lowered


_DEEP_LINK = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):[^?#\s\"'<>\\]+")
_BROWSER_SCHEMES = frozenset({"javascript", "data", "vbscript", "file", "blob", "about"})


def _deep_links(values: tuple[str, ...]) -> tuple[str, ...]:
    """Accept one deep link or several different ones."""
    if not values or len(set(values)) < len(values):
        raise ValueError("must be a URL, or a list of different URLs")
    for value in values:
        try:
            _check_deep_link(value)
        except ValueError as error:
            raise error if len(values) == 1 else ValueError(f"{value!r} {error}") from None
    return values


def _check_deep_link(value: str) -> None:
    match = _DEEP_LINK.fullmatch(value)
    if match is None:
        raise ValueError("must be a URL such as foryoure://amo-crm/callback, without ? or #")
    scheme = match["scheme"].lower()
    if scheme in _BROWSER_SCHEMES:
        raise ValueError("must be a URL with the app's own scheme")
    parts = urlsplit(value)
    if scheme == "http" and parts.hostname not in LOOPBACK:
        raise ValueError("must not use http, which is not encrypted; use the app's own scheme, or https")
    if scheme != "https":
        return
    name = parts.netloc.lower().removesuffix(":443")
    if not _NAME.fullmatch(name):
        raise ValueError("must have a host name and no port other than 443, because phones open no other https link")
    try:
        _base_path(parts.path)
    except ValueError:
        raise ValueError('must have a path such as "/amo-crm", whose segments consist of A-Z a-z 0-9 . _ ~ -') from None


_FINGERPRINT = re.compile(r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}")


def _fingerprints(values: tuple[str, ...]) -> tuple[str, ...]:
    """Accept SHA-256 fingerprints in both cases; Android compares them in upper case."""
    upper = tuple(value.upper() for value in values)
    for value in upper:
        if not _FINGERPRINT.fullmatch(value):
            raise ValueError(f'{value!r} must be a SHA-256 fingerprint: 32 bytes such as "AB:CD:…"')
    return upper


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    """Accept IP addresses and networks; convert an IPv4-mapped IPv6 network to an IPv4 network."""
    return tuple(_network(value) for value in values)


def _network(value: str) -> str:
    network = ip_network(value, strict=False)
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return value if mapped is None or network.prefixlen < 96 else f"{mapped}/{network.prefixlen - 96}"


def _base_path(value: str) -> str:
    first, *segments = value.split("/")
    if first or not segments or not all(_SEGMENT.fullmatch(segment) and segment.strip(".") for segment in segments):
        raise ValueError('must be a path such as "/api/amo-crm", without segments that are empty or consist of dots')
    return value


StrTuple = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], NoDecode, BeforeValidator(_split)]
Accent = Annotated[str, AfterValidator(check_accent)]
DeepLinks = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(_split),
    AfterValidator(_deep_links),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
IosAppIds = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[A-Z0-9]{10}\.[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*$", max_length=255)], ...],
    NoDecode,
    BeforeValidator(_split),
]
Fingerprints = Annotated[StrTuple, AfterValidator(_fingerprints)]
AccountIds = Annotated[tuple[Annotated[str, Field(pattern=r"^[0-9]{1,20}$")], ...], NoDecode, BeforeValidator(_split)]
BasePath = Annotated[str, AfterValidator(_base_path)]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
FileMode = Annotated[str, AfterValidator(_file_mode)]
HttpsUrl = Annotated[str, AfterValidator(_https_url), Field(json_schema_extra={"format": "uri"})]
NonEmptyStr = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=86400 * 30)]
Domains = Annotated[StrTuple, AfterValidator(_domains)]
Networks = Annotated[StrTuple, AfterValidator(_networks)]
DatabaseUrl = Annotated[SecretStr, _secret(validate_url)]
"""A database URL; secret, because it may contain a password."""
EncryptionKeys = Annotated[SecretStr, _secret(_check_encryption_keys)]
ApiKeyLines = Annotated[SecretStr, _secret(read_api_keys)]
JwtSecret = Annotated[SecretStr, _secret(_check_jwt_secret)]
WebhookSecret = Annotated[SecretStr, _secret(read_webhook_secrets)]
