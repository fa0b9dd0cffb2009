"""The configuration as one frozen value; `config.example.toml` is the reference, `config_load` where it comes from."""

from __future__ import annotations

import base64
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from amo_callback.database_url import check_url
from amo_callback.hosts import check_host
from amo_callback.identity import read_api_keys
from amo_callback.model import RefreshRules
from amo_callback.webhook import read_secrets

PREFIX = "AMO_CALLBACK_"

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


def _door(value: str) -> str:
    if value.startswith("unix:/"):
        return value
    match = _ADDRESS.fullmatch(value)
    if match is None or int(match["port"]) > 65535:
        raise ValueError('must be "host:port" or "unix:/path"')
    return value


def _web_address(value: str) -> str:
    """Require https, or http on this machine: nothing secret goes out unencrypted."""
    parts = urlsplit(value)
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user name or password")
    if parts.scheme == "https" and parts.hostname:
        return value
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return value
    raise ValueError("must begin with https:// (http:// only for 127.0.0.1, ::1 and localhost)")


def _encryption_keys(value: SecretStr) -> SecretStr:
    lines = value.get_secret_value().split()
    if not lines:
        raise ValueError("must hold at least one key: amo-callback keygen makes one")
    for number, line in enumerate(lines, start=1):
        try:
            good = len(base64.urlsafe_b64decode(line)) == 32
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"line {number} is no key: amo-callback keygen makes one")
    return value


def _api_keys(value: SecretStr) -> SecretStr:
    read_api_keys(value.get_secret_value())
    return value


def _jwt_secret(value: SecretStr) -> SecretStr:
    from amo_callback.identity.signatures import read_secret  # noqa: PLC0415 -- because few have JWTs

    read_secret(value.get_secret_value())
    return value


def _notify_secret(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        read_secrets(value.get_secret_value())
    return value


def _split(value: object) -> object:
    """Read a list from the environment or a secret file: separated by commas or white space."""
    return tuple(re.findall(r"[^\s,]+", value)) if isinstance(value, str) else value


_NAME = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}")


def _domains(values: tuple[str, ...]) -> tuple[str, ...]:
    """Take hosts, and suffixes of two labels or more: `.com` would show our secret to the whole of it."""
    lowered = tuple(value.lower() for value in values)
    for value in lowered:
        if not _NAME.fullmatch(value.removeprefix(".")):
            raise ValueError(f'{value!r} is neither "host" nor ".suffix" of two labels or more')
    return lowered


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        ip_network(value, strict=False)
    return values


def _store_url(value: SecretStr) -> SecretStr:
    check_url(value.get_secret_value())
    return value


Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], NoDecode, BeforeValidator(_split)]
Door = Annotated[str, AfterValidator(_door)]
WebAddress = Annotated[str, AfterValidator(_web_address)]
Text = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=86400 * 30)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Server(_Section):
    """`[server]`: the two doors."""

    public: Door = "127.0.0.1:8080"
    private: Door = "127.0.0.1:8081"
    base_path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-]$")] = "/api/amo-crm"
    trusted_proxies: Annotated[Words, AfterValidator(_networks)] = ("127.0.0.1", "::1")
    secrets: Path | None = None
    metrics_auth: bool = False


class Amo(_Section):
    """`[amo]`: our integration there."""

    client_id: Text
    client_secret: Annotated[SecretStr, Field(min_length=1)]
    redirect_uri: WebAddress
    authorize_url: WebAddress = "https://www.amocrm.ru/oauth"
    endpoint: WebAddress = "https://{domain}"
    default_domain: str | None = None
    allowed_domains: Annotated[Words, AfterValidator(_domains)] = ()
    allowed_accounts: Words = ()
    requests_per_second: Annotated[float, Field(gt=0, le=1000)] = 5
    timeout: Annotated[float, Field(gt=0, le=300)] = 15.0

    @field_validator("allowed_accounts", mode="before")
    @classmethod
    def _numbers_are_ids(cls, value: object) -> object:
        return [str(item) for item in value] if isinstance(value, list) else value

    @field_validator("endpoint")
    @classmethod
    def _names_the_account(cls, value: str) -> str:
        if "{domain}" not in value:
            raise ValueError("must contain {domain}, where the account's host is put in")
        return value.rstrip("/")

    @property
    def connect_url(self) -> str:
        """Where a person connects, again or for the first time."""
        return f"{self.redirect_uri.removesuffix('/callback')}/connect"

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        default = self.default_domain
        if default is not None and check_host(default.encode(), allowed=self.allowed_domains) is None:
            raise ValueError(f"default_domain: {default!r} is neither AMO's nor in allowed_domains")
        return self


