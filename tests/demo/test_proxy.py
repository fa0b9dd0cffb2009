"""The demo's proxy: a phone's user agent, links to the simulated app, and framing."""

import aiohttp
import pytest

from amo_callback import probe
from tests.demo.walkthrough import Walkthrough

_DESKTOP = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
_ON_PHONE = "the button works only where the app is installed"


async def _connected_page(show: Walkthrough, **headers: str) -> str:
    async with show.http.get(await show.allow(), headers=headers) as response:
        return await response.text()


async def test_proxy_frame_shows_page_for_phones(show: Walkthrough) -> None:
    """A desktop browser's frame shows the page for phones, which opens the app by itself."""
    html = await _connected_page(show, **{"User-Agent": _DESKTOP})
    assert "data-auto" in html
    assert _ON_PHONE not in html


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Dest": "document"}, {}])
async def test_proxy_passes_other_requests_unchanged(show: Walkthrough, headers: dict[str, str]) -> None:
    """A desktop browser's tab shows the page for desktops, with the app's own link, and the page forbids framing."""
    headers |= {"User-Agent": _DESKTOP, "Accept": "text/html"}
    async with aiohttp.ClientSession(headers=headers) as http, http.get(await show.allow()) as response:
        html = await response.text()
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Frame-Options"] == "DENY"
    assert _ON_PHONE in html
    assert 'href="foryoure://amo-crm/callback?code=' in html
    assert show.addresses.panel not in html


async def test_proxy_page_in_frame_links_to_simulated_app(show: Walkthrough) -> None:
    """The link of the page in the frame opens the simulated app, although the service writes the app's own link."""
    html = await _connected_page(show)
    assert f'href="http://{show.addresses.panel}/phone/return?code=' in html
    assert "foryoure:" not in html


async def test_proxy_redirect_in_frame_leads_to_simulated_app(show: Walkthrough) -> None:
    """A redirect to the app leads to the simulated app, in the frame only."""
    path, query = "/api/amo-crm/callback", "?error=access_denied&state=s"
    for dest, link in (
        ("iframe", f"http://{show.addresses.panel}/phone/return"),
        ("document", "foryoure://amo-crm/callback"),
    ):
        asked = show.http.get(
            f"http://{show.addresses.proxy}{path}{query}",
            headers={"Accept": "*/*", "Sec-Fetch-Dest": dest},
            allow_redirects=False,
        )
        async with asked as response:
            assert response.headers["Location"] == link + query


async def test_proxy_alone_allows_panel_to_frame_service(show: Walkthrough) -> None:
    """Only the proxy's headers allow the panel, and no other site, to frame the service's pages."""
    path = "/api/amo-crm/callback?error=access_denied&state=s"
    async with show.http.get(f"http://{show.addresses.proxy}{path}") as response:
        policy = response.headers["Content-Security-Policy"]
        assert policy.partition("frame-ancestors ")[2] == f"http://{show.addresses.panel}"
        assert "X-Frame-Options" not in response.headers
    async with show.http.get(f"http://{show.demo.service.public}{path}") as response:
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Frame-Options"] == "DENY"


async def test_proxy_replaces_forwarded_for(show: Walkthrough) -> None:
    """The proxy replaces a client's own `X-Forwarded-For`."""
    cipher = show.demo.service.services.core.cipher
    headers = {probe.HEADER: probe.seal_nonce(cipher, nonce="n"), "X-Forwarded-For": "203.0.113.9"}
    async with show.http.head(f"http://{show.addresses.proxy}/api/amo-crm/callback", headers=headers) as response:
        seen = probe.read_reply(cipher, response.headers[probe.HEADER], nonce="n")
    assert seen is not None
    assert seen.client == "127.0.0.1"
