"""The demo's feed of events as sentences."""

from datetime import UTC, datetime
from typing import Any

import pytest

from amo_callback.amo.sandbox.ledger import Entry, Ledger, LookUp
from amo_callback.demo.feed import Feed, FeedEntry, LogStream, noted_as, sentence
from amo_callback.events import Event, Level
from amo_callback.model import TokenState
from tests.fakes import FakeClock

_AT = datetime(2026, 11, 24, 12, tzinfo=UTC)


def _entry(**more: Any) -> Entry:
    known: dict[str, Any] = {
        "at": _AT,
        "kind": "refresh_token",
        "presented": "def502",
        "host": "a.amocrm.ru",
        "status": 200,
    }
    return Entry(**{**known, **more})


def test_sentence_describes_event_with_times() -> None:
    """Each event for the user is a sentence with its times."""
    due = {"next_refresh_at": _AT, "error": "outcome_open"}
    assert sentence(Event(name="refresh.succeeded", fields=due)) == (
        "Refreshed: the new token pair is stored before any caller receives a token. Next refresh at 12:00:00."
    )
    assert sentence(Event(name="refresh.failed", fields=due)) == (
        "No response: the refresh token is possibly spent, so it is introspected before it is sent again. "
        "Next try at 12:00:00."
    )
    moved = Event(name="connection.moved", fields={"moved_to": "b.amocrm.ru"})
    assert sentence(moved) == "The account has moved; from now on, the service uses b.amocrm.ru."


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"token_state": TokenState.VALID, "again_at": None}, "Introspection accepts the token: the tokens are kept."),
        (
            {"token_state": TokenState.REJECTED, "again_at": _AT},
            (
                "Introspection rejects the token, but this does not prove that the integration was disabled: "
                "the tokens are kept and will be introspected again."
            ),
        ),
        (
            {"token_state": TokenState.UNKNOWN, "again_at": _AT},
            "amoCRM does not respond: the tokens are kept and will be introspected again.",
        ),
        (
            {"token_state": TokenState.NOT_CHECKED, "again_at": None},
            "Introspection is not possible: the tokens are kept.",
        ),
    ],
)
def test_sentence_of_unconfirmed_hook_contains_introspection_result(fields: dict[str, object], result: str) -> None:
    """Only a valid introspection result is reported as an accepted token."""
    assert sentence(Event(name="hook.unconfirmed", fields=fields)) == result


def test_sentence_of_other_event_is_given_for_warnings_only() -> None:
    """An event without a sentence is shown by name and fields if it is a warning, otherwise not."""
    fields = {"domain": "a.amocrm.ru", "why": "full"}
    assert sentence(Event(name="store.failing", level=Level.ERROR, fields=fields)) == "store.failing (why: full)"
    assert sentence(Event(name="store.recovered")) is None


def test_noted_as_describes_presented_credential_and_introspection() -> None:
    """A presented credential is spent, rejected or unread, and introspection spends nothing; no credential is shown."""
    assert noted_as(_entry()) == "A refresh token is presented and spent: a new pair is issued."
    assert noted_as(_entry(kind="authorization_code", status=None)) == (
        "An authorization code is received but not examined."
    )
    assert noted_as(_entry(status=401, hint="Token has been revoked")) == (
        "A refresh token is presented; the response is 401 (Token has been revoked)."
    )
    asked = LookUp(at=_AT, kind="access_token", host="", status=401)
    assert noted_as(asked) == "Introspection, which spends nothing, rejects an access token."


def test_feed_lists_amo_entries_before_service_events() -> None:
    """AMO's entries up to an event precede it, ordered by time, each once."""
    lines: list[FeedEntry] = []
    ledger = Ledger()
    feed = Feed(clock=FakeClock(), ledger=ledger, on_entry=lines.append)
    ledger.introspections.append(LookUp(at=_AT, kind="refresh_token", host="a.amocrm.ru", status=200))
    ledger.entries.append(_entry(at=_AT.replace(hour=13)))
    feed(Event(name="connection.recovered"))
    feed.catch_up()
    assert [(line.number, line.who, line.text[:7]) for line in lines] == [
        (1, "amoCRM", "Introsp"),
        (2, "amoCRM", "A refre"),
        (3, "service", "The con"),
    ]
    assert list(feed.lines) == lines


def test_log_stream_adds_each_line_as_warning() -> None:
    """Lines logged by a library become warnings of the feed."""
    lines: list[FeedEntry] = []
    LogStream(Feed(clock=FakeClock(), ledger=Ledger(), on_entry=lines.append)).write("one\n\ntwo\n")
    assert [(line.text, line.level) for line in lines] == [("one", Level.WARNING), ("two", Level.WARNING)]
