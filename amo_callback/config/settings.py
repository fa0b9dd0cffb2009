"""The configuration as an immutable value; `config.example.toml` documents each setting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from amo_callback.config.types import (
    Accent,
    AccountIds,
    ApiKeyLines,
    BasePath,
    DatabaseUrl,
    DeepLinks,
    Domains,
    EncryptionKeys,
    FileMode,
    Fingerprints,
    HttpsUrl,
    IosAppIds,
    JwtSecret,
    ListenAddress,
    Networks,
    NonEmptyStr,
    Seconds,
    WebhookSecret,
)
from amo_callback.deeplink import HandBack
from amo_callback.hosts import parse_account_host
from amo_callback.model import RefreshRules

PREFIX = "AMO_CALLBACK_"
DEFAULT_AMO_TIMEOUT = 15.0
_RULES = RefreshRules()


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Server(_Section):
    """`[server]`: the two listeners."""

    public: ListenAddress = "127.0.0.1:8080"
    private: ListenAddress = "127.0.0.1:8081"
    base_path: BasePath = "/api/amo-crm"
    trusted_proxies: Networks = ("127.0.0.1", "::1")
    secrets: Path | None = None
    metrics_auth: bool = False
    max_connections: Annotated[int, Field(gt=0, le=100_000)] = 1000
    socket_mode: FileMode = "0660"


class Amo(_Section):
    """`[amo]`: the integration registered in AMO."""

    client_id: NonEmptyStr
    client_secret: Annotated[SecretStr, Field(min_length=1)]
    redirect_uri: HttpsUrl
    authorize_url: HttpsUrl = "https://www.amocrm.ru/oauth"
    endpoint: HttpsUrl = "https://{domain}"
    default_domain: str | None = None
    allowed_domains: Domains = ()
    allowed_accounts: AccountIds = ()
    requests_per_second: Annotated[float, Field(gt=0, le=1000)] = 5
    timeout: Annotated[float, Field(gt=0, le=300)] = DEFAULT_AMO_TIMEOUT

    @field_validator("allowed_accounts", mode="before")
    @classmethod
    def _numbers_are_ids(cls, value: object) -> object:
        return [str(item) for item in value] if isinstance(value, list) else value

    @field_validator("endpoint")
    @classmethod
    def _names_the_account(cls, value: str) -> str:
        if "{domain}" not in value:
            raise ValueError("must contain {domain}, which is replaced by the account's host")
        return value.rstrip("/")

    @property
    def connect_url(self) -> str:
        return f"{self.redirect_uri.removesuffix('/callback')}/connect"

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        default = self.default_domain
        if default is not None and parse_account_host(default.encode(), allowed=self.allowed_domains) is None:
            raise ValueError(f"default_domain {default!r} is neither a host of AMO nor in allowed_domains")
        return self


class App(_Section):
    """`[app]`: the mobile app and its deep link."""

    deep_link: DeepLinks = Field(default="foryoure://amo-crm/callback", validate_default=True)
    """The deep links that an authorization request can name, the default first."""
    return_mode: Literal["redirect", "page", "auto"] = "auto"
    hand_back: HandBack = "code"
    state: Literal["app", "issued"] = "app"
    android_package: (
        Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)+$", max_length=255)] | None
    ) = None
    android_cert_fingerprints: Fingerprints = ()
    ios_app_ids: IosAppIds = ()
    name: str = "For You"
    accent: Accent | None = None
    logo: Annotated[Path, Field(json_schema_extra={"format": "file-path"})] | None = None
    ios_store_url: HttpsUrl | None = None
    android_store_url: HttpsUrl | None = None
    jwt_secret: JwtSecret | None = None
    jwks_url: HttpsUrl | None = None
    jwt_audience: Annotated[NonEmptyStr | None, Field(validate_default=True)] = None
    jwt_issuer: NonEmptyStr | None = None
    jwt_user_claim: NonEmptyStr = "sub"

    @property
    def default_deep_link(self) -> str:
        return self.deep_link[0]

    @property
    def https_links(self) -> tuple[str, ...]:
        return _https_links(self.deep_link)

    def known_deep_link(self, wanted: str | None) -> str:
        """Return `wanted` if it is configured, otherwise the default deep link."""
        return wanted if wanted is not None and wanted in self.deep_link else self.default_deep_link

    @field_validator("android_cert_fingerprints", "ios_app_ids")
    @classmethod
    def _app_links_are_there(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        # An invalid setting is not in `info.data`; it is reported by an error of its own.
        if value and "deep_link" in info.data and not _https_links(info.data["deep_link"]):
            raise ValueError("has no effect without an https link in app.deep_link")
        if value and info.field_name != "ios_app_ids" and info.data.get("android_package", "bad") is None:
            raise ValueError("has no effect without app.android_package")
        return value

    @field_validator("jwks_url")
    @classmethod
    def _one_kind_of_key(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("jwt_secret", "bad") is not None:
            raise ValueError("cannot be combined with app.jwt_secret; set only one of them")
        return value

    @field_validator("jwt_audience", "jwt_issuer", "jwt_user_claim")
    @classmethod
    def _keys_are_there(cls, value: str | None, info: ValidationInfo) -> str | None:
        # An invalid setting is not in `info.data`; it counts as set, because it is reported by an error of its own.
        verified = any(info.data.get(key, "bad") is not None for key in ("jwt_secret", "jwks_url"))
        default = "sub" if info.field_name == "jwt_user_claim" else None
        if value != default and not verified:
            raise ValueError("has no effect without app.jwt_secret or app.jwks_url")
        if info.field_name == "jwt_audience" and value is None and verified:
            raise ValueError('required with app.jwt_secret or app.jwks_url; the "aud" of a JWT must contain this value')
        return value


def _https_links(links: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(link for link in links if link.lower().startswith("https:"))


class LimitsSection(_Section):
    """`[limits]`: the number of rejected codes allowed per address or user."""

    failed_codes: Annotated[int, Field(gt=0)] = 30
    window: Seconds = 60


class Refresh(_Section):
    """`[refresh]`: the schedule of refreshes and retries, their concurrency, and the lease."""

    at: Annotated[float, Field(gt=0, lt=1)] = _RULES.at
    jitter: Annotated[float, Field(ge=0, lt=1)] = _RULES.jitter
    concurrency: Annotated[int, Field(gt=0, le=1000)] = _RULES.concurrency
    poll_interval: Seconds = _RULES.poll_interval
    lease: Seconds = _RULES.lease
    retry_base: Seconds = _RULES.retry_base
    retry_cap: Seconds = _RULES.retry_cap

    @property
    def rules(self) -> RefreshRules:
        return RefreshRules(**self.model_dump())


class Storage(_Section):
    """`[storage]`: the database and the rescue folder."""

    url: DatabaseUrl = SecretStr("sqlite:///amo-callback.db")
    encryption_keys: EncryptionKeys
    rescue: Path | None = None


class ApiSection(_Section):
    """`[api]`: the keys of the private API."""

    keys: ApiKeyLines = SecretStr("")


class Webhook(_Section):
    """`[webhook]`: the receiver of webhooks."""

    url: HttpsUrl | None = None
    secret: Annotated[WebhookSecret | None, Field(validate_default=True)] = None

    @field_validator("secret")
    @classmethod
    def _both_or_none(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if "url" not in info.data:  # the URL is invalid, which is reported by an error of its own
            return value
        if info.data["url"] is None and value is not None:
            raise ValueError("has no effect without webhook.url")
        if info.data["url"] is not None and value is None:
            raise ValueError("required with webhook.url; the receiver verifies webhooks with this secret")
        return value


class Log(_Section):
    """`[log]`: level and format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    access: bool = True


