"""The private application of a service that starts nothing: for the command, where no service runs."""

from __future__ import annotations

import secrets
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from pydantic import SecretStr

from amo_callback.clock import SystemClock
from amo_callback.identity import Scope
from amo_callback.observe.log import make_logger
from amo_callback.web.apis import make_apis
from amo_callback.web.composition import DataPaths, open_services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amo_callback.cli.context import CommandContext
    from amo_callback.events import Event


@asynccontextmanager
async def serve_store(context: CommandContext) -> AsyncIterator[tuple[str, str]]:
    """Open the store, and serve the private API on it; yield its address and an API key for everything.

    No task starts, and nothing is sent to AMO. Only this process can reach the Unix socket.
    """
    key = secrets.token_urlsafe(32)
    api = context.settings.api.model_copy(update={"keys": SecretStr(f"command:{'+'.join(Scope)}:{key}")})
    settings = context.settings.model_copy(update={"api": api})
    paths = DataPaths(folder=context.folder, rescue=context.rescue, machine=context.location)
    log = make_logger(level="error", style="console", stream=sys.stderr)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="amo-callback-"))  # of mode 0700
        services = await stack.enter_async_context(
            open_services(settings, paths=paths, clock=SystemClock(), log=log, observer=_ignore, idle=True)
        )
        runner = web.AppRunner(make_apis(services)[1].make_app(), access_log=None, handle_signals=False)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.UnixSite(runner, f"{folder}/api").start()
        yield f"unix:{folder}/api", key


def _ignore(event: Event) -> None:
    """Report nothing: what is stored of an event is in the history."""
