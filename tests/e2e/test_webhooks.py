"""The command `amo-callback webhooks`, with and without a running service."""

import json
from pathlib import Path
from typing import Any

from tests.e2e.process import command
from tests.e2e.processes import Stage, staged
from tests.webhooks.receiver import SECRET, Receiver


async def _run(stage: Stage, *arguments: str) -> tuple[int, str, str]:
    return await command("webhooks", *arguments, folder=stage.folder, environ=stage.environ())


async def _run_json(stage: Stage, *arguments: str) -> Any:
    status, out, err = await _run(stage, *arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


async def test_webhooks_are_listed_and_retried_with_and_without_service(tmp_path: Path, encryption_key: str) -> None:
    """The output is the same with and without the service, and the next process sends a webhook retried without it."""
    async with Receiver().serve() as receiver, staged(tmp_path, encryption_key, accounts=1) as stage:
        stage.settings |= {"WEBHOOK__URL": receiver.url, "WEBHOOK__SECRET": SECRET, "LOG__LEVEL": "debug"}
        stage.settings["SERVER__PRIVATE"] = f"unix:{tmp_path}/private.sock"
        receiver.always = 410
        async with stage.connected() as process:
            await process.until("webhook.dead_lettered")
            [with_service] = await _run_json(stage)
            assert (with_service["status"], with_service["last_error"], with_service["tries"]) == (
                "dead_lettered",
                "status_410",
                1,
            )
            assert await _run_json(stage, "retry", with_service["id"]) == {"retried": [with_service["id"]]}
            await process.until("webhook.dead_lettered", times=2)
            status, _, err = await _run(stage, "retry", "unknown")
            assert (status, "There is no such webhook" in err) == (1, True)
            await process.stop()
        [without_service] = await _run_json(stage)
        assert {**without_service, "dead_lettered_at": None} == {**with_service, "dead_lettered_at": None}
        status, out, _ = await _run(stage, "retry", "--all")
        assert (status, out) == (0, "webhooks to be sent again: 1\n")
        assert (await _run_json(stage))[0]["status"] == "waiting"
        receiver.always = None
        async with stage.serving() as process:
            await process.until("webhook.delivered")
            assert await _run_json(stage) == []
        assert receiver.ids == [with_service["id"]] * 3
        del stage.settings["WEBHOOK__URL"], stage.settings["WEBHOOK__SECRET"]
        status, _, err = await _run(stage, "retry", "--all")
        assert (status, err) == (1, "amo-callback: no webhooks are sent: set webhook.url, then try again\n")
        assert await _run_json(stage) == []
