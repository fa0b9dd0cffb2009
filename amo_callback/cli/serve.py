"""`amo-callback serve`."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING

import click

from amo_callback.cli.checks.settings import PROXY_IGNORED, proxy_variables
from amo_callback.cli.context import config_option, load_context, run_loop
from amo_callback.cli.deadline import Deadline
from amo_callback.cli.descriptors import fit_connections
from amo_callback.clock import SystemClock
from amo_callback.config.database_url import url_secrets
from amo_callback.config.loader import find_config, load_settings
from amo_callback.deploy import units
from amo_callback.errors import ConfigurationError
from amo_callback.event import Event, Level
from amo_callback.observe.journal import is_journal
from amo_callback.observe.log import LogObserver, Threshold, make_logger, take_over_library_logs
from amo_callback.observe.log_writer import LogWriter
from amo_callback.observe.redaction import Redactor
from amo_callback.observe.systemd import Notifier, handed_over
from amo_callback.web.lifecycle import Home, Service, open_service

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from amo_callback.cli.main import Invocation
    from amo_callback.config import Settings
    from amo_callback.ports import Observer
    from amo_callback.web.reload import Reloader

_LAST_LINES = 1.0
"""Seconds for which the log's last lines are waited for, where nobody reads them."""
_GRACE = 3.5
"""Seconds beyond `amo.timeout` after which the process ends although something does not close."""


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
    """Serve until SIGTERM or SIGINT; return the exit status. Benchmarks measure with a `run_loop` of their own.

    `leave` is called with the status once everything is closed and safe: the process ends there, since closing the
    loop would wait for threads that wait for a resolver.
    """
    path, context = find_config(config, environ), load_context(config, environ)
    settings = context.settings
    check_stop_timeout(settings, environ)
    redactor, threshold = Redactor(secrets_of(settings)), Threshold(settings.log.level)
    writer = LogWriter(sys.stdout)

    def finish(status: int) -> None:
        writer.finish(seconds=_LAST_LINES)
        leave(status)

    log = make_logger(
        level=threshold,
        style=settings.log.format,
        stream=writer,
        redactor=redactor,
        journal=is_journal(sys.stdout, environ),
    )
    take_over_library_logs(log)
    if variables := proxy_variables(environ):
        log.warning("proxy.ignored", variables=variables, text=PROXY_IGNORED)
    max_connections = fit_connections(settings.server.max_connections, log)
    home = Home(folder=context.folder, rescue=context.rescue, machine=context.location)

    def read_again() -> Settings:
        fresh = load_settings(path, environ)
        redactor.also(secrets_of(fresh))
        return fresh

    notifier = Notifier(environ, pid=os.getpid())
    listeners = handed_over(environ, pid=os.getpid(), names=("public", "private"))
    gc.freeze()  # what is there now stays: the loop is not to stand still while garbage is looked for in it
    try:
        return run_loop(
            _serve(
                settings,
                home=home,
                log=log,
                threshold=threshold,
                read_again=read_again,
                notifier=notifier,
                listeners=listeners,
                max_connections=max_connections,
                lost_lines=lambda: writer.lost,
                leave=finish,
            )
        )
    finally:
        writer.finish(seconds=_LAST_LINES)


def check_stop_timeout(settings: Settings, environ: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` where systemd would kill the process before a request to AMO has come to its end."""
    told, timeout = environ.get(units.STOP_TIMEOUT, ""), settings.amo.timeout
    if told.isdecimal() and not units.fits_stop_timeout(timeout, int(told)):
        raise ConfigurationError(
            f"amo.timeout: {timeout:g} s is more than the unit's TimeoutStopSec={told} less {units.STOP_RESERVE:g} s: "
            "lower it, or run `amo-callback systemd install`, which writes a unit that fits"
        )


async def _serve(
    settings: Settings,
    *,
    home: Home,
    log: FilteringBoundLogger,
    threshold: Threshold,
    read_again: Callable[[], Settings],
    notifier: Notifier,
    listeners: Mapping[str, Sequence[socket.socket]],
    max_connections: int,
    lost_lines: Callable[[], int],
    leave: Callable[[int], None],
) -> int:
    observer, clock = LogObserver(log), SystemClock()
    signalled = on_signal(observer)  # first: a signal during the start is one, too
    deadline = Deadline(seconds=settings.amo.timeout + _GRACE, clock=clock, observer=observer, leave=leave)
    signalled.add_done_callback(lambda _: deadline.begin(0))

    def reload() -> None:
        notifier("RELOADING=1", f"MONOTONIC_USEC={clock.monotonic() * 1e6:.0f}")
        _reload(service.reloader, read_again, observer)
        notifier("READY=1")

    async with open_service(
        settings,
        home=home,
        clock=clock,
        log=log,
        observer=observer,
        supervisor=notifier,
        listeners=listeners,
        max_connections=max_connections,
        lost_lines=lost_lines,
    ) as service:
        deadline.unsaved = service.services.custody.unsaved
        service.reloader.also("log.level", lambda fresh: threshold.set(fresh.log.level))
        on_reload(reload)
        status = await until_end(service, signalled)
        deadline.begin(status)
    deadline.end()
    observer(Event(name="service.stopped", fields={"status": status}))
    leave(status)
    return status


async def until_end(service: Service, signalled: asyncio.Future[None]) -> int:
    """Wait for a signal, or for the death of what must live, and return the exit status that it means."""
    await asyncio.wait({signalled, service.died}, return_when=asyncio.FIRST_COMPLETED)
    service.stop()
    return 1 if service.died.done() else 0


def on_signal(observer: Observer) -> asyncio.Future[None]:
    """Return a future that is done with the first SIGTERM or SIGINT."""
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
            Event(name="reload.ignored", level=Level.WARNING, fields={"text": "it has not begun, or does not reload"})
        ),
    )
    return signalled


def on_reload(reload: Callable[[], None]) -> None:
    """Reload with each SIGHUP."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


def _reload(reloader: Reloader, read_again: Callable[[], Settings], observer: Observer) -> None:
    """Take in what is written in the files now; where that cannot be used, all stays as it was."""
    try:
        needs_restart = reloader.take(read_again())
    except ConfigurationError as error:
        observer(Event(name="reload.failed", level=Level.ERROR, fields={"problems": list(error.problems)}))
        return
    level = Level.WARNING if needs_restart else Level.INFO
    observer(Event(name="reload.done", level=level, fields={"needs_restart": list(needs_restart)}))


def secrets_of(settings: Settings) -> list[str]:
    """Return what must be in no line of the log."""
    values = [settings.amo.client_secret.get_secret_value()]
    values += settings.storage.encryption_keys.get_secret_value().split()
    values += url_secrets(settings.storage.url.get_secret_value())
    values += [line.rpartition(":")[2].strip() for line in settings.api.keys.get_secret_value().splitlines()]
    if settings.app.jwt_secret is not None:
        values.append(settings.app.jwt_secret.get_secret_value())
    if settings.webhook.secret is not None:
        values += settings.webhook.secret.get_secret_value().split()
    return values
