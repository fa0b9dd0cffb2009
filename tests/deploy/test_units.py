"""Rendered systemd units, and paths that the service cannot use."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from amo_callback.deploy import units
from amo_callback.errors import ConfigurationError

PYTHON = units.Interpreter(
    venv=Path("/opt/amo-callback/venv"), base=Path("/usr"), executable=Path("/usr/bin/python3.11")
)
HERE = units.Installation(
    interpreter=PYTHON,
    config=Path("/etc/amo-callback/config.toml"),
    credentials=Path("/etc/amo-callback/credentials"),
    public="127.0.0.1:8080",
    private="127.0.0.1:8081",
    socket_mode="0660",
    amo_timeout=15.0,
)


def _values(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def test_service_unit_contains_paths_of_installation() -> None:
    """The command, the credentials and the executable paths come from the installation."""
    text = units.render(units.SERVICE, HERE)
    assert _values(text, "ExecStart") == [
        "/opt/amo-callback/venv/bin/amo-callback serve --config /etc/amo-callback/config.toml"
    ]
    assert _values(text, "LoadCredential") == ["amo-callback:/etc/amo-callback/credentials"]
    assert _values(text, "ExecPaths") == [
        "/opt/amo-callback/venv /usr/bin/python3.11 /usr/lib -/usr/lib64 -/lib -/lib64 /bin/kill"
    ]


@pytest.mark.parametrize(("timeout", "stop"), [(15.0, "60"), (50.0, "60"), (50.5, "61"), (300.0, "310")])
def test_service_unit_stop_timeout_exceeds_amo_timeout(timeout: float, stop: str) -> None:
    """The stop timeout is ten seconds more than `amo.timeout`, at least a minute, and passed to the service."""
    text = units.render(units.SERVICE, dataclasses.replace(HERE, amo_timeout=timeout))
    assert _values(text, "TimeoutStopSec") == [stop]
    assert f"{units.STOP_TIMEOUT}={stop}" in _values(text, "Environment")
    assert units.fits_stop_timeout(timeout, float(stop))


def test_service_unit_allows_libraries_of_own_interpreter() -> None:
    """The libraries of an interpreter outside /usr may be executed."""
    python = dataclasses.replace(PYTHON, base=Path("/opt/python"), executable=Path("/opt/python/bin/python3.13"))
    text = units.render(units.SERVICE, dataclasses.replace(HERE, interpreter=python))
    assert "/opt/python/bin/python3.13 /opt/python/lib " in _values(text, "ExecPaths")[0]


@pytest.mark.parametrize(
    ("address", "stream"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("localhost:8080", "127.0.0.1:8080"),
        ("[::1]:8080", "[::1]:8080"),
        ("unix:/run/amo-callback/public.sock", "/run/amo-callback/public.sock"),
    ],
)
def test_socket_unit_listens_at_configured_address(address: str, stream: str) -> None:
    """Each kind of address is written as systemd reads it, with the listener's name."""
    text = units.render(units.SOCKETS[0], dataclasses.replace(HERE, public=address))
    assert _values(text, "ListenStream") == [stream]
    assert _values(text, "FileDescriptorName") == ["public"]


@pytest.mark.parametrize("name", units.SOCKETS)
def test_socket_unit_sets_mode_and_group(name: str) -> None:
    """The socket has the configured mode and the service's group, because systemd admits every user by default."""
    text = units.render(name, dataclasses.replace(HERE, socket_mode="0640"))
    assert (_values(text, "SocketMode"), _values(text, "SocketGroup")) == (["0640"], ["amo-callback"])


def test_socket_unit_with_host_name_is_refused() -> None:
    """A host name is refused, because systemd listens on addresses only."""
    with pytest.raises(ConfigurationError, match=r"server\.private: 'db\.example:8081'"):
        units.render(units.SOCKETS[1], dataclasses.replace(HERE, private="db.example:8081"))


@pytest.mark.parametrize("path", ["/etc/a b", "/etc/%n", "/etc/$HOME", '/etc/"', "/etc/a\nExecStart=/bin/sh", "etc"])
def test_service_unit_with_unsafe_path_is_refused(path: str) -> None:
    """A path with a blank, specifier, variable, quote or line break is refused, and so is a relative path."""
    with pytest.raises(ConfigurationError, match="absolute paths"):
        units.render(units.SERVICE, dataclasses.replace(HERE, credentials=Path(path)))


@pytest.mark.parametrize("folder", ["/home/me", "/root", "/run/user/1000", "/tmp", "/srv", "/mnt"])  # noqa: S108 -- refused
@pytest.mark.parametrize("part", ["venv", "executable"])
def test_check_places_hidden_path_is_refused_with_remedy(folder: str, part: str) -> None:
    """A virtual environment or interpreter that the unit hides is refused with the remedy."""
    path = Path(folder) / "x"
    python = dataclasses.replace(PYTHON, venv=path) if part == "venv" else dataclasses.replace(PYTHON, executable=path)
    with pytest.raises(ConfigurationError, match="under /opt with /usr/bin/python3") as refused:
        units.check_places(dataclasses.replace(HERE, interpreter=python))
    assert refused.value.problems[0].startswith(f"{path} is in ")


def test_check_places_refuses_every_inaccessible_path() -> None:
    """Each path that the unit makes inaccessible is refused."""
    for folder in _values(units.text_of(units.SERVICE), "InaccessiblePaths")[0].split():
        with pytest.raises(ConfigurationError):
            units.check_places(dataclasses.replace(HERE, config=Path(folder.removeprefix("-")) / "config.toml"))
    units.check_places(HERE)


def test_check_places_without_virtual_environment_is_refused() -> None:
    """Without a virtual environment all of /usr would be executable."""
    with pytest.raises(ConfigurationError, match="not a virtual environment"):
        units.check_places(dataclasses.replace(HERE, interpreter=dataclasses.replace(PYTHON, venv=Path("/usr"))))


def test_units_pass_systemd_analyze(tmp_path: Path) -> None:
    """`systemd-analyze` verifies the units, and the exposure is 1.1 of 10 or lower."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None or not Path("/usr/bin/python3").exists():
        pytest.skip("systemd-analyze is not installed")
    backup = (units.BACKUP_SERVICE, "amo-callback-backup.timer")
    for name in (*units.UNITS, *backup):
        text = units.render(name, HERE).replace("/opt/amo-callback/venv/bin/amo-callback", "/usr/bin/python3")
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = [str(tmp_path / name) for name in units.UNITS]
    rated = [analyze, "security", "--offline=true", "--threshold=11", "--no-pager", files[-1]]
    files += [str(tmp_path / name) for name in backup]
    for command in ([analyze, "verify", "--recursive-errors=no", *files], rated):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- a constant command
        assert done.returncode == 0, done.stdout + done.stderr


def test_find_accepts_name_without_suffix() -> None:
    """A name without its suffix is found if it is unique."""
    assert units.find("nginx") == units.find("nginx.conf") == "nginx.conf"
    assert units.find("nginx-proxy") == "nginx-proxy.conf"
    assert units.find("amo-callback") is None
    assert units.find("backup.timer") == "amo-callback-backup.timer"
    assert units.find("public") is None
    assert units.find("../units") is None
    assert {"nginx.conf", units.SYSUSERS, *units.UNITS} <= set(units.names())
