"""The command `amo-callback demo`."""

import asyncio
import base64
import hashlib
import os
import pty
import re
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from amo_callback.cli.main import main
from tests.cli.harness import take_terminal
from tests.demo.walkthrough import link
from tests.e2e.process import without_slow_steps
from tests.wait_limit import WAIT_LIMIT

_COMMAND = (sys.executable, "-m", "amo_callback.cli.main", "demo", "--token-life")


@asynccontextmanager
async def _demo(folder: Path, *, lifetime: int = 30, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the demo and kill it at the end."""
    options = {"stdout": asyncio.subprocess.PIPE, "env": {**os.environ, "TMPDIR": str(folder)}, **options}
    process = await asyncio.create_subprocess_exec(*_COMMAND, str(lifetime), cwd=folder, **options)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _connect(panel: str) -> str:
    """Connect as the phone page does and return the app's last page."""
    async with aiohttp.ClientSession(headers={"Accept": "text/html", "Sec-Fetch-Dest": "iframe"}) as http:
        address = f"{panel}/phone"
        for pattern in (
            r'id="connect" [^>]*href="([^"]+)"',
            r'class="allow" href="([^"]+)"',
            r'id="open" [^>]*href="([^"]+)"',
        ):
            async with http.get(address) as response:
                address = str(response.url.join(URL(link(await response.text(), pattern), encoded=True)))
        async with http.get(address) as response:
            return await response.text()


async def test_demo_connects_account_and_shows_refresh(tmp_path: Path) -> None:
    """Start page, consent, return page and app follow each other, and the output shows the connection and a refresh."""
    result = ""

    async def until(pattern: str) -> str:
        nonlocal result
        assert process.stdout is not None
        while not (found := re.search(pattern, result)):
            line = await asyncio.wait_for(process.stdout.readline(), WAIT_LIMIT)
            assert line, result
            result += line.decode()
        return found[1]

    async with _demo(tmp_path, lifetime=6) as process:
        landed = await _connect(await until(r"Open +(http://[^/\s]+)"))
        assert "Back in the app" in landed
        assert "The state matches the one that the service issued." in landed
        assert "&#34;success&#34;: true" in landed
        await until(r"(service +reforyou\.amocrm\.ru +Connected)")
        await until(r"(service +reforyou\.amocrm\.ru +Refreshed)")
        process.send_signal(signal.SIGINT)
        rest, _ = await asyncio.wait_for(process.communicate(), WAIT_LIMIT)
    assert process.returncode == 0
    assert "all its files are deleted" in rest.decode()
    assert "amo-callback init" in rest.decode()
    assert "\x1b" not in result + rest.decode()
    assert list(tmp_path.iterdir()) == []


async def test_demo_prints_base_url_and_jwt_for_app(tmp_path: Path) -> None:
    """With the printed base URL and JWT, an app starts a flow, receives its deep link, and gets the result."""
    verifier = "v" * 43
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    async with _demo(tmp_path) as process, aiohttp.ClientSession(headers={"Accept": "text/html"}) as browser:
        assert process.stdout is not None
        shown = (await asyncio.wait_for(process.stdout.readuntil(b"Ctrl-C to end the demo.\n"), WAIT_LIMIT)).decode()
        found = re.search(r"Try an app +(\S+)  \(base URL\)\n +(\S+)  \(JWT of user 77, valid for a day\)", shown)
        assert found, shown
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {found[2]}"}) as app:
            start = {"code_challenge": challenge, "code_challenge_method": "S256"}
            async with app.post(f"{found[1]}/authorizations", json=start) as response:
                started = (await response.json())["data"]
            async with browser.get(started["authorize_url"]) as response:
                allow = response.url.join(
                    URL(link(await response.text(), r'class="allow" href="([^"]+)"'), encoded=True)
                )
            async with browser.get(allow) as response:
                deep_link = URL(link(await response.text(), r'id="open"[^>]*href="([^"]+)"'))
            assert str(deep_link).startswith("foryoure://amo-crm/callback?code=")
            assert deep_link.query["state"] == started["state"]
            proof = {"code": deep_link.query["code"], "code_verifier": verifier}
            async with app.post(f"{found[1]}/exchange-code", json=proof) as response:
                result = await response.json()
            async with app.get(f"{found[1]}/status") as response:
                assert (await response.json())["data"] == result["data"]
    assert (result["success"], result["data"]["domain"]) == (True, "reforyou.amocrm.ru")


async def test_demo_prints_environment_of_backend(tmp_path: Path) -> None:
    """With the printed address and API key, a backend starts a flow for one of its users."""
    async with _demo(tmp_path) as process:
        assert process.stdout is not None
        shown = (await asyncio.wait_for(process.stdout.readuntil(b"Ctrl-C to end the demo.\n"), WAIT_LIMIT)).decode()
        found = re.search(r"Try a backend export AMO_CALLBACK=(http://127\.0\.0\.1:\d+) API_KEY=([\w-]{32,})\n", shown)
        assert found, shown
        headers = {"Authorization": f"Bearer {found[2]}"}
        async with (
            aiohttp.ClientSession(headers=headers) as backend,
            backend.post(f"{found[1]}/authorizations", json={"owner": "42"}) as response,
        ):
            assert (await response.json())["authorize_url"].startswith("http://127.0.0.1:")


async def test_demo_ends_when_terminal_is_closed(tmp_path: Path) -> None:
    """A closed terminal ends the demo, which leaves no file."""
    parent_end, child_end = pty.openpty()
    streams = {"stdin": child_end, "stdout": child_end, "stderr": child_end}
    async with _demo(tmp_path, **streams, start_new_session=True, preexec_fn=take_terminal) as process:
        os.close(child_end)
        shown = b""
        while b"Ctrl-C to end the demo" not in shown:
            shown += await asyncio.wait_for(asyncio.to_thread(os.read, parent_end, 65536), WAIT_LIMIT)
        os.close(parent_end)
        assert await asyncio.wait_for(process.wait(), WAIT_LIMIT) == 1
    assert list(tmp_path.iterdir()) == []


async def test_demo_ends_on_hangup(tmp_path: Path) -> None:
    """SIGHUP ends the demo as Ctrl-C does."""
    async with _demo(tmp_path) as process:
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.readline(), WAIT_LIMIT)
        process.send_signal(signal.SIGHUP)
        result, _ = await asyncio.wait_for(process.communicate(), WAIT_LIMIT)
    assert (process.returncode, b"all its files are deleted" in result) == (0, True)
    assert list(tmp_path.iterdir()) == []


