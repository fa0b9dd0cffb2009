"""Import: an all-or-nothing plan, and writes that replace only rows unchanged since the plan."""

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


async def _import(store: Store, cipher: Cipher, *records: ExportRecord, rules: ImportRules = RULES) -> ImportPlan:
    """Import valid records and check that all are written."""
    plan = await _plan(store, cipher, *records, rules=rules)
    assert plan.problems == []
    assert await written(plan, store, cipher) == []
    return plan


async def _stored(store: Store, record: ExportRecord) -> Connection:
    stored = await store.connection(record.id)
    assert stored is not None
    return stored


async def test_make_plan_yields_to_event_loop(store: Store, cipher: Cipher) -> None:
    """The event loop runs other tasks after at most `TURN` records."""
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


async def test_import_stores_every_field(store: Store, cipher: Cipher) -> None:
    """Every field is stored, with tokens sealed by this store's key and an event in the history."""
    record = a_record(possibly_spent_token="a fingerprint", recheck_at=START + DAY, owners={"17": 8, "42": 9})
    await _import(store, cipher, record)
    assert await store.owners_of([record.id]) == {record.id: ["17", "42"]}
    stored = await _stored(store, record)
    assert cipher.decrypt_pair(stored) == record.pair
    same = set(dataclasses.asdict(record)) - {"access_token", "refresh_token", "issued_at", "expires_at", "owners"}
    same -= {"precedence"}
    assert {name: getattr(stored, name) for name in same} == {name: getattr(record, name) for name in same}
    assert (stored.access_issued_at, stored.access_expires_at) == (START, START + DAY)
    assert (stored.next_refresh_at, stored.pair_version, stored.attempt) == (START + DAY / 2, 1, None)
    [event] = await store.events(connection_id=record.id, limit=9)
    assert (event.name, event.details) == (
        "connection.imported",
        {"domain": "a1.amocrm.ru", "source": "a test", "status": "active",
         "next_token": fingerprint(record.refresh_token)[:16]},
    )  # fmt: skip


async def test_import_keeps_order_of_connections_and_owners(store: Store, cipher: Cipher) -> None:
    """Imported connections and owners keep their order and follow those already stored, across batches."""
    here = await save(store, a_connection(900))
    records = [
        a_record(number, precedence=900 - number, owners={"42": number, "17": 10**18 - number})
        for number in range(BATCH + 2)
    ]
    await _import(store, cipher, *records)
    names = [record.id for record in records]
    connected = {one.id: one.precedence for one in await store.connections_by_id(names)}
    bound = await store.bindings_of(names)
    assert sorted(names, key=connected.__getitem__) == names[::-1]
    assert sorted(names, key=lambda name: bound[name]["42"]) == names
    assert sorted(names, key=lambda name: bound[name]["17"]) == names[::-1]
    later = await save(store, a_connection(901))
    assert here.precedence < min(connected.values())
    assert later.precedence > max(number for each in bound.values() for number in each.values())


async def test_import_keeps_status_and_freeze(store: Store, cipher: Cipher) -> None:
    """A connection that needs reauthorization is not refreshed, and a frozen one is not claimed."""
    dead = a_record(1, status=Status.NEEDS_REAUTH, reason=Reason.REVOKED)
    frozen = a_record(2, frozen=True)
    await _import(store, cipher, dead, frozen)
    stored = await _stored(store, dead)
    assert (stored.status, stored.reason, stored.next_refresh_at) == (Status.NEEDS_REAUTH, Reason.REVOKED, None)
    assert (await _stored(store, frozen)).frozen
    assert (await store.due(now=START + DAY, limit=9, exclude=())).refreshes == []
    assert await store.claim(a_claim(await _stored(store, frozen))) is None


