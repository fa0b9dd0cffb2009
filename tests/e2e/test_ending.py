"""SIGTERM ends the process even if a resolver or the store does not answer, unless a pair would be lost."""

import asyncio
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amo_callback.amo.sandbox.app import Fault
from tests.e2e.disk_faults import limit_files
from tests.e2e.process import Process, process_environment
from tests.e2e.processes import DATABASE, Stage, block_change, eventually, staged

_SILENT_DNS = """
import os, socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/resolv.conf"], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
server.set_inheritable(True)
os.execv(sys.executable, [sys.executable, "-m", "amo_callback.cli.main", "serve"])
"""
"""Binds the port of a name server in its own namespaces, and never reads from it."""


def _can_unshare() -> bool:
    if not all(shutil.which(tool) for tool in ("unshare", "ip", "mount")):
        return False
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], check=False, capture_output=True)  # noqa: S607 -- found above
    return tried.returncode == 0


async def test_sigterm_with_unresponsive_resolver_ends_process(tmp_path: Path, encryption_key: str) -> None:
    """The process does not wait for resolver threads, which may take minutes."""
    if not _can_unshare():
        pytest.skip("needs network and mount namespaces of its own")
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n", encoding="utf-8")
    async with staged(tmp_path, encryption_key, accounts=8, every=1) as stage:
        async with stage.connected() as process:
            await process.stop()
        started = await asyncio.create_subprocess_exec(
            "unshare", "--net", "--mount", sys.executable, "-c", _SILENT_DNS, str(resolv),
            cwd=tmp_path, env=process_environment(_by_host_name(stage)), stdout=asyncio.subprocess.PIPE, limit=2**20,
        )  # fmt: skip
        process = Process(started)
        try:
            await process.until("service.started")
            await eventually(lambda: _is_asked(started.pid))
            await process.stop()
            assert process.named("service.stopped")
        finally:
            if started.returncode is None:
                started.kill()
                await process.ended()


def _by_host_name(stage: Stage) -> dict[str, str]:
    """Return the environment of a process that connects to the accounts' hosts by name."""
    return stage.environ() | {"AMO_CALLBACK_AMO__ENDPOINT": "https://{domain}", "AMO_CALLBACK_AMO__TIMEOUT": "2"}


def _is_asked(pid: int) -> bool:
    """Check whether a request is queued at the unresponsive name server."""
    sockets = [line.split() for line in Path(f"/proc/{pid}/net/udp").read_text(encoding="ascii").splitlines()[1:]]
    return any(columns[1] == "0100007F:0035" and not columns[4].endswith(":00000000") for columns in sockets)


async def test_sigterm_with_unresponsive_store_keeps_pair_in_rescue_file(tmp_path: Path, encryption_key: str) -> None:
    """The pair is written to its rescue file, the process ends, and the next one stores it."""
    async with staged(tmp_path, encryption_key, accounts=1, every=2, AMO__TIMEOUT="5") as stage:
        async with stage.connected() as process:
            stage.amo.sandbox.faults.add(Fault.SLOW)
            await stage.until_asked(1)
            [claimed] = stage.open_claims().values()
            unblock = block_change(tmp_path / DATABASE, "UPDATE OF sealed_pair ON connections")
            stage.amo.sandbox.go_on.set()
            await eventually(lambda: len(stage.ledger.refreshes()) == 1)
            await process.stop()
            assert (tmp_path / "rescue" / f"{claimed.id}-{claimed.pair_version}").exists()
            unblock()
        async with stage.serving() as process:
            await process.until("pair.write_completed")
            await process.stop()
        assert (stage.lost(), stage.ledger.doubles()) == ([], 0)


async def test_sigterm_with_unsafe_pair_waits_until_it_is_stored(tmp_path: Path, encryption_key: str) -> None:
    """If neither the database nor the rescue folder is writable, the process names the pair and waits."""
    async with staged(tmp_path, encryption_key, accounts=1, every=2, AMO__TIMEOUT="2") as stage:
        async with stage.connected() as process:
            stage.amo.sandbox.latency = 0.5
            await stage.until_asked(1)
            limit_files(process, 0)
            pending_writes = await process.until("pair.write_pending")
            assert pending_writes["rescued"] is False
            process.signal(signal.SIGTERM)
            unsafe = await process.until("pair.unsafe", times=2)  # the second one is later than any other deadline
            assert unsafe["connection_id"] == pending_writes["connection_id"]
            limit_files(process, resource.RLIM_INFINITY)
            assert await process.ended() == 0
        assert (stage.lost(), stage.ledger.doubles()) == ([], 0)
