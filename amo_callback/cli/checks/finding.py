"""Findings of checks, with a severity, a message and a fix, and their report."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import click

from amo_callback.cli.output import printable
from amo_callback.errors import AmoCallbackError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator


_NAME = 15
"""The length of the longest name of a check."""


class Severity(StrEnum):
    """The severity of a finding, in ascending order."""

    OK = "ok"
    NOTE = "note"
    """Not known yet; not a problem."""
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The result of one check; never contains a secret."""

    check: str
    severity: Severity
    message: str
    fix: str | None = None


def ok(check: str, message: str) -> Finding:
    return Finding(check=check, severity=Severity.OK, message=message)


def note(check: str, message: str, *, fix: str) -> Finding:
    """Return a finding about something that cannot be known yet."""
    return Finding(check=check, severity=Severity.NOTE, message=message, fix=fix)


def warn(check: str, message: str, *, fix: str) -> Finding:
    """Return a finding about something that may be wrong or could not be checked."""
    return Finding(check=check, severity=Severity.WARN, message=message, fix=fix)


def fail(check: str, message: str, *, fix: str) -> Finding:
    return Finding(check=check, severity=Severity.FAIL, message=message, fix=fix)


def run_check(check: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings of a check; an exception becomes a finding and does not end other checks."""
    try:
        yield from findings
    except Exception as error:  # noqa: BLE001 -- other checks still have to run
        yield _failure(check, error)


async def run_check_async(check: str, findings: AsyncIterator[Finding]) -> list[Finding]:
    """Return the findings of an asynchronous check, as `run_check` does."""
    found: list[Finding] = []
    try:
        async for finding in findings:
            found.append(finding)  # noqa: PERF401 -- findings before an error are kept
    except Exception as error:  # noqa: BLE001 -- other checks still have to run
        found.append(_failure(check, error))
    return found


def _failure(check: str, error: Exception) -> Finding:
    """Return a finding with the name of the error, because its text may contain secrets."""
    if isinstance(error, AmoCallbackError):
        what = error.fields.get("detail")
        return fail(check, f"{error}{f' ({what})' if what else ''}", fix="fix that, and check again")
    named = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
    return fail(check, f"could not be checked: {named}", fix="fix that, and check again")


def report(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print findings, one by one or all as JSON, and return the exit status."""
    if as_json:
        found = list(findings)
        worst = max((one.severity for one in found), key=list(Severity).index, default=Severity.OK)
        click.echo(json.dumps({"severity": worst, "findings": [asdict(one) for one in found]}))
        return 1 if worst is Severity.FAIL else 0
    counted: Counter[Severity] = Counter()
    for finding in findings:
        counted[finding.severity] += 1
        click.echo(f"{finding.severity:<4}  {finding.check:<{_NAME}}  {printable(finding.message)}")
        if finding.fix is not None:
            click.echo(f"{'':<4}  {'':<{_NAME}}  > {printable(finding.fix)}")
    click.echo(", ".join(f"{counted[severity]} {severity}" for severity in Severity))
    return 1 if counted[Severity.FAIL] else 0