async def test_import_keeps_possibly_spent_token(store: Store, cipher: Cipher) -> None:
    """The next claim returns the imported fingerprint of the possibly spent token."""
    record = a_record(possibly_spent_token=fingerprint("refresh-token-of-1"))
    await _import(store, cipher, record)
    claimed = await store.claim(a_claim(await _stored(store, record), fingerprint=record.possibly_spent_token))
    assert claimed is not None
    assert claimed.possibly_spent_token == claimed.presented_token == record.possibly_spent_token


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"client_id": "other"}, "the tokens were granted to a client_id other than amo.client_id"),
        ({"domain": "evil.example"}, '"domain" is neither an AMO host nor in amo.allowed_domains'),
        ({"domain": "a.b.amocrm.ru"}, '"domain" is neither an AMO host nor in amo.allowed_domains'),
        ({"domain": "A2.amocrm.ru"}, '"domain" is neither an AMO host nor in amo.allowed_domains'),
        ({"domain": "https://a2.amocrm.ru/"}, '"domain" is neither an AMO host nor in amo.allowed_domains'),
        ({"domain": ""}, '"domain" is neither an AMO host nor in amo.allowed_domains'),
        ({"api_domain": "api.evil.example"}, '"api_domain" is neither an AMO host nor in amo.allowed_domains'),
        ({"account_id": "666"}, "the account is not in amo.allowed_accounts"),
        ({"id": a_record(1).id}, "the account and user are the same as in line 1"),
        ({"refresh_token": "refresh-token-of-1"}, "the refresh token is the same as in line 1"),
    ],
)
async def test_import_invalid_record_refuses_whole_file(
    store: Store, cipher: Cipher, change: dict[str, Any], why: str
) -> None:
    """A record of another client, host or account, or a duplicate, refuses the whole file."""
    rules = dataclasses.replace(RULES, allowed_accounts=["1", "2"])
    plan = await _plan(store, cipher, a_record(1), a_record(2, **change), rules=rules)
    assert plan.problems == [RecordError(place="line 2", why=why)]
    assert await store.count() == 0


async def test_import_accepts_operators_hosts(store: Store, cipher: Cipher) -> None:
    """A host of the operator's list is accepted."""
    rules = dataclasses.replace(RULES, allowed_domains=["crm.example"])
    plan = await _plan(store, cipher, a_record(domain="crm.example", api_domain="crm.example"), rules=rules)
    assert (len(plan.new), plan.problems) == (1, [])


async def test_import_repeated_changes_nothing(store: Store, cipher: Cipher) -> None:
    """A connection with the same tokens is skipped, whatever times the file states."""
    await _import(store, cipher, a_record())
    stored = await _stored(store, a_record())
    plan = await _import(store, cipher, a_record(expires_at=START + DAY / 2), rules=REPLACE)
    assert (plan.same, plan.new, plan.replaced) == (1, [], [])
    assert await _stored(store, a_record()) == stored


async def test_import_keeps_newer_stored_pair(store: Store, cipher: Cipher) -> None:
    """A pair refreshed since the export is kept even with `--replace`, because the file's token is spent."""
    await _import(store, cipher, a_record())
    later = TokenPair(access_token="later", refresh_token="later", issued_at=START + DAY, expires_at=START + 2 * DAY)
    stored = await _stored(store, a_record())
    refreshed = a_refreshed(stored, at=START + DAY, sealed_pair=cipher.seal_pair(later, connection_id=stored.id))
    assert await store.save_refreshed(refreshed)
    for rules in (RULES, REPLACE):
        plan = await _import(store, cipher, a_record(), rules=rules)
        assert (plan.newer, plan.new, plan.replaced) == (1, [], [])
    assert cipher.decrypt_pair(await _stored(store, a_record())) == later


async def test_import_replaces_other_tokens_only_if_requested(store: Store, cipher: Cipher) -> None:
    """Without `--replace` the import is refused; with it, both versions increase and an event records it."""
    await _import(store, cipher, a_record())
    before = await _stored(store, a_record())
    other = a_record(refresh_token="other", issued_at=START + timedelta(seconds=1))
    plan = await _plan(store, cipher, a_record(2), other)
    why = f'{other.id} is already stored with different tokens: use --replace (API: "replace": true) to replace them'
    assert plan.problems == [RecordError(place="line 2", why=why)]
    await _import(store, cipher, a_record(2), other, rules=REPLACE)
    after = await _stored(store, other)
    assert cipher.decrypt_pair(after) == other.pair
    assert (after.pair_version, after.row_version) == (before.pair_version + 1, before.row_version + 1)
    assert (await store.events(connection_id=other.id, limit=1))[0].details["replaced"] is True


async def test_import_replaces_undecryptable_pair_only_if_requested(store: Store, cipher: Cipher) -> None:
    """A pair that no key decrypts is replaced only with `--replace`."""
    await _import(store, Cipher([new_key()]), a_record())
    assert len((await _plan(store, cipher, a_record())).problems) == 1
    await _import(store, cipher, a_record(), rules=REPLACE)
    assert cipher.decrypt_pair(await _stored(store, a_record())) == a_record().pair


async def test_import_reconnects_disconnected_connection_only_if_requested(store: Store, cipher: Cipher) -> None:
    """A disconnected connection is connected only with `--replace`."""
    await _import(store, cipher, a_record())
    await store.disconnect(await _stored(store, a_record()), on_request=True)
    [problem] = (await _plan(store, cipher, a_record())).problems
    assert problem.why == f'{a_record().id} was disconnected: use --replace (API: "replace": true) to connect it again'
    await _import(store, cipher, a_record(), rules=REPLACE)
    assert (await _stored(store, a_record())).status is Status.ACTIVE


