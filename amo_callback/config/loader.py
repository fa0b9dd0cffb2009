"""Loading of the configuration from TOML, secret files and the environment into one immutable value.

Sources, in order of precedence: the environment (`AMO_CALLBACK_SECTION__KEY`), files named `SECTION.KEY` in
`$CREDENTIALS_DIRECTORY` (systemd), files named `SECTION.KEY` in `server.secrets`, the TOML file, the defaults.
"""

from __future__ import annotations

import re
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource  # noqa: TC002 -- pydantic reads them at runtime
from pydantic_settings.exceptions import SettingsError
from pydantic_settings.sources import EnvSettingsSource, InitSettingsSource

from amo_callback.appearance import read_logo
from amo_callback.config.database_url import SQLITE, is_postgres, url_secrets
from amo_callback.config.settings import DEFAULT_AMO_TIMEOUT, PREFIX, Server, Settings
from amo_callback.errors import ConfigurationError
from amo_callback.files import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIG_VARIABLE = "AMO_CALLBACK_CONFIG"
CREDENTIALS_PREFIX = "amo-callback_"
"""The prefix that systemd adds to the names of files loaded with `LoadCredential=amo-callback:/folder`."""
DEFAULT_PATHS = (Path("config.toml"), Path("/etc/amo-callback/config.toml"))
SECRETS = frozenset(
    {"amo.client_secret", "app.jwt_secret", "storage.encryption_keys", "storage.url", "api.keys", "webhook.secret"}
)
"""Settings that are, or may contain, a secret. A file with the name of the setting can contain its value."""


def find_config(given: str | None, environ: Mapping[str, str]) -> Path | None:
    """Return the path given on the command line or in the environment, otherwise the first default path that exists."""
    named = given or environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    return next((path for path in DEFAULT_PATHS if path.is_file()), None)


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Load the configuration; raises `ConfigurationError` with one line per problem."""
    if path is None and not any(name.upper().startswith((PREFIX, "CREDENTIALS_DIRECTORY")) for name in environ):
        places = " nor ".join(map(str, DEFAULT_PATHS))
        raise ConfigurationError(
            f"no configuration file: neither {places} exists; run `amo-callback init` to create one"
        )
    toml = _read_toml(path)
    folders = _secret_folders(path, toml, environ)

    class Loaded(Settings):
        """The settings, read from the sources that `settings_customise_sources` lists."""

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
    except SettingsError as error:  # the variable of a section does not contain JSON
        raise ConfigurationError(*(problems or [str(error)])) from None
    except ValidationError as error:
        raise ConfigurationError(*problems, *_explain(error)) from None
    if problems:
        raise ConfigurationError(*problems)
    return _with_logo(settings, path)


def _with_logo(settings: Settings, path: Path | None) -> Settings:
    """Return the settings with an absolute path to the logo; raises `ConfigurationError` if it cannot be used."""
    if settings.app.logo is None:
        return settings
    logo = beside(path, settings.app.logo)
    read_logo(logo)
    return settings.model_copy(update={"app": settings.app.model_copy(update={"logo": logo})})


def secret_folders(path: Path | None, environ: Mapping[str, str]) -> Sequence[Path]:
    """Return the folders that contain secret files; raises `ConfigurationError`."""
    return _secret_folders(path, _read_toml(path), environ)


def secrets_in(path: Path) -> Sequence[str]:
    """Return the names of the secrets in the configuration file itself; raises `ConfigurationError`."""
    toml = _read_toml(path)
    held = {name: value for name in SECRETS if (value := _value(toml, *name.split("."))) is not None}
    if not url_secrets(str(held.get("storage.url", ""))):
        held.pop("storage.url", None)
    return sorted(held)


def load_unit_settings(path: Path | None) -> tuple[Server, float]:
    """Load `[server]` and `amo.timeout` even if other settings are missing; raises `ConfigurationError`."""
    toml = _read_toml(path)
    try:
        server = Server.model_validate(toml.get("server", {}))
    except ValidationError as error:
        raise ConfigurationError(*_explain(error, section="server")) from None
    timeout = _value(toml, "amo", "timeout")
    return server, float(timeout) if isinstance(timeout, int | float) and timeout > 0 else DEFAULT_AMO_TIMEOUT


def configured_keys(path: Path, secrets: Path) -> frozenset[str]:
    """Return the names of the settings with a value in the file or in a secret file; raises `ConfigurationError`."""
    sources = [_read_toml(path), _read_secrets(secrets) if secrets.is_dir() else {}]
    return frozenset(
        f"{section}.{key}"
        for source in sources
        for section, content in source.items()
        if isinstance(content, dict)
        for key, value in content.items()
        if value != ""
    )


def storage_folder(path: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the base of relative storage paths: `$STATE_DIRECTORY`, otherwise the configuration file's folder."""
    state = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(state) if state else beside(path, Path())


