"""The panel: what it shows, and to whom."""

import re

from amo_callback import probe
from amo_callback.demo.environment import DemoSecrets
from tests.demo.walkthrough import TOKEN_LIFE, Walkthrough


async def test_what_is_seen_is_told_without_a_token(show: Walkthrough) -> None:
    """The panel's figures hold the connection's life, and the lines since the last one that was seen; no token."""
    one = await show.connect()
    async with show.http.get(f"http://{show.addresses.panel}/snapshot") as response:
        told = await response.json()
    assert [seen["id"] for seen in told["connections"]] == [one.id]
    assert 0 < told["connections"][0]["left"] <= TOKEN_LIFE
    assert told["not_ready"] == []
    assert [line["who"] for line in told["lines"]] == ["amoCRM", "service"]
    assert not re.search("eyJ|def502", str(told))
    last = told["lines"][-1]["number"]
    async with show.http.get(f"http://{show.addresses.panel}/snapshot?after={last}") as response:
        assert (await response.json())["lines"] == []


async def test_only_the_panel_may_frame_the_service_and_only_through_the_proxy(show: Walkthrough) -> None:
    """The proxy lets the panel frame the service's pages; the service's own door lets nobody."""
    path = "/api/amo-crm/callback?error=access_denied&state=s"
    async with show.http.get(f"http://{show.addresses.proxy}{path}") as response:
        assert f"frame-ancestors http://{show.addresses.panel}" in response.headers["Content-Security-Policy"]
        assert "X-Frame-Options" not in response.headers
    async with show.http.get(f"http://{show.demo.service.public}{path}") as response:
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Frame-Options"] == "DENY"


async def test_the_proxy_says_itself_whose_requests_they_are(show: Walkthrough) -> None:
    """Whoever claims to be somebody else by `X-Forwarded-For` is not believed: the proxy replaces it."""
    cipher = show.demo.service.services.core.cipher
    headers = {probe.HEADER: probe.seal_nonce(cipher, nonce="n"), "X-Forwarded-For": "203.0.113.9"}
    async with show.http.head(f"http://{show.addresses.proxy}/api/amo-crm/callback", headers=headers) as response:
        seen = probe.read_reply(cipher, response.headers[probe.HEADER], nonce="n")
    assert seen is not None
    assert seen.client == "127.0.0.1"


async def test_it_says_what_comes_next(show: Walkthrough) -> None:
    """The page ends with the commands that follow."""
    html = await show.page(f"http://{show.addresses.panel}/")
    for command in ("amo-callback init", "amo-callback check", "amo-callback serve", "amo-callback systemd install"):
        assert command in html


async def test_nothing_but_its_own_files_is_served(show: Walkthrough) -> None:
    """What is not on the list is not found, whatever its name."""
    for name in ("panel.html", "..%2Fstage.py", "phone.txt"):
        async with show.http.get(f"http://{show.addresses.panel}/static/{name}") as response:
            assert response.status == 404


async def test_only_names_of_this_machine_are_answered(show: Walkthrough) -> None:
    """A page elsewhere whose name resolves to 127.0.0.1 reads neither the panel's key nor tries anything."""
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


async def test_nothing_shows_the_keys_of_the_demonstration(show: Walkthrough) -> None:
    """Neither what was made for it, nor what runs, shows a secret where it is printed."""
    made = DemoSecrets()
    for secret in (made.api_key, made.jwt_secret, made.encryption_key):
        assert secret not in repr(made)
    assert show.demo.curl not in repr(show.demo)
