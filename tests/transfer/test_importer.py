"""Import: a plan that changes all or nothing, and a writing that replaces only what it read."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.crypto import Cipher, new_key
from amo_callback.model import Reason, Status, TokenPair, fingerprint
from amo_callback.refresh.leases import Leases
from amo_callback.transfer.export_file import RecordError
from amo_callback.transfer.importer import BATCH, TURN, make_plan, wait_for_leases
from tests.builders import DAY, a_claim, a_connection, a_refreshed, an_extension, now, save
from tests.fakes import START
from tests.transfer.samples import CLIENT, REPLACE, RULES, a_record, arrivals, written

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from amo_callback.model import Connection
    from amo_callback.store import Store
    from amo_callback.transfer.export_file import ExportRecord, ParsedRecord
    from amo_callback.transfer.importer import ImportPlan, ImportRules
    from tests.fakes import FakeClock


async def _plan(store: Store, cipher: Cipher, *records: ExportRecord, rules: ImportRules = RULES) -> ImportPlan:
    return await make_plan(arrivals(*records), store=store, cipher=cipher, rules=rules)


async def _bring(store: Store, cipher: Cipher, *records: ExportRecord, rules: ImportRules = RULES) -> ImportPlan:
    """Import records that nothing is wrong with, and none of which is left."""
    plan = await _plan(store, cipher, *records, rules=rules)
    assert plan.problems == []
    assert await written(plan, store, cipher) == []
    return plan


async def _stored(store: Store, record: ExportRecord) -> Connection:
    stored = await store.connection(record.id)
    assert stored is not None
    return stored


async def test_others_have_a_turn_between_the_connections_of_an_import(store: Store, cipher: Cipher) -> None:
    """However many there are, the loop works on `TURN` of them at most before it goes on with the rest."""
    turns, read = [0], Counter[int]()

    async def count() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    def reading() -> Iterator[ParsedRecord]:
        for source in arrivals(*(a_record(number) for number in range(BATCH + 1))):
            read[turns[0]] += 1
            yield source

    counting = asyncio.create_task(count())
    plan = await make_plan(reading(), store=store, cipher=cipher, rules=RULES)
    counting.cancel()
    assert len(plan.new) == BATCH + 1
    assert max(read.values()) <= TURN


async def test_a_connection_arrives_as_it_left(store: Store, cipher: Cipher) -> None:
    """Every field, its tokens sealed with this store's key; due when its pair is, and told in the history."""
    record = a_record(possibly_spent_token="a fingerprint", recheck_at=START + DAY, owners={"17": 8, "42": 9})
    await _bring(store, cipher, record)
    assert await store.owners_of([record.id]) == {record.id: ["17", "42"]}
    stored = await _stored(store, record)
    assert cipher.decrypt_pair(stored) == record.pair
    same = set(dataclasses.asdict(record)) - {"access_token", "refresh_token", "issued_at", "expires_at", "owners"}
    same -= {"connected_no"}
    assert {name: getattr(stored, name) for name in same} == {name: getattr(record, name) for name in same}
    assert (stored.access_issued_at, stored.access_expires_at) == (START, START + DAY)
    assert (stored.next_refresh_at, stored.pair_version, stored.attempt) == (START + DAY / 2, 1, None)
    [event] = await store.events(connection_id=record.id, limit=9)
    assert (event.name, event.details) == (
        "connection.imported",
        {"domain": "a1.amocrm.ru", "source": "a test", "status": "active",
         "next_token": fingerprint(record.refresh_token)[:16]},
    )  # fmt: skip


async def test_imported_connections_and_owners_keep_their_order(store: Store, cipher: Cipher) -> None:
    """They come after all that was connected here before, however many batches they take."""
    here = await save(store, a_connection(900))
    records = [
        a_record(number, connected_no=900 - number, owners={"42": number, "17": 10**18 - number})
        for number in range(BATCH + 2)
    ]
    await _bring(store, cipher, *records)
    names = [record.id for record in records]
    connected = {one.id: one.connected_no for one in await store.connections_by_id(names)}
    bound = await store.bindings_of(names)
    assert sorted(names, key=connected.__getitem__) == names[::-1]
    assert sorted(names, key=lambda name: bound[name]["42"]) == names
    assert sorted(names, key=lambda name: bound[name]["17"]) == names[::-1]
    later = await save(store, a_connection(901))
    assert here.connected_no < min(connected.values())
    assert later.connected_no > max(number for each in bound.values() for number in each.values())


