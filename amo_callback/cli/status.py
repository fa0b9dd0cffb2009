"""`amo-callback status`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from amo_callback.cli import output
from amo_callback.cli.checks.http_probe import NoResponse
from amo_callback.cli.checks.service import ask_readiness
from amo_callback.cli.context import config_option, json_option, load_context
from amo_callback.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_callback.cli.checks.service import ReadinessCheck
    from amo_callback.cli.main import Invocation

_PATIENCE = 10.0
_EVERY = 2.0
"""Seconds between two looks."""


@click.command()
@config_option
@json_option
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
@click.pass_obj
def status(invocation: Invocation, *, config: str | None, as_json: bool, watch: bool) -> int:
    """Show whether the running service is ready, check by check; exit 1 where it is not."""
    if watch and as_json:
        raise click.UsageError("--watch or --json, not both")
    address = load_context(config, invocation.environ).settings.server.private
    if watch:
        _watch(address)
    checks = _ask(address)
    if isinstance(checks, NoResponse):
        raise CommandFailed(f"{address}: {checks.why}")
    ready = all(check.ok for check in checks.values())
    found = {"ready": ready, "checks": {name: asdict(check) for name, check in checks.items()}}
    output.show(found, as_json=as_json, text=lambda: _text(checks))
    return 0 if ready else 1


def _ask(address: str) -> Mapping[str, ReadinessCheck] | NoResponse:
    return asyncio.run(ask_readiness(address, patience=_PATIENCE))


def _text(checks: Mapping[str, ReadinessCheck] | NoResponse) -> str:
    if isinstance(checks, NoResponse):
        return output.printable(checks.why)
    rows = [(name, "ok" if check.ok else "not ready", check.detail) for name, check in checks.items()]
    return output.table(("check", "is", "detail"), rows)


def _watch(address: str) -> None:
    """Show the status until Ctrl-C."""
    from rich.live import Live  # noqa: PLC0415 -- because its import takes 50 ms
    from rich.text import Text  # noqa: PLC0415 -- the same

    with Live(auto_refresh=False) as live:
        while True:
            live.update(Text(_text(_ask(address))), refresh=True)
            time.sleep(_EVERY)
