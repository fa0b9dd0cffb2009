"""A real nginx with one of the example configurations."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.processes import eventually

MAIN = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log error;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    scgi_temp_path {folder}; uwsgi_temp_path {folder};
    include {folder}/example.conf;
}}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Nginx:
    """A running nginx with its logs."""

    address: str
    folder: Path

    def logged(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.folder.glob("*.log"))


def find_nginx() -> str:
    """Return the path of nginx; the test is skipped if it is not installed."""
    found = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin") or shutil.which("nginx")
    if found is None:
        pytest.skip("nginx is not installed")
    return found


async def run_command(*words: str) -> tuple[int, str]:
    """Return the exit status and the output of a command."""
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def unused_address() -> str:
    """Return a local address at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def write_example(folder: Path, text: str, changes: Mapping[str, str]) -> None:
    """Write an example with local values; each key of `changes` must be in the text."""
    for theirs, ours in changes.items():
        assert theirs in text
        text = text.replace(theirs, ours)
    (folder / "example.conf").write_text(text, encoding="utf-8")
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder), encoding="utf-8")


async def check_example(folder: Path) -> tuple[int, str]:
    """Return the exit status and the output of `nginx -t` for the written example."""
    return await run_command(find_nginx(), "-t", "-p", str(folder), "-c", str(folder / "nginx.conf"))


@asynccontextmanager
async def run_nginx(folder: Path, address: str) -> AsyncIterator[Nginx]:
    """Run nginx with the written example, which listens at `address`."""
    process = await asyncio.create_subprocess_exec(find_nginx(), "-p", str(folder), "-c", str(folder / "nginx.conf"))
    host, _, port = address.partition(":")

    def listens() -> bool:
        assert process.returncode is None, (folder / "error.log").read_text()
        with socket.socket() as client:
            return client.connect_ex((host, int(port))) == 0

    try:
        await eventually(listens)
        yield Nginx(address=address, folder=folder)
    finally:
        process.terminate()
        await process.wait()
