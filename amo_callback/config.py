"""The configuration: TOML, secret files and the environment become one frozen value.

Precedence: environment `AMO_CALLBACK_SECTION__KEY`, then files `SECTION.KEY` in `$CREDENTIALS_DIRECTORY` (systemd's),
then in `server.secrets`, then TOML, then defaults. `config.example.toml` is the reference.
"""

from __future__ import annotations

import base64
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import EnvSettingsSource, InitSettingsSource

from amo_callback.errors import ConfigurationError
from amo_callback.identity import read_api_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "AMO_CALLBACK_"
CONFIG_VARIABLE = "AMO_CALLBACK_CONFIG"
DEFAULT_PATHS = (Path("config.toml"), Path("/etc/amo-callback/config.toml"))

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


def _split(value: object) -> object:
    """Read a list from the environment or a secret file: separated by commas or white space."""
    return tuple(re.split(r"[\s,]+", value.strip())) if isinstance(value, str) and value.strip() else value or ()


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Door = Annotated[str, AfterValidator(_door)]
WebAddress = Annotated[str, AfterValidator(_web_address)]
Seconds = Annotated[float, Field(gt=0, le=86400 * 30)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Server(_Section):
    """`[server]`: the two doors."""

    public: Door = "127.0.0.1:8080"
    private: Door = "127.0.0.1:8081"
    base_path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-]$")] = "/api/amo-crm"
    trusted_proxies: Words = ("127.0.0.1", "::1")
    secrets: Path | None = None
    metrics_auth: bool = False


class Amo(_Section):
    """`[amo]`: our integration there."""

    client_id: Annotated[str, Field(min_length=1)]
    client_secret: Annotated[SecretStr, Field(min_length=1)]
    redirect_uri: WebAddress
    authorize_url: WebAddress = "https://www.amocrm.ru/oauth"
    endpoint: WebAddress = "https://{domain}"
    default_domain: str | None = None
    allowed_domains: Words = ()
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


class App(_Section):
    """`[app]`: the mobile app, and the way back to it."""

    deep_link: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*:[^?#\s\"'<>\\]+$")] = (
        "foryoure://amo-crm/callback"
    )
    return_mode: Literal["redirect", "page", "auto"] = "auto"
    hand_back: Literal["code", "ticket", "none"] = "code"
    state: Literal["app", "issued"] = "app"
    android_package: str | None = None
    name: str = "For You"
    jwt_secret: SecretStr | None = None
    jwks_url: str | None = None
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    jwt_user_claim: str = "sub"

    @field_validator("deep_link")
    @classmethod
    def _safe_scheme(cls, value: str) -> str:
        if value.partition(":")[0].lower() in {"javascript", "data", "vbscript", "file", "blob", "about"}:
            raise ValueError("must be an address of the app's own")
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


class Storage(_Section):
    """`[storage]`: where the sealed pairs are."""

    url: str = "sqlite:///amo-callback.db"
    encryption_keys: Annotated[SecretStr, AfterValidator(_encryption_keys)]
    rescue: Path | None = None


class Api(_Section):
    """`[api]`: who may come through the private door."""

    keys: Annotated[SecretStr, AfterValidator(_api_keys)] = SecretStr("")


class Notify(_Section):
    """`[notify]`: where signed notices go."""

    url: str | None = None
    secret: SecretStr | None = None


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


# --- loading -------------------------------------------------------------------------------------


def find_config(given: str | None, environ: Mapping[str, str]) -> Path | None:
    """Return the configuration file: the given one, the environment's, or the first default that exists."""
    named = given or environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    return next((path for path in DEFAULT_PATHS if path.is_file()), None)


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Load the configuration; raises `ConfigurationError` with one line for each problem."""
    toml = _read_toml(path)
    folders = [Path(folder) for folder in [environ.get("CREDENTIALS_DIRECTORY")] if folder]
    own = environ.get(f"{PREFIX}SERVER__SECRETS") or _value(toml, "server", "secrets")
    if isinstance(own, str):
        folders.append(_beside(path, Path(own)))

    class Loaded(Settings):
        """The settings of this one load: their sources are bound to what was passed."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            *_: PydanticBaseSettingsSource,
            **__: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                _Environment(settings_cls, environ),
                *(InitSettingsSource(settings_cls, _read_secrets(folder)) for folder in folders),
                InitSettingsSource(settings_cls, toml),
            )

    problems = _unknown_sections(environ)
    try:
        settings = Loaded()
    except ValidationError as error:
        raise ConfigurationError(*problems, *_explain(error)) from None
    problems += _not_built_yet(settings)
    if problems:
        raise ConfigurationError(*problems)
    return settings


