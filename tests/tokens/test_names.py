"""The connections that `account:` and `owner:` name, on both engines."""

from collections import Counter
from datetime import timedelta

import pytest

from amo_callback.amo.sandbox.fake_amo import Lifetimes
from amo_callback.errors import NeedsReauth, NotFound
from amo_callback.model import Connection, Reason, Status
from tests.builders import a_claim, a_failure, a_refreshed, bind, connected_grant, now, present
from tests.refresh.harness import RefreshHarness


async def _named(harness: RefreshHarness, selector: str) -> str:
    return (await harness.lifecycle.lookup.find(selector))[0].id


async def _revoke(harness: RefreshHarness, connection: Connection) -> None:
    """Set a connection to `needs_reauth`."""
    claimed = present(await harness.store.claim(a_claim(await now(harness.store, connection))))
    failure = a_failure(claimed, status=Status.NEEDS_REAUTH, reason=Reason.REVOKED, next_refresh_at=None)
    assert await harness.store.save_failure(failure)


async def _recover(harness: RefreshHarness, connection: Connection, *, by: str) -> None:
    """Make a connection in `needs_reauth` active again, by a refresh or by introspection."""
    row = await now(harness.store, connection)
    if by == "refresh":
        refreshed = a_refreshed(row, sealed_pair=row.sealed_pair, at=harness.clock.now())
        assert await harness.store.save_refreshed(refreshed)
    else:
        assert await harness.store.reactivate(row, next_refresh_at=harness.clock.now() + timedelta(hours=1))


async def _end_by_hook(harness: RefreshHarness, connection: Connection) -> None:
    assert await harness.store.disconnect(await now(harness.store, connection), on_request=False)


async def _accounts(harness: RefreshHarness, size: int = 2) -> list[Connection]:
    """Connect accounts, and make user 77 the owner of each."""
    connections = [connection for _, connection in await harness.connect_accounts(size)]
    for connection in connections:
        assert await bind(harness.store, connection.id, "77")
    return connections


async def test_account_name_does_not_change_with_refreshes(harness: RefreshHarness) -> None:
    """An account's name means the connection that was connected last, whichever connection was refreshed last."""
    first, second = await harness.connect_users(2)
    selector = f"account:{first.account_id}"
    for _ in range(5):
        for connection in (second, first):
            harness.clock.advance(11)
            await harness.refresh(connection)
            assert await _named(harness, selector) == second.id


async def test_names_do_not_change_through_twenty_background_refreshes(harness: RefreshHarness) -> None:
    """While the scheduler refreshes, an account with two AMO users and a user with two accounts keep their meaning."""
    harness.amo.fake.lifetimes = Lifetimes(access=200)
    due = {"next_refresh_at": harness.clock.now()}
    [first_user, second_user] = await harness.connect_users(2, **due)
    [first_account, second_account] = await _accounts(harness)
    connections = {one.id for one in (first_user, second_user, first_account, second_account)}
    meanings = {f"account:{first_user.account_id}": second_user.id, "owner:77": second_account.id}
    lifecycle = harness.make_lifecycle()
    refreshes = Counter[str | None]()
    async with harness.running(lifecycle):
        while any(refreshes[one] < 20 for one in connections):
            await harness.pass_time(30, step=5)
            for name, meaning in meanings.items():
                assert (await lifecycle.access_tokens.token(name, min_ttl=0)).connection.id == meaning
                assert await _named(harness, name) == meaning
            refreshes = Counter(event.connection_id for event in harness.witness.named("refresh.succeeded"))


@pytest.mark.parametrize("by", ["refresh", "introspection"])
async def test_account_name_moves_on_failure_and_back_only_by_connecting(harness: RefreshHarness, by: str) -> None:
    """A failure moves the name to an active connection; a recovery does not move it back, but connecting does."""
    first, second, third = await harness.connect_users(3)
    selector = f"account:{first.account_id}"
    for failing, remaining in ((third, second), (second, first), (first, third), (third, second)):
        await _revoke(harness, failing)
        assert await _named(harness, selector) == remaining.id
        await _recover(harness, failing, by=by)
        assert await _named(harness, selector) == remaining.id
    await harness.connect()  # AMO's third user
    assert await _named(harness, selector) == third.id


