"""API keys while the service runs: refused ones, and new ones."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from amo_callback.config.loader import load_settings
from amo_callback.observe.log import make_logger
from amo_callback.observe.metrics import Metrics
from amo_callback.web.private.refusals import Refusals
from tests.builders import a_condition
from tests.conftest import ADMIN_KEY, API_KEY, BASE, READ_KEY, environment

if TYPE_CHECKING:
    from tests.conftest import Running
    from tests.fakes import FakeClock

NEW_KEY = "a-new-key-0123456789-0123456789-0123456789-01"


async def test_keys_that_were_read_again_hold_at_once(app: Running, encryption_key: str) -> None:
    """The new one opens the door, the old one does not any more; both may be there for a while."""
    both = {"API__KEYS": f"backend:{API_KEY}\nnew:{NEW_KEY}"}
    assert app.service.reloader.take(load_settings(None, environment(app.amo, encryption_key, **both))) == []
    for key in (API_KEY, NEW_KEY):
        assert (await app.private("/connections", key=key)).status == 200
    alone = {"API__KEYS": f"new:{NEW_KEY}"}
    app.service.reloader.take(load_settings(None, environment(app.amo, encryption_key, **alone)))
    answers = [(await app.private("/connections", key=key)).status for key in (API_KEY, READ_KEY, ADMIN_KEY, NEW_KEY)]
    assert answers == [401, 401, 401, 200]


async def test_what_cannot_be_taken_while_it_runs_is_named(app: Running, encryption_key: str) -> None:
    """Never a value: only which settings have changed, and need a restart."""
    more = {"AMO__CLIENT_SECRET": "another", "LOG__LEVEL": "debug", "API__KEYS": f"new:{NEW_KEY}"}
    changed = app.service.reloader.take(load_settings(None, environment(app.amo, encryption_key, **more)))
    assert changed == ["amo.client_secret", "log.level"]


async def test_limits_that_were_read_again_hold_at_once(app: Running, encryption_key: str) -> None:
    """For codes of an address, and for connects that it starts: fewer, then more."""

    async def junk() -> list[str]:
        answers = [await app.callback(app.query(code=f"junk{number}", state="s")) for number in range(2)]
        return [answer.location.partition("error=")[2].partition("&")[0] for answer in answers]

    async def starts() -> list[int]:
        return [(await app.public(f"{BASE}/connect")).status for _ in range(2)]

    for unproven in ("1", "3"):
        fresh = load_settings(None, environment(app.amo, encryption_key, LIMITS__FAILED_CODES=unproven))
        assert app.service.reloader.take(fresh) == []
        assert await junk() == (["auth_failed", "rate_limited"] if unproven == "1" else ["auth_failed"] * 2)
        assert await starts() == ([303, 302] if unproven == "1" else [303, 303])
    fresh = load_settings(None, environment(app.amo, encryption_key, LIMITS__FAILED_CODES="3", LIMITS__WINDOW="3600"))
    assert app.service.reloader.take(fresh) == []
    app.clock.advance(60)
    assert await starts() == [302, 302]


async def test_refused_keys_are_told_once_a_minute(clock: FakeClock) -> None:
    """The first at once, the rest as a number with the minute's end, and nothing where there was none."""
    stream, metrics = io.StringIO(), Metrics()
    refusals = Refusals(clock=clock, log=make_logger(level="info", style="json", stream=stream), metrics=metrics)
    for _ in range(100):
        refusals.count()
    assert stream.getvalue().count("authorization.refused") == 1
    await clock.until_sleeping(60)
    clock.advance(60)
    await clock.until_sleeping(60)
    assert '"count":99' in stream.getvalue()
    clock.advance(60)
    assert stream.getvalue().count("authorization.refused") == 2
    assert b"amo_callback_api_keys_refused_total 100.0" in metrics.text(a_condition())


async def test_a_neighbour_with_an_old_key_locks_nobody_out(app: Running) -> None:
    """However often a wrong key is tried, a good one is served; the log has one line of it, without the key."""
    for _ in range(50):
        assert (await app.private("/connections", key="wrong" * 10)).status == 401
    assert (await app.private("/connections")).status == 200
    told = [line for line in app.lines() if line["event"] == "authorization.refused"]
    assert [line["count"] for line in told] == [1]
    assert "wrong" not in app.log.getvalue()
