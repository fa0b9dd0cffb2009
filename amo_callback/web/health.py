"""The checks of the service's health, and their renderings: `/readyz`, metrics and systemd's status line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aiohttp import web

from amo_callback.clock import rfc3339
from amo_callback.schedule import CLOCK_TOLERANCE
from amo_callback.survey import ServiceStatus
from amo_callback.web.route import Reply, Route, jsonable, shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.web.composition import Services
    from amo_callback.web.route import Call

NOT_PROVEN = "not proven yet"
"""The detail of `amo_credentials` before any token pair was obtained with the client id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check; where it fails, `summary` is its part of systemd's status line, if it has one."""

    name: str
    ok: bool
    detail: str
    summary: str = ""


def max_heartbeat_age(poll_interval: float) -> float:
    """Return the age in seconds of the refresher's last heartbeat, up to which it counts as running."""
    return max(3 * poll_interval, 15.0)


def checks(services: Services) -> Sequence[Check]:
    """Return the checks immediately, from what is known: the store is polled in the background."""
    return [
        _store(services),
        _refresher(services),
        _credentials(services),
        _address_block(services),
        _hosts(services),
        _unsaved(services),
        _frozen(services),
        _mass_failure(services),
        _clock(services),
        _fresh(services),
    ]


def status_line(services: Services) -> str:
    """Return the state of the service in one line, for systemd."""
    survey = services.custody.surveyor.last
    problems = [check.summary for check in checks(services) if not check.ok and check.summary]
    return "; ".join(problems) or f"keeps {0 if survey is None else survey.active} connections fresh"


def service_status(services: Services) -> ServiceStatus:
    """Return the state of the service, for metrics."""
    custody = services.custody
    return ServiceStatus(
        checks={check.name: check.ok for check in checks(services)},
        survey=custody.surveyor.last,
        survey_age=custody.surveyor.age,
        survey_seconds=custody.surveyor.seconds,
        beat_age=custody.refresher.beat_age,
        in_flight=custody.keeper.in_flight,
        unsaved=len(custody.unsaved.names),
        notices_delivered=services.settings.notify.url is not None,
    )


def _store(services: Services) -> Check:
    trouble, failing = services.custody.surveyor.trouble, services.store.failing
    if trouble is None and failing is None:
        return Check(name="store", ok=True, detail="works")
    detail = trouble or f"cannot be written: {failing}"
    summary = "" if failing is None else f"the database cannot be written ({failing})"
    return Check(name="store", ok=False, detail=detail, summary=summary)


def _refresher(services: Services) -> Check:
    age = services.custody.refresher.beat_age
    oldest = max_heartbeat_age(services.settings.refresh.poll_interval)
    return Check(name="refresher", ok=age <= oldest, detail=f"last heartbeat {age:.1f} s ago")


def _credentials(services: Services) -> Check:
    credentials, breaker_refused = services.custody.credentials, services.custody.breaker.refused
    name, summary = "amo_credentials", "AMO refuses our credentials"
    if credentials.refused is not None:
        detail = (
            f"AMO refuses exchanges ({credentials.refused}), and none has succeeded yet: compare client id, secret "
            "and redirect URI (amo.client_id, amo.client_secret, amo.redirect_uri) with the integration's page"
        )
        return Check(name=name, ok=False, detail=detail, summary=summary)
    if breaker_refused is not None:
        detail = (
            f"nothing is refreshed: {breaker_refused}. Compare amo.client_id, amo.client_secret and amo.redirect_uri "
            "with the integration's page in AMO"
        )
        return Check(name=name, ok=False, detail=detail, summary=summary)
    detail = "accepted" if credentials.proven else NOT_PROVEN
    survey = services.custody.surveyor.last
    if survey is not None and survey.mismatched:
        detail += f"; connections of another client_id: {survey.mismatched} (their users must connect again)"
    return Check(name=name, ok=True, detail=detail)


def _address_block(services: Services) -> Check:
    block = services.custody.breaker.address_block.block
    if block is None:
        return Check(name="amo_blocked", ok=True, detail="not blocked")
    detail = (
        f"since {rfc3339(block.since)} AMO answers 403 to every refresh, and nothing is refreshed; the next probe is "
        f"sent at {rfc3339(block.probe_at)}. Ask AMO's support to unblock the address of this server"
    )
    return Check(name="amo_blocked", ok=False, detail=detail, summary="AMO blocks this server's address")


