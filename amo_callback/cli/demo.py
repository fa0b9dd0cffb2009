"""`amo-callback demo`: the OAuth flow on this machine, with the built-in stand-in for AMO."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, TextIO

import click

from amo_callback.cli.context import run_loop
from amo_callback.cli.output import printable
from amo_callback.cli.serve import on_signal, until_end
from amo_callback.clock import SystemClock
from amo_callback.demo.environment import Addresses, choose_addresses, open_demo
from amo_callback.demo.phone import ANOTHER_USER

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.demo.feed import FeedEntry

_WELCOME = """\
This demo runs the OAuth flow on this machine: the service, a stand-in for amoCRM, a phone with
the app, and a backend.

  Open          http://{panel}/
  Get a token   {curl}
  Try a backend {backend}
  Try an app    {base}  (base URL)
                {jwt}  (JWT of user {user}, valid for a day)

In the demo, an access token is valid for {life} seconds. Press Ctrl-C to end the demo.

"""
_FAREWELL = """
The demo has ended, and all its files are deleted. Next steps:

  amo-callback init       write config.toml with new keys, and show the URLs to register in amoCRM
  amo-callback check      check the installation, and show how to fix problems
  amo-callback serve      run the service here; on a server, use: amo-callback systemd install
"""


@click.command()
@click.option(
    "--token-life", type=click.IntRange(1, 86400), default=30, metavar="SECONDS", help="Lifetime of an access token."
)
@click.option(
    "--port", type=click.IntRange(1, 65533), help="The first of three consecutive ports. Default: free ports."
)
def demo(*, token_life: int, port: int | None) -> int:
    """Run the OAuth flow on this machine with a stand-in for amoCRM, until Ctrl-C; no configuration is required."""
    return run_loop(_demo(choose_addresses(port), token_life=token_life))


async def _demo(addresses: Addresses, *, token_life: int) -> int:
    signalled = on_signal(lambda _event: None)

    def end() -> None:
        if not signalled.done():
            signalled.set_result(None)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, end)  # sent when the terminal is closed
    output = Output(sys.stdout, on_error=end)
    async with open_demo(
        addresses,
        token_life=token_life,
        clock=SystemClock(),
        on_entry=lambda entry: output.write(f"{line_of(entry)}\n"),
    ) as opened:
        values = {"curl": opened.curl, "backend": opened.backend, "base": opened.base, "jwt": opened.jwt}
        output.write(_WELCOME.format(panel=addresses.panel, user=ANOTHER_USER, life=token_life, **values))
        status = await until_end(opened.service, signalled)
    output.write(_FAREWELL)
    return status if output.error is None else _report_closed_output(output.error)


def line_of(line: FeedEntry) -> str:
    """Format an entry of the event feed as a line without control characters."""
    return printable(f"{line.at:%H:%M:%S}  {line.who:<8} {line.domain:<24} {line.text}")


class Output:
    """A text stream that keeps its first write error instead of raising it, and discards all later output."""

    def __init__(self, stream: TextIO, *, on_error: Callable[[], None]) -> None:
        self._stream = stream
        self._on_error = on_error
        self.error: OSError | None = None

    def write(self, text: str) -> None:
        """Write the text and flush the stream; do nothing after an error."""
        if self.error is not None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            self.error = error
            self._on_error()


def _report_closed_output(error: OSError) -> int:
    """Report the error on stderr, and replace stdout with the null device, because Python flushes stdout at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    text = f"amo-callback: the demo has ended, because its output could not be written: {error.strerror}"
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(nowhere, sys.stderr.fileno())  # the terminal is closed, and so is stderr
    return 1