# --- concurrent changes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda store, connection: store.save_refreshed(a_refreshed(connection)),
        lambda store, connection: store.claim(a_claim(connection)),
        lambda store, connection: store.disconnect(connection, on_request=True),
    ],
    ids=["refreshed", "being refreshed", "disconnected"],
)
async def test_import_row_changed_since_plan_is_not_replaced(
    store: Store, cipher: Cipher, change: Callable[[Store, Connection], Awaitable[object]]
) -> None:
    """A row that changed since the plan is left as it is, and the others are written."""
    await _import(store, cipher, a_record(), a_record(2))
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


async def test_import_replaces_expired_attempt(store: Store, cipher: Cipher, clock: FakeClock) -> None:
    """An attempt of an ended process is replaced after its lease, because no other process would end it."""
    await _import(store, cipher, a_record())
    claimed = await store.claim(a_claim(await _stored(store, a_record())))
    assert claimed is not None
    back = a_record(refresh_token="back", issued_at=START + DAY)
    plan = await _plan(store, cipher, back, rules=REPLACE)
    result: list[float] = []
    leases = Leases(length=2.5, store=store, clock=clock)
    waiting = asyncio.create_task(wait_for_leases(plan, store=store, leases=leases, clock=clock, report=result.append))
    for left in (2.5, 1.5, 0.5):
        await clock.until_sleeping(min(left, 1))
        clock.advance(min(left, 1))
    await waiting
    assert result == [2.5, 1.5, 0.5]
    assert await written(plan, store, cipher) == []
    after = await _stored(store, back)
    assert (cipher.decrypt_pair(after), after.attempt, after.presented_token) == (back.pair, None, None)
    assert await store.save_refreshed(a_refreshed(claimed)) is None


async def test_import_keeps_attempt_extended_since_plan(store: Store, cipher: Cipher) -> None:
    """An attempt extended since the plan belongs to a running process and keeps its claim."""
    await _import(store, cipher, a_record())
    claimed = await store.claim(a_claim(await _stored(store, a_record())))
    assert claimed is not None
    plan = await _plan(store, cipher, a_record(refresh_token="back", issued_at=START + DAY), rules=REPLACE)
    assert await store.extend(an_extension(claimed, lease=DAY))
    assert await written(plan, store, cipher) == [a_record().id]
    assert (await _stored(store, a_record())).attempt == claimed.attempt


async def test_import_keeps_connection_granted_since_plan(store: Store, cipher: Cipher) -> None:
    """A connection granted since the plan keeps its tokens."""
    plan = await _plan(store, cipher, a_record())
    granted = await save(store, a_connection(id=a_record().id))
    assert await written(plan, store, cipher) == [a_record().id]
    assert await now(store, granted) == granted


async def test_import_interrupted_continues_with_remaining_records(store: Store, cipher: Cipher) -> None:
    """A second import skips the written connections, even if refreshed since, and writes the others."""
    records = [a_record(number) for number in range(1, BATCH + 3)]
    plan = await _plan(store, cipher, *records)
    plan.new = plan.new[:BATCH]  # the process ended after its first batch
    await written(plan, store, cipher)
    await store.save_refreshed(a_refreshed(await _stored(store, records[0])))
    plan = await _import(store, cipher, *records)
    assert (plan.same, plan.newer, len(plan.new)) == (BATCH - 1, 1, 2)
    assert await store.count() == len(records)
    assert (await _stored(store, records[-1])).client_id == CLIENT


async def test_import_writes_webhook_for_changed_status(store: Store, cipher: Cipher) -> None:
    """A connection whose status changes gets a webhook in the same transaction; a new one gets none."""
    dead = a_record(1, status=Status.NEEDS_REAUTH, reason=Reason.REVOKED)
    await _import(store, cipher, dead, a_record(2))
    assert await store.webhooks(limit=9) == []
    later = {"issued_at": START + DAY, "expires_at": START + 2 * DAY}
    lifetimes = a_record(1, access_token="new one", refresh_token="new one", **later)
    missing = a_record(
        2, access_token="new two", refresh_token="", status=Status.NEEDS_REAUTH, reason=Reason.MISSING, **later
    )
    await _import(store, cipher, lifetimes, missing, rules=REPLACE)
    assert {(webhook.type, webhook.data.get("reason")) for webhook in await store.webhooks(limit=9)} == {
        ("connection.recovered", None),
        ("connection.needs_reauth", "missing"),
    }
