"""API key authentication: a wrong key reveals nothing and locks out no other caller."""

import pytest

from amo_callback.web.access_log import LogThrottle
from tests.fakes import FakeClock
from tests.service import API_KEY, Answer, Running

VARYING_HEADERS = {"X-Request-ID", "Date"}
"""Headers that differ between any two responses."""
KEYS: dict[str, dict[str, str]] = {
    "no header": {},
    "empty header": {"Authorization": ""},
    "no key after the scheme": {"Authorization": "Bearer "},
    "wrong key": {"Authorization": "Bearer wrong-api-key-0123456789-0123456789"},
    "prefix of a valid key": {"Authorization": f"Bearer {API_KEY[:-1]}"},
    "valid key in another scheme": {"Authorization": f"Basic {API_KEY}"},
    "invalid UTF-8": {"Authorization": "Bearer \xff\xfe"},
    "very long key": {"Authorization": "Bearer " + "x" * 4_000},
}
PRESENTED = {"wrong key", "prefix of a valid key", "invalid UTF-8", "very long key"}


async def _responses(app: Running, headers: dict[str, str]) -> dict[str, Answer]:
    """Send a request to every kind of path and return the responses."""
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


# The response time does not depend on stored data either: `authorize` compares the key with each configured key in
# constant time before any handler is called. At that point no connection has been looked up, and no body or parameter
# has been read. Only the router, which knows no stored data, and the access log run outside it. No timing is asserted,
# because the load of the machine would decide the result.
@pytest.mark.parametrize("name", KEYS)
async def test_api_key_invalid_gets_same_response_at_every_path(app: Running, name: str) -> None:
    """Without a valid key, every path returns the status, body and headers of an unknown route."""
    headers = KEYS[name]
    nothing = await app.private("/nowhere", key=None, headers=headers)
    assert (nothing.status, nothing.json()["code"]) == (401, "unauthorized")
    error = ', error="invalid_token"' if name in PRESENTED else ""  # RFC 6750: only if a key was sent
    assert nothing.headers["WWW-Authenticate"] == f'Bearer realm="amo-callback"{error}'
    assert nothing.text == (await app.private("/nowhere", key=None)).text
    for asked, answer in (await _responses(app, headers)).items():
        assert (answer.status, answer.text) == (nothing.status, nothing.text), asked
        assert _stable_headers(answer) == _stable_headers(nothing), asked
    assert app.amo.fake.ledger.refreshes() == []
    assert (await app.private("/connections")).json()["items"][0]["status"] == "active"


async def test_api_key_missing_head_has_same_headers_at_every_path(app: Running) -> None:
    """HEAD without a key returns the same 401 headers at every path, including paths without a HEAD route."""
    connection = await app.connected()
    nothing = await app.private("/nowhere", key=None)
    for path in (f"/connections/{connection}", "/connections/unknown", "/nowhere", "/openapi.json"):
        answer = await app.private(path, key=None, method="HEAD")
        assert (answer.status, answer.text, _stable_headers(answer)) == (401, "", _stable_headers(nothing))


def _stable_headers(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in VARYING_HEADERS}


async def test_log_throttle_logs_first_event_then_counts_every_minute(clock: FakeClock) -> None:
    """The first event is logged immediately, further events as a count at the end of each minute with events."""
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


async def test_api_key_wrong_repeatedly_does_not_lock_out_valid_key(app: Running) -> None:
    """A valid key is accepted after any number of wrong ones; they are one log line, without the key."""
    for _ in range(50):
        assert (await app.private("/connections", key="wrong" * 10)).status == 401
    assert (await app.private("/connections")).status == 200
    refused = [line for line in app.lines() if line["event"] == "authorization.refused"]
    assert [line["count"] for line in refused] == [1]
    assert "amo_callback_api_keys_refused_total 50.0" in (await app.private("/metrics", key=None)).text
    assert "wrong" not in app.log.getvalue()
