"""`GET /metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import API_KEY, READ_KEY

if TYPE_CHECKING:
    from tests.conftest import Running


def _samples(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("outcome", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_hand_outs_and_refused_keys_are_counted(app: Running) -> None:
    """In Prometheus's text, without a key; no account, key or token is in it."""
    connection = await app.connected()
    for _ in range(3):
        await app.private(f"/connections/{connection}/token")
    for _ in range(2):
        await app.private(f"/connections/{connection}/token", key="wrong" * 10)
    answer = await app.private("/metrics", key=None)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = _samples(answer.text)
    assert found["amo_callback_tokens_handed_out_total", "fresh"] == 3
    assert found["amo_callback_tokens_handed_out_total", "stale"] == 0
    assert found["amo_callback_api_keys_refused_total", ""] == 2
    assert not any(word in answer.text for word in (connection, API_KEY, str(app.amo.account.id)))


async def test_metrics_may_ask_for_a_key(run: Any) -> None:
    """With `server.metrics_auth` a key that may read will do; the public door has none."""
    async with run(SERVER__METRICS_AUTH="true") as app:
        assert (await app.private("/metrics", key=None)).status == 401
        assert (await app.private("/metrics", key=READ_KEY)).status == 200
        assert (await app.public("/metrics")).status == 404
