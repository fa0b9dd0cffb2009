"""The demo's phone page, which takes the place of the app."""

import re

from amo_callback.demo.phone import shortened
from tests.demo.walkthrough import Walkthrough, link


async def test_phone_shows_requests_and_answers(show: Walkthrough) -> None:
    """After the deep link the page shows `exchange-code` and `status`, without a whole code."""
    await show.connect()
    html = await show.page(f"http://{show.addresses.panel}/phone")
    assert "POST /exchange-code" in html
    assert "&#34;accountId&#34;: &#34;31920194&#34;" in html
    assert "foryoure://amo-crm/callback?code=def50200" in html
    assert not re.search(r"def502\w{10}", html)


async def test_phone_refusal_returns_access_denied(show: Walkthrough) -> None:
    """A refusal returns to the app with `access_denied`."""
    consent = await show.page(f"http://{show.addresses.panel}/phone/connect")
    page = await show.page(link(consent, r'class="refuse" href="([^"]+)"'))
    html = await show.page(link(page, r'id="open"[^>]*href="([^"]+)"'))
    assert "The deep link contains error=access_denied." in html
    assert '"connected": false' in html


async def test_phone_second_account_is_second_connection(show: Walkthrough) -> None:
    """Two accounts of one user are two connections."""
    await show.connect()
    await show.connect("gingersnaps.amocrm.ru")
    lifetime = await show.until(lambda lifetime: len(lifetime.connections) == 2)
    assert [one.pairs for one in lifetime.connections] == [1, 1]


async def test_phone_link_with_unknown_state_is_ignored(show: Walkthrough) -> None:
    """A deep link with a state that the app did not create, or has used, changes nothing."""
    html = await show.page(f"http://{show.addresses.panel}/phone/return?code=def50200aa&state=ac1.somebody")
    assert "Connect amoCRM" in html
    assert "Not connected" not in html


async def test_phone_disconnect_removes_connection(show: Walkthrough) -> None:
    """The app's button disconnects the user's connections."""
    await show.connect()
    async with show.http.post(f"http://{show.addresses.panel}/phone/disconnect") as response:
        assert "Disconnected" in await response.text()
    await show.until(lambda lifetime: not lifetime.connections)
    assert show.said("you") == ["The app user disconnected: the service erased the tokens."]


def test_phone_link_values_are_shortened() -> None:
    """A long value is shown by its beginning, a short one as a whole."""
    assert shortened({"code": "def50200abcdef", "state": "s"}) == "code=def50200ab…&state=s"
