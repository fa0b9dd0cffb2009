"""Helpers for command tests: required settings, and commands on a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import pty
import sys
import termios
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.cli.context import load_context
from amo_callback.config.loader import load_settings
from amo_callback.crypto import new_key
from amo_callback.model import ImportedConnection, TokenPair
from amo_callback.observe.log import make_logger
from amo_callback.web.listener import open_listener
from tests.builders import DAY, a_connection
from tests.e2e.process import process_environment
from tests.fakes import START, ShiftedClock
from tests.wait_limit import WAIT_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from amo_callback.cli.checks.finding import Finding, Severity
    from amo_callback.cli.context import CommandContext
    from amo_callback.config.settings import Settings
    from amo_callback.crypto import Cipher
    from amo_callback.store import Store

API_KEY = "k" * 32
INTERRUPT = "\x03"
"""Ctrl-C."""
REQUIRED = {
    "AMO__CLIENT_ID": "c619",
    "AMO__CLIENT_SECRET": "the-client-secret",
    "AMO__REDIRECT_URI": "https://admin.example.com/api/amo-crm/callback",
    "API__KEYS": f"backend:{API_KEY}",
    "STORAGE__ENCRYPTION_KEYS": new_key(),
}


def environ_with(**more: str) -> dict[str, str]:
    """Return the environment of a service with the required settings and the given ones."""
    return {f"AMO_CALLBACK_{name}": value for name, value in {**REQUIRED, **more}.items()}


def settings_with(**more: str) -> Settings:
    return load_settings(None, environ_with(**more))


def context_in(folder: Path, *keys: str, **more: str) -> CommandContext:
    """Return a command's context with these encryption keys and settings, and with its database in a folder."""
    if keys:
        more["STORAGE__ENCRYPTION_KEYS"] = "\n".join(keys)
    return load_context(None, {**environ_with(**more), "STATE_DIRECTORY": str(folder)})


async def fill(store: Store, cipher: Cipher, count: int, *, now: datetime = START) -> None:
    """Store connections with pairs sealed by a cipher; their access tokens are `access-0` and so on."""
    await store.canary(cipher.seal_canary())
    imported = []
    for number in range(count):
        name, times = a_connection(number).id, {"access_issued_at": now, "access_expires_at": now + DAY}
        pair = TokenPair(
            access_token=f"access-{number}", refresh_token=f"refresh-{number}", issued_at=now, expires_at=now + DAY
        )
        sealed = cipher.seal_pair(pair, connection_id=name)
        connection = a_connection(number, sealed_pair=sealed, refresh_expires_at=now + 90 * DAY, **times)
        imported.append(ImportedConnection(connection=connection, replaces=None))
    await store.import_connections(imported)


def by_check(findings: Iterable[Finding]) -> dict[str, tuple[Severity, str]]:
    return {finding.check: (finding.severity, finding.message) for finding in findings}


@asynccontextmanager
async def answering(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Serve an application other than the service and yield its address."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    log = make_logger(level="error", style="json", stream=io.StringIO())
    async with open_listener(app, "127.0.0.1:0", name="other", clock=ShiftedClock(), log=log) as listener:
        yield listener.address


def take_terminal() -> None:
    """Make standard input the controlling terminal, which sends SIGINT for Ctrl-C and SIGHUP when closed."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


async def typed(
    *arguments: str,
    folder: Path,
    answers: Sequence[tuple[str, str]],
    environ: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "amo_callback.cli.main"),
) -> tuple[int, str]:
    """Run a command on a terminal, type each answer at its question, and return exit status and output.

    `INTERRUPT` is typed as soon as its text is shown.
    """
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program, *arguments, cwd=folder, env=process_environment(environ or {}),
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(theirs)
    shown, left, seen = "", list(answers), 0
    try:
        with suppress(OSError):  # the other end is closed
            while chunk := await asyncio.wait_for(asyncio.to_thread(os.read, ours, 65536), WAIT_LIMIT):
                shown += chunk.decode(errors="replace")
                if left and left[0][0] in shown[seen:] and (shown.endswith(": ") or left[0][1] == INTERRUPT):
                    seen = len(shown)
                    os.write(ours, left.pop(0)[1].encode())
    finally:
        if left:
            with suppress(ProcessLookupError):
                process.kill()
        os.close(ours)
    assert left == []
    return await process.wait(), shown.replace("\r\n", "\n")
