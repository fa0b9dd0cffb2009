"""Access control of the demo's servers by host name and by the sender of a request."""

import asyncio
import json
from collections.abc import Mapping, Sequence

import aiohttp
import pytest
from multidict import CIMultiDict
from yarl import URL

from amo_callback.demo.access import own_hosts
from tests.demo.walkthrough import Walkthrough, link
from tests.wait_limit import WAIT_LIMIT

_PATHS = {"panel": "/", "amo": "/oauth", "proxy": "/api/amo-crm/callback"}
"""A path of each server that responds to GET."""
_FOREIGN_HOSTS = (
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1.evil.example:{port}",
    "evil.localhost:{port}",
    "localhost.:{port}",
    "10.0.2.2:{port}",
    "127.0.0.1",
    "127.0.0.1:80",
    "127.0.0.1:0{port}",
    "127.0.0.2:{port}",
    "127.1:{port}",
    "2130706433:{port}",
    "0.0.0.0:{port}",
    "[::]:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "::1:{port}",
    "user@127.0.0.1:{port}",
    "127.0.0.1:{port},evil.example",
    "127.0.0.1:{port}/",
    "",
)
_FOREIGN_SENDERS: Sequence[Mapping[str, str | Sequence[str]]] = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": ""},
    {"Sec-Fetch-Site": "Same-Origin"},
    {"Sec-Fetch-Site": ("same-origin", "cross-site")},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "https://evil.example"},
    {"Origin": "https://{own}"},
    {"Origin": "http://{own}.evil.example"},
    {"Origin": "http://localhost:{port}"},
    {"Origin": "http://{other}"},
    {"Origin": ("http://{own}", "http://evil.example")},
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
    {"Origin": "http://{own}", "Sec-Fetch-Site": "cross-site"},
)
_OWN_SENDERS: Sequence[Mapping[str, str | Sequence[str]]] = (
    {},
    {"Origin": "http://{own}"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://{own}", "Sec-Fetch-Site": "same-origin"},
)


def _address(show: Walkthrough, server: str) -> str:
    return str(getattr(show.addresses, server))


def _sent(sender: Mapping[str, str | Sequence[str]], *, own: str, other: str) -> CIMultiDict[str]:
    """Return the headers of a sender, with the server's own address and that of another server of the demo."""
    headers: CIMultiDict[str] = CIMultiDict()
    for name, values in sender.items():
        for value in [values] if isinstance(values, str) else values:
            headers.add(name, value.format(own=own, other=other, port=own.rpartition(":")[2]))
    return headers


async def _ask(
    http: aiohttp.ClientSession, method: str, address: str | URL, **options: object
) -> aiohttp.ClientResponse:
    """Return a response without following it."""
    async with http.request(method, address, allow_redirects=False, **options) as response:  # type: ignore[arg-type]
        await response.read()
        return response


# --- the host name -------------------------------------------------------------------------------


@pytest.mark.parametrize("server", _PATHS)
async def test_server_foreign_host_is_refused(show: Walkthrough, server: str) -> None:
    """A website whose name resolves to 127.0.0.1 can neither read from a server nor change anything."""
    own = _address(show, server)
    for host in (foreign.format(port=own.rpartition(":")[2]) for foreign in _FOREIGN_HOSTS):
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            response = await _ask(show.http, method, f"http://{own}{_PATHS[server]}", headers={"Host": host})
            assert (host, method, response.status) == (host, method, 421)
            text = "" if method == "HEAD" else f"This host name is not accepted here: open http://{own}/\n"
            assert await response.text() == text


async def test_panel_foreign_host_cannot_read_or_change(show: Walkthrough) -> None:
    """Under a foreign name, no path of the panel shows the API key or runs a scenario."""
    port = show.addresses.panel.rpartition(":")[2]
    for method, path in (
        ("GET", "/"),
        ("GET", "/snapshot"),
        ("GET", "/phone"),
        ("GET", "/phone/connect"),
        ("GET", "/nothing"),
        ("POST", "/phone/disconnect"),
        ("POST", "/scenarios/away"),
    ):
        headers = {"Host": f"evil.example:{port}"}
        response = await _ask(show.http, method, f"http://{show.addresses.panel}{path}", headers=headers, json={})
        assert (path, response.status, "Bearer" in await response.text()) == (path, 421, False)
    assert show.lines == []


@pytest.mark.parametrize("server", _PATHS)
@pytest.mark.parametrize(
    ("request_line", "hosts", "status"),
    [
        ("GET {path} HTTP/1.0", (), "421"),
        ("GET {path} HTTP/1.1", (), "400"),
        ("GET {path} HTTP/1.1", ("{own}", "evil.example"), "400"),
        ("GET {path} HTTP/1.1", ("evil.example", "{own}"), "400"),
        ("GET {path} HTTP/1.1", ("{own}", "{own}"), "400"),
        ("GET http://{own}{path} HTTP/1.1", ("evil.example",), "421"),
    ],
)
async def test_server_missing_or_doubled_host_is_refused(
    show: Walkthrough, server: str, request_line: str, hosts: Sequence[str], status: str
) -> None:
    """A request without a host name, with two, or with the right one only in its target, is refused."""
    own = _address(show, server)
    head = "".join(f"Host: {host}\r\n" for host in hosts).format(own=own)
    reader, writer = await asyncio.open_connection(*own.split(":"))
    writer.write(f"{request_line.format(own=own, path=_PATHS[server])}\r\n{head}\r\n".encode())
    answer = await asyncio.wait_for(reader.readline(), WAIT_LIMIT)
    writer.close()
    assert answer.decode().split()[1] == status


@pytest.mark.parametrize("server", _PATHS)
async def test_server_other_own_name_is_redirected(show: Walkthrough, server: str) -> None:
    """A page opened as `localhost` or `[::1]` continues at 127.0.0.1, with the path and the query as they were sent."""
    own = _address(show, server)
    for name in ("localhost", "LocalHost", "[::1]"):
        for path in ("/", "/a%2Fb//c?d=%26&e=+", "//evil.example/"):
            for method in ("GET", "HEAD"):
                headers = {"Host": f"{name}:{own.rpartition(':')[2]}"}
                response = await _ask(show.http, method, _raw(own, path), headers=headers)
                assert (name, response.status, response.headers["Location"]) == (name, 307, f"http://{own}{path}")
    async with show.http.get(f"http://localhost:{own.rpartition(':')[2]}{_PATHS[server]}") as response:
        assert (str(response.url), response.status) != (f"http://{own}{_PATHS[server]}", 421)
        assert response.url.host == "127.0.0.1"


def _raw(own: str, path: str) -> URL:
    return URL(f"http://{own}{path}", encoded=True)


async def test_server_other_own_name_accepts_post(show: Walkthrough) -> None:
    """A POST request to `localhost` is served, from a client and from a page of the same name."""
    port = show.addresses.panel.rpartition(":")[2]
    for headers in ({}, {"Origin": f"http://localhost:{port}"}):
        sent = {"Host": f"localhost:{port}", **headers}
        address = f"http://{show.addresses.panel}/scenarios/away"
        assert (await _ask(show.http, "POST", address, headers=sent, json={})).status == 204


def test_own_hosts_at_port_80_have_no_port() -> None:
    """A browser omits the port 80, and no other."""
    for name in ("127.0.0.1", "localhost", "[::1]"):
        assert name in own_hosts("127.0.0.1:80")
        assert f"{name}:80" in own_hosts("127.0.0.1:80")
        assert name not in own_hosts("127.0.0.1:8080")


# --- the sender ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", _FOREIGN_SENDERS, ids=json.dumps)
async def test_server_change_from_other_website_is_refused(
    show: Walkthrough, sender: Mapping[str, str | Sequence[str]]
) -> None:
    """A request from another website, or from another server of the demo, changes nothing."""
    for server, method, path in (
        ("panel", "POST", "/scenarios/away"),
        ("panel", "POST", "/phone/disconnect"),
        ("panel", "GET", "/phone/connect"),
        ("panel", "HEAD", "/phone/connect"),
        ("panel", "GET", "/phone/%63onnect"),
        ("amo", "POST", "/reforyou.amocrm.ru/oauth2/access_token"),
        ("amo", "GET", "/oauth/allow?host=reforyou.amocrm.ru&state=s"),
        ("amo", "GET", "/oauth/%61llow?host=reforyou.amocrm.ru&state=s"),
        ("amo", "HEAD", "/oauth/allow?host=reforyou.amocrm.ru&state=s"),
        ("proxy", "POST", "/api/amo-crm/authorizations"),
        ("proxy", "PUT", "/api/amo-crm/authorizations"),
        ("proxy", "DELETE", "/"),
    ):
        own = _address(show, server)
        headers = _sent(sender, own=own, other=_address(show, "amo" if server == "panel" else "panel"))
        response = await _ask(show.http, method, _raw(own, path), headers=headers, json={})
        assert (path, method, response.status) == (path, method, 403)
        if method != "HEAD":
            assert await response.text() == f"Another website sent this request: open http://{own}/\n"
    assert show.lines == []


@pytest.mark.parametrize("sender", _OWN_SENDERS, ids=json.dumps)
async def test_server_change_from_own_page_or_client_is_served(
    show: Walkthrough, sender: Mapping[str, str | Sequence[str]]
) -> None:
    """A request of a server's own page, of a typed URL, or of a client that is no browser, is served."""
    own = show.addresses.panel
    headers = _sent(sender, own=own, other=show.addresses.amo)
    response = await _ask(show.http, "POST", f"http://{own}/scenarios/away", headers=headers, json={})
    assert (response.status, show.said("you")) == (204, ["amoCRM is unreachable."])
    await show.attempt("away")
    response = await _ask(show.http, "GET", f"http://{own}/phone/connect", headers=headers)
    assert (response.status, response.headers["Location"].split("?")[0]) == (303, f"http://{show.addresses.amo}/oauth")
    own = show.addresses.amo
    headers = _sent(sender, own=own, other=show.addresses.panel)
    consent = await show.page(response.headers["Location"])
    allow = link(consent, r'class="allow" href="([^"]+)"')
    response = await _ask(show.http, "GET", f"http://{own}{allow}", headers=headers)
    assert (response.status, "code=def502" in response.headers["Location"]) == (302, True)
    own = show.addresses.proxy
    headers = _sent(sender, own=own, other=show.addresses.panel)
    response = await _ask(show.http, "POST", f"http://{own}/api/amo-crm/authorizations", headers=headers, json={})
    assert response.status == 401  # the service's own response: there is no JWT


async def test_server_page_is_shown_to_other_website(show: Walkthrough) -> None:
    """A link from another website, such as AMO's redirect to the callback, is followed."""
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "null"}
    for server, path, status in (
        ("panel", "/", 200),
        ("amo", "/oauth", 400),
        ("proxy", "/api/amo-crm/callback?error=access_denied&state=s", 400),
    ):
        response = await _ask(show.http, "GET", f"http://{_address(show, server)}{path}", headers=headers)
        assert (path, response.status) == (path, status)
