"""The command's client of the private API, and its answers without a running service."""

from __future__ import annotations

import asyncio
import errno
import socket
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientConnectorError, web
from aiohttp.client_reqrep import ConnectionKey

from amo_callback import probe
from amo_callback.cli.api_client import connection_error, open_api
from amo_callback.cli.context import load_context
from amo_callback.clock import SystemClock
from amo_callback.errors import CommandFailed
from amo_callback.identity import Scope
from amo_callback.store import open_store
from tests.builders import a_connection
from tests.cli.harness import API_KEY, answering, context_in, fill
from tests.service import environment

if TYPE_CHECKING:
    from pathlib import Path

    from amo_callback.crypto import Cipher
    from tests.service import Amo

_SEEN = probe.ObservedClient(peer="127.0.0.1", forwarded=False, client="127.0.0.1")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('192.0.2.1', 1)"), "Connection refused"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError("Multiple exceptions: …"), "no server is listening"),
    ],
)
def test_connection_error_names_reason_without_address(error: OSError, reason: str) -> None:
    """The reason is the error text of the operating system or of the resolver."""
    key = ConnectionKey("a.example", 1, is_ssl=False, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None)
    assert connection_error(ClientConnectorError(key, error)) == reason


@pytest.mark.parametrize("said", ["", "nonsense", "echo"])
async def test_api_client_unproven_service_gets_no_api_key(tmp_path: Path, encryption_key: str, said: str) -> None:
    """A listener that cannot prove to be the service gets no API key, because any local user may listen there."""
    heard: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        heard.extend(request.headers.values())
        question = request.headers[probe.HEADER]
        return web.Response(headers={probe.HEADER: question if said == "echo" else said})

    async with answering(answer) as address:
        place = context_in(tmp_path, encryption_key, SERVER__PRIVATE=address)
        with pytest.raises(CommandFailed, match="did not prove that it has the configured encryption keys"):
            async with open_api(place, scope=Scope.READ):
                pass
    assert heard
    assert not any(API_KEY in value for value in heard)


@pytest.mark.parametrize(("status", "text"), [(200, "[]"), (200, '{"a": 1}'), (404, '"no such page"'), (502, "")])
async def test_api_client_foreign_answer_is_command_error(
    tmp_path: Path, encryption_key: str, cipher: Cipher, status: int, text: str
) -> None:
    """An answer that the service would not send is reported as another server's, without a traceback."""

    async def answer(request: web.Request) -> web.Response:
        if request.path != "/healthz":
            return web.Response(status=status, text=text)
        proof = probe.reply_to(cipher, request.headers[probe.HEADER], seen=_SEEN)
        return web.Response(headers={probe.HEADER: proof or ""})

    async with (
        answering(answer) as address,
        open_api(context_in(tmp_path, encryption_key, SERVER__PRIVATE=address), scope=Scope.READ) as api,
    ):
        with pytest.raises(
            CommandFailed, match=rf"server\.private: another server is listening at this address \(HTTP {status}\)"
        ):
            await api.pages("/connections", limit=1)


async def test_api_client_without_service_starts_no_task(
    tmp_path: Path, amo: Amo, encryption_key: str, cipher: Cipher
) -> None:
    """Without a service the store answers alone: no freeze, no stored pair and no request to AMO."""
    (tmp_path / "rescue").mkdir()
    (tmp_path / "rescue" / "kept").write_bytes(b"a pair that waits")
    environ = {**environment(amo, encryption_key, API__KEYS=""), "STATE_DIRECTORY": str(tmp_path)}
    context = load_context(None, environ)
    stored = a_connection(0)
    in_doubt = "UPDATE connections SET possibly_spent_token = 'a fingerprint'"
    async with open_store("sqlite:///amo-callback.db", folder=tmp_path, clock=SystemClock()) as store:
        await store.check_machine("another place")
        await fill(store, cipher, 1, now=SystemClock().now())
    with closing(sqlite3.connect(tmp_path / "amo-callback.db")) as database, database:
        database.execute(in_doubt)
    async with open_api(context, scope=Scope.ADMIN) as api:
        assert [one["id"] for one in await api.pages("/connections", limit=9)] == [stored.id]
        token = await api.token(stored.id)
        assert (token["access_token"], token["stale"], token["reason"]) == ("access-0", True, "in_doubt")
        with pytest.raises(CommandFailed, match="only a running service refreshes"):
            await api.refresh(stored.id)
        running = {task.get_name() for task in asyncio.all_tasks()}
        assert not {"refresher", "stats", "webhooks"} & running
    async with open_store("sqlite:///amo-callback.db", folder=tmp_path, clock=SystemClock()) as store:
        assert await store.frozen() is None
    assert amo.sandbox.requests == 0
    assert [file.name for file in (tmp_path / "rescue").iterdir()] == ["kept"]