def storage_folder(path: Path | None, environ: Mapping[str, str]) -> Path:
    """Return where relative storage paths start: `$STATE_DIRECTORY`, else beside the configuration file."""
    state = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(state) if state else _beside(path, Path())


class _Environment(EnvSettingsSource):
    """The environment that was passed, rather than the process's."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._environ.items()}


def _read_toml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: is not valid TOML: {_place(error)}") from None


def _place(error: tomllib.TOMLDecodeError) -> str:
    """Say where, never what: the line may hold a secret."""
    place = re.search(r"\(at (?:line \d+, column \d+|end of document)\)", str(error))
    return place[0] if place else "(somewhere)"


def _read_secrets(folder: Path) -> dict[str, Any]:
    """Read the files `SECTION.KEY` of a folder."""
    found: dict[str, Any] = {}
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigurationError(f"{folder}: the secrets cannot be read: {error.strerror}") from None
    for file in files:
        section, dot, key = file.name.partition(".")
        if dot and section in Settings.model_fields and key and file.is_file():
            try:
                found.setdefault(section, {})[key] = file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                raise ConfigurationError(f"{file}: cannot be read as text") from None
    return found


def _beside(path: Path | None, other: Path) -> Path:
    return ((path.parent if path else Path()) / other).resolve()


def _value(toml: dict[str, Any], section: str, key: str) -> object:
    content = toml.get(section)
    return content.get(key) if isinstance(content, dict) else None


def _unknown_sections(environ: Mapping[str, str]) -> list[str]:
    names = [name for name in environ if name.upper().startswith(PREFIX) and name.upper() != CONFIG_VARIABLE]
    return [
        f"{name}: is no setting: {PREFIX}SECTION__KEY with one of {', '.join(Settings.model_fields)}"
        for name in names
        if name[len(PREFIX) :].lower().partition("__")[0] not in Settings.model_fields or "__" not in name
    ]


def _explain(error: ValidationError) -> list[str]:
    """Return one line for each problem: key, what was given (never a secret), what is wanted."""
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        text = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "missing":
            lines.append(f"{key}: is missing; {_how_to_give(key)}")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{key}: is no setting; see config.example.toml")
        elif not key:
            lines.append(text)
        else:
            given = "" if _is_secret(key) else f" {problem['input']!r}:"
            lines.append(f"{key}:{given} {text[0].lower()}{text[1:]}")
    return lines


def _how_to_give(key: str) -> str:
    variable = PREFIX + key.upper().replace(".", "__")
    if "." not in key:
        return f"give the section [{key}], or {variable}__…"
    return f"set it in the configuration file, as a secret file {key}, or as {variable}"


_SECRETS = frozenset({"amo.client_secret", "app.jwt_secret", "storage.encryption_keys", "api.keys", "notify.secret"})


def _is_secret(key: str) -> bool:
    return any(key.startswith(secret) or secret.startswith(f"{key}.") for secret in _SECRETS)


def _not_built_yet(settings: Settings) -> list[str]:
    """Refuse what this version does not do yet, rather than ignore it."""
    asked = {
        "server.metrics_auth": settings.server.metrics_auth,
        "app.hand_back": settings.app.hand_back == "ticket",
        "app.state": settings.app.state == "issued",
        "app.android_package": settings.app.android_package,
        "app.jwt_secret": settings.app.jwt_secret,
        "app.jwks_url": settings.app.jwks_url,
        "storage.rescue": settings.storage.rescue,
        "notify.url": settings.notify.url,
        "notify.secret": settings.notify.secret,
    }
    return [f"{key}: this version cannot do that yet; leave it at its default" for key, value in asked.items() if value]