async def test_what_needs_its_person_or_is_frozen_arrives_so(store: Store, cipher: Cipher) -> None:
    """One that is given up is not refreshed, and one that was frozen by itself is not spent here either."""
    dead = a_record(1, status=Status.NEEDS_REAUTH, reason=Reason.REVOKED)
    frozen = a_record(2, frozen=True)
    await _bring(store, cipher, dead, frozen)
    stored = await _stored(store, dead)
    assert (stored.status, stored.reason, stored.next_refresh_at) == (Status.NEEDS_REAUTH, Reason.REVOKED, None)
    assert (await _stored(store, frozen)).frozen
    assert (await store.due(now=START + DAY, limit=9, exclude=())).refreshes == []
    assert await store.claim(a_claim(await _stored(store, frozen))) is None


async def test_a_doubt_arrives_and_is_still_one(store: Store, cipher: Cipher) -> None:
    """A refresh token that may have been spent before the move is known as such to the next claim."""
    record = a_record(possibly_spent_token=fingerprint("refresh-token-of-1"))
    await _bring(store, cipher, record)
    claimed = await store.claim(a_claim(await _stored(store, record), fingerprint=record.possibly_spent_token))
    assert claimed is not None
    assert claimed.possibly_spent_token == claimed.presented_token == record.possibly_spent_token


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"client_id": "other"}, "its tokens were granted to another client_id than amo.client_id"),
        ({"domain": "evil.example"}, "domain: is neither AMO's nor in amo.allowed_domains"),
        ({"domain": "a.b.amocrm.ru"}, "domain: is neither AMO's nor in amo.allowed_domains"),
        ({"domain": "A2.amocrm.ru"}, "domain: is neither AMO's nor in amo.allowed_domains"),
        ({"domain": "https://a2.amocrm.ru/"}, "domain: is neither AMO's nor in amo.allowed_domains"),
        ({"domain": ""}, "domain: is neither AMO's nor in amo.allowed_domains"),
        ({"api_domain": "api.evil.example"}, "api_domain: is neither AMO's nor in amo.allowed_domains"),
        ({"account_id": "666"}, "its account is not in amo.allowed_accounts"),
        ({"id": a_record(1).id}, "is the same account and user as line 1"),
        ({"refresh_token": "refresh-token-of-1"}, "has the same refresh token as line 1"),
    ],
)
async def test_one_that_may_not_come_in_is_told_and_keeps_out_all(
    store: Store, cipher: Cipher, change: dict[str, Any], why: str
) -> None:
    """Another client's, a foreign host's, an account that is not listed, one that the file names twice."""
    rules = dataclasses.replace(RULES, allowed_accounts=["1", "2"])
    plan = await _plan(store, cipher, a_record(1), a_record(2, **change), rules=rules)
    assert plan.problems == [RecordError(place="line 2", why=why)]
    assert await store.count() == 0


async def test_hosts_that_the_operator_lists_are_taken(store: Store, cipher: Cipher) -> None:
    """As everywhere else."""
    rules = dataclasses.replace(RULES, allowed_domains=["crm.example"])
    plan = await _plan(store, cipher, a_record(domain="crm.example", api_domain="crm.example"), rules=rules)
    assert (len(plan.new), plan.problems) == (1, [])


async def test_the_same_again_changes_nothing(store: Store, cipher: Cipher) -> None:
    """What is there already with the same tokens is skipped, whatever another system says of its times."""
    await _bring(store, cipher, a_record())
    stored = await _stored(store, a_record())
    plan = await _bring(store, cipher, a_record(expires_at=START + DAY / 2), rules=REPLACE)
    assert (plan.same, plan.new, plan.replaced) == (1, [], [])
    assert await _stored(store, a_record()) == stored


