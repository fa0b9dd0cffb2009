"""A finding: what was looked at, how it is, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from amo_callback.errors import AmoCallbackError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator


class Severity(StrEnum):
    """How something is."""

    OK = "ok"
    NOTE = "note"
    """Not known yet, which is no fault."""
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check has found; never a secret."""

    check: str
    severity: Severity
    message: str
    fix: str | None = None


def ok(check: str, message: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(check=check, severity=Severity.OK, message=message)


def note(check: str, message: str, *, fix: str) -> Finding:
    """Return that something cannot be known yet."""
    return Finding(check=check, severity=Severity.NOTE, message=message, fix=fix)


def warn(check: str, message: str, *, fix: str) -> Finding:
    """Return that something may be wrong, or that it could not be told."""
    return Finding(check=check, severity=Severity.WARN, message=message, fix=fix)


def fail(check: str, message: str, *, fix: str) -> Finding:
    """Return that something is wrong."""
    return Finding(check=check, severity=Severity.FAIL, message=message, fix=fix)


def run_check(check: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Pass findings on; a check that throws is a finding, too, and ends no other."""
    try:
        yield from findings
    except Exception as error:  # noqa: BLE001 -- because the others are still to be looked at
        yield _thrown(check, error)


async def run_check_async(check: str, findings: AsyncIterator[Finding]) -> list[Finding]:
    """Return findings as `run_check` does."""
    found: list[Finding] = []
    try:
        async for finding in findings:
            found.append(finding)  # noqa: PERF401 -- because what came before an error is kept
    except Exception as error:  # noqa: BLE001 -- because the others are still to be looked at
        found.append(_thrown(check, error))
    return found


def _thrown(check: str, error: Exception) -> Finding:
    """Tell an error by its name: another's text may quote anything."""
    if isinstance(error, AmoCallbackError):
        what = error.fields.get("what")
        return fail(check, f"{error}{f' ({what})' if what else ''}", fix="mend that, and check again")
    named = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
    return fail(check, f"could not be looked at: {named}", fix="mend that, and check again")
