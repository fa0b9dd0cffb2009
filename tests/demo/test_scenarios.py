"""The demo's scenarios and their visible results."""

import asyncio

from yarl import URL

from amo_callback.demo.backend import ConnectionSnapshot, Snapshot
from amo_callback.demo.scenarios import SCENARIOS, SLOW, moved
from tests.demo.walkthrough import Walkthrough, link


def _only(lifetime: Snapshot) -> ConnectionSnapshot:
    [one] = lifetime.connections
    return one


async def test_scenario_refresh_stores_next_pair(show: Walkthrough) -> None:
    """A refresh stores a second pair and spends one refresh token."""
    one = await show.connect()
    assert await show.attempt("refresh", one.id) == 204
    lifetime = await show.until(lambda lifetime: lifetime.spent == 1)
    assert (_only(lifetime).pairs, lifetime.issued, lifetime.again, _only(lifetime).status) == (2, 2, 0, "active")


async def test_scenario_rejected_makes_one_refresh(show: Walkthrough) -> None:
    """A hundred rejections by AMO cause one refresh and one new token."""
    one = await show.connect()
    assert await show.attempt("rejected", one.id) == 204
    assert show.said("you")[-1] == "Responses: 100; different access tokens: 1; refresh requests to amoCRM: 1."


async def test_scenario_cut_request_is_refreshed_after_introspection(show: Walkthrough) -> None:
    """A request that AMO did not process is followed by introspection and a refresh."""
    one = await show.connect()
    assert await show.attempt("cut", one.id) == 204
    show.pass_lease()
    lifetime = await show.until(lambda lifetime: lifetime.spent == 1)
    assert (_only(lifetime).status, lifetime.again) == ("active", 0)
    assert "Introspection, which spends nothing, accepts a refresh token." in show.said("amoCRM")


async def test_scenario_lost_answer_needs_reauthorization(show: Walkthrough) -> None:
    """A connection with a lost pair needs reauthorization, and a new grant reactivates it."""
    one = await show.connect()
    assert await show.attempt("lost", one.id) == 204
    show.pass_lease()
    lifetime = await show.until(lambda lifetime: _only(lifetime).status == "needs_reauth")
    assert (_only(lifetime).reason, lifetime.again, _only(lifetime).due_in) == ("in_doubt", 1, None)
    assert "Connect amoCRM again" in await show.page(f"http://{show.addresses.panel}/phone")
    await show.connect()
    await show.until(lambda lifetime: _only(lifetime).status == "active")


async def test_scenario_lost_without_request_leaves_no_fault(show: Walkthrough) -> None:
    """If no request is sent, no fault remains for the next grant."""
    one = await show.connect()
    await show.attempt("lost", one.id)
    show.pass_lease()
    await show.until(lambda lifetime: _only(lifetime).status == "needs_reauth")
    assert await show.attempt("lost", one.id) == 204
    assert show.said("you")[-1] == "No request was sent to amoCRM for this connection, so nothing was lost."
    await show.connect()
    await show.until(lambda lifetime: _only(lifetime).status == "active")


async def test_scenario_move_refreshes_at_new_host(show: Walkthrough) -> None:
    """A moved account is refreshed at its new host."""
    one = await show.connect()
    assert await show.attempt("move", one.id) == 204
    lifetime = await show.until(lambda lifetime: _only(lifetime).domain == "reforyou-new.amocrm.ru")
    assert (_only(lifetime).status, lifetime.spent) == ("active", 1)


async def test_scenario_revoke_erases_connection(show: Walkthrough) -> None:
    """A revoked connection is erased, and the same account can connect."""
    one = await show.connect()
    assert await show.attempt("revoke", one.id) == 204
    await show.until(lambda lifetime: not lifetime.connections)
    assert "amoCRM is no longer connected" in await show.page(f"http://{show.addresses.panel}/phone")
    again = await show.connect()
    assert (again.id, again.status, again.backend_status) == (one.id, "active", 200)


async def test_scenario_slow_shows_waiting_page_then_result(show: Walkthrough) -> None:
    """After 8 s the page says that it is still connecting; after AMO's answer, the same page links to the app."""
    assert await show.attempt("slow") == 204
    allowing = asyncio.create_task(show.visit(await show.allow()))
    await show.until(lambda lifetime: lifetime.issued == 1)
    show.clock.advance(8)
    address, page = await allowing
    assert "Still connecting" in page
    assert "/phone/return" not in page
    show.clock.advance(SLOW - 8)
    assert _only(await show.until(lambda lifetime: bool(lifetime.connections))).owners == []
    page = await show.page(address)
    assert "amoCRM is connected" in page
    assert "Back in the app" in await show.page(link(page, r'id="open"[^>]*href="([^"]+)"'))
    await show.until(lambda lifetime: _only(lifetime).owners == ["42"])


