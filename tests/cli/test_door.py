"""The command at the private door, and somebody else behind it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from amo_callback.cli.local import Place
from amo_callback.cli.operations import open_operations
from amo_callback.config_load import load_settings
from amo_callback.errors import CommandFailed
from amo_callback.identity import Scope
from amo_callback.observe.log import make_logger
from amo_callback.web.doors import open_door
from tests.conftest import API_KEY, environment
from tests.fakes import ShiftedClock

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Amo


@pytest.mark.parametrize(("status", "text"), [(200, "[]"), (200, '{"a": 1}'), (404, '"no such page"'), (502, "")])
async def test_somebody_else_at_the_door_is_no_bug_of_the_command(
    tmp_path: Path, amo: Amo, encryption_key: str, status: int, text: str
) -> None:
    """A port that another service has taken: what it answers is said to be none of ours, and there is no trace."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.path == "/healthz" else status, text=text)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    log = make_logger(level="error", style="json", stream=io.StringIO())
    async with open_door(app, "127.0.0.1:0", name="other", clock=ShiftedClock(), log=log) as door:
        settings = load_settings(
            None, environment(amo, encryption_key, SERVER__PRIVATE=door.address, API__KEYS=f"somebody:{API_KEY}")
        )
        place = Place(settings=settings, folder=tmp_path, database=tmp_path / "a.db", rescue=tmp_path / "rescue")
        async with open_operations(place, scope=Scope.READ) as operations:
            with pytest.raises(CommandFailed, match=f"server.private: .* is no service of ours: it answers {status}"):
                await operations.connections({})
