"""`amo-callback init` on a terminal and in a script."""

from __future__ import annotations

import asyncio
import json
import re
import stat
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from amo_callback.cli.init import read_callback, read_client_id, read_database, read_deep_link
from amo_callback.cli.systemd import Target, install
from amo_callback.config.loader import load_settings
from amo_callback.deploy import units
from amo_callback.identity import Scope, key_with
from tests.cli.harness import typed
from tests.deploy.test_units import PYTHON
from tests.e2e.process import command, process_environment, serving
from tests.wait_limit import WAIT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ID = "31920194-0000-4000-8000-00000000c619"
URI = "https://admin.example.com/api/amo-crm/callback"
SECRET = "the-secret-key"
NEEDED = ("--client-id", ID, "--redirect-uri", URI)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _secret_file(folder: Path, content: str = f"{SECRET}\n") -> str:
    path = folder / "secret-key"
    path.write_text(content, encoding="utf-8")
    return str(path)


async def test_init_on_terminal_asks_and_writes_configuration(tmp_path: Path) -> None:
    """Each answer is checked when it is typed, an invalid one is asked for again, and no secret is shown."""
    status, shown = await typed(
        "init",
        folder=tmp_path,
        answers=[
            ("URL (such as", "\n"),
            ("URL (such as", "https://admin.example.com/somewhere\n"),
            ("URL (such as", "http://admin.example.com\n"),
            ("URL (such as", "admin.example.com\n"),
            ("Integration ID", "c619\n"),
            ("Integration ID", f" {ID} \n"),
            ("Secret key", "two words\n"),
            ("Secret key", f"{SECRET}\n"),
            ("Deep link", "foryoure://a?b=c\n"),
            ("Deep link", "\n"),
        ],
    )
    assert status == 0
    assert [line for line in shown.splitlines() if line.startswith("Error: ")] == [
        "Error: it must have no path, or a path that ends in /callback",
        "Error: it must begin with https:// (or with http:// for 127.0.0.1, ::1 and localhost)",
        'Error: it must be the "Integration ID": 36 characters, such as 00000000-0000-0000-0000-000000000000',
        'Error: it must contain only the "Secret key": one line without spaces',
        "Error: it must be a URL such as foryoure://amo-crm/callback, without ? or #",
    ]
    config = tmp_path / "config.toml"
    written = _toml(config)
    assert _mode(config) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]
    assert written["amo"] == {"client_id": ID, "client_secret": SECRET, "redirect_uri": URI}
    assert written["app"] == {"deep_link": "foryoure://amo-crm/callback"}
    assert set(written) == {"amo", "app", "storage", "api"}
    secrets = [SECRET, written["storage"]["encryption_keys"], written["api"]["keys"].partition(":")[2]]
    assert [secret for secret in secrets if secret in shown] == []


async def test_init_shows_registration_values_before_question_and_at_end(tmp_path: Path) -> None:
    """The redirect URI and the hook are shown; the secret key may be added later, and the output names its setting."""
    status, shown = await typed(
        "init",
        "--deep-link",
        "app:x",
        folder=tmp_path,
        answers=[("URL (such as", f"{URI}\n"), ("Integration", f"{ID}\n"), ("Secret", "\n")],
    )
    assert status == 0
    asked, end = shown.split("Integration ID: ")
    for result in (asked, end):
        assert re.search(f"redirect URI +{URI}\n", result)
        assert re.search("disable hook +https://admin.example.com/api/amo-crm/hooks/disconnect\n", result)
    assert "Later, add the secret key to config.toml as client_secret under [amo].\n" in end
    assert end.endswith("Next:\n  amo-callback check\n  amo-callback serve\n")
    status, out, err = await command("serve", folder=tmp_path)
    assert (status, out) == (78, "")
    assert [line.rpartition(": ")[0] for line in err.splitlines()] == ["amo-callback: amo.client_secret is required"]


async def test_init_aborted_leaves_no_file(tmp_path: Path) -> None:
    """Nothing is written before the last answer."""
    status, shown = await typed(
        "init", folder=tmp_path, answers=[("URL (such as", f"{URI}\n"), ("Integration", "\x04")]
    )
    assert status == 1
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in shown


