"""Health checks of the service, for `/readyz`, metrics and systemd's status line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aiohttp import web

from amo_callback.clock import rfc3339
from amo_callback.schedule import CLOCK_TOLERANCE
from amo_callback.stats import ServiceStatus
from amo_callback.web.route import Reply, Route, json_response, shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.store import Store
    from amo_callback.tokens.lifecycle import TokenLifecycle
    from amo_callback.web.composition import Services
    from amo_callback.web.route import Call

NOT_PROVEN = "not verified yet"
"""The detail of `amo_credentials` until a token pair has been obtained with the client id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The result of a check: its problem, or `good` if there is no problem."""

    name: str
    problem: str | None
    good: str
    summary: str = ""
    """The problem as shown in systemd's status line; empty if it is not shown there."""

    @property
    def ok(self) -> bool:
        return self.problem is None

    @property
    def detail(self) -> str:
        return self.good if self.problem is None else self.problem


def max_heartbeat_age(poll_interval: float) -> float:
    """Return the maximum age, in seconds, of the last heartbeat of a running refresh scheduler."""
    return max(3 * poll_interval, 15.0)


def checks(services: Services) -> Sequence[Check]:
    """Return the results of all checks without I/O; the store is polled in the background."""
    return [
        _store(services),
        _scheduler(services),
        _credentials(services.lifecycle),
        _address_block(services.lifecycle),
        _hosts(services.lifecycle),
        _pending_writes(services.lifecycle),
        _frozen(services.lifecycle),
        _mass_failure(services.lifecycle),
        _clock(services.store),
        _fresh(services.lifecycle),
    ]


def status_line(services: Services) -> str:
    """Return systemd's status line for the service."""
    stats = services.lifecycle.stats_poller.last
    problems = [check.summary for check in checks(services) if not check.ok and check.summary]
    return "; ".join(problems) or f"refreshing {0 if stats is None else stats.active} active connections"


def is_alive(services: Services) -> bool:
    """Return whether the refresh scheduler runs; also true if the store has failed, which a restart does not repair."""
    lifecycle = services.lifecycle
    oldest = max_heartbeat_age(services.settings.refresh.poll_interval)
    return lifecycle.stats_poller.problem is not None or lifecycle.scheduler.heartbeat_age <= oldest


def service_status(services: Services) -> ServiceStatus:
    lifecycle = services.lifecycle
    return ServiceStatus(
        checks={check.name: check.ok for check in checks(services)},
        stats=lifecycle.stats_poller.last,
        stats_age=lifecycle.stats_poller.age,
        stats_seconds=lifecycle.stats_poller.seconds,
        heartbeat_age=lifecycle.scheduler.heartbeat_age,
        in_flight=lifecycle.coordinator.in_flight,
        pending_writes=len(lifecycle.pending_writes.names),
        webhooks_delivered=services.settings.webhook.url is not None,
    )


def _store(services: Services) -> Check:
    problem, failing, summary = services.lifecycle.stats_poller.problem, services.store.last_write_error, ""
    if failing is not None:
        problem, summary = problem or f"writes fail: {failing}", f"writes to the database fail ({failing})"
    return Check(name="store", problem=problem, good="works", summary=summary)


def _scheduler(services: Services) -> Check:
    scheduler, limit = services.lifecycle.scheduler, max_heartbeat_age(services.settings.refresh.poll_interval)
    known, problem = f"last heartbeat {scheduler.heartbeat_age:.1f} s ago", None
    if scheduler.heartbeat_age > limit:
        problem = (
            f"no heartbeat for {scheduler.heartbeat_age:.1f} s; the limit is {limit:.0f} s: see the end of the log"
        )
    elif scheduler.failed_for > limit:
        problem = f"every refresh round has failed for {scheduler.failed_for:.0f} s: see refresher.failed in the log"
    return Check(name="refresher", problem=problem, good=known)


def _credentials(lifecycle: TokenLifecycle) -> Check:
    problem = None
    if (refused := lifecycle.credentials.refused) is not None:
        problem = (
            f"AMO rejects code exchanges ({refused}), and no exchange has succeeded yet: compare "
            "amo.client_id, amo.client_secret and amo.redirect_uri with the integration's page in AMO"
        )
    elif (refused := lifecycle.breaker.refused) is not None:
        problem = (
            f"refreshing is paused, because AMO rejects the client credentials ({refused}): compare amo.client_id, "
            "amo.client_secret and amo.redirect_uri with the integration's page in AMO"
        )
    good, stats = "accepted" if lifecycle.credentials.proven else NOT_PROVEN, lifecycle.stats_poller.last
    if stats is not None and stats.mismatched:
        good += f"; connections with tokens of another client_id: {stats.mismatched} (their users must connect again)"
    return Check(name="amo_credentials", problem=problem, good=good, summary="AMO rejects the client credentials")


