"""The private application of a service that starts nothing: for the command, where no service runs."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pydantic import SecretStr

from amo_callback.clock import SystemClock
from amo_callback.observe.log import make_logger
from amo_callback.observe.metrics import Metrics
from amo_callback.web.composition import DataPaths, make_apis, open_services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

    from amo_callback.cli.context import CommandContext
    from amo_callback.events import Event


@asynccontextmanager
async def open_idle_app(context: CommandContext, *, api_keys: str) -> AsyncIterator[web.Application]:
    """Open the store, and build the private application on it; no task starts, and nothing is sent to AMO."""
    settings = context.settings.model_copy(
        update={"api": context.settings.api.model_copy(update={"keys": SecretStr(api_keys)})}
    )
    paths = DataPaths(folder=context.folder, rescue=context.rescue, machine=context.location)
    log = make_logger(level="error", style="console", stream=sys.stderr)
    async with open_services(
        settings, paths=paths, clock=SystemClock(), log=log, observer=_ignore, metrics=Metrics(), idle=True
    ) as services:
        yield make_apis(services)[1].make_app()


def _ignore(event: Event) -> None:
    """Report nothing: what is stored of an event is in the history."""