async def test_init_with_options_makes_working_configuration(tmp_path: Path) -> None:
    """With options no question is asked, and the service starts with the written configuration."""
    (place := tmp_path / "made" / "here").parent.mkdir()
    secret = _secret_file(tmp_path)
    status, out, err = await command(
        "init", *NEEDED, "--client-secret-file", secret, "--config", "made/here/config.toml", folder=tmp_path
    )
    assert (status, err) == (0, "")
    assert out.endswith("  amo-callback serve --config made/here/config.toml\n")
    assert _mode(place / "config.toml") == 0o600
    environ = {
        "AMO_CALLBACK_CONFIG": str(place / "config.toml"),
        "AMO_CALLBACK_SERVER__PUBLIC": "127.0.0.1:0",
        "AMO_CALLBACK_SERVER__PRIVATE": "127.0.0.1:0",
        "AMO_CALLBACK_LOG__FORMAT": "json",
    }
    keys = load_settings(place / "config.toml", {}).api.keys.get_secret_value()
    assert key_with(keys, Scope.TOKEN) == keys.partition(":")[2]
    async with serving(environ, tmp_path) as process, aiohttp.ClientSession() as session:
        started = await process.until("service.started")
        async with session.get(f"http://{started['private']}/readyz") as answer:
            assert answer.status == 200, await answer.text()
        headers = {"Authorization": f"Bearer {keys.partition(':')[2]}"}
        async with session.get(f"http://{started['private']}/connections", headers=headers) as answer:
            assert answer.status == 200
        assert (place / "amo-callback.db").is_file()
        status, out, _ = await command("check", "--json", "--timeout", "0.1", folder=tmp_path, environ=environ)
        found = {one["check"]: one["severity"] for one in json.loads(out)["findings"]}
        ours = (
            "secrets",
            "configuration",
            "redirect_uri",
            "deep_link",
            "api_keys",
            "private_address",
            "store",
            "rescue",
        )
        assert {name: found[name] for name in ours} == dict.fromkeys(ours, "ok")


async def test_init_reads_secret_from_standard_input(tmp_path: Path) -> None:
    """`--client-secret-file -` reads the secret from standard input."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "amo_callback.cli.main", "init", *NEEDED, "--client-secret-file", "-",
        cwd=tmp_path, env=process_environment({}), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(f"{SECRET}\n".encode()), WAIT_LIMIT)
    assert process.returncode == 0
    assert _toml(tmp_path / "config.toml")["amo"]["client_secret"] == SECRET
    assert SECRET not in out.decode()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--redirect-uri is required with --no-input"),
        (NEEDED[2:], "--client-id is required with --no-input"),
        (("--redirect-uri", "https://a.example/x"), "'--redirect-uri': it must have no path, or a path that ends in"),
        (("--client-secret-file", "no"), "'--client-secret-file': no: No such file or directory"),
        (("--deep-link", "javascript:alert(1)"), "'--deep-link': it must be a URL with the app's own scheme"),
        (("--database", "mysql://a/b"), "'--database': it must begin with sqlite:/// and name a file"),
        (("--database", "postgresql://u:sekret@h/d"), "'--database': it contains a password, and other users"),
        ((*NEEDED, "--systemd", "--database", "sqlite:///a.db"), "--database must begin with sqlite:////var/lib/"),
    ],
)
async def test_init_missing_or_invalid_option_exits_2(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    """A missing or invalid option is named, and no file is created."""
    status, out, err = await command("init", "--config", "c.toml", *options, folder=tmp_path)
    assert (status, out) == (2, "")
    assert said in err
    assert "sekret" not in err
    assert list(tmp_path.iterdir()) == []


def _link(path: Path) -> None:
    path.symlink_to(path.with_name("missing"))


@pytest.mark.parametrize(
    ("there", "make"),
    [("config.toml", Path.touch), ("amo-callback.db", Path.touch), ("config.toml", _link)],
    ids=["a configuration", "a database", "a link that leads nowhere"],
)
async def test_init_existing_file_is_not_replaced(tmp_path: Path, there: str, make: Callable[[Path], None]) -> None:
    """A configuration or a database is not replaced, because it may be the only copy, and no link is followed."""
    make(tmp_path / there)
    before = _files(tmp_path)
    status, out, err = await command("init", *NEEDED, folder=tmp_path)
    assert (status, out) == (1, "")
    assert err.startswith("amo-callback: ")
    assert f"{there} " in err
    assert "exists" in err
    assert _files(tmp_path) == before


# --- for systemd ---------------------------------------------------------------------------------


async def _for_systemd(root: Path, *options: str, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    config = root / "etc/amo-callback/config.toml"
    return await command("init", "--systemd", "--config", str(config), *options, folder=root, environ=environ)


async def test_init_for_systemd_prepares_installation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Secrets are in root's files, the service may read the configuration, and the installation has nothing to fix."""
    status, out, err = await _for_systemd(tmp_path, *NEEDED, "--client-secret-file", _secret_file(tmp_path))
    assert (status, err) == (0, "")
    folder = tmp_path / "etc/amo-callback"
    assert (_mode(folder), _mode(folder / "config.toml"), _mode(folder / "credentials")) == (0o755, 0o644, 0o700)
    assert {file.name: _mode(file) for file in (folder / "credentials").iterdir()} == dict.fromkeys(
        ["amo.client_secret", "api.keys", "storage.encryption_keys"], 0o600
    )
    assert _toml(folder / "config.toml") == {
        "server": {"secrets": "credentials"},
        "amo": {"client_id": ID, "redirect_uri": URI},
        "app": {"deep_link": "foryoure://amo-crm/callback"},
        "storage": {"url": "sqlite:////var/lib/amo-callback/amo-callback.db"},
    }
    before = _files(folder)
    target = Target(root=tmp_path, real=False)
    assert install(target, interpreter=PYTHON, config=units.CONFIG, agreed=False, terminal=False) == 0
    assert _files(folder) == before
    result = capsys.readouterr().out
    assert ("missing" in result, "before you start" in result, "set secrets" in result) == (False, False, False)
    secrets = [content.decode().strip().rpartition(":")[2] for name, content in before.items() if "credentials" in name]
    assert [secret for secret in secrets if secret in out + result] == []


