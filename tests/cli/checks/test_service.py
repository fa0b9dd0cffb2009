"""Checks of the running service, its unit and its callbacks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.cli.checks.finding import Severity
from amo_callback.cli.checks.service import check_service, check_unit, read_callbacks
from tests.wait_limit import WAIT_LIMIT

if TYPE_CHECKING:
    from pathlib import Path

    from amo_callback.cli.checks.finding import Finding
    from amo_callback.config.settings import Settings
    from tests.service import Running


async def _service(settings: Settings, address: str) -> list[Finding]:
    server = settings.server.model_copy(update={"private": address})
    known = settings.model_copy(update={"server": server})
    return [each async for each in check_service(known, wait_limit=WAIT_LIMIT)]


async def test_check_service_reports_readiness(app: Running) -> None:
    """The service is OK if ready, warns if frozen or not reachable, and fails at another service's address."""
    ready, *_ = await _service(app.settings, app.service.private)
    assert (ready.severity, ready.message) == (Severity.OK, f"the service is ready at {app.service.private}")
    await app.service.services.lifecycle.freeze_switch.freeze_all(why="a test")
    frozen, *_ = await _service(app.settings, app.service.private)
    assert frozen.severity is Severity.WARN
    assert "a test" in frozen.message
    [other] = await _service(app.settings, app.service.public)
    assert other.severity is Severity.FAIL
    [nobody] = await _service(app.settings, "127.0.0.1:1")
    assert (nobody.severity, nobody.message) == (Severity.WARN, "cannot connect to 127.0.0.1:1: Connection refused")


async def test_check_service_credentials_are_note_until_first_pair(app: Running) -> None:
    """The credentials are reported as in /readyz: `not verified yet` is a note, not a success."""
    for severity, result in ((Severity.NOTE, "not verified yet"), (Severity.OK, "accepted")):
        findings = {one.check: one for one in await _service(app.settings, app.service.private)}
        assert (findings["amo_credentials"].severity, findings["amo_credentials"].message) == (severity, result)
        await app.connected()


def _systemctl(folder: Path, script: str) -> dict[str, str]:
    command = folder / "systemctl"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    return {"PATH": f"{folder}:{os.defpath}"}


_SHOWN = 'case "$2" in *.socket) echo ActiveState={socket} UnitFileState={at_boot} | tr " " "\\n";; *) {service};; esac'


@pytest.mark.parametrize(
    ("service", "socket", "at_boot", "severity", "result"),
    [
        ("loaded active enabled", "inactive", "disabled", Severity.OK, "is active"),
        ("loaded inactive disabled", "active", "enabled", Severity.OK, "is inactive and its socket is listening"),
        ("loaded active disabled", "inactive", "disabled", Severity.WARN, "is not started at boot"),
        ("loaded inactive enabled", "inactive", "disabled", Severity.WARN, "is inactive"),
        ("loaded failed enabled", "active", "enabled", Severity.FAIL, "has failed (exit-code)"),
        ("masked inactive masked", "inactive", "", Severity.FAIL, "is masked"),
        ("not-found inactive ", "inactive", "", Severity.WARN, "amo-callback.service is not installed"),
    ],
    ids=["active", "by_its_socket", "not_at_boot", "inactive", "failed", "masked", "not_installed"],
)
async def test_check_unit_reports_state_and_start_at_boot(
    service: str, socket: str, at_boot: str, severity: Severity, result: str, tmp_path: Path
) -> None:
    """The unit must be installed, running or activated by its socket, and enabled."""
    load, active, unit_file = service.split(" ")
    lines = f"LoadState={load}\\nActiveState={active}\\nUnitFileState={unit_file}\\nResult=exit-code\\n"
    script = _SHOWN.format(service=f'printf "{lines}"', socket=socket, at_boot=at_boot)
    [finding] = [
        each async for each in check_unit(_systemctl(tmp_path, script), amo_timeout=15.0, wait_limit=WAIT_LIMIT)
    ]
    assert finding.severity is severity
    assert result in finding.message


@pytest.mark.parametrize(
    ("span", "refused"),
    [("1min", False), ("50s", True), ("1min 30s", False), ("59s 900ms", True), ("infinity", False), ("", False)],
)
async def test_check_unit_short_stop_timeout_fails(span: str, tmp_path: Path, *, refused: bool) -> None:
    """`TimeoutStopSec` must exceed `amo.timeout` by ten seconds, in any form that systemd prints."""
    lines = f"LoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\nTimeoutStopUSec={span}\\n"
    script = _SHOWN.format(service=f'printf "{lines}"', socket="active", at_boot="enabled")
    found = [each async for each in check_unit(_systemctl(tmp_path, script), amo_timeout=50.0, wait_limit=WAIT_LIMIT)]
    assert [finding.severity for finding in found if finding.check == "stop_timeout"] == [Severity.FAIL] * refused


async def test_check_unit_without_systemd_is_ok(tmp_path: Path) -> None:
    """A machine without `systemctl`, or without a running systemd, is OK."""
    assert [each async for each in check_unit({"PATH": str(tmp_path)}, amo_timeout=15.0, wait_limit=WAIT_LIMIT)] == []
    [finding] = [
        each async for each in check_unit(_systemctl(tmp_path, "exit 1"), amo_timeout=15.0, wait_limit=WAIT_LIMIT)
    ]
    assert (finding.severity, finding.message) == (Severity.OK, "systemd is not running on this machine")


async def test_check_callbacks_failures_warn_with_reasons(run: Any) -> None:
    """If more than half of at least five callbacks since the start failed, the check warns with the reasons."""
    async with run(AMO__CLIENT_SECRET="another") as app:
        for severity, failed in ((Severity.OK, 4), (Severity.WARN, 5)):
            while app.amo.sandbox.requests < failed:
                await app.callback(app.query())
            [finding] = [
                each for each in await _service(app.settings, app.service.private) if each.check == "callbacks"
            ]
            ended = f"since the service started, 0 of {failed} callbacks have connected an account; failed: {failed}"
            assert finding.severity is severity
            assert finding.message == f"{ended} amo_unavailable (amoCRM or this service is unavailable or slow)"


async def test_check_callbacks_with_metrics_auth_is_note(run: Any) -> None:
    """With `server.metrics_auth` callbacks are not read, because the check sends no API key."""
    async with run(SERVER__METRICS_AUTH="true") as app:
        *_, finding = await _service(app.settings, app.service.private)
        assert (finding.check, finding.severity) == ("callbacks", Severity.NOTE)


@pytest.mark.parametrize(
    ("counts", "severity"),
    [
        ({}, Severity.OK),
        ({"auth_failed": 4}, Severity.OK),
        ({"auth_failed": 3, "amo_unavailable": 2}, Severity.WARN),
        ({"auth_failed": 5, "connected": 5}, Severity.OK),
        ({"amo_unavailable": 6, "connected": 5}, Severity.WARN),
        ({"access_denied": 9, "account_not_allowed": 9, "rate_limited": 9}, Severity.OK),
    ],
)
def test_check_callbacks_counts_only_faults_of_service_or_amo(counts: dict[str, int], severity: Severity) -> None:
    """Errors of the user or of the link's author do not count as failures."""
    assert read_callbacks(counts).severity is severity
