"""`amo-callback check --health`: one line and an exit status, as Nagios and its kin want them.

https://www.monitoring-plugins.org/doc/guidelines.html
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from amo_callback.cli.readiness import NotUnderstood, Ready, ask_ready

if TYPE_CHECKING:
    from amo_callback.cli.readiness import Unreachable
    from amo_callback.clock import Clock

_NAME = "AMO-CALLBACK"


class Status(IntEnum):
    """The exit status."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


MEANINGS = {
    Status.OK: "every check of `/readyz` is good",
    Status.WARNING: "only `frozen` is red: somebody wanted it, or has to look",
    Status.CRITICAL: "anything else is red, or nobody answers within `--timeout`",
    Status.UNKNOWN: "the configuration cannot be used, or something else answers there",
}
"""What each of them means."""


async def tell_health(address: str, *, clock: Clock, patience: float) -> tuple[Status, str]:
    """Ask the service whether it is ready, and return status and line."""
    try:
        ready = await ask_ready(address, clock=clock, patience=patience)
    except NotUnderstood as error:
        return unknown(f"{address}: {error}")
    return judge(ready, address=address, patience=patience)


def judge(ready: Ready | Unreachable, *, address: str, patience: float) -> tuple[Status, str]:
    """Tell what readiness means.

    Frozen alone is a warning: a person has it so, or has to look, and what lives is handed out. When the tokens run
    out meanwhile, `fresh` is red as well, and that is critical like anything else.
    """
    if not isinstance(ready, Ready):
        return Status.CRITICAL, _line(Status.CRITICAL, f"{address}: {ready.why}")
    data = f"time={ready.seconds:.3f}s;;;0;{patience:g} red={len(ready.red)};;;0;{len(ready.checks)}"
    if not ready.red:
        return Status.OK, _line(Status.OK, f"ready, {len(ready.checks)} checks", data)
    status = Status.WARNING if ready.only_frozen else Status.CRITICAL
    return status, _line(status, "; ".join(f"{name}: {detail}" for name, detail in ready.red.items()), data)


def unknown(why: str) -> tuple[Status, str]:
    """Return that nothing can be told."""
    return Status.UNKNOWN, _line(Status.UNKNOWN, why)


def _line(status: Status, told: str, data: str = "") -> str:
    """Return one line; a bar in the text would begin the performance data."""
    text = "".join(character if character.isprintable() else " " for character in told).replace("|", "/")
    return f"{_NAME} {status.name} - {text}" + (f" | {data}" if data else "")
