"""Commands with a PostgreSQL database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.cli.main import main
from amo_callback.clock import SystemClock
from amo_callback.crypto import Cipher
from amo_callback.store import open_store
from tests.builders import a_connection
from tests.cli.harness import environ_with, fill
from tests.e2e.process import command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.postgres import Databases

URL = "AMO_CALLBACK_STORAGE__URL"


@pytest.fixture
async def environ(postgres: Databases, encryption_key: str, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """Return the environment of a stopped service with two connections in its database."""
    cipher, now = Cipher([encryption_key]), SystemClock().now()
    async with postgres.fresh() as url:
        async with open_store(url, folder=tmp_path, clock=SystemClock()) as store:
            await fill(store, cipher, 2, now=now)
        settings = {"STORAGE__ENCRYPTION_KEYS": encryption_key, "STORAGE__URL": url}
        yield {**environ_with(SERVER__PRIVATE="127.0.0.1:1", **settings), "STATE_DIRECTORY": str(tmp_path)}


def _run(environ: dict[str, str], *arguments: str) -> int:
    return main(arguments, environ=environ)


def _printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_connections_are_listed_frozen_and_thawed_without_service(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a running service the command opens the database itself."""
    assert _run(environ, "connections", "list", "--json") == 0
    assert len(_printed(capsys)) == 2
    for action, frozen in (("freeze", True), ("thaw", False)):
        assert _run(environ, "connections", action, "--all", "--json") == 0
        assert _printed(capsys)["frozen"] is frozen
    assert _run(environ, "events", "--json") == 0
    names = [event["name"] for event in _printed(capsys)]
    assert [name for name in names if name.startswith("service.")] == ["service.thawed", "service.frozen"]


def test_token_webhooks_and_rotate_keys_without_service(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands that read and the key rotation work without a running service."""
    assert _run(environ, "token", a_connection(1).id, "--json") == 0
    assert _printed(capsys)["access_token"] == "access-1"
    assert _run(environ, "webhooks", "--json") == 0
    assert _printed(capsys) == []
    _run(environ, "rotate-keys", "--json")  # exit status 1: the tests' grants are encrypted with no key
    assert _printed(capsys)["keys"][0]["connections"] == 2


@pytest.mark.parametrize("arguments", [("backup", "copy"), ("restore", "copy", "--yes")])
def test_backup_and_restore_refer_to_pg_dump(
    arguments: tuple[str, ...], environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Backup and restore refer to PostgreSQL's own tools."""
    assert _run(environ, *arguments) == 1
    assert "pg_dump" in capsys.readouterr().err
    assert not Path("copy").exists()


def test_command_unreachable_server_hides_password(
    environ: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unreachable server is reported with the reason and without the password."""
    environ[URL] = f"postgresql://u:sekret@/amo?host={tmp_path}"
    assert _run(environ, "connections", "list") == 1
    result = capsys.readouterr().err
    assert "the socket, or a certificate, does not exist" in result
    assert "sekret" not in result


async def test_export_and_import_between_servers(
    environ: dict[str, str], postgres: Databases, encryption_key: str, tmp_path: Path
) -> None:
    """Exported connections are frozen at the source and imported at the target."""
    (tmp_path / "key").write_text(encryption_key)
    async with postgres.fresh() as url:
        export = ("connections", "export", "out", "--to-key-file", "key")
        status, _, err = await command(*export, folder=tmp_path, environ=environ)
        assert status == 0, err
        status, out, err = await command(
            "connections", "import", "out", "--yes", folder=tmp_path, environ={**environ, URL: url}
        )
        assert status == 0, err
        assert "Imported 2 connections." in out
        async with open_store(environ[URL], folder=tmp_path, clock=SystemClock()) as store:
            assert await store.frozen() is not None
