"""`amo-callback serve`."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import sys
import tempfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import click
from aiohttp import web
from pydantic import SecretStr

from amo_callback.cli.checks.configuration import PROXY_IGNORED, proxy_variables
from amo_callback.cli.context import config_option, load_context, run_loop
from amo_callback.cli.process import Deadline, fit_connections
from amo_callback.clock import SystemClock
from amo_callback.config.database_url import url_secrets
from amo_callback.config.loader import find_config, load_settings
from amo_callback.deploy import units
from amo_callback.errors import ConfigurationError
from amo_callback.events import Event, Level
from amo_callback.identity import Scope
from amo_callback.observe.log import LevelFilter, LogObserver, Redactor, make_logger, take_over_library_logs
from amo_callback.observe.log_writer import LogWriter
from amo_callback.observe.systemd import Notifier, inherited_sockets, is_journal
from amo_callback.web.apis import make_apis
from amo_callback.web.composition import DataPaths, Service, open_service, open_services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from amo_callback.cli.context import CommandContext
    from amo_callback.cli.main import Invocation
    from amo_callback.config.settings import Settings
    from amo_callback.events import Observer

_LAST_LINES = 1.0
"""The maximum number of seconds to wait for the last log lines to be written."""
_GRACE = 3.5
"""The shutdown deadline minus `amo.timeout`, in seconds.

At the deadline, the process ends even if not everything is closed.
"""


@click.command()
@config_option
@click.pass_obj
def serve(invocation: Invocation, *, config: str | None) -> int:
    """Run the service."""
    return run(config, invocation.environ, leave=invocation.leave)


def run(
    config: str | None,
    environ: Mapping[str, str],
    *,
    leave: Callable[[int], object] = lambda _status: None,
    run_loop: Callable[[Coroutine[object, object, int]], int] = run_loop,
) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status.

    `leave` is called with the status once everything is closed, or when the shutdown deadline expires. The command
    passes `os._exit`, because closing the event loop would wait for DNS resolver threads. Benchmarks pass their own
    `run_loop`.
    """
    path, context = find_config(config, environ), load_context(config, environ)
    check_stop_timeout(context.settings, environ)
    writer = LogWriter(sys.stdout)

    def finish(status: int) -> None:
        writer.finish(seconds=_LAST_LINES)
        leave(status)

    gc.freeze()  # otherwise, garbage collection of the imported modules would block the event loop
    try:
        return run_loop(_serve(context, path, environ, writer, finish))
    finally:
        writer.finish(seconds=_LAST_LINES)


