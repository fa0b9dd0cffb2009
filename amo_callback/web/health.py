"""Alive, and ready."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from aiohttp import web
from typing_extensions import TypedDict

from amo_callback.clock import rfc3339
from amo_callback.schedule import CLOCK_TOLERANCE
from amo_callback.survey import Condition
from amo_callback.web.operation import Operation, Reply, describe

if TYPE_CHECKING:
    from amo_callback.custody.build import Custody
    from amo_callback.store import Store


class Alive(TypedDict):
    """The process is alive."""

    status: Literal["ok"]


class Check(TypedDict):
    """One check, with a word for people."""

    ok: bool
    detail: str


class Ready(TypedDict):
    """Whether the service can do its work."""

    status: Literal["ready", "not ready"]
    checks: dict[str, Check]


_GOOD: Ready = {"status": "ready", "checks": {"store": {"ok": True, "detail": "works"}}}
_BAD: Ready = {"status": "not ready", "checks": {"store": {"ok": False, "detail": "no answer for 2 s"}}}
NOT_PROVEN = "not proven yet"
"""The detail of `amo_credentials` before any token pair was obtained with the client id."""


def oldest_beat(poll_interval: float) -> float:
    """Return how many seconds ago the refresher has beaten at the latest, if it lives."""
    return max(3 * poll_interval, 15.0)


class Readiness:
    """Tell whether the service can do its work: at once, from what is known.

    The store is asked in the background (`custody/surveyor.py`), so that whoever asks never waits for it.
    """

    def __init__(self, *, store: Store, custody: Custody, poll_interval: float, notices_delivered: bool) -> None:
        self._store = store
        self._custody = custody
        self._oldest_beat = oldest_beat(poll_interval)
        self._notices_delivered = notices_delivered

    def checks(self) -> dict[str, Check]:
        """Return each check by its name: whether it is `ok`, and a `detail` for people."""
        found = {
            "store": self._check_store(),
            "refresher": self._check_refresher(),
            "amo_credentials": self._check_credentials(),
            "amo_blocked": self._check_block(),
            "hosts": self._check_hosts(),
            "unsaved_pairs": self._check_unsaved(),
            "frozen": self._check_frozen(),
            "verdicts": self._check_verdicts(),
            "clock": self._check_clock(),
            "fresh": self._check_fresh(),
        }
        return {name: {"ok": ok, "detail": detail} for name, (ok, detail) in found.items()}

    def condition(self) -> Condition:
        """Return how the service does, for monitoring."""
        custody = self._custody
        return Condition(
            checks={name: check["ok"] for name, check in self.checks().items()},
            survey=custody.surveyor.last,
            survey_age=custody.surveyor.age,
            survey_seconds=custody.surveyor.seconds,
            beat_age=custody.refresher.beat_age,
            in_flight=custody.keeper.in_flight,
            unsaved=len(custody.unsaved.names),
            frozen=custody.freezer.frozen is not None,
            amo_blocked=custody.breaker.address_block.block is not None,
            credentials_refused=custody.credentials_refused is not None,
            verdicts_held=custody.breaker.held,
            notices_delivered=self._notices_delivered,
        )

    def _check_store(self) -> tuple[bool, str]:
        trouble = self._custody.surveyor.trouble
        if trouble is not None:
            return False, trouble
        if self._store.failing is not None:
            return False, f"cannot be written: {self._store.failing}"
        return True, "works"

    def _check_fresh(self) -> tuple[bool, str]:
        survey, trouble = self._custody.surveyor.last, self._custody.surveyor.trouble
        if survey is None or trouble is not None:
            return False, f"not known: {trouble}"
        told = f"{survey.fresh} of {survey.active} active connections hold a live token"
        return 2 * survey.fresh >= survey.active, told

    def _check_refresher(self) -> tuple[bool, str]:
        age = self._custody.refresher.beat_age
        return age <= self._oldest_beat, f"last beat {age:.1f} s ago"

    def _check_credentials(self) -> tuple[bool, str]:
        credentials = self._custody.credentials
        if credentials.refused is not None:
            return False, (
                f"AMO refuses exchanges ({credentials.refused}), and none has succeeded yet: compare client id, secret "
                "and redirect URI (amo.client_id, amo.client_secret, amo.redirect_uri) with the integration's page"
            )
        refused = self._custody.breaker.refused
        if refused is None:
            return True, f"{'accepted' if credentials.proven else NOT_PROVEN}{self._mismatched()}"
        return False, (
            f"nothing is refreshed: {refused}. Compare amo.client_id, amo.client_secret and amo.redirect_uri with the "
            "integration's page in AMO"
        )

    def _check_block(self) -> tuple[bool, str]:
        block = self._custody.breaker.address_block.block
        if block is None:
            return True, "not blocked"
        return False, (
            f"since {rfc3339(block.since)} AMO answers 403 to every refresh, and nothing is refreshed; the next probe "
            f"leaves at {rfc3339(block.probe_at)}. Ask AMO's support to unblock the address of this server"
        )

    def _check_hosts(self) -> tuple[bool, str]:
        survey = self._custody.surveyor.last
        if survey is None or not survey.hosts_not_allowed:
            return True, "all allowed"
        return False, (
            "active connections whose host is neither one of AMO's nor in amo.allowed_domains: "
            f"{survey.hosts_not_allowed}. Nothing is sent there, and no token is handed out for them: add the hosts to "
            "amo.allowed_domains and restart, or have the accounts connect again (the log names them: host.not_allowed)"
        )

    def _mismatched(self) -> str:
        """Return how many connections another client id was granted, which only that one may refresh."""
        survey = self._custody.surveyor.last
        if survey is None or not survey.mismatched:
            return ""
        return f"; connections of another client_id: {survey.mismatched} (their users must connect again)"

    def _check_unsaved(self) -> tuple[bool, str]:
        unsaved = self._custody.unsaved.names
        if not unsaved:
            kept = self._custody.raw_answers.count
            return True, f"none; answers without a readable pair in the rescue folder: {kept}" if kept else "none"
        return False, f"{len(unsaved)} that the store does not take: mend the disk, keep the rescue folder"

    def _check_frozen(self) -> tuple[bool, str]:
        frozen = self._custody.freezer.frozen
        if frozen is None:
            return True, "nothing"
        return False, (
            f"nothing is spent since {rfc3339(frozen.at)}: {frozen.why}. Once nobody else works with these tokens: "
            "amo-callback connections thaw --all"
        )

    def _check_verdicts(self) -> tuple[bool, str]:
        if not self._custody.breaker.held:
            return True, "believed"
        return False, (
            "so many connections died at once that it is not believed, and nothing is refreshed until one succeeds. "
            "Was an old database put back, or is it another integration's secret?"
        )

    def _check_clock(self) -> tuple[bool, str]:
        ahead = self._store.ahead
        if abs(ahead) <= CLOCK_TOLERANCE.total_seconds():
            return True, "right"
        side = "ahead of" if ahead > 0 else "behind"
        return False, f"this machine's clock is {abs(ahead):.0f} s {side} the database's: set both by NTP"


READINESS = web.AppKey("readiness", Readiness)


@describe(
    Operation(
        id="healthz",
        replies={200: Reply(about="Alive.", shape=Alive, examples={"alive": {"status": "ok"}})},
    )
)
async def healthz(_request: web.Request) -> web.Response:
    """Answer that the process is alive."""
    return web.json_response({"status": "ok"})


@describe(
    Operation(
        id="readyz",
        replies={
            200: Reply(about="Every check is good.", shape=Ready, examples={"ready": _GOOD}),
            503: Reply(about="One is not.", shape=Ready, examples={"not ready": _BAD}),
        },
    )
)
async def readyz(request: web.Request) -> web.Response:
    """Answer 200 where every check is good, else 503."""
    checks = request.app[READINESS].checks()
    ready = all(check["ok"] for check in checks.values())
    told: Ready = {"status": "ready" if ready else "not ready", "checks": checks}
    return web.json_response(told, status=200 if ready else 503)