async def test_init_for_systemd_keeps_existing_keys(tmp_path: Path) -> None:
    """The encryption key of an existing database is kept."""
    folder = tmp_path / "etc/amo-callback/credentials"
    folder.mkdir(parents=True)
    (folder / "storage.encryption_keys").write_text("precious", encoding="utf-8")
    status, out, _ = await _for_systemd(tmp_path, *NEEDED)
    assert status == 0
    assert (folder / "storage.encryption_keys").read_text(encoding="utf-8") == "precious"
    assert f"{folder}/storage.encryption_keys: kept, because it already existed\n" in out
    assert f"Write the secret key to {folder}/amo.client_secret later, or enter it when\n" in out


async def test_init_for_systemd_with_postgresql_sets_rescue_folder(tmp_path: Path) -> None:
    """With PostgreSQL a common rescue folder is set, because the default differs between service and command."""
    url = "postgresql://amo_callback@/amo_callback?host=/run/postgresql"
    assert (await _for_systemd(tmp_path, *NEEDED, "--database", url))[0] == 0
    storage = _toml(tmp_path / "etc/amo-callback/config.toml")["storage"]
    assert storage == {"url": url, "rescue": "/var/lib/amo-callback/rescue"}


async def test_serve_without_configuration_names_init(tmp_path: Path) -> None:
    """Without a configuration one line names `init`, instead of one line per missing setting."""
    status, out, err = await command("serve", folder=tmp_path)
    assert (status, out, len(err.splitlines())) == (78, "", 1)
    assert "run `amo-callback init` to create one" in err


# --- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "uri", "base"),
    [
        ("admin.example.com", "https://admin.example.com/api/amo-crm/callback", "/api/amo-crm"),
        ("https://admin.example.com/", "https://admin.example.com/api/amo-crm/callback", "/api/amo-crm"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/api/amo-crm/callback", "/api/amo-crm"),
        ("https://a.example/crm/api/amo-crm/callback", "https://a.example/crm/api/amo-crm/callback", "/api/amo-crm"),
        ("https://A.example:8443/oauth/callback", "https://A.example:8443/oauth/callback", "/oauth"),
    ],
)
def test_read_callback_accepts_address_or_redirect_uri(text: str, uri: str, base: str) -> None:
    """A redirect URI is kept exactly, and another path becomes the base path."""
    found = read_callback(text)
    assert (found.redirect_uri, found.base_path) == (uri, base)
    assert found.hook == uri.removesuffix("/callback") + "/hooks/disconnect"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://a.example",
        "ftp://a.example",
        "https://",
        "https://[a.example",
        "https://a.example:port",
        "https://a.example:0",
        "https://u:p@a.example",
        "https://a.example/callback",
        "https://a.example/a b/callback",
        "https://a.example/%zz/callback",
        "https://a.example/x/callback?",
        "https://a.example/x/callback#a",
        "https://a.example/x/callback/",
        "https://пример.example",
        "a.example\x7f",
        "a.example\udc80",
    ],
)
def test_read_callback_invalid_address_is_refused(text: str) -> None:
    """An address that cannot be registered is refused with a reason of one line."""
    with pytest.raises(ValueError, match=r"^(must|has) ") as raised:
        read_callback(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("read", [read_client_id, read_deep_link, read_database])
@pytest.mark.parametrize("text", ["", "a\udc80", "a:\x1b[2J", "a\nb"])
def test_answer_with_control_character_is_refused(read: object, text: str) -> None:
    """Control characters and invalid text are refused in every answer."""
    assert callable(read)
    with pytest.raises(ValueError, match=r"^must "):
        read(text)