def rescue_folder(settings: Settings, path: Path | None, environ: Mapping[str, str]) -> Path:
    """Return `storage.rescue`, otherwise `$STATE_DIRECTORY/rescue`, otherwise `rescue` next to the database.

    Each instance must have its own rescue folder. With PostgreSQL, the last default is a folder next to the
    configuration file.
    """
    folder = storage_folder(path, environ)
    if settings.storage.rescue is not None:
        return folder / settings.storage.rescue
    url = settings.storage.url.get_secret_value()
    if environ.get("STATE_DIRECTORY") or is_postgres(url):
        return folder / "rescue"
    return (folder / url.removeprefix(SQLITE)).parent / "rescue"


class _Environment(EnvSettingsSource):
    """A source that reads the given environment instead of the process's environment."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._environ.items()}


def _read_toml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    text = read_text(path, ConfigurationError)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: invalid TOML {_place(error)}") from None
    except ValueError:
        raise ConfigurationError(f"{path}: a number has too many digits") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: invalid TOML (nested too deeply)") from None


def _place(error: tomllib.TOMLDecodeError) -> str:
    """Return the position of a syntax error, without the text of the line, which may contain a secret."""
    place = re.search(r"\(at (?:line \d+, column \d+|end of document)\)", str(error))
    return place[0] if place else "(at an unknown position)"


def _read_secrets(folder: Path) -> dict[str, Any]:
    """Return the contents of the files named `SECTION.KEY` in a folder, by section and key."""
    found: dict[str, Any] = {}
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigurationError(f"cannot read the secrets in {folder}: {error.strerror}") from None
    for file in files:
        section, dot, key = file.name.removeprefix(CREDENTIALS_PREFIX).partition(".")
        if dot and section in Settings.model_fields and key and file.is_file():
            found.setdefault(section, {})[key] = read_text(file, ConfigurationError).strip()
    return found


def beside(path: Path | None, other: Path) -> Path:
    """Resolve a path in the configuration file; a relative path starts at the file's folder."""
    return ((path.parent if path else Path()) / other).resolve()


def _secret_folders(path: Path | None, toml: dict[str, Any], environ: Mapping[str, str]) -> list[Path]:
    folders = [Path(folder) for folder in [environ.get("CREDENTIALS_DIRECTORY")] if folder]
    own = environ.get(f"{PREFIX}SERVER__SECRETS") or _value(toml, "server", "secrets")
    if isinstance(own, str):
        folders.append(beside(path, Path(own)))
    return folders


def _value(toml: dict[str, Any], section: str, key: str) -> object:
    content = toml.get(section)
    return content.get(key) if isinstance(content, dict) else None


def _unknown_sections(environ: Mapping[str, str]) -> list[str]:
    names = [name for name in environ if name.upper().startswith(PREFIX) and name.upper() != CONFIG_VARIABLE]
    return [
        f"{name}: unknown variable; use {PREFIX}SECTION__KEY, "
        f"where SECTION is one of {', '.join(Settings.model_fields)}"
        for name in names
        if name[len(PREFIX) :].lower().partition("__")[0] not in Settings.model_fields or "__" not in name
    ]


def _explain(error: ValidationError, *, section: str | None = None) -> list[str]:
    """Return one line per problem, with the setting, its value (unless that may be a secret) and the reason."""
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in ((section,) if section else ()) + problem["loc"])
        text = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "missing":
            lines.append(f"{key} is required: {_how_to_set(key)}")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown setting ({_nearest(key)})")
        elif not key:
            lines.append(text)
        else:
            shown = problem["input"] is not None and "@" not in str(problem["input"]) and not _is_secret(key)
            given = f" {problem['input']!r}:" if shown else ""
            lines.append(f"{key}:{given} {text[0].lower()}{text[1:]}")
    return lines


def _nearest(key: str) -> str:
    """Return a hint that contains the most similar known setting."""
    section, _, name = key.partition(".")
    field = Settings.model_fields.get(section)
    if field is None:
        found = get_close_matches(section, Settings.model_fields, n=1)
    elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        found = [f"{section}.{one}" for one in get_close_matches(name, field.annotation.model_fields, n=1)]
    else:
        found = []
    return f"did you mean {found[0]}?" if found else "see `amo-callback config example`"


def _how_to_set(key: str) -> str:
    variable = PREFIX + key.upper().replace(".", "__")
    if "." not in key:
        return f"add the section [{key}] to the configuration file, or set {variable}__…"
    return f"set it in the configuration file, in a secret file named {key}, or in the variable {variable}"


def _is_secret(key: str) -> bool:
    return any(key.startswith(secret) or secret.startswith(f"{key}.") for secret in SECRETS)