def _address_block(lifecycle: TokenLifecycle) -> Check:
    problem, block = None, lifecycle.breaker.address_block.block
    if block is not None:
        problem = (
            f"AMO has answered every refresh with 403 since {rfc3339(block.since)}; refreshing is paused until a probe "
            f"succeeds (next probe: {rfc3339(block.probe_at)}): ask AMO's support to unblock this server's IP address"
        )
    return Check(name="amo_blocked", problem=problem, good="not blocked", summary="AMO blocks this server's address")


def _hosts(lifecycle: TokenLifecycle) -> Check:
    problem, stats = None, lifecycle.stats_poller.last
    if stats is not None and stats.hosts_not_allowed:
        problem = (
            f"{stats.hosts_not_allowed} active connections have hosts that are neither AMO's nor in "
            "amo.allowed_domains. The service sends nothing to these hosts and hands out no tokens for these "
            "connections. Add the hosts (see host.not_allowed in the log) to amo.allowed_domains and restart the "
            "service, or have the users connect again."
        )
    return Check(name="hosts", problem=problem, good="all allowed")


def _pending_writes(lifecycle: TokenLifecycle) -> Check:
    pending_writes, unreadable = len(lifecycle.pending_writes.names), lifecycle.raw_answers.count
    summary = f"{pending_writes} token pairs are not in the database yet"
    problem = f"{summary}: repair the database or its disk, and keep the rescue folder"
    good = "no pending writes"
    if unreadable:
        good += f"; raw answers (AMO responses without a readable token pair) in the rescue folder: {unreadable}"
    return Check(
        name="unsaved_pairs",
        problem=problem if pending_writes else None,
        good=good,
        summary=summary,
    )


def _frozen(lifecycle: TokenLifecycle) -> Check:
    problem, frozen = None, lifecycle.freeze_switch.frozen
    if frozen is not None:
        problem = (
            f"all connections have been frozen since {rfc3339(frozen.at)}: {frozen.why}. Once no other host uses these "
            "tokens, run amo-callback connections thaw --all"
        )
    return Check(name="frozen", problem=problem, good="not frozen", summary="all connections are frozen")


def _mass_failure(lifecycle: TokenLifecycle) -> Check:
    problem = (
        "refreshing is paused until a probe succeeds, because an unusual number of connections failed within 10 "
        "minutes. Check whether an old database was restored, or whether amo.client_secret belongs to another "
        "integration"
    )
    return Check(
        name="mass_failure",
        problem=problem if lifecycle.breaker.terminal_suspended else None,
        good="normal",
        summary="too many connections failed at once",
    )


def _clock(store: Store) -> Check:
    ahead, problem = store.clock_skew, None
    if abs(ahead) > CLOCK_TOLERANCE.total_seconds():
        side = "ahead of" if ahead > 0 else "behind"
        problem = f"this machine's clock is {abs(ahead):.0f} s {side} the database's: synchronize both clocks by NTP"
    return Check(name="clock", problem=problem, good="agrees with the database's clock")


def _fresh(lifecycle: TokenLifecycle) -> Check:
    stats, problem = lifecycle.stats_poller.last, lifecycle.stats_poller.problem
    if stats is None or problem is not None:
        return Check(name="fresh", problem=f"unknown: {problem}", good="")
    known = f"{stats.fresh} of {stats.active} active connections have a valid access token"
    return Check(name="fresh", problem=known if 2 * stats.fresh < stats.active else None, good=known)


@shape
class Alive:
    """The response of a running process."""

    status: Literal["ok"] = "ok"


@shape
class CheckResult:
    """The result of one check, with a human-readable explanation."""

    ok: bool
    detail: str


@shape
class Readiness:
    """The readiness of the service, with the result of each check."""

    status: Literal["ready", "not ready"]
    checks: Mapping[str, CheckResult]


async def healthz(_call: Call[None, None]) -> web.Response:
    """Respond with 200 if the process is running."""
    return web.json_response({"status": "ok"})


async def readyz(call: Call[None, None]) -> web.Response:
    """Return the result of each check; the status is 200 if every check succeeds, otherwise 503."""
    found = checks(call.services)
    ready = all(check.ok for check in found)
    answer = Readiness(
        status="ready" if ready else "not ready",
        checks={check.name: CheckResult(ok=check.ok, detail=check.detail) for check in found},
    )
    return json_response(answer, status=200 if ready else 503)


HEALTHZ = Route("GET", "/healthz", healthz, answer=Alive)
READYZ = Route(
    "GET", "/readyz", readyz, answer=Readiness, replies={503: Reply(about="At least one check fails.", type=Readiness)}
)
