"""What may be tried in the demonstration, and that what it promises is to be seen."""

from amo_callback.demo.backend import ConnectionSnapshot, Snapshot
from amo_callback.demo.scenarios import SCENARIOS, moved
from tests.demo.walkthrough import Walkthrough


def _only(lifetime: Snapshot) -> ConnectionSnapshot:
    [one] = lifetime.connections
    return one


async def test_a_refresh_brings_the_next_pair(show: Walkthrough) -> None:
    """Refresh now: a second pair, one refresh token spent, none presented again."""
    one = await show.connect()
    assert await show.attempt("refresh", one.id) == 204
    lifetime = await show.until(lambda lifetime: lifetime.spent == 1)
    assert (_only(lifetime).pairs, lifetime.issued, lifetime.again, _only(lifetime).status) == (2, 2, 0, "active")


async def test_a_hundred_rejections_make_one_refresh(show: Walkthrough) -> None:
    """A hundred backends that were answered 401 get one new token, by one refresh."""
    one = await show.connect()
    assert await show.attempt("rejected", one.id) == 204
    assert show.said("you")[-1] == "100 answers, 1 new token for all of them; amoCRM was asked once."


async def test_a_request_that_is_lost_ends_in_a_refresh(show: Walkthrough) -> None:
    """A request that AMO has not looked at is followed by a question about the token, and by the refresh."""
    one = await show.connect()
    assert await show.attempt("cut", one.id) == 204
    lifetime = await show.until(lambda lifetime: lifetime.spent == 1)
    assert (_only(lifetime).status, lifetime.again) == ("active", 0)
    assert "Asked about a refresh token, which spends nothing: it is good." in show.said("amoCRM")


async def test_an_answer_that_is_lost_ends_in_a_person(show: Walkthrough) -> None:
    """A pair that was lost on its way is told to need its person, and he mends it by connecting again."""
    one = await show.connect()
    assert await show.attempt("lost", one.id) == 204
    lifetime = await show.until(lambda lifetime: _only(lifetime).status == "needs_reauth")
    assert (_only(lifetime).reason, lifetime.again, _only(lifetime).due_in) == ("in_doubt", 1, None)
    assert "AMO CRM needs you again" in await show.page(f"http://{show.addresses.panel}/phone")
    await show.connect()
    await show.until(lambda lifetime: _only(lifetime).status == "active")


async def test_what_cannot_be_lost_is_not_lost_by_somebody_else(show: Walkthrough) -> None:
    """A connection for which nothing is sent leaves no fault behind: its person connects again at the first try."""
    one = await show.connect()
    await show.attempt("lost", one.id)
    await show.until(lambda lifetime: _only(lifetime).status == "needs_reauth")
    assert await show.attempt("lost", one.id) == 204
    assert show.said("you")[-1] == "Nothing was sent to amoCRM for it now, so nothing was lost."
    await show.connect()
    await show.until(lambda lifetime: _only(lifetime).status == "active")


async def test_an_account_that_moves_is_followed(show: Walkthrough) -> None:
    """An account that has moved is refreshed at its new host."""
    one = await show.connect()
    assert await show.attempt("move", one.id) == 204
    lifetime = await show.until(lambda lifetime: _only(lifetime).domain == "reforyou-new.amocrm.ru")
    assert (_only(lifetime).status, lifetime.spent) == ("active", 1)


async def test_revoked_access_is_forgotten_and_can_be_given_again(show: Walkthrough) -> None:
    """What is switched off in AMO is erased here, and the same account connects again."""
    one = await show.connect()
    assert await show.attempt("revoke", one.id) == 204
    await show.until(lambda lifetime: not lifetime.connections)
    assert "AMO CRM is connected no more" in await show.page(f"http://{show.addresses.panel}/phone")
    again = await show.connect()
    assert (again.id, again.status, again.backend_status) == (one.id, "active", 200)


async def test_while_amo_is_away_tokens_are_handed_out_and_nobody_is_given_up(show: Walkthrough) -> None:
    """AMO away: no answer can be lost, a refresh fails, the live token is handed out; back: all is as before."""
    one = await show.connect()
    assert await show.attempt("away") == 204
    assert await show.attempt("lost", one.id) == 204
    assert show.said("you")[-1] == "amoCRM is unreachable, so no token can be lost."
    await show.attempt("refresh", one.id)
    assert show.said("you")[-1].startswith("The backend is answered 503, amo_unavailable")
    lifetime = await show.until(lambda lifetime: lifetime.away)
    assert (_only(lifetime).status, _only(lifetime).backend_status, lifetime.spent) == ("active", 200, 0)
    assert "Bad gateway" in await show.page(f"http://{show.addresses.panel}/phone/connect")
    assert await show.attempt("away") == 204
    await show.until(lambda lifetime: lifetime.spent == 1 and not lifetime.away)


async def test_only_what_there_is_can_be_tried(show: Walkthrough) -> None:
    """An unknown scenario, or one without its connection, is not found; what no form may send is refused."""
    one = await show.connect()
    assert await show.attempt("nothing", one.id) == 404
    assert await show.attempt("refresh", "nobody") == 404
    async with show.http.post(f"http://{show.addresses.panel}/scenarios/away", data={"a": "b"}) as response:
        assert response.status == 415
    assert not show.demo.poller.snapshot.away


def test_a_moved_account_moves_back() -> None:
    """A second move leads back to the first host."""
    assert moved("one.amocrm.ru") == "one-new.amocrm.ru"
    assert moved("one-new.amocrm.ru") == "one.amocrm.ru"


def test_each_scenario_has_a_name_of_its_own() -> None:
    """The panel's buttons send it."""
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