async def test_account_name_after_failure_of_all_is_the_first_to_recover(harness: RefreshHarness) -> None:
    """If none of an account's connections is active, the first to recover keeps the name when the others recover."""
    first, second = await harness.connect_users(2)
    for connection in (second, first):
        await _revoke(harness, connection)
    for connection in (first, second):
        await _recover(harness, connection, by="refresh")
    assert await _named(harness, f"account:{first.account_id}") == first.id


async def test_owner_name_is_the_account_connected_last_whatever_its_status(harness: RefreshHarness) -> None:
    """A user's name never means another account because of a refresh or failure of the one connected last."""
    first, second = await _accounts(harness)
    harness.clock.advance(11)
    await harness.refresh(first)
    assert await _named(harness, "owner:77") == second.id
    await _revoke(harness, second)
    assert await _named(harness, "owner:77") == second.id
    harness.amo.account.disabled = True
    for account in harness.amo.fake.accounts:
        account.disabled = account.host == second.domain
    with pytest.raises(NeedsReauth):
        await harness.lifecycle.access_tokens.token("owner:77", min_ttl=0)


async def test_owner_name_moves_only_with_the_users_own_new_grant(harness: RefreshHarness) -> None:
    """A user's name does not move with a repeated or an earlier code, or if a co-owner connects."""
    first, second = await _accounts(harness)
    store = harness.store
    earlier, later = await connected_grant(store, "earlier"), await connected_grant(store, "later")
    assert await store.bind(first.id, owner="77", code_hash=later, first_only=False)
    assert await _named(harness, "owner:77") == first.id
    assert await bind(store, second.id, "88")
    for code_hash, connection in ((earlier, second), (later, first), (earlier, second)):
        assert await store.bind(connection.id, owner="77", code_hash=code_hash, first_only=False)
        assert await _named(harness, "owner:77") == first.id
    assert await bind(store, second.id, "77")
    assert await _named(harness, "owner:77") == second.id


async def test_owner_name_moves_on_with_the_users_disconnect(harness: RefreshHarness) -> None:
    """After a user disconnects the account connected last, the name means the account connected before it."""
    first, second = await _accounts(harness)
    await harness.store.unbind("77", account_id="unknown")
    assert await _named(harness, "owner:77") == second.id
    await harness.store.unbind("77", account_id=second.account_id)
    assert await _named(harness, "owner:77") == first.id
    await harness.store.unbind("77")
    with pytest.raises(NotFound):
        await _named(harness, "owner:77")


@pytest.mark.parametrize("again", ["connect", "disconnect", "forget"])
async def test_owner_name_ended_by_hook_needs_reauth_until_the_user_acts(harness: RefreshHarness, again: str) -> None:
    """After AMO's hook, the name means no other account, even if another user connects the account again."""
    first, second = await _accounts(harness)
    await _end_by_hook(harness, second)
    assert (await harness.store.owners_of([second.id]))[second.id] == []
    for _ in range(2):
        with pytest.raises(NeedsReauth) as error:
            await harness.lifecycle.access_tokens.token("owner:77", min_ttl=0)
        assert error.value.reason == "disconnected"
        account = present(harness.amo.fake.account_at(second.domain))
        harness.clock.advance(1)
        await harness.keep(await harness.exchange_of(account), domain=second.domain)
        assert await bind(harness.store, second.id, "88")
    if again == "connect":
        assert await bind(harness.store, first.id, "77")
    elif again == "disconnect":
        await harness.store.unbind("77", account_id=second.account_id)
    else:
        await harness.store.forget_ended("77")
    assert await _named(harness, "owner:77") == first.id
    assert await _named(harness, "owner:88") == second.id
    assert await harness.store.disconnect(await now(harness.store, first), on_request=True)
    with pytest.raises(NotFound):
        await _named(harness, "owner:77")