async def test_later_tokens_are_kept_whatever_is_asked_for(store: Store, cipher: Cipher) -> None:
    """The service has refreshed it since: the file's refresh token is spent, and nobody may be given it back."""
    await _bring(store, cipher, a_record())
    later = TokenPair(access_token="later", refresh_token="later", issued_at=START + DAY, expires_at=START + 2 * DAY)
    stored = await _stored(store, a_record())
    refreshed = a_refreshed(stored, at=START + DAY, sealed_pair=cipher.seal_pair(later, connection_id=stored.id))
    assert await store.save_refreshed(refreshed)
    for rules in (RULES, REPLACE):
        plan = await _bring(store, cipher, a_record(), rules=rules)
        assert (plan.newer, plan.new, plan.replaced) == (1, [], [])
    assert cipher.decrypt_pair(await _stored(store, a_record())) == later


async def test_other_tokens_are_replaced_only_where_that_is_asked_for(store: Store, cipher: Cipher) -> None:
    """Without it the whole import is refused; with it, pair and row count up, and the history tells."""
    await _bring(store, cipher, a_record())
    before = await _stored(store, a_record())
    other = a_record(refresh_token="other", issued_at=START + timedelta(seconds=1))
    plan = await _plan(store, cipher, a_record(2), other)
    why = f"{other.id} is already stored with other tokens: --replace replaces them"
    assert plan.problems == [RecordError(place="line 2", why=why)]
    await _bring(store, cipher, a_record(2), other, rules=REPLACE)
    after = await _stored(store, other)
    assert cipher.decrypt_pair(after) == other.pair
    assert (after.pair_version, after.row_version) == (before.pair_version + 1, before.row_version + 1)
    assert (await store.events(connection_id=other.id, limit=1))[0].details["replaced"] is True


async def test_a_pair_that_no_key_opens_is_another_one(store: Store, cipher: Cipher) -> None:
    """It can be replaced, and is not without being asked."""
    await _bring(store, Cipher([new_key()]), a_record())
    assert len((await _plan(store, cipher, a_record())).problems) == 1
    await _bring(store, cipher, a_record(), rules=REPLACE)
    assert cipher.decrypt_pair(await _stored(store, a_record())) == a_record().pair


async def test_who_has_disconnected_comes_back_only_where_that_is_asked_for(store: Store, cipher: Cipher) -> None:
    """A person's word is not undone by the way."""
    await _bring(store, cipher, a_record())
    await store.disconnect(await _stored(store, a_record()), on_request=True)
    [problem] = (await _plan(store, cipher, a_record())).problems
    assert problem.why == f"{a_record().id} was disconnected here: --replace connects it again"
    await _bring(store, cipher, a_record(), rules=REPLACE)
    assert (await _stored(store, a_record())).status is Status.ACTIVE


# --- races ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda store, connection: store.save_refreshed(a_refreshed(connection)),
        lambda store, connection: store.claim(a_claim(connection)),
        lambda store, connection: store.disconnect(connection, on_request=True),
    ],
    ids=["refreshed", "being refreshed", "disconnected"],
)
async def test_a_connection_that_changed_since_the_plan_is_not_replaced(
    store: Store, cipher: Cipher, change: Callable[[Store, Connection], Awaitable[object]]
) -> None:
    """The row that was read is no longer there: it is left, and the others are written."""
    await _bring(store, cipher, a_record(), a_record(2))
    newer = [a_record(number, refresh_token=f"n{number}", issued_at=START + DAY / 4) for number in (1, 2)]
    plan = await _plan(store, cipher, *newer, rules=REPLACE)
    before = await _stored(store, a_record())
    await change(store, before)
    changed = await _stored(store, a_record())
    assert changed != before
    assert await written(plan, store, cipher) == [a_record().id]
    assert await _stored(store, a_record()) == changed
    assert cipher.decrypt_pair(await _stored(store, newer[1])) == newer[1].pair
    assert len(await store.events(connection_id=a_record().id, limit=9)) == 1


