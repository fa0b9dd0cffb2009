"""Commands that use the running service's private API, or the store directly if no service is running."""

import json
from pathlib import Path
from typing import Any

from tests.e2e.process import command
from tests.e2e.processes import Stage, staged


async def _run_json(stage: Stage, *arguments: str) -> Any:
    """Run a command and return its JSON output."""
    status, out, err = await command(*arguments, "--json", folder=stage.folder, environ=stage.environ())
    assert (status, err) == (0, "")
    return json.loads(out)


async def _failed(stage: Stage, *arguments: str) -> str:
    status, out, err = await command(*arguments, folder=stage.folder, environ=stage.environ())
    assert (status, out) == (1, "")
    return err


async def test_commands_give_same_answers_with_and_without_service(tmp_path: Path, encryption_key: str) -> None:
    """A command uses the running service's API, or otherwise the store, with the same answers."""
    async with staged(tmp_path, encryption_key, accounts=2) as stage:
        stage.settings["SERVER__PRIVATE"] = f"unix:{tmp_path}/private.sock"
        one, _ = stage.accounts
        name = f"account:{one.id}"
        async with stage.connected() as process:
            listed = await _run_json(stage, "connections", "list", "--status", "active")
            assert {each["account_id"] for each in listed} == {str(each.id) for each in stage.accounts}
            with_service = await _freeze_and_look(stage, name)
            refreshed = await _run_json(stage, "connections", "refresh", name)
            assert (refreshed["expires_in"] > 0, "access_token" in refreshed) == (True, False)
            assert "There is no such connection" in await _failed(stage, "connections", "show", "unknown")
            await process.stop()
        without_service = await _freeze_and_look(stage, str(one.id))
        assert with_service[:3] == without_service[:3]
        assert with_service[3] != without_service[3]  # the processes differ
        token = await _run_json(stage, "token", one.host)
        assert (token["account_id"], token["access_token"][:3]) == (str(one.id), "eyJ")
        assert "no connection has the host nowhere.amocrm.ru" in await _failed(stage, "token", "nowhere.amocrm.ru")
        frozen = await _run_json(stage, "connections", "freeze", "--all")
        thawed = await _run_json(stage, "connections", "thaw", "--all")
        assert (frozen["frozen"], frozen["open_attempts"], thawed["frozen"]) == (True, 0, False)
        assert "only a running service refreshes" in await _failed(stage, "connections", "refresh", name)
        assert "use --yes" in await _failed(stage, "connections", "disconnect", name)
        gone = await _run_json(stage, "connections", "disconnect", name, "--yes")
        assert gone["status"] == "disconnected"
        assert "There is no such connection" in await _failed(stage, "token", name)
        status, out, err = await command("events", folder=tmp_path, environ=stage.environ())
        assert (status, err) == (0, "")
        assert out.splitlines()[0].split() == ["at", "connection", "event", "why", "token", "process", "more"]
        assert "service.thawed" in out


async def _freeze_and_look(stage: Stage, name: str) -> tuple[set[str], set[str], set[str], str]:
    """Freeze a connection, read it and its history, thaw it, and return the answers' fields and the process."""
    frozen = await _run_json(stage, "connections", "freeze", name)
    shown = await _run_json(stage, "connections", "show", name)
    events = await _run_json(stage, "events", name)
    thawed = await _run_json(stage, "connections", "thaw", name)
    assert (frozen["frozen"], shown["frozen"], thawed["frozen"]) == (True, True, False)
    assert [event["name"] for event in (events[0], events[-1])] == ["connection.frozen", "connection.connected"]
    assert shown["events"][0]["name"] == "connection.frozen"
    return set(frozen), set(shown), set(events[0]), events[0]["process"]
