"""`GET /metrics`: the metrics of the whole service."""

import asyncio
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from amo_callback.amo.sandbox.app import Fault
from tests.service import API_KEY, HOST, READ_KEY, Running


async def _scrape(app: Running) -> dict[str, float]:
    """Return the non-zero samples by name and label values."""
    answer = await app.private("/metrics", key=None)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return {
        " ".join([sample.name, *sample.labels.values()]).strip(): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.value
    }


async def _count(app: Running, name: str) -> dict[str, float]:
    """Return the samples of one counter."""
    counter = f"amo_callback_{name}_total"
    return {
        key.removeprefix(counter).strip(): value
        for key, value in (await _scrape(app)).items()
        if key.split(" ")[0] == counter
    }


async def test_metrics_count_hand_outs_and_refused_keys(app: Running) -> None:
    """Hand-outs are counted by result, or by the reason for a failure."""
    connection = await app.connected()
    for _ in range(3):
        await app.private(f"/connections/{connection}/token")
    for _ in range(2):
        await app.private(f"/connections/{connection}/token", key="wrong" * 10)
    await app.private("/connections/account:1/token")
    app.amo.sandbox.faults.add(Fault.UNPAID)
    await app.private(f"/connections/{connection}/refresh", method="POST")
    assert await _count(app, "hand_outs") == {"fresh": 3, "not_found": 1, "amo_refused": 1}
    assert await _count(app, "refreshes") == {"failed account_refused": 1}
    assert await _count(app, "api_keys_refused") == {"": 2}


async def test_metrics_count_refreshes_by_result(app: Running) -> None:
    """One refresh succeeds, and one presents a token that another system has spent."""
    connection, services = await app.connected(), app.service.services
    await app.private(f"/connections/{connection}/refresh", method="POST")
    stored = await services.store.connection(connection)
    pair = None if stored is None else services.core.cipher.decrypt_pair(stored)
    assert pair is not None
    app.amo.spend(grant_type="refresh_token", refresh_token=pair.refresh_token)
    app.clock.advance(10)
    await app.private(f"/connections/{connection}/refresh", method="POST")
    assert await _count(app, "refreshes") == {"succeeded": 1, "given_up revoked": 1}
    assert (await _scrape(app))["amo_callback_refresh_duration_seconds_count"] == 2


async def test_metrics_count_amo_requests_by_status(app: Running) -> None:
    """Requests to AMO are counted by kind and status class, and their duration is measured."""
    connection = await app.connected()
    await app.private(f"/connections/{connection}/refresh", method="POST")
    found = await _count(app, "amo_requests")
    assert found == {"exchange 2xx": 1, "refresh 2xx": 1}
    assert (await _scrape(app))["amo_callback_amo_request_duration_seconds_count exchange"] == 1


async def test_metrics_count_callbacks_by_result(app: Running) -> None:
    """Callbacks that were refused before AMO was asked are counted; a prefetch is not."""
    await app.connected()
    await app.callback(f"error=access_denied&state=s&referer={HOST}")
    await app.callback("")
    await app.callback(app.query(), headers={"Sec-Purpose": "prefetch"})
    await app.callback("code=x&state=s&referer=evil.example.com")
    assert await _count(app, "callbacks") == {
        "connected": 1,
        "access_denied": 1,
        "missing_code": 1,
        "account_not_allowed": 1,
    }


async def test_metrics_report_checks_connections_and_expiry(app: Running) -> None:
    """The gauges report checks, connections by status and the next expiry, but no webhooks without a receiver."""
    assert (await app.callback(app.query())).status == 302
    connection = str((await app.witness.until("connection.connected")).connection_id)
    await app.service.services.lifecycle.stats_poller.poll()
    found = await _scrape(app)
    assert found["amo_callback_check_ok store"] == 1
    assert found["amo_callback_connections active"] == 1
    stored = await app.stored(connection)
    assert stored.access_expires_at is not None
    assert found["amo_callback_access_token_next_expiry_timestamp_seconds"] == stored.access_expires_at.timestamp()
    assert not any(name.startswith("amo_callback_webhooks") for name in found)


async def test_metrics_contain_no_account_or_secret(app: Running) -> None:
    """The metrics contain no account, host, key, token or connection, even after requests with them."""
    connection = await app.connected()
    await app.private(f"/connections/{connection}/token")
    await app.private("/connections/account:777123777/token", key="wrong" * 10)
    await app.callback(f"error=quite_another&state=s&referer={HOST}")
    text = (await app.private("/metrics", key=None)).text
    for word in (connection, API_KEY, str(app.amo.account.id), "amocrm", "777123777", "wrong", "quite_another"):
        assert word not in text


async def test_metrics_auth_requires_key_with_read_scope(run: Any) -> None:
    """With `server.metrics_auth` a key with the read scope is required; the public API has no metrics."""
    async with run(SERVER__METRICS_AUTH="true") as app:
        assert (await app.private("/metrics", key=None)).status == 401
        assert (await app.private("/metrics", key=READ_KEY)).status == 200
        assert (await app.public("/metrics")).status == 404


async def test_metrics_count_client_connections_of_each_listener(app: Running) -> None:
    """The gauge counts the connections open during the scrape, including the scraper's own."""
    host, _, port = app.service.public.rpartition(":")
    opened = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
    for reader, writer in opened:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"}")
    scraped = await _scrape(app)
    name = "amo_callback_client_connections"
    assert (scraped[f"{name} public"], scraped[f"{name} private"]) == (2, 1)
    for _, writer in opened:
        writer.close()
        await writer.wait_closed()