async def test_scenario_slow_delays_next_code_only(show: Walkthrough) -> None:
    """A refresh is not delayed, the next code is, and the code after it is not."""
    one = await show.connect()
    assert await show.attempt("slow") == 204
    assert await show.attempt("refresh", one.id) == 204
    assert show.said("you")[-1].startswith("The response: 200")
    allowing = asyncio.create_task(show.visit(await show.allow()))
    await show.until(lambda lifetime: lifetime.issued == 3)
    await show.connect("gingersnaps.amocrm.ru")
    assert not allowing.done()
    show.clock.advance(SLOW)
    await allowing


async def test_scenario_lost_link_is_claimed_by_app(show: Walkthrough) -> None:
    """The app asks until the user has allowed access, and the user becomes the owner, although the link is lost."""
    assert await show.attempt("lost_link") == 204
    allow = await show.allow()
    await show.until_said("app", "The app asks for the result: 404, pending. The app asks again every 2 s.")
    deep_link = URL(f"http://{show.addresses.panel}/phone/return") % {"code": "c", "state": URL(allow).query["state"]}
    async with show.http.get(deep_link) as response:
        assert response.status == 204
    assert show.said("you")[-1] == "The deep link is lost: the app does not receive it."
    assert "amoCRM is connected" in await show.page(allow)
    await show.until_said("app", "The app asks for the result: 200, The account is connected.")
    await show.until(lambda lifetime: [one.owners for one in lifetime.connections] == [["42"]])
    assert "Connected without the deep link" in await show.page(str(deep_link))
    assert (await show.connect()).owners == ["42"]


async def test_scenario_lost_link_of_refusal_gives_error(show: Walkthrough) -> None:
    """The app gets the error of a refusal whose deep link is lost."""
    assert await show.attempt("lost_link") == 204
    consent = await show.page(f"http://{show.addresses.panel}/phone/connect")
    await show.page(link(consent, r'class="refuse" href="([^"]+)"'))
    await show.until_said("app", "The app asks for the result: 400, access_denied.")
    assert "Not connected" in await show.page(f"http://{show.addresses.panel}/phone")


async def test_scenario_lost_link_ends_with_next_attempt(show: Walkthrough) -> None:
    """A new attempt ends the requests for the result of the earlier one, and receives its own deep link."""
    assert await show.attempt("lost_link") == 204
    await show.allow()
    await show.until_said("app", "The app asks for the result: 404, pending. The app asks again every 2 s.")
    await show.connect()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "claim"] == []


async def test_scenario_away_hands_out_valid_token(show: Walkthrough) -> None:
    """While AMO is unavailable a refresh fails and the valid token is handed out; then the refresh succeeds."""
    one = await show.connect()
    assert await show.attempt("away") == 204
    assert await show.attempt("lost", one.id) == 204
    assert show.said("you")[-1] == "amoCRM is unreachable: make it reachable, then run this scenario again."
    await show.attempt("refresh", one.id)
    assert show.said("you")[-1].startswith("The response: 503, amo_unavailable")
    lifetime = await show.until(lambda lifetime: lifetime.away)
    assert (_only(lifetime).status, _only(lifetime).backend_status, lifetime.spent) == ("active", 200, 0)
    assert "Bad gateway" in await show.page(f"http://{show.addresses.panel}/phone/connect")
    assert await show.attempt("away") == 204
    show.pass_lease()
    await show.until(lambda lifetime: lifetime.spent == 1 and not lifetime.away)


async def test_scenario_unknown_name_or_connection_is_not_found(show: Walkthrough) -> None:
    """An unknown scenario or connection is not found, and a form is refused."""
    one = await show.connect()
    assert await show.attempt("nothing", one.id) == 404
    assert await show.attempt("refresh", "nobody") == 404
    async with show.http.post(f"http://{show.addresses.panel}/scenarios/away", data={"a": "b"}) as response:
        assert response.status == 415
    assert not show.demo.poller.snapshot.away


def test_moved_twice_returns_first_host() -> None:
    """A second move returns to the first host."""
    assert moved("one.amocrm.ru") == "one-new.amocrm.ru"
    assert moved("one-new.amocrm.ru") == "one.amocrm.ru"


def test_scenario_names_are_unique() -> None:
    """The panel's buttons use these names."""
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
