"""The log of a real process with a reader that stops."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.process import process_environment
from tests.service import API_KEY, Amo, environment
from tests.wait_limit import WAIT_LIMIT

_MORE_THAN_A_PIPE_TAKES = 600
"""The number of requests, each of which logs about 200 bytes."""


async def test_log_pipe_without_reader_blocks_neither_requests_nor_stop(
    amo: Amo, encryption_key: str, tmp_path: Path
) -> None:
    """With a full log pipe, requests are answered, and SIGTERM ends the process."""
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "amo_callback.cli.main", "serve",
        cwd=tmp_path, env=process_environment(environment(amo, encryption_key)), stdout=writing,
    )  # fmt: skip
    os.close(writing)
    try:
        with os.fdopen(reading, "rb", buffering=0) as log:
            private = (await asyncio.to_thread(_until, log, "service.started"))["private"]
            async with asyncio.timeout(WAIT_LIMIT), aiohttp.ClientSession(f"http://{private}") as http:
                http.headers["Authorization"] = f"Bearer {API_KEY}"
                for _ in range(_MORE_THAN_A_PIPE_TAKES):
                    async with http.get("/connections/account:1/token") as response:
                        assert response.status == 404
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), WAIT_LIMIT) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _until(log: Any, event: str) -> dict[str, Any]:
    """Read lines up to an event."""
    while (line := json.loads(log.readline()))["event"] != event:
        pass
    found: dict[str, Any] = line
    return found
