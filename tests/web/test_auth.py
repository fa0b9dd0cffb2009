"""API keys: a wrong one learns nothing, and locks nobody out."""

import pytest

from amo_callback.web.access_log import LogThrottle
from tests.fakes import FakeClock
from tests.service import API_KEY, Answer, Running

ITS_OWN = {"X-Request-ID", "Date"}
"""What differs from each answer to the next, whoever asks."""
KEYS: dict[str, dict[str, str]] = {
    "none": {},
    "an empty one": {"Authorization": ""},
    "nothing after the scheme": {"Authorization": "Bearer "},
    "a wrong one": {"Authorization": "Bearer wrong-api-key-0123456789-0123456789"},
    "the good one's beginning": {"Authorization": f"Bearer {API_KEY[:-1]}"},
    "the good one in another scheme": {"Authorization": f"Basic {API_KEY}"},
    "no UTF-8": {"Authorization": "Bearer \xff\xfe"},
    "a very long one": {"Authorization": "Bearer " + "x" * 4_000},
}
PRESENTED = {"a wrong one", "the good one's beginning", "no UTF-8", "a very long one"}


async def _asked(app: Running, headers: dict[str, str]) -> dict[str, Answer]:
    """Ask at every kind of path, and return the answers."""
    connection = await app.connected()
    paths = [
        ("GET", f"/connections/{connection}/token"),
        ("GET", f"/connections/account:{app.amo.account.id}/token"),
        ("GET", "/connections/unknown/token"),
        ("GET", "/connections/%00%ff/token"),
        ("GET", f"/connections/{connection}/token?min_ttl=nonsense"),
        ("GET", f"/connections/{'x' * 5_000}"),
        ("GET", "/connections"),
        ("GET", "/connections?nonsense=1"),
        ("GET", "/events"),
        ("GET", "/openapi.json"),
        ("GET", "/nowhere"),
        ("GET", "/healthz/"),
        ("GET", "/%2e%2e/readyz"),
        ("POST", f"/connections/{connection}/refresh"),
        ("POST", f"/connections/{connection}/freeze"),
        ("POST", "/connections/import"),
        ("POST", f"/connections/{connection}/token"),
        ("DELETE", f"/connections/{connection}"),
        ("DELETE", "/connections/unknown"),
        ("PUT", "/nowhere"),
        ("OPTIONS", "/connections"),
        ("PATCH", f"/connections/{connection}"),
    ]
    return {
        f"{method} {path}": await app.private(
            path, key=None, method=method, headers=headers, data=b"{" if method == "POST" else None
        )
        for method, path in paths
    }


# The time is the same, too, for all that is stored: `authorize` compares the key, each known one in constant time,
# before any handler is called, so no connection has been looked for, no body and no parameter been read when the
# answer is made. What comes before it is the router, which knows only the paths of the document and nothing stored,
# and the request's line in the log. No timing is asserted: a busy machine would decide the test.
@pytest.mark.parametrize("name", KEYS)
async def test_a_wrong_key_gets_one_and_the_same_answer(app: Running, name: str) -> None:
    """Status, bytes and headers are those of an unknown route with the same key, whatever is asked for."""
    headers = KEYS[name]
    nothing = await app.private("/nowhere", key=None, headers=headers)
    assert (nothing.status, nothing.json()["code"]) == (401, "unauthorized")
    error = ', error="invalid_token"' if name in PRESENTED else ""  # RFC 6750: only where a key came
    assert nothing.headers["WWW-Authenticate"] == f'Bearer realm="amo-callback"{error}'
    assert nothing.text == (await app.private("/nowhere", key=None)).text
    for asked, answer in (await _asked(app, headers)).items():
        assert (answer.status, answer.text) == (nothing.status, nothing.text), asked
        assert _told(answer) == _told(nothing), asked
    assert app.amo.fake.ledger.refreshes() == []
    assert (await app.private("/connections")).json()["items"][0]["status"] == "active"


async def test_the_method_head_learns_no_more(app: Running) -> None:
    """HEAD has the same headers as well, also where no route answers it."""
    connection = await app.connected()
    nothing = await app.private("/nowhere", key=None)
    for path in (f"/connections/{connection}", "/connections/unknown", "/nowhere", "/openapi.json"):
        answer = await app.private(path, key=None, method="HEAD")
        assert (answer.status, answer.text, _told(answer)) == (401, "", _told(nothing))


def _told(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in ITS_OWN}


async def test_repeated_events_are_logged_once_a_minute(clock: FakeClock) -> None:
    """The first is logged immediately, the rest as a number with the minute's end, and nothing where there was none."""
    counts: list[int] = []
    throttle = LogThrottle(counts.append, clock=clock)
    for _ in range(100):
        throttle.count()
    assert counts == [1]
    await clock.until_sleeping(60)
    clock.advance(60)
    await clock.until_sleeping(60)
    assert counts == [1, 99]
    clock.advance(60)
    assert counts == [1, 99]


async def test_a_neighbour_with_an_old_key_locks_nobody_out(app: Running) -> None:
    """However often a wrong key is tried, a good one is served; the log has one line of it, without the key."""
    for _ in range(50):
        assert (await app.private("/connections", key="wrong" * 10)).status == 401
    assert (await app.private("/connections")).status == 200
    told = [line for line in app.lines() if line["event"] == "authorization.refused"]
    assert [line["count"] for line in told] == [1]
    assert "amo_callback_api_keys_refused_total 50.0" in (await app.private("/metrics", key=None)).text
    assert "wrong" not in app.log.getvalue()