class Settings(BaseSettings):
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
    limits: LimitsSection = LimitsSection()
    refresh: Refresh = Refresh()
    storage: Storage
    api: ApiSection = ApiSection()
    webhook: Webhook = Webhook()
    log: Log = Log()

    @model_validator(mode="after")
    def _leases_outlast_requests(self) -> Self:
        if self.refresh.lease <= self.amo.timeout:
            raise ValueError(
                "refresh.lease must be greater than amo.timeout, so that no lease expires during a request"
            )
        return self

    @model_validator(mode="after")
    def _callback_is_ours(self) -> Self:
        path = urlsplit(self.amo.redirect_uri).path
        if not path.endswith("/callback"):
            raise ValueError("the path of amo.redirect_uri must end in /callback, where the service receives callbacks")
        return self

    @model_validator(mode="after")
    def _app_links_are_separate(self) -> Self:
        """Reject https deep links that would not open the app, or whose page would replace a route of the service."""
        base = self.server.base_path
        for link in self.app.https_links:
            parts = urlsplit(link)
            if parts.hostname == urlsplit(self.amo.redirect_uri).hostname:
                raise ValueError(
                    f"app.deep_link: {link!r} must have another host than amo.redirect_uri, because browsers do not "
                    "open the app for a link to the host of the current page"
                )
            if parts.path == "/healthz" or f"{parts.path}/".startswith((f"{base}/", "/.well-known/")):
                raise ValueError(
                    f"app.deep_link: the path of {link!r} must not be /healthz, or begin with {base} or /.well-known, "
                    "which are paths of the service"
                )
        return self
