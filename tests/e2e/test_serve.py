"""The command `serve` as a real process: start, stop, reload and errors."""

import asyncio
import json
import os
import signal
import sqlite3
import stat
import sys
from pathlib import Path

import aiohttp
import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.cli.main import main
from amo_callback.clock import SystemClock
from amo_callback.crypto import Cipher
from amo_callback.store import open_store
from tests.e2e.process import command, process_environment, serving
from tests.e2e.processes import staged
from tests.service import API_KEY, Amo, environment

URL_OF_STORE = "sqlite:///amo-callback.db"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_signal_stores_refreshes_in_flight(tmp_path: Path, encryption_key: str, number: int) -> None:
    """Refreshes that AMO answers after the signal are stored before the process exits with 0."""
    async with staged(tmp_path, encryption_key, accounts=3) as stage:
        async with stage.connected() as process:
            stage.amo.sandbox.faults.add(Fault.SLOW, Fault.SLOW, Fault.SLOW)
            rejected = stage.ledger.access_tokens
            asking = [
                asyncio.create_task(stage.refresh(process, account, rejected=token))
                for account, token in zip(stage.accounts, rejected, strict=True)
            ]
            await stage.until_asked(3)
            process.signal(number)
            await process.until("service.stopping")
            stage.amo.sandbox.go_on.set()
            assert await process.ended() == 0
            await asyncio.gather(*asking, return_exceptions=True)
        assert (len(stage.ledger.refreshes()), stage.ledger.doubles()) == (3, 0)
        rows = stage.rows().values()
        assert {row.refresh_token for row in rows} == set(stage.ledger.issued[-3:])
        assert all(row.attempt is None for row in rows)


async def test_serve_second_process_refreshes_connections_of_first(tmp_path: Path, encryption_key: str) -> None:
    """A second process refreshes the connections; files have mode 600 and the log contains no secret."""
    async with staged(tmp_path, encryption_key, accounts=2, access=4, LOG__ACCESS="true") as stage:
        async with stage.connected() as process:
            for file in tmp_path.glob("amo-callback.db*"):
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
            await process.stop()
        async with stage.serving() as second:
            await second.until("refresh.succeeded", times=2)
            await second.stop()
        assert stage.ledger.doubles() == 0
    lines = [*process.lines, *second.lines]
    secret = {entry.presented for entry in stage.ledger.entries} | set(stage.ledger.issued)
    secret |= {encryption_key, API_KEY, stage.amo.fake.integration.client_secret}
    assert [value for value in secret if value in str(lines)] == []
    names = {"service.started", "http.request", "connection.connected", "service.stopped"}
    assert names <= {line["event"] for line in process.lines}