async def test_demo_ends_when_output_pipe_is_closed(tmp_path: Path) -> None:
    """With `| head` the demo ends at the next line that it cannot write, after it has answered the request."""
    async with _demo(tmp_path, stderr=asyncio.subprocess.PIPE) as process, aiohttp.ClientSession() as http:
        assert process.stdout is not None
        assert process.stderr is not None
        result = await asyncio.wait_for(process.stdout.readuntil(b"/\n"), WAIT_LIMIT)
        await asyncio.wait_for(process.stdout.readuntil(b"Ctrl-C to end the demo.\n"), WAIT_LIMIT)
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # noqa: SLF001 -- nothing else closes it
        [panel] = re.findall(rb"http://\S+", result)
        async with http.post(f"{panel.decode()}scenarios/away", json={}) as response:
            assert response.status == 204
        problem = without_slow_steps((await asyncio.wait_for(process.stderr.read(), WAIT_LIMIT)).decode())
        assert problem == "amo-callback: the demo has ended, because its output could not be written: Broken pipe\n"
        assert await asyncio.wait_for(process.wait(), WAIT_LIMIT) == 1


@pytest.mark.parametrize("streams", ["", "<&- >&-"])
async def test_demo_with_used_port_exits_1(tmp_path: Path, streams: str) -> None:
    """A port in use is reported in one line with status 1, also if standard input and output are closed."""
    command = " ".join(map(shlex.quote, [sys.executable, "-m", "amo_callback.cli.main", "demo", "--port"]))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await asyncio.create_subprocess_shell(
            f"exec {command} {port} {streams}",
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        result, problem = await asyncio.wait_for(process.communicate(), WAIT_LIMIT)
    [line] = without_slow_steps(problem.decode()).splitlines()
    assert (process.returncode, str(port) in line, b"Open" in result) == (1, True, False)


@pytest.mark.parametrize("options", [["--port", "65534"], ["--port", "x"], ["--token-life", "0"]])
def test_demo_invalid_number_is_usage_error(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A port above 65533, a port that is no number, or a lifetime of zero is a usage error."""
    assert main(["demo", *options]) == 2
    assert options[0] in capsys.readouterr().err
