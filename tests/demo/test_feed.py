"""What happens, in sentences."""

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


def test_events_are_told_in_sentences() -> None:
    """Each event that a person should see is a sentence; times are told."""
    due = {"next_refresh_at": _AT, "error": "outcome_open"}
    assert sentence(Event(name="refresh.succeeded", fields=due)) == (
        "Refreshed, and stored before anybody hears of it. Next at 12:00:00."
    )
    assert sentence(Event(name="refresh.failed", fields=due)) == (
        "No response: the refresh token may be spent, so it is introspected before it is sent again. "
        "Looked at again at 12:00:00."
    )
    moved = Event(name="connection.moved", fields={"moved_to": "b.amocrm.ru"})
    assert sentence(moved) == "The account has moved, and is followed to b.amocrm.ru."


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"standing": TokenState.VALID, "again_at": None}, "Introspection accepts the token: it is kept."),
        (
            {"standing": TokenState.REJECTED, "again_at": _AT},
            "Introspection rejects the token, which may have another reason: it is kept, and looked up again.",
        ),
        (
            {"standing": TokenState.UNKNOWN, "again_at": _AT},
            "amoCRM does not answer: it is kept, and looked up again.",
        ),
        ({"standing": TokenState.NOT_CHECKED, "again_at": None}, "It cannot be looked up: it is kept."),
    ],
)
def test_a_hook_that_is_not_confirmed_tells_what_the_look_up_said(fields: dict[str, object], told: str) -> None:
    """That it lives is said only where AMO has said so."""
    assert sentence(Event(name="hook.unconfirmed", fields=fields)) == told


def test_what_has_no_sentence_is_told_only_where_it_needs_attention() -> None:
    """An unknown warning is told by its name and fields, an unknown piece of news not at all."""
    fields = {"domain": "a.amocrm.ru", "why": "full"}
    assert sentence(Event(name="store.failing", level=Level.ERROR, fields=fields)) == "store.failing (why: full)"
    assert sentence(Event(name="store.recovered")) is None


def test_amo_tells_what_was_presented_and_what_was_asked() -> None:
    """A credential is spent, refused or not looked at; a question spends nothing. None of them is shown."""
    assert noted_as(_entry()) == "A refresh token is presented, and is spent: here is a new pair."
    assert noted_as(_entry(kind="authorization_code", status=None)) == (
        "An authorization code arrives, and nobody looks at it."
    )
    assert noted_as(_entry(status=401, hint="Token has been revoked")) == (
        "A refresh token is presented: 401, Token has been revoked."
    )
    asked = LookUp(at=_AT, kind="access_token", host="", status=401)
    assert noted_as(asked) == "Asked about an access token, which spends nothing: it is good no more."


def test_amo_is_heard_before_the_service() -> None:
    """What AMO noted before an event is told before it, in the order of their times, each once."""
    lines: list[FeedEntry] = []
    ledger = Ledger()
    feed = Feed(clock=FakeClock(), ledger=ledger, told=lines.append)
    ledger.introspections.append(LookUp(at=_AT, kind="refresh_token", host="a.amocrm.ru", status=200))
    ledger.entries.append(_entry(at=_AT.replace(hour=13)))
    feed(Event(name="connection.recovered"))
    feed.catch_up()
    assert [(line.number, line.who, line.text[:7]) for line in lines] == [
        (1, "amoCRM", "Asked a"),
        (2, "amoCRM", "A refre"),
        (3, "service", "It work"),
    ]
    assert list(feed.lines) == lines


def test_a_log_goes_into_the_story_line_by_line() -> None:
    """What a library logs is told as a warning, and does not write over the table."""
    lines: list[FeedEntry] = []
    LogStream(Feed(clock=FakeClock(), ledger=Ledger(), told=lines.append)).write("one\n\ntwo\n")
    assert [(line.text, line.level) for line in lines] == [("one", Level.WARNING), ("two", Level.WARNING)]