async def test_an_attempt_of_a_dead_process_is_replaced_after_its_lease(
    store: Store, cipher: Cipher, clock: FakeClock
) -> None:
    """A host that was frozen, and is moved back to, keeps such attempts: nobody else would ever end them."""
    await _bring(store, cipher, a_record())
    claimed = await store.claim(a_claim(await _stored(store, a_record())))
    assert claimed is not None
    back = a_record(refresh_token="back", issued_at=START + DAY)
    plan = await _plan(store, cipher, back, rules=REPLACE)
    told: list[float] = []
    leases = Leases(length=2.5, store=store, clock=clock)
    waiting = asyncio.create_task(wait_for_leases(plan, store=store, leases=leases, clock=clock, report=told.append))
    for left in (2.5, 1.5, 0.5):
        await clock.until_sleeping(min(left, 1))
        clock.advance(min(left, 1))
    await waiting
    assert told == [2.5, 1.5, 0.5]
    assert await written(plan, store, cipher) == []
    after = await _stored(store, back)
    assert (cipher.decrypt_pair(after), after.attempt, after.presented_token) == (back.pair, None, None)
    assert await store.save_refreshed(a_refreshed(claimed)) is None


async def test_an_attempt_that_went_on_since_the_plan_keeps_its_claim(store: Store, cipher: Cipher) -> None:
    """It was extended, so its process lives."""
    await _bring(store, cipher, a_record())
    claimed = await store.claim(a_claim(await _stored(store, a_record())))
    assert claimed is not None
    plan = await _plan(store, cipher, a_record(refresh_token="back", issued_at=START + DAY), rules=REPLACE)
    assert await store.extend(an_extension(claimed, lease=DAY))
    assert await written(plan, store, cipher) == [a_record().id]
    assert (await _stored(store, a_record())).attempt == claimed.attempt


async def test_one_that_connected_since_the_plan_keeps_its_own_tokens(store: Store, cipher: Cipher) -> None:
    """What was not there when the plan was made is not written over."""
    plan = await _plan(store, cipher, a_record())
    granted = await save(store, a_connection(id=a_record().id))
    assert await written(plan, store, cipher) == [a_record().id]
    assert await now(store, granted) == granted


async def test_an_import_that_was_broken_off_goes_on(store: Store, cipher: Cipher) -> None:
    """What was written is skipped, also where it has been refreshed since; the rest is written."""
    records = [a_record(number) for number in range(1, BATCH + 3)]
    plan = await _plan(store, cipher, *records)
    plan.new = plan.new[:BATCH]  # the process ended after its first batch
    await written(plan, store, cipher)
    await store.save_refreshed(a_refreshed(await _stored(store, records[0])))
    plan = await _bring(store, cipher, *records)
    assert (plan.same, plan.newer, len(plan.new)) == (BATCH - 1, 1, 2)
    assert await store.count() == len(records)
    assert (await _stored(store, records[-1])).client_id == CLIENT


async def test_whoever_is_notified_of_changes_hears_of_an_import_that_is_one(store: Store, cipher: Cipher) -> None:
    """Given up here and brought back to life, or the other way round: written with it; whoever is new is no change."""
    dead = a_record(1, status=Status.NEEDS_REAUTH, reason=Reason.REVOKED)
    await _bring(store, cipher, dead, a_record(2))
    assert await store.webhooks(limit=9) == []
    later = {"issued_at": START + DAY, "expires_at": START + 2 * DAY}
    lifetimes = a_record(1, access_token="new one", refresh_token="new one", **later)
    missing = a_record(
        2, access_token="new two", refresh_token="", status=Status.NEEDS_REAUTH, reason=Reason.MISSING, **later
    )
    await _bring(store, cipher, lifetimes, missing, rules=REPLACE)
    assert {(webhook.type, webhook.data.get("reason")) for webhook in await store.webhooks(limit=9)} == {
        ("connection.recovered", None),
        ("connection.needs_reauth", "missing"),
    }