async def test_serve_hangup_reloads_settings_and_names_unusable_ones(
    amo: Amo, tmp_path: Path, encryption_key: str
) -> None:
    """API keys, level and limits are reloaded; an unusable file changes nothing and is logged even in ASCII."""
    config, keys, new = tmp_path / "config.toml", tmp_path / "secrets" / "api.keys", "another-api-key" * 4
    keys.parent.mkdir()

    def write(level: str, unproven: int, poll_interval: float) -> None:
        config.write_text(
            f'[log]\nlevel = "{level}"\n[limits]\nfailed_codes = {unproven}\n'
            f"[refresh]\npoll_interval = {poll_interval}\n"
        )

    environ = environment(amo, encryption_key, SERVER__SECRETS=str(keys.parent), CONFIG=str(config))
    keys.write_text(environ.pop("AMO_CALLBACK_API__KEYS"))
    write("info", 30, 5.0)
    async with (
        serving(environ | {"PYTHONIOENCODING": "ascii"}, tmp_path) as process,
        aiohttp.ClientSession() as http,
    ):
        private = (await process.until("service.started"))["private"]

        async def status(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            async with http.get(f"http://{private}/connections", headers=headers) as answer:
                return answer.status

        keys.write_text("backend:short")
        config.write_text('[log]\n"уровень" = "info"\n', encoding="utf-8")
        process.signal(signal.SIGHUP)
        result = str((await process.until("reload.failed"))["problems"])
        assert ("api.keys" in result, "уровень" in result) == (True, True)
        assert (await status(API_KEY), await status(new)) == (200, 401)
        await process.until("http.request", times=2)
        keys.write_text(f"backend:{new}")
        write("warning", 1, 6.0)
        process.signal(signal.SIGHUP)
        assert (await process.until("reload.done"))["needs_restart"] == ["refresh.poll_interval"]
        assert (await status(API_KEY), await status(new)) == (401, 200)
        write("info", 1, 5.0)
        process.signal(signal.SIGHUP)
        assert (await process.until("reload.done", times=2))["needs_restart"] == []
        assert len(process.named("http.request")) == 2
        await status(new)
        await process.until("http.request", times=3)
        await process.stop()


async def test_serve_with_journal_prefixes_lines_with_priority(amo: Amo, tmp_path: Path, encryption_key: str) -> None:
    """If JOURNAL_STREAM names standard output, each JSON line follows its priority."""
    reading, writing = os.pipe()
    status = os.fstat(writing)
    more = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}", "AMO_CALLBACK_LOG__FORMAT": "auto"}
    with os.fdopen(reading, encoding="utf-8") as journal:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "amo_callback.cli.main", "serve",
            cwd=tmp_path, env=process_environment(environment(amo, encryption_key) | more), stdout=writing,
        )  # fmt: skip
        os.close(writing)
        lines = []
        while line := await asyncio.to_thread(journal.readline):
            lines.append((line[:3], json.loads(line[3:])))
            if lines[-1][1]["event"] == "service.started":
                process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert {prefix for prefix, result in lines if result["level"] == "info"} == {"<6>"}
    assert "service.stopped" in [result["event"] for _, result in lines]


async def test_serve_logs_ignored_proxy_variables_once(tmp_path: Path, encryption_key: str) -> None:
    """Proxy variables are named without their values, which may contain a password, and requests to AMO are direct."""
    proxies = dict.fromkeys(("HTTPS_PROXY", "http_proxy"), "http://user:sekret@127.0.0.1:9")
    async with (
        staged(tmp_path, encryption_key, accounts=1, LOG__ACCESS="false") as stage,
        serving(stage.environ() | proxies, tmp_path) as process,
    ):
        await stage.connect(process)
        [line] = process.named("proxy.ignored")
        assert (line["level"], line["variables"]) == ("warning", ["HTTPS_PROXY", "http_proxy"])
        assert "sekret" not in json.dumps(process.lines)
        await process.until("connection.connected")
        assert process.named("http.request") == []


async def test_serve_invalid_configuration_exits_78(tmp_path: Path) -> None:
    """Each problem is one line on standard error."""
    status, out, err = await command("serve", folder=tmp_path, environ={"AMO_CALLBACK_AMO__TIMEOUT": "soon"})
    assert (status, out) == (78, "")
    assert all(line.startswith("amo-callback: ") for line in err.splitlines())
    assert "amo-callback: amo.timeout: 'soon': input should be a valid number" in err
    assert "amo-callback: storage is required" in err


async def test_serve_with_locked_store_exits_1(amo: Amo, tmp_path: Path, encryption_key: str) -> None:
    """A locked store is temporary, so the status lets a supervisor restart the process, and one line has the reason."""
    async with open_store(URL_OF_STORE, folder=tmp_path, clock=SystemClock()):
        pass
    other = sqlite3.connect(tmp_path / "amo-callback.db", isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    status, _, err = await command("serve", folder=tmp_path, environ=environment(amo, encryption_key))
    other.close()
    assert status == 1
    assert err.startswith("amo-callback: The store cannot be read or written.")
    assert "Traceback" not in err


def test_keygen_makes_distinct_valid_keys(capsys: pytest.CaptureFixture[str]) -> None:
    """Each call makes a new key that the service accepts."""
    assert [main(["keygen"]) for _ in range(2)] == [0, 0]
    keys = capsys.readouterr().out.split()
    assert len(set(keys)) == 2
    Cipher(keys)
