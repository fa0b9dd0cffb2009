"""The demo's proxy: a phone's user agent, links to the simulated app, and framing."""

from amo_callback import probe
from tests.demo.walkthrough import Walkthrough

_DESKTOP = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
_ON_PHONE = "the button works only where the app is installed"


async def _connected_page(show: Walkthrough, **headers: str) -> str:
    async with show.http.get(await show.allow(), headers=headers) as response:
        return await response.text()


async def test_proxy_frame_shows_page_for_phones(show: Walkthrough) -> None:
    """A desktop browser's frame shows the page for phones, which opens the app by itself."""
    html = await _connected_page(show, **{"User-Agent": _DESKTOP, "Sec-Fetch-Dest": "iframe"})
    assert "data-auto" in html
    assert _ON_PHONE not in html


async def test_proxy_tab_shows_page_for_its_browser(show: Walkthrough) -> None:
    """A desktop browser's tab shows the page for desktops."""
    html = await _connected_page(show, **{"User-Agent": _DESKTOP, "Sec-Fetch-Dest": "document"})
    assert _ON_PHONE in html


async def test_proxy_page_links_to_simulated_app(show: Walkthrough) -> None:
    """The page's link opens the simulated app, although the service writes the app's own link."""
    html = await _connected_page(show)
    assert f'href="http://{show.addresses.panel}/phone/return?code=' in html
    assert 'href="foryoure:' not in html


async def test_proxy_redirect_leads_to_simulated_app(show: Walkthrough) -> None:
    """A client without pages is redirected to the simulated app."""
    path = "/api/amo-crm/callback?error=access_denied&state=s"
    asked = show.http.get(f"http://{show.addresses.proxy}{path}", headers={"Accept": "*/*"}, allow_redirects=False)
    async with asked as response:
        expected = f"http://{show.addresses.panel}/phone/return?error=access_denied&state=s"
        assert response.headers["Location"] == expected
    asked = show.http.get(f"http://{show.demo.service.public}{path}", headers={"Accept": "*/*"}, allow_redirects=False)
    async with asked as response:
        assert response.headers["Location"] == "foryoure://amo-crm/callback?error=access_denied&state=s"


async def test_proxy_alone_allows_panel_to_frame_service(show: Walkthrough) -> None:
    """Only the proxy's headers allow the panel to frame the service's pages."""
    path = "/api/amo-crm/callback?error=access_denied&state=s"
    async with show.http.get(f"http://{show.addresses.proxy}{path}") as response:
        assert f"frame-ancestors http://{show.addresses.panel}" in response.headers["Content-Security-Policy"]
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