def _hosts(services: Services) -> Check:
    survey = services.custody.surveyor.last
    if survey is None or not survey.hosts_not_allowed:
        return Check(name="hosts", ok=True, detail="all allowed")
    detail = (
        "active connections whose host is neither one of AMO's nor in amo.allowed_domains: "
        f"{survey.hosts_not_allowed}. Nothing is sent there, and no token is handed out for them: add the hosts to "
        "amo.allowed_domains and restart, or have the accounts connect again (the log names them: host.not_allowed)"
    )
    return Check(name="hosts", ok=False, detail=detail)


def _unsaved(services: Services) -> Check:
    unsaved = len(services.custody.unsaved.names)
    if not unsaved:
        kept = services.custody.raw_answers.count
        detail = f"none; answers without a readable pair in the rescue folder: {kept}" if kept else "none"
        return Check(name="unsaved_pairs", ok=True, detail=detail)
    detail = f"{unsaved} that the store does not accept: repair the disk, and keep the rescue folder"
    return Check(name="unsaved_pairs", ok=False, detail=detail, summary=f"{unsaved} new pairs wait for the database")


def _frozen(services: Services) -> Check:
    frozen = services.custody.freezer.frozen
    if frozen is None:
        return Check(name="frozen", ok=True, detail="not frozen")
    detail = (
        f"nothing is refreshed since {rfc3339(frozen.at)}: {frozen.why}. Once no other host works with these tokens: "
        "amo-callback connections thaw --all"
    )
    return Check(name="frozen", ok=False, detail=detail, summary="frozen, nothing is refreshed")


def _mass_failure(services: Services) -> Check:
    if not services.custody.breaker.held:
        return Check(name="mass_failure", ok=True, detail="normal")
    detail = (
        "Refreshing is paused until one refresh succeeds: an unusual number of connections failed within 10 minutes. "
        "Was an old database restored, or is it another integration's secret?"
    )
    return Check(
        name="mass_failure",
        ok=False,
        detail=detail,
        summary="too many connections failed at once",
    )


def _clock(services: Services) -> Check:
    ahead = services.store.ahead
    if abs(ahead) <= CLOCK_TOLERANCE.total_seconds():
        return Check(name="clock", ok=True, detail="right")
    side = "ahead of" if ahead > 0 else "behind"
    detail = f"this machine's clock is {abs(ahead):.0f} s {side} the database's: set both by NTP"
    return Check(name="clock", ok=False, detail=detail)


def _fresh(services: Services) -> Check:
    survey, trouble = services.custody.surveyor.last, services.custody.surveyor.trouble
    if survey is None or trouble is not None:
        return Check(name="fresh", ok=False, detail=f"unknown: {trouble}")
    detail = f"{survey.fresh} of {survey.active} active connections hold a valid access token"
    return Check(name="fresh", ok=2 * survey.fresh >= survey.active, detail=detail)


@shape
class Alive:
    """The process is alive."""

    status: Literal["ok"] = "ok"


@shape
class CheckResult:
    """One check, with a text for people."""

    ok: bool
    detail: str


@shape
class Readiness:
    """Whether the service can do its work."""

    status: Literal["ready", "not ready"]
    checks: Mapping[str, CheckResult]


async def healthz(_call: Call[None, None]) -> web.Response:
    """Answer that the process is alive."""
    return web.json_response({"status": "ok"})


async def readyz(call: Call[None, None]) -> web.Response:
    """Answer 200 where every check is good, else 503."""
    found = checks(call.services)
    ready = all(check.ok for check in found)
    answer = Readiness(
        status="ready" if ready else "not ready",
        checks={check.name: CheckResult(ok=check.ok, detail=check.detail) for check in found},
    )
    return web.json_response(jsonable(answer), status=200 if ready else 503)


HEALTHZ = Route(method="GET", path="/healthz", handler=healthz, answer=Alive)
READYZ = Route(
    method="GET",
    path="/readyz",
    handler=readyz,
    answer=Readiness,
    replies={503: Reply(about="A check is not good.", type=Readiness)},
)