def check_stop_timeout(settings: Settings, environ: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` if systemd could kill the process during a request to AMO."""
    limit, timeout = environ.get(units.STOP_TIMEOUT, ""), settings.amo.timeout
    if limit.isdecimal() and not units.fits_stop_timeout(timeout, int(limit)):
        raise ConfigurationError(
            f"amo.timeout: {timeout:g} s exceeds the unit's TimeoutStopSec={limit} minus {units.STOP_RESERVE:g} s; "
            "lower amo.timeout, or run `amo-callback systemd install`, which writes a matching unit"
        )


async def _serve(
    context: CommandContext,
    path: Path | None,
    environ: Mapping[str, str],
    writer: LogWriter,
    leave: Callable[[int], None],
) -> int:
    settings, clock = context.settings, SystemClock()
    redactor, level_filter = Redactor(secrets_of(settings)), LevelFilter(settings.log.level)
    log = make_logger(
        level=level_filter,
        style=settings.log.format,
        stream=writer,
        redactor=redactor,
        journal=is_journal(sys.stdout, environ),
    )
    take_over_library_logs(log)
    observer = LogObserver(log)
    signalled = on_signal(observer)  # first, because a signal may arrive during the start
    deadline = Deadline(seconds=settings.amo.timeout + _GRACE, clock=clock, observer=observer, leave=leave)
    signalled.add_done_callback(lambda _: deadline.begin(0))
    notifier = Notifier(environ, pid=os.getpid())
    if variables := proxy_variables(environ):
        log.warning("proxy.ignored", variables=variables, text=PROXY_IGNORED)

    def read_again() -> Settings:
        fresh = load_settings(path, environ)
        redactor.also(secrets_of(fresh))
        return fresh

    def reload() -> None:
        notifier("RELOADING=1", f"MONOTONIC_USEC={clock.monotonic() * 1e6:.0f}")
        _reload(service.reload, read_again, observer)
        notifier("READY=1")

    async with open_service(
        settings,
        paths=DataPaths(folder=context.folder, rescue=context.rescue, machine=context.location),
        clock=clock,
        log=log,
        observer=observer,
        supervisor=notifier,
        listeners=inherited_sockets(environ, pid=os.getpid(), names=("public", "private")),
        max_connections=fit_connections(settings.server.max_connections, log),
        lost_lines=lambda: writer.lost,
        on_reload={"log.level": lambda fresh: level_filter.set(fresh.log.level)},
    ) as service:
        deadline.pending_writes = service.services.lifecycle.pending_writes
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        status = await until_end(service, signalled)
        deadline.begin(status)
    deadline.end()
    observer(Event(name="service.stopped", fields={"status": status}))
    leave(status)
    return status


async def until_end(service: Service, signalled: asyncio.Future[None]) -> int:
    """Wait for a signal or for the failure of a background task, begin the shutdown, and return the exit status."""
    await asyncio.wait({signalled, service.died}, return_when=asyncio.FIRST_COMPLETED)
    service.stop()
    return 1 if service.died.done() else 0


def on_signal(observer: Observer) -> asyncio.Future[None]:
    """Return a future that completes on the first SIGTERM or SIGINT; SIGHUP is logged and ignored."""
    loop = asyncio.get_running_loop()
    signalled: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if not signalled.done():
            signalled.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(
        signal.SIGHUP,
        lambda: observer(
            Event(
                name="reload.ignored",
                level=Level.WARNING,
                fields={"text": "the service is still starting: send SIGHUP again once it is ready"},
            )
        ),
    )
    return signalled


def _reload(apply: Callable[[Settings], Sequence[str]], read_again: Callable[[], Settings], observer: Observer) -> None:
    """Reload the configuration and apply it; if it is invalid, keep the previous configuration."""
    try:
        needs_restart = apply(read_again())
    except ConfigurationError as error:
        observer(Event(name="reload.failed", level=Level.ERROR, fields={"problems": list(error.problems)}))
        return
    level = Level.WARNING if needs_restart else Level.INFO
    observer(Event(name="reload.done", level=level, fields={"needs_restart": list(needs_restart)}))


def secrets_of(settings: Settings) -> list[str]:
    """Return the values that must not appear in the log."""
    values = [settings.amo.client_secret.get_secret_value()]
    values += settings.storage.encryption_keys.get_secret_value().split()
    values += url_secrets(settings.storage.url.get_secret_value())
    values += [line.rpartition(":")[2].strip() for line in settings.api.keys.get_secret_value().splitlines()]
    if settings.app.jwt_secret is not None:
        values.append(settings.app.jwt_secret.get_secret_value())
    if settings.webhook.secret is not None:
        values += settings.webhook.secret.get_secret_value().split()
    return values


# --- without a running service -------------------------------------------------------------------


@asynccontextmanager
async def serve_store(context: CommandContext) -> AsyncIterator[tuple[str, str]]:
    """Serve the private API from the store; yield its address and an API key with all scopes.

    No background task is started, and no request is sent to AMO. Only processes of this user can reach the Unix socket.
    """
    key = secrets.token_urlsafe(32)
    api = context.settings.api.model_copy(update={"keys": SecretStr(f"command:{'+'.join(Scope)}:{key}")})
    settings = context.settings.model_copy(update={"api": api})
    paths = DataPaths(folder=context.folder, rescue=context.rescue, machine=context.location)
    log = make_logger(level="error", style="console", stream=sys.stderr)
    idle = open_services(settings, paths=paths, clock=SystemClock(), log=log, observer=lambda _: None, idle=True)
    with tempfile.TemporaryDirectory(prefix="amo-callback-") as folder:  # has mode 0700
        async with idle as services:
            runner = web.AppRunner(make_apis(services)[1].make_app(), access_log=None, handle_signals=False)
            await runner.setup()
            try:
                await web.UnixSite(runner, f"{folder}/api").start()
                yield f"unix:{folder}/api", key
            finally:
                await runner.cleanup()
