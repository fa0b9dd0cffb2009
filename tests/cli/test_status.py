"""`amo-callback status`."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from amo_callback.cli.main import main
from tests.cli.harness import environ_with
from tests.e2e.process import command, process_environment
from tests.e2e.processes import staged
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_the_checks_of_the_running_service_are_shown(tmp_path: Path, encryption_key: str) -> None:
    """Exit status 0 where all are good, 1 where one is not; no API key is needed."""
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
            assert await _watch_until("frozen", tmp_path, stage.environ()) == 130


async def _watch_until(text: str, folder: Path, environ: dict[str, str]) -> int:
    """Run `status --watch` on a terminal until a text is shown, end it by Ctrl-C, and return its exit status."""
    ours, theirs = pty.openpty()
    watching = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "amo_callback.cli.main", "status", "--watch",
        cwd=folder, env=process_environment({**environ, "TERM": "xterm"}), stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown, interrupted = b"", False
    with suppress(OSError):  # the other end is closed
        while chunk := await asyncio.wait_for(asyncio.to_thread(os.read, ours, 65536), PATIENCE):
            shown += chunk
            if text.encode() in shown and not interrupted:
                interrupted = True
                watching.send_signal(signal.SIGINT)
    os.close(ours)
    return await watching.wait()


def test_a_service_that_does_not_run_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the address and the reason."""
    environ = environ_with(SERVER__PRIVATE="127.0.0.1:1")
    assert main(["status"], environ=environ) == 1
    assert "127.0.0.1:1: Connection refused" in capsys.readouterr().err
    assert main(["status", "--watch", "--json"], environ=environ) == 2
