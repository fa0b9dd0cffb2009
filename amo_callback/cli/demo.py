"""`amo-callback demo`: the whole flow on this machine, against the built-in stand-in for AMO."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from amo_callback.cli.loop import run_loop
from amo_callback.cli.screen import Plain, Screen, is_live, keys_of
from amo_callback.cli.serve import on_signal, until_end
from amo_callback.clock import SystemClock
from amo_callback.demo.stage import Sites, choose_sites, open_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
    """Run until Ctrl-C."""
    status = run_loop(_demo(choose_sites(options.port), token_life=options.token_life))
    print(_FAREWELL, end="")
    return status


async def _demo(sites: Sites, *, token_life: int) -> int:
    live = is_live(sys.stdin, sys.stdout)
    trying = _Trying()
    screen = Screen(address=f"http://{sites.panel}/", stream=sys.stdout, attempt=trying) if live else Plain(sys.stdout)
    signalled = on_signal(_ignore)
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(
            open_stage(sites, token_life=token_life, clock=SystemClock(), told=screen.tell, seen=screen.show)
        )
        trying.trials = stage.trials
        print(_WELCOME.format(panel=sites.panel, curl=stage.curl, life=token_life), flush=True)
        if isinstance(screen, Screen):
            keyboard = stack.enter_context(keys_of(sys.stdin, sys.stdout))
            loop = asyncio.get_running_loop()
            loop.add_reader(keyboard, lambda: screen.pressed(os.read(keyboard, 1).decode(errors="replace")))
            stack.callback(loop.remove_reader, keyboard)
        watching = asyncio.create_task(stage.watcher.run(), name="watcher")
        try:
            return await until_end(stage.service, signalled)
        finally:
            watching.cancel()
            await asyncio.wait([watching])


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
