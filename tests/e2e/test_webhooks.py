"""`amo-callback webhooks`, beside the running service and without it."""

import json
from pathlib import Path
from typing import Any

from tests.e2e.process import command
from tests.e2e.processes import Stage, staged
from tests.webhooks.receiver import SECRET, Receiver


async def _run(stage: Stage, *arguments: str) -> tuple[int, str, str]:
    return await command("webhooks", *arguments, folder=stage.folder, environ=stage.environ())


async def _told(stage: Stage, *arguments: str) -> Any:
    status, out, err = await _run(stage, *arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


async def test_webhooks_are_listed_and_tried_again_beside_the_service_and_without_it(
    tmp_path: Path, encryption_key: str
) -> None:
    """The same lines either way; what is asked for without the service is done by the next one."""
    async with Receiver().serve() as receiver, staged(tmp_path, encryption_key, accounts=1) as stage:
        stage.settings |= {"WEBHOOK__URL": receiver.url, "WEBHOOK__SECRET": SECRET, "LOG__LEVEL": "debug"}
        stage.settings["SERVER__PRIVATE"] = f"unix:{tmp_path}/private.sock"
        receiver.always = 410
        async with stage.connected() as process:
            await process.until("webhook.dead_lettered")
            [beside] = await _told(stage)
            assert (beside["status"], beside["last_error"], beside["tries"]) == ("dead_lettered", "status_410", 1)
            assert await _told(stage, "retry", beside["id"]) == {"retried": [beside["id"]]}
            await process.until("webhook.dead_lettered", times=2)
            status, _, err = await _run(stage, "retry", "unknown")
            assert (status, "There is no such webhook" in err) == (1, True)
            await process.stop()
        [without] = await _told(stage)
        assert {**without, "dead_lettered_at": None} == {**beside, "dead_lettered_at": None}
        status, out, _ = await _run(stage, "retry", "--all")
        assert (status, out) == (0, "1 to be sent again\n")
        assert (await _told(stage))[0]["status"] == "waiting"
        receiver.always = None
        async with stage.serving() as process:
            await process.until("webhook.delivered")
            assert await _told(stage) == []
        assert receiver.ids == [beside["id"]] * 3
        del stage.settings["WEBHOOK__URL"], stage.settings["WEBHOOK__SECRET"]
        status, _, err = await _run(stage, "retry", "--all")
        assert (status, err) == (1, "amo-callback: webhook.url is not set: no webhooks are sent\n")
        assert await _told(stage) == []
