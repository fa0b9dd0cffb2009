"""`amo-callback init` as a person runs it on a terminal, and as a script does."""

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


async def test_a_person_is_asked_and_has_a_configuration(tmp_path: Path) -> None:
    """Each answer is looked at when it is given, a bad one asked for again with why; no secret is to be seen."""
    status, shown = await typed(
        "init",
        folder=tmp_path,
        answers=[
            ("Address", "\n"),
            ("Address", "https://admin.example.com/somewhere\n"),
            ("Address", "http://admin.example.com\n"),
            ("Address", "admin.example.com\n"),
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
        "Error: it must have no path, or one that ends in /callback, where the service listens",
        "Error: it must begin with https:// (http:// only for 127.0.0.1, ::1 and localhost)",
        'Error: it must be the "Integration ID", 36 characters like 00000000-0000-0000-0000-000000000000',
        'Error: it must be the "Secret key" alone: one line, without spaces',
        "Error: it must be an address like foryoure://amo-crm/callback, without ? and #",
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


async def test_what_is_registered_stands_before_the_question_that_needs_it_and_at_the_end(tmp_path: Path) -> None:
    """The redirect URI and the hook beside it, byte for byte; a secret key may wait, and is told where it goes."""
    status, shown = await typed(
        "init",
        "--deep-link",
        "app:x",
        folder=tmp_path,
        answers=[("Address", f"{URI}\n"), ("Integration", f"{ID}\n"), ("Secret", "\n")],
    )
    assert status == 0
    asked, end = shown.split("Integration ID: ")
    for told in (asked, end):
        assert re.search(f"redirect URI +{URI}\n", told)
        assert re.search("hook for disabling +https://admin.example.com/api/amo-crm/hooks/disconnect\n", told)
    assert "Later: the secret key goes into config.toml, as client_secret below [amo].\n" in end
    assert end.endswith("Next:\n  amo-callback check\n  amo-callback serve\n")
    status, out, err = await command("serve", folder=tmp_path)
    assert (status, out) == (78, "")
    assert [line.rpartition(": ")[0] for line in err.splitlines()] == ["amo-callback: amo.client_secret: required"]


async def test_whoever_gives_up_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-D: nothing is written before the last answer."""
    status, shown = await typed("init", folder=tmp_path, answers=[("Address", f"{URI}\n"), ("Integration", "\x04")])
    assert status == 1
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in shown


async def test_options_are_enough_and_the_service_starts(tmp_path: Path) -> None:
    """Without a terminal nothing is asked; what was written is a configuration that works as it is."""
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
        ours = ("secrets", "configuration", "redirect_uri", "deep_link", "api_keys", "private_door", "store", "rescue")
        assert {name: found[name] for name in ours} == dict.fromkeys(ours, "ok")


async def test_a_secret_comes_by_standard_input(tmp_path: Path) -> None:
    """`-` is what a secret store is piped into."""
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
        (("--redirect-uri", "https://a.example/x"), "'--redirect-uri': it must have no path, or one that ends in"),
        (("--client-secret-file", "no"), "'--client-secret-file': no: No such file or directory"),
        (("--deep-link", "javascript:alert(1)"), "'--deep-link': it must be a URL with the app's own scheme"),
        (("--database", "mysql://a/b"), "'--database': it must begin with sqlite:/// and name a file"),
        (("--database", "postgresql://u:sekret@h/d"), "'--database': it holds a password, and other users"),
        ((*NEEDED, "--systemd", "--database", "sqlite:///a.db"), "--database: must begin with sqlite:////var/lib/"),
    ],
)
async def test_what_is_missing_or_wrong_is_told(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    """Exit status 2, and nothing is made."""
    status, out, err = await command("init", "--config", "c.toml", *options, folder=tmp_path)
    assert (status, out) == (2, "")
    assert said in err
    assert "sekret" not in err
    assert list(tmp_path.iterdir()) == []


def _link(path: Path) -> None:
    path.symlink_to(path.with_name("may_be_copy"))


@pytest.mark.parametrize(
    ("there", "make"),
    [("config.toml", Path.touch), ("amo-callback.db", Path.touch), ("config.toml", _link)],
    ids=["a configuration", "a database", "a link that leads nowhere"],
)
async def test_nothing_that_is_there_is_replaced(tmp_path: Path, there: str, make: Callable[[Path], None]) -> None:
    """A configuration may hold the only copy of the key, a database takes no new one, and no link is followed."""
    make(tmp_path / there)
    before = _files(tmp_path)
    status, out, err = await command("init", *NEEDED, folder=tmp_path)
    assert (status, out) == (1, "")
    assert err.startswith(f"amo-callback: {there} exists")
    assert _files(tmp_path) == before


# --- for systemd ---------------------------------------------------------------------------------


async def _for_systemd(root: Path, *options: str, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    config = root / "etc/amo-callback/config.toml"
    return await command("init", "--systemd", "--config", str(config), *options, folder=root, environ=environ)


async def test_for_systemd_all_is_where_the_installation_finds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Secrets in files of root's, a configuration that the service may read, and nothing left to mend or to ask."""
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
    told = capsys.readouterr().out
    assert ("missing" in told, "mend" in told, "lets the command" in told) == (False, False, False)
    secrets = [content.decode().strip().rpartition(":")[2] for name, content in before.items() if "credentials" in name]
    assert [secret for secret in secrets if secret in out + told] == []


async def test_keys_that_are_there_already_are_kept(tmp_path: Path) -> None:
    """The configuration was lost, the database was not: its key stays the one."""
    folder = tmp_path / "etc/amo-callback/credentials"
    folder.mkdir(parents=True)
    (folder / "storage.encryption_keys").write_text("precious", encoding="utf-8")
    status, out, _ = await _for_systemd(tmp_path, *NEEDED)
    assert status == 0
    assert (folder / "storage.encryption_keys").read_text(encoding="utf-8") == "precious"
    assert f"{folder}/storage.encryption_keys: already existed and was kept\n" in out
    assert f"the secret key goes into {folder}/amo.client_secret; `systemd install` asks" in out


async def test_with_postgresql_service_and_command_share_a_rescue_folder(tmp_path: Path) -> None:
    """By default each would look into one of its own."""
    url = "postgresql://amo_callback@/amo_callback?host=/run/postgresql"
    assert (await _for_systemd(tmp_path, *NEEDED, "--database", url))[0] == 0
    storage = _toml(tmp_path / "etc/amo-callback/config.toml")["storage"]
    assert storage == {"url": url, "rescue": "/var/lib/amo-callback/rescue"}


async def test_without_any_configuration_serve_names_init(tmp_path: Path) -> None:
    """One line says what to do, rather than one for each setting that is missing."""
    status, out, err = await command("serve", folder=tmp_path)
    assert (status, out, len(err.splitlines())) == (78, "", 1)
    assert "`amo-callback init` writes one" in err


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
def test_an_address_or_the_redirect_uri_itself_is_taken(text: str, uri: str, base: str) -> None:
    """A redirect URI stays byte for byte; where its path is another one, the service listens there."""
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
def test_an_address_that_cannot_be_registered_is_refused(text: str) -> None:
    """With a reason, and never a trace."""
    with pytest.raises(ValueError, match=r"^(must|has) ") as raised:
        read_callback(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("read", [read_client_id, read_deep_link, read_database])
@pytest.mark.parametrize("text", ["", "a\udc80", "a:\x1b[2J", "a\nb"])
def test_what_moves_a_cursor_or_is_no_text_is_no_answer(read: object, text: str) -> None:
    """Whatever is asked for."""
    assert callable(read)
    with pytest.raises(ValueError, match=r"^must "):
        read(text)
