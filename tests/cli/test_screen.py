"""The terminal: what is drawn, and what keys do."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from datetime import UTC, datetime

from amo_callback.cli.screen import Output, Plain, Screen, fitted, line_of, picture
from amo_callback.demo.life import ConnectionLife, Life
from amo_callback.demo.story import Line

_AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
_ONE = ConnectionLife(
    id="1", account_id="31920194", domain="a.amocrm.ru", status="active", reason="", pairs=3, left=15.2, life=30,
    due_in=0.4, backend_status=200, backend_words="a token with 15 s left",
)  # fmt: skip
_OTHER = ConnectionLife(
    id="2", account_id="31920195", domain="b.amocrm.ru", status="needs_reauth", reason="in_doubt", pairs=1, left=0,
    life=30, due_in=None, backend_status=409, backend_words="needs_reauth in_doubt",
)  # fmt: skip
_LIFE = Life(connections=[_ONE, _OTHER], issued=4, spent=2, again=1)


def _nowhere(_text: str) -> None:
    """Take what is drawn."""


def _nobody() -> None:
    raise AssertionError("somebody takes what is written")


def test_the_table_shows_each_connections_life() -> None:
    """A row for each: account, status, what is left, when it is refreshed, what a backend gets; one is chosen."""
    rows = picture(_LIFE, address="http://127.0.0.1:1/", chosen=1)
    assert "service ready | amoCRM there | refresh tokens: 4 issued, 2 spent, 1 presented again" in rows
    assert [row.rstrip() for row in rows[5:7]] == [
        "   a.amocrm.ru  active                 [######......] 15 s  in 0 s        3      200 a token with 15 s left",
        ">  b.amocrm.ru  needs_reauth in_doubt  [............] 0 s   -             1      409 needs_reauth in_doubt",
    ]


def test_what_is_wrong_stands_at_the_top() -> None:
    """A service that is not ready says why; an AMO that is away is told."""
    [told] = [row for row in picture(Life(not_ready=["store"], away=True), address="", chosen=0) if "service" in row]
    assert told.startswith("service not ready: store | amoCRM AWAY")


def test_the_last_lines_fill_the_room_that_is_left() -> None:
    """Rows come first, then the last of the story; long lines are folded, and nothing is wider than the terminal."""
    rows = fitted(["row", "r" * 50], ["first", "a line that is " + "long " * 3], width=30, height=4)
    assert rows == ["row", "r" * 30, "first", "a line that is long long long"]
    folded = fitted(["row"], ["first", "a line that is " + "long " * 5], width=30, height=3)
    assert folded == ["row", "a line that is long long long", " " * 20 + "long long"]
    assert fitted(["row"] * 9, ["line"], width=9, height=4) == ["row"] * 4


def test_keys_try_with_the_connection_that_is_chosen() -> None:
    """A letter starts its trial with the chosen connection, a digit chooses, anything else does nothing."""
    tried: list[tuple[str, str | None]] = []
    screen = Screen(address="", write=_nowhere, attempt=lambda name, one: tried.append((name, one.id if one else None)))
    screen.pressed("n")  # nothing has been seen yet
    screen.show(_LIFE)
    for key in "n2ax9n?":
        screen.pressed(key)
    screen.show(Life())
    screen.pressed("n")
    assert tried == [("refresh", "1"), ("away", "2"), ("refresh", "2"), ("refresh", None)]


def test_a_file_gets_lines_that_move_no_cursor() -> None:
    """Where nobody looks each line is written as it comes, without control sequences."""
    stream = io.StringIO()
    plain = Plain(Output(stream, gone=_nobody))
    line = Line(number=1, at=_AT, who="service", says="It works\x1b[H again.", domain="a.amocrm.ru")
    plain.tell(line)
    plain.show(_LIFE)
    assert stream.getvalue() == f"{line_of(line)}\n"
    assert "\x1b" not in stream.getvalue()


def test_output_that_nobody_takes_is_told_once_and_raised_nowhere() -> None:
    """A closed pipe ends what is written, and costs nothing of what it tells of."""
    reading, writing = os.pipe()
    os.close(reading)
    gone: list[str] = []
    with suppress(BrokenPipeError), os.fdopen(writing, "w") as stream:
        output = Output(stream, gone=lambda: gone.append("gone"))
        plain = Plain(output)
        for number in range(2):
            plain.tell(Line(number=number, at=_AT, who="service", says="It works."))
        assert isinstance(output.problem, BrokenPipeError)
    assert gone == ["gone"]
