"""The page that stands for the app: what the app of a careful developer would do."""

import re

from amo_callback.demo.phone import shortened
from tests.demo.walkthrough import Walkthrough, link


async def test_it_shows_what_it_asked_and_what_it_was_answered(show: Walkthrough) -> None:
    """After the deep link the app shows `exchange-code` and `status`, and no whole code."""
    await show.connect()
    html = await show.page(f"http://{show.addresses.panel}/phone")
    assert "POST /exchange-code" in html
    assert "&#34;accountId&#34;: &#34;31920194&#34;" in html
    assert "foryoure://amo-crm/callback?code=def50200" in html
    assert not re.search(r"def502\w{10}", html)


async def test_a_refusal_leads_back_with_its_word(show: Walkthrough) -> None:
    """Whoever refuses comes back to the app, which is told `access_denied`."""
    consent = await show.page(f"http://{show.addresses.panel}/phone/connect")
    page = await show.page(link(consent, r'class="refuse" href="([^"]+)"'))
    html = await show.page(link(page, r'id="open"[^>]*href="([^"]+)"'))
    assert "The deep link says error=access_denied." in html
    assert 'data-connected="no"' in html


async def test_another_account_becomes_a_second_connection(show: Walkthrough) -> None:
    """Two accounts of one user are two connections."""
    await show.connect()
    await show.connect("gingersnaps.amocrm.ru")
    lifetime = await show.until(lambda lifetime: len(lifetime.connections) == 2)
    assert [one.pairs for one in lifetime.connections] == [1, 1]


async def test_a_link_that_is_no_connect_of_its_own_is_passed_over(show: Walkthrough) -> None:
    """A deep link with a state that the app did not make, or has had, changes nothing."""
    html = await show.page(f"http://{show.addresses.panel}/phone/return?code=def50200aa&state=ac1.somebody")
    assert "Connect AMO CRM" in html
    assert "Not connected" not in html


async def test_disconnecting_forgets_the_connection(show: Walkthrough) -> None:
    """The app's button ends what its user had connected."""
    await show.connect()
    async with show.http.post(f"http://{show.addresses.panel}/phone/disconnect") as response:
        assert "Disconnected" in await response.text()
    await show.until(lambda lifetime: not lifetime.connections)
    assert show.said("you") == ["The app's user disconnects all that is his: the service has erased the tokens."]


def test_values_of_a_link_are_cut_short() -> None:
    """A long value shows its beginning, a short one the whole of it."""
    assert shortened({"code": "def50200abcdef", "state": "s"}) == "code=def50200ab…&state=s"
