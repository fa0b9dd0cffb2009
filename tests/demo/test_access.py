"""The demo's servers accept only their own host names, and changes only from their own pages."""

import pytest

from amo_callback.demo.access import own_hosts
from tests.demo.walkthrough import Walkthrough

_PATHS = {
    "panel": (("GET", "/"), ("GET", "/snapshot"), ("POST", "/scenarios/away"), ("GET", "/phone"), ("GET", "/nothing")),
    "amo": (("GET", "/oauth/allow?host=reforyou.amocrm.ru"), ("POST", "/reforyou.amocrm.ru/oauth2/access_token")),
    "proxy": (("GET", "/api/amo-crm/callback"), ("POST", "/api/amo-crm/authorizations"), ("GET", "/healthz")),
}


@pytest.mark.parametrize("server", _PATHS)
async def test_server_refuses_foreign_host_header(show: Walkthrough, server: str) -> None:
    """A site whose name resolves to 127.0.0.1 can neither read the pages nor change anything."""
    address = getattr(show.addresses, server)
    port = address.rpartition(":")[2]
    for host in (
        "evil.example.com",
        f"evil.example.com:{port}",
        f"127.0.0.1.evil.example.com:{port}",
        f"localhost.evil.example.com:{port}",
        f"evil.example.com@127.0.0.1:{port}",
        f"127.0.0.1:{port}.evil.example.com",
        f"10.0.0.1:{port}",
        f"127.3.2.1:{port}",
        f"[::]:{port}",
        f"localhost.:{port}",
        f"127.0.0.1:{port}0",
        "127.0.0.1:1",
        "127.0.0.1",
        "",
        "\xff",
    ):
        for method, path in _PATHS[server]:
            asked = show.http.request(
                method, f"http://{address}{path}", headers={"Host": host}, json={}, allow_redirects=False
            )
            async with asked as response:
                assert (host, response.status) == (host, 421)
                assert await response.text() == f"This host name is not accepted here: open http://{address}/\n"
    assert not show.demo.poller.snapshot.away
    assert show.lines == []


async def test_server_refuses_doubled_host_header(show: Walkthrough) -> None:
    """A request with two host names is refused, or not understood at all."""
    headers = [("Host", show.addresses.panel), ("Host", "evil.example.com")]
    async with show.http.get(f"http://{show.addresses.panel}/", headers=headers) as response:
        assert response.status in {400, 421}


async def test_server_redirects_other_loopback_names(show: Walkthrough) -> None:
    """The panel at another of its names is redirected, because its frames are allowed at one address only."""
    port = show.addresses.panel.rpartition(":")[2]
    for name in ("localhost", "LOCALHOST", "[::1]"):
        asked = show.http.get(
            f"http://{show.addresses.panel}/phone?a=b",
            headers={"Host": f"{name}:{port}", "Sec-Fetch-Site": "none"},
            allow_redirects=False,
        )
        async with asked as response:
            expected = (307, f"http://{show.addresses.panel}/phone?a=b")
            assert (response.status, response.headers["Location"]) == expected


@pytest.mark.parametrize(
    ("server", "method", "path"),
    [
        ("panel", "POST", "/scenarios/away"),
        ("panel", "POST", "/phone/disconnect"),
        ("panel", "GET", "/phone/connect"),
        ("panel", "GET", "/phone/%63onnect"),
        ("amo", "GET", "/oauth/allow?host=reforyou.amocrm.ru&state=s"),
        ("proxy", "POST", "/api/amo-crm/disconnect"),
    ],
)
async def test_change_is_refused_to_other_sites(show: Walkthrough, server: str, method: str, path: str) -> None:
    """A change requested by another site's page, also one on this machine or without an origin, is refused."""
    address = getattr(show.addresses, server)
    port = address.rpartition(":")[2]
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": f"http://{address}"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example.com"},
        {"Origin": "https://evil.example.com"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": f"https://{address}"},
        {"Origin": f"http://localhost:{port}"},
        {"Origin": "null"},
        {"Origin": ""},
    ):
        asked = show.http.request(
            method, f"http://{address}{path}", headers=headers, json={"a": "b"}, allow_redirects=False
        )
        async with asked as response:
            assert (headers, response.status) == (headers, 403)
            assert await response.text() == f"Another website sent this request: open http://{address}/\n"
    assert not show.demo.poller.snapshot.away
    assert show.lines == []


async def test_change_is_accepted_from_own_page(show: Walkthrough) -> None:
    """A page of the panel, at any of its names, starts a scenario; so does a client that is not a browser."""
    port = show.addresses.panel.rpartition(":")[2]
    for host, headers in (
        (show.addresses.panel, {}),
        (show.addresses.panel, {"Sec-Fetch-Site": "same-origin", "Origin": f"http://{show.addresses.panel}"}),
        (f"localhost:{port}", {"Sec-Fetch-Site": "same-origin", "Origin": f"http://localhost:{port}"}),
        (show.addresses.panel, {"Sec-Fetch-Site": "none"}),
    ):
        asked = show.http.post(
            f"http://{show.addresses.panel}/scenarios/away", headers={"Host": host, **headers}, json={}
        )
        async with asked as response:
            assert (headers, response.status) == (headers, 204)


def test_own_hosts_of_default_port_have_no_port() -> None:
    """Browsers omit the port 80 in `Host`."""
    assert {"127.0.0.1", "localhost:80"} <= own_hosts("127.0.0.1:80")
    assert "127.0.0.1" not in own_hosts("127.0.0.1:8100")
