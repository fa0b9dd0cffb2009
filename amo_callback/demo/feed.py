"""The event feed: sentences about the actions of the service, AMO, the app and the user."""

from __future__ import annotations

import io
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from amo_callback.amo.sandbox.ledger import Entry, LookUp
from amo_callback.events import Level
from amo_callback.model import TokenState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from amo_callback.amo.sandbox.ledger import Ledger
    from amo_callback.clock import Clock
    from amo_callback.events import Event

SERVICE, AMO, APP, YOU = "service", "amoCRM", "app", "you"
_KEPT = 200
"""The maximum number of entries kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedEntry:
    """One sentence of the feed, with its time and its source."""

    number: int
    at: datetime
    who: str
    text: str
    domain: str = ""
    level: Level = Level.INFO


class Feed:
    """The latest entries: the service's events, the entries of AMO's ledger, and actions of the app and the user."""

    def __init__(self, *, clock: Clock, ledger: Ledger, on_entry: Callable[[FeedEntry], None]) -> None:
        self._clock = clock
        self._ledger = ledger
        self._read = self._looked_up = 0
        self._on_entry = on_entry
        self._number = 0
        self._lines: deque[FeedEntry] = deque(maxlen=_KEPT)

    @property
    def lines(self) -> Sequence[FeedEntry]:
        return tuple(self._lines)

    def __call__(self, event: Event) -> None:
        """Add the new entries of AMO's ledger, then the event."""
        self.catch_up()
        text = sentence(event)
        if text is not None:
            self.add(SERVICE, text, domain=str(event.fields.get("domain", "")), level=event.level)

    def catch_up(self) -> None:
        entries, introspections = self._ledger.entries[self._read :], self._ledger.introspections[self._looked_up :]
        self._read += len(entries)
        self._looked_up += len(introspections)
        both: list[Entry | LookUp] = [*entries, *introspections]
        for noted in sorted(both, key=lambda noted: noted.at):
            level = Level.INFO if noted.status == 200 else Level.WARNING
            self.add(AMO, noted_as(noted), domain=noted.host, level=level, at=noted.at)

    def add(
        self, who: str, text: str, *, domain: str = "", level: Level = Level.INFO, at: datetime | None = None
    ) -> None:
        self._number += 1
        entry = FeedEntry(
            number=self._number, at=at or self._clock.now(), who=who, text=text, domain=domain, level=level
        )
        self._lines.append(entry)
        self._on_entry(entry)


class LogStream(io.StringIO):
    """A text stream that adds each of the service's log lines to the feed."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed

    def write(self, text: str) -> int:
        for line in filter(None, text.splitlines()):
            self._feed.add(SERVICE, line, level=Level.WARNING)
        return len(text)


def noted_as(entry: Entry | LookUp) -> str:
    """Return a sentence about an entry in AMO's ledger: a presented credential or an introspection."""
    if isinstance(entry, LookUp):
        what = "a refresh token" if entry.kind == "refresh_token" else "an access token"
        return f"Introspection, which spends nothing, {'accepts' if entry.status == 200 else 'rejects'} {what}."
    what = "An authorization code" if entry.kind == "authorization_code" else "A refresh token"
    if entry.spent:
        return f"{what} is presented and spent: a new pair is issued."
    if entry.status is None:
        return f"{what} is received but not examined."
    return f"{what} is presented; the response is {entry.status}{f' ({entry.hint})' if entry.hint else ''}."


def sentence(event: Event) -> str | None:
    """Return a sentence for an event; `None` if the feed omits it.

    A warning or error without a sentence is shown by its name and fields.
    """
    make = _SENTENCES.get(event.name)
    if make is not None:
        return make(event.fields)
    if event.level in {Level.WARNING, Level.ERROR}:
        fields = ", ".join(f"{name}: {value}" for name, value in event.fields.items() if name != "domain")
        return f"{event.name} {f'({fields})' if fields else ''}".rstrip()
    return None


def _at(fields: Mapping[str, object]) -> str:
    due = fields.get("next_refresh_at")
    return f"at {due:%H:%M:%S}" if isinstance(due, datetime) else "when due"


def _unconfirmed(fields: Mapping[str, object]) -> str:
    seen = _SEEN.get(str(fields.get("token_state")), "Introspection is not possible")
    return f"{seen}: the tokens are kept{' and will be introspected again' if fields.get('again_at') else ''}."


_SEEN: Mapping[str, str] = {
    TokenState.VALID: "Introspection accepts the token",
    TokenState.REJECTED: "Introspection rejects the token, but this does not prove that the integration was disabled",
    TokenState.UNKNOWN: "amoCRM does not respond",
}
_WHY = {
    "outcome_open": "No response: the refresh token is possibly spent, so it is introspected before it is sent again.",
    "unavailable": "amoCRM is unreachable. No token was spent.",
    "no_answer": "amoCRM does not respond.",
    "not_sent": "amoCRM cannot be reached. Nothing was sent.",
    "unexplained_refusal": "amoCRM refuses the refresh and gives no reason. The connection stays active.",
}
_REASONS = {
    "revoked": "amoCRM rejects the refresh token",
    "refused": "amoCRM has refused the refresh token for at least a day, and introspection rejects the token",
    "in_doubt": "a response was lost, and amoCRM says that the refresh token is spent",
    "expired": "the refresh token was not used for three months",
}
_SENTENCES: Mapping[str, Callable[[Mapping[str, object]], str]] = {
    "connection.connected": lambda _: "Connected: the code is exchanged, and the token pair is encrypted and stored.",
    "refresh.succeeded": lambda fields: (
        f"Refreshed: the new token pair is stored before any caller receives a token. Next refresh {_at(fields)}."
    ),
    "refresh.failed": lambda fields: (
        f"{_WHY.get(str(fields.get('error')), 'This refresh returned no token pair.')} Next try {_at(fields)}."
    ),
    "refresh.postponed": lambda fields: f"Introspection is not possible at the moment. Next try {_at(fields)}.",
    "refresh.taken_over": lambda _: "A refresh ended without a response, so its token is introspected.",
    "connection.in_doubt": lambda _: (
        "The refresh token is possibly spent, so it is introspected before it is presented again."
    ),
    "connection.needs_reauth": lambda fields: (
        f"The user has to connect again: {_REASONS.get(str(fields.get('reason')), str(fields.get('reason')))}."
    ),
    "connection.recovered": lambda _: "The connection works again.",
    "connection.moved": lambda fields: (
        f"The account has moved; from now on, the service uses {fields.get('moved_to')}."
    ),
    "connection.disconnected": lambda _: "Disconnected: the tokens are erased.",
    "hook.received": lambda _: (
        "amoCRM's hook reports that the integration was disabled. The call may be a replay, so the service introspects "
        "the tokens before it decides whether to erase them."
    ),
    "hook.unconfirmed": _unconfirmed,
    "grant.failed": lambda fields: f"No account was connected: error={fields.get('word')}.",
}
