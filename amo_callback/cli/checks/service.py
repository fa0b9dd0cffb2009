"""Checks of the service: whether it is running and ready, and whether systemd starts it at boot."""

from __future__ import annotations

import asyncio
import re
import shutil
from typing import TYPE_CHECKING

import aiohttp

from amo_callback.cli.api_client import NotRunning, private_session, read_readiness
from amo_callback.cli.checks.finding import Finding, fail, note, ok, warn
from amo_callback.deeplink import DEEP_LINK_ERRORS, OURS_OR_AMOS
from amo_callback.deploy import units
from amo_callback.errors import CommandFailed
from amo_callback.web.health import NOT_PROVEN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from amo_callback.config.settings import Settings

_UNIT = units.SERVICE
_COUNT = re.compile(r'^amo_callback_callbacks_total\{outcome="(\w+)"\} ([0-9.e+]+)$', re.MULTILINE)
_FEW = 5
"""The minimum number of callbacks for a meaningful failure rate."""
_ASKED = ("LoadState", "ActiveState", "UnitFileState", "Result", "TimeoutStopUSec")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(rf"([0-9.]+)({'|'.join(_UNITS)})\b")
_STARTED_BY_ITSELF = frozenset({"enabled", "enabled-runtime", "static", "generated", "linked", "alias"})


async def check_service(settings: Settings, *, wait_limit: float) -> AsyncIterator[Finding]:
    address = settings.server.private
    try:
        checks = await read_readiness(address, wait_limit=wait_limit)
    except NotRunning as error:
        yield warn("service", str(error), fix="run `amo-callback serve` or `systemctl start amo-callback`")
        return
    except CommandFailed as error:
        yield fail("service", str(error), fix="correct server.private, or stop the other program")
        return
    red = {name: check.detail for name, check in checks.items() if not check.ok}
    for name, detail in red.items():
        # If `frozen` is the only failed check, the service still hands out valid tokens.
        severe = warn if red.keys() == {"frozen"} else fail
        yield severe(
            "service",
            f"the service is running, but not ready ({name}): {detail}",
            fix="see the checks of /readyz in the README",
        )
    if not red:
        yield ok("service", f"the service is ready at {address}")
    if (credentials := checks.get("amo_credentials")) and credentials.ok:
        if credentials.detail == NOT_PROVEN:
            fix = "connect an account to learn whether AMO accepts the client credentials"
            yield note("amo_credentials", credentials.detail, fix=fix)
        else:
            yield ok("amo_credentials", credentials.detail)
    yield await _callbacks(settings, wait_limit=wait_limit)


async def _callbacks(settings: Settings, *, wait_limit: float) -> Finding:
    """Return a finding about the results of callbacks, read from the service's metrics."""
    if settings.server.metrics_auth:
        message = (
            "the results of callbacks are unknown: /metrics requires an API key (server.metrics_auth), but the check "
            "sends no key"
        )
        return note("callbacks", message, fix="check the metric amo_callback_callbacks_total in your monitoring")
    try:
        async with (
            private_session(settings.server.private, wait_limit=wait_limit) as session,
            session.get("/metrics", allow_redirects=False) as response,
        ):
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return warn("callbacks", "/metrics did not respond", fix="see the service's log")
    return read_callbacks({outcome: int(float(count)) for outcome, count in _COUNT.findall(text)})


def read_callbacks(counts: Mapping[str, int]) -> Finding:
    """Return a finding about the callbacks since the service started, given the number of callbacks by result."""
    total, connected = sum(counts.values()), counts.get("connected", 0)
    failed = {word: counts[word] for word in OURS_OR_AMOS if counts.get(word)}
    message = f"since the service started, {connected} of {total} callbacks have connected an account"
    if failed:
        message += "; failed: " + ", ".join(
            f"{count} {word} ({DEEP_LINK_ERRORS[word].meaning})" for word, count in failed.items()
        )
    if total >= _FEW and 2 * sum(failed.values()) > total:
        return warn(
            "callbacks",
            message,
            fix="look in the log for callback.refused, and for grant.failed, whose `hint` is AMO's error message",
        )
    return ok("callbacks", message)


async def check_unit(environ: Mapping[str, str], *, amo_timeout: float, wait_limit: float) -> AsyncIterator[Finding]:
    systemctl = shutil.which("systemctl", path=environ.get("PATH"))
    if systemctl is None:
        return
    service = await _show(systemctl, _UNIT, wait_limit=wait_limit)
    if not service:
        yield ok("systemd", "systemd is not running on this machine")
        return
    socket = await _show(systemctl, units.SOCKETS[0], wait_limit=wait_limit)
    yield read_unit(service, socket)
    stop_timeout = read_time_span(service.get("TimeoutStopUSec", ""))
    if stop_timeout is not None and not units.fits_stop_timeout(amo_timeout, stop_timeout):
        yield fail(
            "stop_timeout",
            f"amo.timeout ({amo_timeout:g} s) exceeds TimeoutStopSec ({stop_timeout:g} s) minus "
            f"{units.STOP_RESERVE:g} s: systemd may kill the service while it waits for a new token pair",
            fix="lower amo.timeout; or run `amo-callback systemd install`, and remove any TimeoutStopSec= of your own",
        )


def read_time_span(text: str) -> float | None:
    """Return the seconds of a time span from `systemctl show`, such as `1min 30s`; `None` for any other text."""
    parts = _SPAN.findall(text)
    if not parts or " ".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def read_unit(service: Mapping[str, str], socket: Mapping[str, str]) -> Finding:
    """Return a finding about the service unit, given its properties and those of its socket unit."""
    if service.get("LoadState") == "not-found":
        return warn(
            "systemd",
            f"{_UNIT} is not installed",
            fix="run `amo-callback systemd install` if systemd should run the service",
        )
    if service.get("LoadState") != "loaded":
        return fail(
            "systemd",
            f"{_UNIT} is {service.get('LoadState')}",
            fix=f"run `systemctl status {_UNIT}`, then repair or unmask the unit",
        )
    state = service.get("ActiveState")
    if state == "failed":
        return fail(
            "systemd",
            f"{_UNIT} has failed ({service.get('Result')})",
            fix=f"run `journalctl -u {_UNIT}` to see the reason",
        )
    listens = socket.get("ActiveState") == "active"
    if state not in {"active", "reloading"} and not listens:
        return warn("systemd", f"{_UNIT} is {state}", fix=f"run `systemctl start {_UNIT}`")
    if not {service.get("UnitFileState"), socket.get("UnitFileState")} & _STARTED_BY_ITSELF:
        return warn("systemd", f"{_UNIT} is not started at boot", fix=f"run `systemctl enable {_UNIT}`")
    return ok("systemd", f"{_UNIT} is {state}{' and its socket is listening' if listens else ''}")


async def _show(systemctl: str, unit: str, *, wait_limit: float) -> Mapping[str, str]:
    """Return the properties of a unit; empty if `systemctl` fails or does not respond."""
    process = await asyncio.create_subprocess_exec(
        systemctl, "show", unit, *(f"--property={name}" for name in _ASKED),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(process.communicate(), wait_limit)
    except TimeoutError:
        process.kill()
        await process.wait()
        return {}
    lines = [line.partition("=") for line in out.decode(errors="replace").splitlines()]
    return {} if process.returncode else {name: value for name, _, value in lines}
