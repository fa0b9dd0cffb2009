"""Pure functions that fill the files in this folder with the values of an installation."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from importlib import resources
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from amo_callback.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE = "amo-callback.service"
SOCKETS = ("amo-callback-public.socket", "amo-callback-private.socket")
UNITS = (*SOCKETS, SERVICE)
BACKUP_SERVICE = "amo-callback-backup.service"
SYSUSERS = "amo-callback.sysusers"
CONFIG = Path("/etc/amo-callback/config.toml")

STOP_TIMEOUT = "TIMEOUT_STOP_SEC"
"""The environment variable in which the unit repeats `TimeoutStopSec=`, which systemd itself does not pass."""
STOP_RESERVE = 10.0
"""The seconds by which `TimeoutStopSec=` must exceed `amo.timeout`, so that a pair is still stored at shutdown."""
_LEAST_STOP_TIMEOUT = 60
_UNIX = "unix:"
_PREFIX = "amo-callback-"
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp", "/srv", "/boot", "/mnt", "/media", "/dev", "/proc")  # noqa: S108 -- the unit hides these folders
"""Folders that the unit hides from the service."""
_EXECUTABLE = ("/usr/lib", "-/usr/lib64", "-/lib", "-/lib64", "/bin/kill")
_PLAIN = re.compile(r"/[A-Za-z0-9._/+@~-]*")
"""An absolute path without characters that have a special meaning in a unit file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interpreter:
    """The running Python and its virtual environment."""

    venv: Path
    base: Path
    """The installation on which the virtual environment is based (`sys.base_prefix`)."""
    executable: Path
    """The path of the binary, with symbolic links resolved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Installation:
    interpreter: Interpreter
    config: Path
    credentials: Path
    public: str
    private: str
    socket_mode: str
    amo_timeout: float


def names() -> list[str]:
    """Return the names of the files in this folder, except Python modules."""
    files = (entry.name for entry in resources.files(__package__).iterdir() if entry.is_file())
    return sorted(name for name in files if not name.endswith(".py"))


def find(name: str) -> str | None:
    """Return a file's full name; `name` can lack the suffix, or the prefix `amo-callback-`, if one file matches."""
    known = names()
    fitting = [one for one in known if one == name] or [
        one for one in known if name in {one.rpartition(".")[0], one.removeprefix(_PREFIX)}
    ]
    return fitting[0] if len(fitting) == 1 else None


def text_of(name: str) -> str:
    """Return the unchanged text of a file in this folder."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def render(name: str, installation: Installation) -> str:
    """Return a file with the values filled in; raises `ConfigurationError` for values that a unit cannot contain."""
    text = text_of(name)
    return text.format_map(_values(installation)) if name in {*UNITS, BACKUP_SERVICE} else text


def check_places(installation: Installation) -> None:
    """Raise `ConfigurationError` if the unit would hide the program from the service."""
    python = installation.interpreter
    problems = [
        f"{path} is in {hidden}, which the unit hides: create the virtual environment under /opt with /usr/bin/python3"
        for path in dict.fromkeys((python.venv, python.executable))
        if (hidden := _hidden(path))
    ]
    if python.venv == python.base:
        problems.append(
            f"{python.venv} is not a virtual environment, so ExecPaths= in the unit would have to contain this folder: "
            "create a virtual environment under /opt with /usr/bin/python3"
        )
    if hidden := _hidden(installation.config):
        problems.append(
            f"{installation.config} is in {hidden}, which the service cannot access: move it to {CONFIG.parent}"
        )
    if problems:
        raise ConfigurationError(*problems)


def fits_stop_timeout(amo_timeout: float, stop_timeout: float) -> bool:
    """Return whether the service has enough time to stop before systemd kills it."""
    return amo_timeout <= stop_timeout - STOP_RESERVE


def _hidden(path: Path) -> str | None:
    return next((folder for folder in _HIDDEN if path.is_relative_to(folder)), None)


def _values(installation: Installation) -> Mapping[str, str]:
    return {
        "venv": _plain(installation.interpreter.venv),
        "config": _plain(installation.config),
        "credentials": _plain(installation.credentials),
        "executable": " ".join(_executable(installation.interpreter)),
        "public": _stream("public", installation.public),
        "private": _stream("private", installation.private),
        "socket_mode": installation.socket_mode,
        "stop_timeout": str(max(math.ceil(installation.amo_timeout + STOP_RESERVE), _LEAST_STOP_TIMEOUT)),
    }


def _executable(python: Interpreter) -> list[str]:
    """Return the paths for `ExecPaths=`, which are exempt from `NoExecPaths=/`."""
    ours = [_plain(python.venv), _plain(python.executable)]
    if python.base != Path("/usr"):
        ours.append(f"{_plain(python.base)}/lib")
    return [*dict.fromkeys((*ours, *_EXECUTABLE))]


def _stream(name: str, address: str) -> str:
    """Return an address for `ListenStream=`, which does not accept host names."""
    if address.startswith(_UNIX):
        return _plain(Path(address.removeprefix(_UNIX)))
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        numbers = ip_address(host)
    except ValueError:
        raise ConfigurationError(
            f"server.{name}: {address!r} contains a host name, but systemd requires an IP address"
        ) from None
    return f"[{numbers}]:{port}" if numbers.version == 6 else f"{numbers}:{port}"


def _plain(path: Path) -> str:
    if not _PLAIN.fullmatch(str(path)):
        raise ConfigurationError(
            f"{str(path)!r} cannot be used in a unit: use absolute paths with only letters, digits and . _ / + @ ~ -"
        )
    return str(path)
