"""A finding: what was looked at, how it is, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from amo_callback.errors import AmoCallbackError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator


class Verdict(StrEnum):
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
    verdict: Verdict
    told: str
    fix: str | None = None


def ok(check: str, told: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(check=check, verdict=Verdict.OK, told=told)


def note(check: str, told: str, *, fix: str) -> Finding:
    """Return that something cannot be known yet."""
    return Finding(check=check, verdict=Verdict.NOTE, told=told, fix=fix)


def warn(check: str, told: str, *, fix: str) -> Finding:
    """Return that something may be wrong, or that it could not be told."""
    return Finding(check=check, verdict=Verdict.WARN, told=told, fix=fix)


def fail(check: str, told: str, *, fix: str) -> Finding:
    """Return that something is wrong."""
    return Finding(check=check, verdict=Verdict.FAIL, told=told, fix=fix)


def guarded(check: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Pass findings on; a check that throws is a finding, too, and ends no other."""
    try:
        yield from findings
    except Exception as error:  # noqa: BLE001 -- because the others are still to be looked at
        yield _thrown(check, error)


async def guarded_async(check: str, findings: AsyncIterator[Finding]) -> list[Finding]:
    """Return findings as `guarded` does."""
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
        detail = error.fields.get("detail")
        return fail(check, f"{error}{f' ({detail})' if detail else ''}", fix="mend that, and check again")
    named = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
    return fail(check, f"could not be looked at: {named}", fix="mend that, and check again")
