"""The service that runs, and its unit."""

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


async def test_the_service_is_asked_whether_it_is_ready(app: Running) -> None:
    """Ready; frozen, which is a warning; something else at that address; nobody there."""
    ready, *_ = await _service(app.settings, app.service.private)
    assert (ready.severity, ready.message) == (Severity.OK, f"ready at {app.service.private}")
    await app.service.services.lifecycle.freeze_switch.freeze_all(why="a test")
    frozen, *_ = await _service(app.settings, app.service.private)
    assert frozen.severity is Severity.WARN
    assert "a test" in frozen.message
    [other] = await _service(app.settings, app.service.public)
    assert other.severity is Severity.FAIL
    [nobody] = await _service(app.settings, "127.0.0.1:1")
    assert (nobody.severity, nobody.message) == (Severity.WARN, "127.0.0.1:1: Connection refused")


async def test_credentials_are_a_note_until_a_first_pair_proves_them(app: Running) -> None:
    """`check` says what /readyz says: `not proven yet` is no success."""
    for severity, told in ((Severity.NOTE, "not proven yet"), (Severity.OK, "accepted")):
        findings = {one.check: one for one in await _service(app.settings, app.service.private)}
        assert (findings["amo_credentials"].severity, findings["amo_credentials"].message) == (severity, told)
        await app.connected()


def _systemctl(folder: Path, script: str) -> dict[str, str]:
    command = folder / "systemctl"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    return {"PATH": f"{folder}:{os.defpath}"}


_SHOWN = 'case "$2" in *.socket) echo ActiveState={socket} UnitFileState={at_boot} | tr " " "\\n";; *) {service};; esac'


@pytest.mark.parametrize(
    ("service", "socket", "at_boot", "severity", "told"),
    [
        ("loaded active enabled", "inactive", "disabled", Severity.OK, "is active"),
        ("loaded inactive disabled", "active", "enabled", Severity.OK, "is inactive, its socket listens"),
        ("loaded active disabled", "inactive", "disabled", Severity.WARN, "not started with the machine"),
        ("loaded inactive enabled", "inactive", "disabled", Severity.WARN, "is inactive"),
        ("loaded failed enabled", "active", "enabled", Severity.FAIL, "has failed (exit-code)"),
        ("masked inactive masked", "inactive", "", Severity.FAIL, "is masked"),
        ("not-found inactive ", "inactive", "", Severity.WARN, "there is no amo-callback.service"),
    ],
    ids=["active", "by_its_socket", "not_at_boot", "inactive", "failed", "masked", "not_installed"],
)
async def test_the_unit_is_judged_by_what_systemd_says(
    service: str, socket: str, at_boot: str, severity: Severity, told: str, tmp_path: Path
) -> None:
    """Installed, running or waiting at its socket, and started with the machine."""
    load, active, unit_file = service.split(" ")
    lines = f"LoadState={load}\\nActiveState={active}\\nUnitFileState={unit_file}\\nResult=exit-code\\n"
    script = _SHOWN.format(service=f'printf "{lines}"', socket=socket, at_boot=at_boot)
    [finding] = [
        each async for each in check_unit(_systemctl(tmp_path, script), amo_timeout=15.0, wait_limit=WAIT_LIMIT)
    ]
    assert finding.severity is severity
    assert told in finding.message


@pytest.mark.parametrize(
    ("span", "refused"),
    [("1min", False), ("50s", True), ("1min 30s", False), ("59s 900ms", True), ("infinity", False), ("", False)],
)
async def test_a_unit_that_kills_before_a_request_has_ended_is_refused(
    span: str, tmp_path: Path, *, refused: bool
) -> None:
    """As systemd prints its `TimeoutStopSec`: it leaves ten seconds beyond `amo.timeout`, or the check fails."""
    lines = f"LoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\nTimeoutStopUSec={span}\\n"
    script = _SHOWN.format(service=f'printf "{lines}"', socket="active", at_boot="enabled")
    found = [each async for each in check_unit(_systemctl(tmp_path, script), amo_timeout=50.0, wait_limit=WAIT_LIMIT)]
    assert [finding.severity for finding in found if finding.check == "stop_timeout"] == [Severity.FAIL] * refused


async def test_without_systemd_there_is_nothing_wrong(tmp_path: Path) -> None:
    """No `systemctl`, or one that reaches nobody."""
    assert [each async for each in check_unit({"PATH": str(tmp_path)}, amo_timeout=15.0, wait_limit=WAIT_LIMIT)] == []
    [finding] = [
        each async for each in check_unit(_systemctl(tmp_path, "exit 1"), amo_timeout=15.0, wait_limit=WAIT_LIMIT)
    ]
    assert (finding.severity, finding.message) == (Severity.OK, "does not run on this machine")


async def test_callbacks_that_fail_are_told_in_words(run: Any) -> None:
    """The running service's metric is read; more than half of at least five is a warning."""
    async with run(AMO__CLIENT_SECRET="another") as app:
        for severity, failed in ((Severity.OK, 4), (Severity.WARN, 5)):
            while app.amo.sandbox.requests < failed:
                await app.callback(app.query())
            [finding] = [
                each for each in await _service(app.settings, app.service.private) if each.check == "callbacks"
            ]
            ended = f"0 of {failed} connected since the service started; failed: {failed} amo_unavailable"
            assert finding.severity is severity
            assert finding.message == f"{ended} (amoCRM or this service is down or late)"


async def test_callbacks_are_not_read_where_that_takes_a_key(run: Any) -> None:
    """The check presents no API key to anybody."""
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
def test_callbacks_are_judged_by_the_faults_that_are_ours_or_amos(counts: dict[str, int], severity: Severity) -> None:
    """What the person or the sender of the link did wrong is no fault of the service."""
    assert read_callbacks(counts).severity is severity
