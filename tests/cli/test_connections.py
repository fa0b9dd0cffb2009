"""`amo-callback status`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from amo_callback.cli.main import main
from tests.cli.harness import INTERRUPT, environ_with, typed
from tests.e2e.process import command
from tests.e2e.processes import staged

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_status_shows_checks_of_running_service(tmp_path: Path, encryption_key: str) -> None:
    """`status` exits with 0 if the service is ready, otherwise with 1, and needs no API key."""
    async with staged(tmp_path, encryption_key, accounts=1) as stage:
        stage.settings["SERVER__PRIVATE"] = f"unix:{tmp_path}/private.sock"
        async with stage.serving() as process:
            await process.until("service.started")
            status, out, _ = await command("status", "--json", folder=tmp_path, environ=stage.environ())
            shown = json.loads(out)
            assert (status, shown["ready"], shown["checks"]["store"]["ok"]) == (0, True, True)
            await command("connections", "freeze", "--all", folder=tmp_path, environ=stage.environ())
            await process.until("service.frozen")
            status, out, _ = await command("status", folder=tmp_path, environ=stage.environ())
            assert status == 1
            [frozen] = [line for line in out.splitlines() if line.startswith("frozen ")]
            assert "not ready" in frozen
            environ = {**stage.environ(), "TERM": "xterm"}
            answers = [("frozen", INTERRUPT)]
            status, _ = await typed("status", "--watch", folder=tmp_path, environ=environ, answers=answers)
            assert status == 130


def test_status_without_service_names_address_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the address and the reason."""
    environ = environ_with(SERVER__PRIVATE="127.0.0.1:1")
    assert main(["status"], environ=environ) == 1
    assert "127.0.0.1:1: Connection refused" in capsys.readouterr().err
    assert main(["status", "--watch", "--json"], environ=environ) == 2
