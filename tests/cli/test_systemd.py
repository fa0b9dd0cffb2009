"""`systemd print`, `install` and `uninstall` in a folder that replaces the root directory."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from amo_callback.cli.systemd import Target, install
from amo_callback.deploy import units
from amo_callback.errors import ConfigurationError
from tests.cli.harness import typed
from tests.deploy.test_units import PYTHON
from tests.e2e.process import command

CONFIG = """
[server]
secrets = "credentials"
public = "127.0.0.1:9080"
[amo]
client_id = "c619"
redirect_uri = "https://admin.example.com/api/amo-crm/callback"
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc/amo-callback").mkdir(parents=True)
    (tmp_path / "etc/amo-callback/config.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


def _install(root: Path, *, agreed: bool = False) -> int:
    target = Target(root=root, real=False)
    return install(target, interpreter=PYTHON, config=units.CONFIG, agreed=agreed, terminal=False)


def _files(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(root)): (path.read_text(encoding="utf-8"), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


def test_install_writes_units_and_secrets(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Units have the configured addresses, keys are created but not shown, and the missing secret is named."""
    assert _install(root) == 0
    result = capsys.readouterr().out
    folder = root / "etc/amo-callback/credentials"
    made = {path.name: path.read_text(encoding="utf-8").strip() for path in folder.iterdir()}
    assert set(made) == {"storage.encryption_keys", "api.keys"}
    assert made["api.keys"].startswith("backend:")
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "ListenStream=127.0.0.1:9080\n" in (root / "etc/systemd/system" / units.SOCKETS[0]).read_text()
    assert f"{folder}/amo.client_secret is missing: create it" in result
    assert result.endswith("next: systemctl enable --now amo-callback\n")
    assert [secret for secret in made.values() if secret.rpartition(":")[2] in result] == []


def test_install_repeated_changes_nothing(root: Path) -> None:
    """A second installation touches no file."""
    _install(root)
    before = _files(root)
    assert _install(root) == 0
    assert _files(root) == before


def test_install_keeps_secret_of_configuration(root: Path) -> None:
    """No encryption key is created if the configuration has one, because a new one would not decrypt the database."""
    config = root / "etc/amo-callback/config.toml"
    config.write_text(CONFIG + '[storage]\nencryption_keys = "given"\n[api]\nkeys = ""\n', encoding="utf-8")
    _install(root)
    assert [path.name for path in (root / "etc/amo-callback/credentials").iterdir()] == ["api.keys"]


def test_install_changed_unit_is_replaced_only_with_yes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed unit is replaced only with confirmation or `--yes`, and the difference is shown."""
    _install(root)
    unit = root / "etc/systemd/system" / units.SERVICE
    ours = unit.read_text(encoding="utf-8")
    unit.write_text(ours.replace("WatchdogSec=30", "WatchdogSec=90"), encoding="utf-8")
    before = _files(root)
    assert _install(root) == 2
    assert _files(root) == before
    assert "use --yes" in capsys.readouterr().err
    assert _install(root, agreed=True) == 0
    result = capsys.readouterr().out
    assert "\n-WatchdogSec=90\n+WatchdogSec=30\n" in result
    assert result.endswith(f"next: systemctl restart {' '.join(units.UNITS)}\n")
    assert unit.read_text(encoding="utf-8") == ours


ASKING = """
import sys
from pathlib import Path
from amo_callback.cli.systemd import Target, install
from amo_callback.deploy.units import CONFIG, Interpreter
python = Interpreter(venv=Path("/opt/x/venv"), base=Path("/usr"), executable=Path("/usr/bin/python3"))
install(Target(root=Path(sys.argv[1]), real=False), interpreter=python, config=CONFIG, agreed=False, terminal=True)
"""


async def test_install_on_terminal_asks_for_client_secret(root: Path) -> None:
    """The client secret is typed on the terminal, stored and not shown."""
    answers = [("Secret key", "the-secret-key\n")]
    status, shown = await typed(str(root), folder=root, answers=answers, program=("-c", ASKING))
    assert status == 0
    secret = root / "etc/amo-callback/credentials/amo.client_secret"
    assert (secret.read_text(encoding="utf-8"), stat.S_IMODE(secret.stat().st_mode)) == ("the-secret-key\n", 0o600)
    assert "the-secret-key" not in shown
    assert "before you start" not in shown


def test_install_invalid_configuration_writes_nothing(root: Path) -> None:
    """A missing configuration or an invalid address is reported before any file is created."""
    config = root / "etc/amo-callback/config.toml"
    config.write_text('[server]\npublic = "nowhere"\n', encoding="utf-8")
    before = _files(root)
    with pytest.raises(ConfigurationError, match=r"server\.public: 'nowhere'"):
        _install(root)
    assert _files(root) == before
    config.unlink()
    with pytest.raises(ConfigurationError, match=r"is missing: run `amo-callback init --systemd --config .*`"):
        _install(root)
    assert _files(root) == {}


async def test_uninstall_removes_units_only(root: Path) -> None:
    """Configuration and secrets are kept, and a second run removes nothing."""
    before = {name: content for name, content in _files(root).items() if "systemd" not in name}
    _install(root)
    for expected in (3, 0):
        status, out, err = await command("systemd", "uninstall", "--root", str(root), folder=root)
        assert (status, out.count(": removed"), err) == (0, expected, "")
        assert "are kept" in out
    assert not list((root / "etc/systemd/system").iterdir())
    assert before.items() <= _files(root).items()
    assert len(list((root / "etc/amo-callback/credentials").iterdir())) == 2


async def test_print_prints_each_file(tmp_path: Path) -> None:
    """Without a name the command lists the names; with a name it prints that file, and units have their settings."""
    _, listed, _ = await command("systemd", "print", folder=tmp_path)
    assert listed.split() == units.names()
    config = ("--config", str(tmp_path / "none.toml"))
    _, nginx, _ = await command("systemd", "print", "nginx", *config, folder=tmp_path)
    status, socket, _ = await command("systemd", "print", units.SOCKETS[0], *config, folder=tmp_path)
    assert nginx == units.text_of("nginx.conf")
    assert (status, "ListenStream=127.0.0.1:8080\n" in socket) == (0, True)
    status, out, err = await command("systemd", "print", "nothing", *config, folder=tmp_path)
    assert (status, out, "unknown file nothing: choose one of " in err) == (2, "", True)


async def test_print_unit_uses_configured_timeout(tmp_path: Path) -> None:
    """`TimeoutStopSec` follows `amo.timeout`, even if other settings are missing."""
    config = tmp_path / "config.toml"
    config.write_text("[amo]\ntimeout = 90\n", encoding="utf-8")
    status, out, _ = await command("systemd", "print", "amo-callback.service", "--config", str(config), folder=tmp_path)
    assert status == 0
    assert "\nTimeoutStopSec=100\n" in out


async def test_install_without_root_is_refused(tmp_path: Path) -> None:
    """Without root on a systemd machine, the error names `--root`."""
    if Path("/run/systemd/system").is_dir():
        pytest.skip("this machine is one that could be installed on")
    status, out, err = await command("systemd", "install", folder=tmp_path)
    assert (status, out) == (1, "")
    assert "--root FOLDER" in err
