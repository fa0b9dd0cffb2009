"""The command, where the database is PostgreSQL's."""

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
    """Give the environment of a service that does not run, with two connections in its database."""
    cipher, now = Cipher([encryption_key]), SystemClock().now()
    async with postgres.fresh() as url:
        async with open_store(url, folder=tmp_path, clock=SystemClock()) as store:
            await fill(store, cipher, 2, now=now)
        settings = {"STORAGE__ENCRYPTION_KEYS": encryption_key, "STORAGE__URL": url}
        yield {**environ_with(SERVER__PRIVATE="127.0.0.1:1", **settings), "STATE_DIRECTORY": str(tmp_path)}


def _run(environ: dict[str, str], *arguments: str) -> int:
    return main(arguments, environ=environ)


def _told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_connections_are_listed_frozen_and_thawed(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Where no service runs the command opens the database itself; one thaw ends it."""
    assert _run(environ, "connections", "list", "--json") == 0
    assert len(_told(capsys)) == 2
    for action, frozen in (("freeze", True), ("thaw", False)):
        assert _run(environ, "connections", action, "--all", "--json") == 0
        assert _told(capsys)["frozen"] is frozen
    assert _run(environ, "events", "--json") == 0
    names = [event["name"] for event in _told(capsys)]
    assert [name for name in names if name.startswith("service.")] == ["service.thawed", "service.frozen"]


def test_tokens_webhooks_and_keys_are_told(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """What reads, and what seals again."""
    assert _run(environ, "token", a_connection(1).id, "--json") == 0
    assert _told(capsys)["access_token"] == "access-1"
    assert _run(environ, "webhooks", "--json") == 0
    assert _told(capsys) == []
    _run(environ, "rotate-keys", "--json")  # 1: the tests' grants are sealed with no key
    assert _told(capsys)["keys"][0]["connections"] == 2


@pytest.mark.parametrize("arguments", [("backup", "copy"), ("restore", "copy", "--yes")])
def test_files_are_not_made_of_it_or_put_back(
    arguments: tuple[str, ...], environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """PostgreSQL's own tools do that; what freezes by itself and what does not is told."""
    assert _run(environ, *arguments) == 1
    assert "pg_dump" in capsys.readouterr().err
    assert not Path("copy").exists()


def test_a_server_that_is_away_is_told_in_a_line(
    environ: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With why, and without its password."""
    environ[URL] = f"postgresql://u:sekret@/amo?host={tmp_path}"
    assert _run(environ, "connections", "list") == 1
    told = capsys.readouterr().err
    assert "the socket, or a certificate, does not exist" in told
    assert "sekret" not in told


async def test_connections_move_from_one_server_to_another(
    environ: dict[str, str], postgres: Databases, encryption_key: str, tmp_path: Path
) -> None:
    """What was exported is frozen there, and imported elsewhere it is whole."""
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