class App(_Section):
    """`[app]`: the mobile app, and the way back to it."""

    deep_link: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*:[^?#\s\"'<>\\]+$")] = (
        "foryoure://amo-crm/callback"
    )
    return_mode: Literal["redirect", "page", "auto"] = "auto"
    hand_back: Literal["code", "ticket", "none"] = "code"
    state: Literal["app", "issued"] = "app"
    android_package: (
        Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)+$", max_length=255)] | None
    ) = None
    name: str = "For You"
    jwt_secret: Annotated[SecretStr, AfterValidator(_jwt_secret)] | None = None
    jwks_url: WebAddress | None = None
    jwt_audience: Annotated[Text | None, Field(validate_default=True)] = None
    jwt_issuer: Text | None = None
    jwt_user_claim: Text = "sub"

    @field_validator("deep_link")
    @classmethod
    def _safe_scheme(cls, value: str) -> str:
        if value.partition(":")[0].lower() in {"javascript", "data", "vbscript", "file", "blob", "about"}:
            raise ValueError("must be an address of the app's own")
        return value

    @field_validator("jwks_url")
    @classmethod
    def _one_kind_of_key(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("jwt_secret", "bad") is not None:
            raise ValueError("not beside app.jwt_secret: JWTs are verified with the one or the other")
        return value

    @field_validator("jwt_audience", "jwt_issuer", "jwt_user_claim")
    @classmethod
    def _keys_are_there(cls, value: str | None, info: ValidationInfo) -> str | None:
        # A key that was refused is not among the data: its own line is enough.
        verified = any(info.data.get(key, "bad") is not None for key in ("jwt_secret", "jwks_url"))
        default = "sub" if info.field_name == "jwt_user_claim" else None
        if value != default and not verified:
            raise ValueError("has no effect without app.jwt_secret or app.jwks_url")
        if info.field_name == "jwt_audience" and value is None and verified:
            raise ValueError("is required with app.jwt_secret and with app.jwks_url: it must be in each JWT's aud")
        return value


class Limits(_Section):
    """`[limits]`: codes of one address that AMO has not accepted yet."""

    unproven: Annotated[int, Field(gt=0)] = 30
    window: Seconds = 60


class Refresh(_Section):
    """`[refresh]`: when, how many, how long."""

    at: Annotated[float, Field(gt=0, lt=1)] = 0.5
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.1
    concurrency: Annotated[int, Field(gt=0, le=1000)] = 16
    poll_interval: Seconds = 5.0
    lease: Seconds = 60.0
    retry_base: Seconds = 30.0
    retry_cap: Seconds = 900.0

    @property
    def rules(self) -> RefreshRules:
        """The same, for whoever refreshes."""
        return RefreshRules(**self.model_dump())


class Storage(_Section):
    """`[storage]`: where the sealed pairs are."""

    # A secret, since it may hold a password.
    url: Annotated[SecretStr, AfterValidator(_store_url)] = SecretStr("sqlite:///amo-callback.db")
    encryption_keys: Annotated[SecretStr, AfterValidator(_encryption_keys)]
    rescue: Path | None = None


class Api(_Section):
    """`[api]`: who may come through the private door."""

    keys: Annotated[SecretStr, AfterValidator(_api_keys)] = SecretStr("")


class Notify(_Section):
    """`[notify]`: where signed notices go."""

    url: WebAddress | None = None
    secret: Annotated[SecretStr | None, AfterValidator(_notify_secret), Field(validate_default=True)] = None

    @field_validator("secret")
    @classmethod
    def _both_or_none(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if "url" not in info.data:  # it was refused: its own line is enough
            return value
        if info.data["url"] is None and value is not None:
            raise ValueError("has no effect without notify.url")
        if info.data["url"] is not None and value is None:
            raise ValueError("is required with notify.url: by it the receiver tells that a notice is ours")
        return value


class Log(_Section):
    """`[log]`: how much, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    access: bool = True


class Settings(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        hide_input_in_errors=True,
    )

    server: Server = Server()
    amo: Amo
    app: App = App()
    limits: Limits = Limits()
    refresh: Refresh = Refresh()
    storage: Storage
    api: Api = Api()
    notify: Notify = Notify()
    log: Log = Log()

    @model_validator(mode="after")
    def _leases_outlast_requests(self) -> Self:
        if self.refresh.lease <= self.amo.timeout:
            raise ValueError("refresh.lease: must be greater than amo.timeout, or a lease ends under a request")
        return self

    @model_validator(mode="after")
    def _callback_is_ours(self) -> Self:
        path = urlsplit(self.amo.redirect_uri).path
        if not path.endswith("/callback"):
            raise ValueError("amo.redirect_uri: its path must end in /callback, where the service listens")
        return self
