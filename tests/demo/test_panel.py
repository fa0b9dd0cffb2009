"""The demo's panel: its content and its access control."""

import re

from amo_callback import probe
from amo_callback.demo.environment import DemoSecrets
from tests.demo.walkthrough import TOKEN_LIFE, Walkthrough


async def test_panel_snapshot_contains_no_token(show: Walkthrough) -> None:
    """The snapshot has the connection's lifetime and the lines after a number, and no token."""
    one = await show.connect()
    async with show.http.get(f"http://{show.addresses.panel}/snapshot") as response:
        result = await response.json()
    assert [seen["id"] for seen in result["connections"]] == [one.id]
    assert 0 < result["connections"][0]["left"] <= TOKEN_LIFE
    assert result["not_ready"] == []
    assert [line["who"] for line in result["lines"]] == ["amoCRM", "service"]
    assert not re.search("eyJ|def502", str(result))
    last = result["lines"][-1]["number"]
    async with show.http.get(f"http://{show.addresses.panel}/snapshot?after={last}") as response:
        assert (await response.json())["lines"] == []


async def test_panel_may_frame_service_through_proxy_only(show: Walkthrough) -> None:
    """Only the proxy's headers allow the panel to frame the service's pages."""
    path = "/api/amo-crm/callback?error=access_denied&state=s"
    async with show.http.get(f"http://{show.addresses.proxy}{path}") as response:
        assert f"frame-ancestors http://{show.addresses.panel}" in response.headers["Content-Security-Policy"]
        assert "X-Frame-Options" not in response.headers
    async with show.http.get(f"http://{show.demo.service.public}{path}") as response:
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Frame-Options"] == "DENY"


async def test_panel_proxy_replaces_forwarded_for(show: Walkthrough) -> None:
    """The proxy replaces a client's own `X-Forwarded-For`."""
    cipher = show.demo.service.services.core.cipher
    headers = {probe.HEADER: probe.seal_nonce(cipher, nonce="n"), "X-Forwarded-For": "203.0.113.9"}
    async with show.http.head(f"http://{show.addresses.proxy}/api/amo-crm/callback", headers=headers) as response:
        seen = probe.read_reply(cipher, response.headers[probe.HEADER], nonce="n")
    assert seen is not None
    assert seen.client == "127.0.0.1"


async def test_panel_names_next_commands(show: Walkthrough) -> None:
    """The page ends with the commands to continue with."""
    html = await show.page(f"http://{show.addresses.panel}/")
    for command in ("amo-callback init", "amo-callback check", "amo-callback serve", "amo-callback systemd install"):
        assert command in html


async def test_panel_serves_listed_files_only(show: Walkthrough) -> None:
    """A file that is not listed is not found."""
    for name in ("panel.html", "phone.html", "..%2Fenvironment.py"):
        async with show.http.get(f"http://{show.addresses.panel}/static/{name}") as response:
            assert response.status == 404


async def test_panel_refuses_foreign_host_header(show: Walkthrough) -> None:
    """Another site whose name resolves to 127.0.0.1 can neither read the panel nor start a scenario."""
    port = show.addresses.panel.rpartition(":")[2]
    for host in ("evil.example.com", f"evil.example.com:{port}", "127.0.0.1.evil.example.com", "10.0.0.1", "", "[::]"):
        for method, path in (("GET", "/"), ("GET", "/snapshot"), ("POST", "/scenarios/away"), ("GET", "/phone")):
            asked = show.http.request(method, f"http://{show.addresses.panel}{path}", headers={"Host": host}, json={})
            async with asked as response:
                assert response.status == 421, host
                assert "Bearer" not in await response.text()
    for host in (show.addresses.panel, "127.0.0.1", f"localhost:{port}", "LOCALHOST", f"[::1]:{port}", "127.3.2.1"):
        async with show.http.get(f"http://{show.addresses.panel}/", headers={"Host": host}) as response:
            assert response.status == 200, host


async def test_demo_repr_contains_no_secret(show: Walkthrough) -> None:
    """The repr of the secrets and of the running demo shows no secret."""
    made = DemoSecrets()
    for secret in (made.api_key, made.jwt_secret, made.encryption_key):
        assert secret not in repr(made)
    assert show.demo.curl not in repr(show.demo)
