"""Commands that use the private API: of the running service, else of an idle one on the store."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

from tests.e2e.process import command
from tests.e2e.processes import staged

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.processes import Stage


async def _told(stage: Stage, *arguments: str) -> Any:
    """Run a command, and return what it tells a program."""
    status, out, err = await command(*arguments, "--json", folder=stage.folder, environ=stage.environ())
    assert (status, err) == (0, "")
    return json.loads(out)


async def _failed(stage: Stage, *arguments: str) -> str:
    status, out, err = await command(*arguments, folder=stage.folder, environ=stage.environ())
    assert (status, out) == (1, "")
    return err


async def test_commands_do_the_same_beside_the_service_and_without_it(tmp_path: Path, encryption_key: str) -> None:
    """List, show, events, freeze and thaw, of one and of all: asked at the door, and in the store when it is closed."""
    async with staged(tmp_path, encryption_key, accounts=2) as stage:
        stage.settings["SERVER__PRIVATE"] = f"unix:{tmp_path}/private.sock"
        one, _ = stage.accounts
        name = f"account:{one.id}"
        answers = []
        async with stage.serving() as process:
            await stage.connect(process)
            for number in range(2):
                listed = await _told(stage, "connections", "list", "--status", "active")
                frozen = await _told(stage, "connections", "freeze", name)
                shown = await _told(stage, "connections", "show", name)
                events = await _told(stage, "events", name)
                thawed = await _told(stage, "connections", "thaw", name)
                token = await _told(stage, "token", name)
                all_frozen = await _told(stage, "connections", "freeze", "--all")
                all_thawed = await _told(stage, "connections", "thaw", "--all")
                assert {each["account_id"] for each in listed} == {str(each.id) for each in stage.accounts}
                assert (frozen["frozen"], shown["frozen"], thawed["frozen"]) == (True, True, False)
                assert [event["name"] for event in events][-2:] == ["connection.frozen", "connection.connected"]
                assert shown["events"][0]["name"] == "connection.frozen"
                assert (all_frozen["frozen"], all_frozen["open_attempts"], all_thawed["frozen"]) == (True, 0, False)
                assert (token["account_id"], token["access_token"][:3]) == (str(one.id), "eyJ")
                answers.append((set(frozen), set(shown), set(events[0]), {event["process"] for event in events[:1]}))
                assert "There is no such connection" in await _failed(stage, "connections", "show", "unknown")
                for other in (str(one.id), one.host, shown["id"]):
                    assert (await _told(stage, "connections", "show", other))["id"] == shown["id"]
                assert "There is no connection at nowhere.amocrm.ru" in await _failed(
                    stage, "token", "nowhere.amocrm.ru"
                )
                if number == 0:
                    refreshed = await _told(stage, "connections", "refresh", name)
                    assert refreshed["expires_in"] > 0
                    assert "access_token" not in refreshed
                    process.signal(signal.SIGTERM)
                    assert await process.ended() == 0
        assert "only the running service refreshes" in await _failed(stage, "connections", "refresh", name)
        assert "say --yes" in await _failed(stage, "connections", "disconnect", name)
        gone = await _told(stage, "connections", "disconnect", name, "--yes")
        assert gone["status"] == "disconnected"
        assert "There is no such connection" in await _failed(stage, "token", name)
        assert answers[0][:3] == answers[1][:3]
        assert answers[0][3] != answers[1][3]
        status, out, err = await command("events", folder=tmp_path, environ=stage.environ())
        assert (status, err) == (0, "")
        assert out.splitlines()[0].split() == ["at", "connection", "event", "why", "token", "process", "more"]
        assert "service.thawed" in out
