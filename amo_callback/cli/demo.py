"""`amo-callback demo`: the whole flow on this machine, against the built-in stand-in for AMO."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

from amo_callback.cli.loop import run_loop
from amo_callback.cli.screen import Output, Plain, Screen, Terminal, is_live
from amo_callback.cli.serve import on_signal, until_end
from amo_callback.clock import SystemClock
from amo_callback.demo.stage import Sites, choose_sites, open_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from amo_callback.demo.life import ConnectionLife
    from amo_callback.demo.trials import Trials
    from amo_callback.event import Event

_WELCOME = """\
The whole flow on this machine: the service, a stand-in for amoCRM, a phone with the app, a backend.

  Open        http://{panel}/
  A token     {curl}

An access token lives {life} seconds here. Ctrl-C ends it.

"""
_FAREWELL = """
The demo has ended; nothing of it is left on this machine. What to do next:

  amo-callback init       asks a few questions, makes the keys, writes config.toml, says what to register in amoCRM
  amo-callback check      tells what is still wrong, in front of it and behind it
  amo-callback serve      runs it here; on a server: amo-callback systemd install
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("demo", help="try the whole flow on this machine, nothing to configure")
    parser.add_argument(
        "--token-life", type=_between(1, 86400), default=30, metavar="SECONDS", help="default: %(default)s"
    )
    parser.add_argument(
        "--port", type=_between(1, 65533), help="the first of three ports in a row; default: any that are free"
    )
    parser.set_defaults(run=run)


def _between(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}")
        return number

    read.__name__ = "number"  # as argparse calls it where `int` refuses
    return read


def run(options: argparse.Namespace, _environ: Mapping[str, str]) -> int:
    """Run until Ctrl-C, or until nobody is there any more."""
    return run_loop(_demo(choose_sites(options.port), token_life=options.token_life))


async def _demo(sites: Sites, *, token_life: int) -> int:
    live = is_live(sys.stdin, sys.stdout)
    trying = _Trying()
    signalled = on_signal(_ignore)

    def end() -> None:
        if not signalled.done():
            signalled.set_result(None)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, end)  # the terminal was closed
    write = Output(sys.stdout, gone=end)
    screen = Screen(address=f"http://{sites.panel}/", write=write, attempt=trying) if live else Plain(write)
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(
            open_stage(sites, token_life=token_life, clock=SystemClock(), told=screen.tell, seen=screen.show)
        )
        trying.trials = stage.trials
        write(_WELCOME.format(panel=sites.panel, curl=stage.curl, life=token_life))
        if isinstance(screen, Screen):
            stack.enter_context(_keys(Terminal(sys.stdin, write), pressed=screen.pressed, end=end))
        watching = asyncio.create_task(stage.watcher.run(), name="watcher")
        try:
            status = await until_end(stage.service, signalled)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
    if write.problem is None:
        write(_FAREWELL)
    return status if write.problem is None else _unheard(write.problem)


@contextmanager
def _keys(terminal: Terminal, *, pressed: Callable[[str], None], end: Callable[[], None]) -> Iterator[None]:
    """Take keys from the terminal; end where there is nobody to press them any more."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        if key := terminal.key():
            pressed(key)
        else:
            loop.remove_reader(terminal.fileno())
            end()

    terminal.take()
    loop.add_reader(terminal.fileno(), read)
    loop.add_signal_handler(signal.SIGTSTP, terminal.suspend)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTSTP)
        loop.remove_reader(terminal.fileno())
        terminal.give_back()


def _unheard(problem: OSError) -> int:
    """Say that nobody takes the output any more, and see to it that Python does not try again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    told = f"amo-callback: the output can be written no more, so the demo has ended: {problem.strerror}"
    try:
        print(told, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(nowhere, sys.stderr.fileno())  # that terminal was closed, too
    return 1


class _Trying:
    """Start trials by key, and hold them until they have ended."""

    def __init__(self) -> None:
        self.trials: Trials | None = None
        self._running: set[asyncio.Task[bool]] = set()

    def __call__(self, name: str, connection: ConnectionLife | None) -> None:
        if self.trials is not None:
            task = asyncio.create_task(self.trials.run(name, connection), name=f"trial:{name}")
            self._running.add(task)
            task.add_done_callback(self._running.discard)


def _ignore(event: Event) -> None:
    """Let a SIGHUP pass: there is nothing to read again."""
