"""Findings of checks, each with a severity, a message and a fix, and the report that prints them."""

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
"""The length of the longest check name."""


class Severity(StrEnum):
    """The severity of a finding; the members are in ascending order."""

    OK = "ok"
    NOTE = "note"
    """Neither a success nor a problem, such as a result that is not known yet."""
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
    """Return a finding that is neither a success nor a problem."""
    return Finding(check=check, severity=Severity.NOTE, message=message, fix=fix)


def warn(check: str, message: str, *, fix: str) -> Finding:
    """Return a finding about a possible problem, or about a check that could not be completed."""
    return Finding(check=check, severity=Severity.WARN, message=message, fix=fix)


def fail(check: str, message: str, *, fix: str) -> Finding:
    return Finding(check=check, severity=Severity.FAIL, message=message, fix=fix)


def run_check(check: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings of a check; turn an exception into a finding, so that other checks still run."""
    try:
        yield from findings
    except Exception as error:  # noqa: BLE001 -- an error in one check must not prevent the others
        yield _failure(check, error)


async def run_check_async(check: str, findings: AsyncIterator[Finding]) -> list[Finding]:
    """Return the findings of an asynchronous check; an exception becomes the last finding."""
    found: list[Finding] = []
    try:
        async for finding in findings:
            found.append(finding)  # noqa: PERF401 -- a comprehension would lose the findings before an error
    except Exception as error:  # noqa: BLE001 -- an error in one check must not prevent the others
        found.append(_failure(check, error))
    return found


def _failure(check: str, error: Exception) -> Finding:
    """Return a finding for an exception.

    The text of an `AmoCallbackError` contains no secret. The text of any other exception may contain a secret, so the
    finding contains only the exception's type and, for an `OSError`, the reason.
    """
    if isinstance(error, AmoCallbackError):
        what = error.fields.get("detail")
        return fail(check, f"{error}{f' ({what})' if what else ''}", fix="solve this problem, then run the check again")
    named = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
    return fail(check, f"the check could not be completed: {named}", fix="solve this problem, then run the check again")


def report(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print the findings, as text line by line or as one JSON object, and return the exit status."""
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
