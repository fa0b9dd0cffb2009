"""The exporter: its wait for open attempts, the exported records, and the refusal of a thawed store."""

from __future__ import annotations

import asyncio
import io
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from amo_callback.crypto import Cipher, new_key
from amo_callback.errors import CommandFailed, Frozen
from amo_callback.grant import GrantStatus, NewConnection
from amo_callback.model import ImportedConnection, Reason, Status, TokenPair
from amo_callback.refresh.leases import Leases
from amo_callback.transfer.export_file import ExportRecord, ExportWriter, ParsedRecord, key_of_host, read_export
from amo_callback.transfer.exporter import PAGE, export, freeze, wait_until_idle
from tests.builders import DAY, a_claim, a_connection, a_failure, a_grant, a_refreshed, bind, now
from tests.fakes import START, MemoryRescue, Override

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.model import Connection
    from amo_callback.store import Store
    from tests.fakes import FakeClock

KEY = new_key()
LEASE = 60.0


async def _connect(store: Store, cipher: Cipher, number: int = 1) -> Connection:
    pair = TokenPair(
        access_token=f"access {number}", refresh_token=f"refresh {number}", issued_at=START, expires_at=START + DAY
    )
    sealed = cipher.seal_pair(pair, connection_id=a_connection(number).id)
    connection = a_connection(number, sealed_pair=sealed)
    await store.import_connections([ImportedConnection(connection=connection, replaces=None)])
    return await now(store, connection)


async def _wait_until_idle(
    store: Store, clock: FakeClock, result: list[float] | None = None, rescue: MemoryRescue | None = None
) -> None:
    await wait_until_idle(
        store,
        leases=Leases(length=LEASE, store=store, clock=clock),
        clock=clock,
        rescue=rescue or MemoryRescue(),
        report=(result if result is not None else []).append,
    )


async def _export(
    store: Store, cipher: Cipher, rescue: MemoryRescue | None = None
) -> tuple[Sequence[str], list[ExportRecord]]:
    """Return the ids of unreadable connections and the records of the file."""
    file = io.BytesIO()
    lock = key_of_host(KEY)
    unreadable = await export(
        store,
        frozen=await freeze(store, why="a test"),
        cipher=cipher,
        rescue=rescue or MemoryRescue(),
        writer=ExportWriter(file, lock, file_id="1"),
        advance=lambda _done: None,
    )
    file.seek(0)
    found = list(read_export(file, cipher=lock.cipher))
    return unreadable, [one.record for one in found if isinstance(one, ParsedRecord)]


async def test_export_includes_all_but_disconnected_connections(store: Store, cipher: Cipher) -> None:
    """Every connection of every page is exported, also if it needs reauthorization, but not if disconnected."""
    connections = [await _connect(store, cipher, number) for number in range(PAGE + 3)]
    await store.disconnect(connections[0], on_request=True)
    claimed = await store.claim(a_claim(connections[1]))
    assert claimed is not None
    await store.save_failure(
        a_failure(claimed, status=Status.NEEDS_REAUTH, reason=Reason.REVOKED, next_refresh_at=None, recheck_at=START)
    )
    unreadable, records = await _export(store, cipher)
    assert (len(records), unreadable) == (PAGE + 2, [])
    assert {record.id for record in records} == {connection.id for connection in connections[1:]}
    [dead] = [record for record in records if record.status is Status.NEEDS_REAUTH]
    assert (dead.id, dead.reason, dead.recheck_at) == (connections[1].id, Reason.REVOKED, START)
    assert all(record.refresh_token == f"refresh {record.account_id}" for record in records)


async def test_export_includes_owners(store: Store, cipher: Cipher) -> None:
    """Owners are exported with their connections, so that the app finds them on the next host."""
    connection = await _connect(store, cipher)
    for owner in ("42", "17"):
        assert await bind(store, connection.id, owner)
    await freeze(store, why="a test")
    _, [record] = await _export(store, cipher)
    assert list(record.owners) == ["42", "17"]
    assert record.owners["42"] < record.owners["17"]


async def test_export_keeps_source_frozen(store: Store, cipher: Cipher, clock: FakeClock) -> None:
    """The source accepts no claim and no grant before, during and after the export."""
    connection = await _connect(store, cipher)
    frozen = await freeze(store, why="a test")
    assert await freeze(store, why="again") == frozen
    await _wait_until_idle(store, clock)
    await _export(store, cipher)
    assert await store.frozen() == frozen
    assert await store.claim(a_claim(connection)) is None
    with pytest.raises(Frozen):
        await store.claim_grant(a_grant("late"), now=START)


async def test_export_waits_for_open_refresh(store: Store, cipher: Cipher, clock: FakeClock) -> None:
    """The pair of a refresh in progress is exported."""
    connection = await _connect(store, cipher)
    await store.claim(a_claim(connection))
    await freeze(store, why="a test")
    result: list[float] = []
    waiting = asyncio.create_task(_wait_until_idle(store, clock, result))
    await clock.until_sleeping(1)
    assert result == [LEASE]
    pair = TokenPair(access_token="new", refresh_token="new", issued_at=START, expires_at=START + DAY)
    sealed = cipher.seal_pair(pair, connection_id=connection.id)
    assert await store.save_refreshed(a_refreshed(connection, sealed_pair=sealed)) is not None
    clock.advance(1)
    await waiting
    [record] = (await _export(store, cipher))[1]
    assert (record.refresh_token, record.possibly_spent_token) == ("new", None)


async def test_export_waits_for_open_exchange(store: Store, cipher: Cipher, clock: FakeClock) -> None:
    """The connection of a code exchange in progress is exported."""
    await store.claim_grant(a_grant("code"), now=START)
    await freeze(store, why="a test")
    waiting = asyncio.create_task(_wait_until_idle(store, clock))
    await clock.until_sleeping(1)
    clock.advance(1)
    await clock.until_sleeping(1)
    assert not waiting.done()
    await _finish(store, cipher)
    clock.advance(1)
    await waiting
    assert len((await _export(store, cipher))[1]) == 1


async def _finish(store: Store, cipher: Cipher) -> None:
    pair = TokenPair(access_token="a", refresh_token="r", issued_at=START, expires_at=START + DAY)
    connection = a_connection(sealed_pair=cipher.seal_pair(pair, connection_id=a_connection().id))
    grant = a_grant("code", status=GrantStatus.CONNECTED, connection_id=connection.id)
    assert await store.save_connected(NewConnection(grant=grant, connection=connection, token_iat=1)) is not None


async def test_export_of_expired_attempt_includes_doubt(store: Store, cipher: Cipher, clock: FakeClock) -> None:
    """After a full lease the presented token counts as possibly spent; an attempt without one keeps the older doubt."""
    presented_token, nothing = await _connect(store, cipher, 1), await _connect(store, cipher, 2)
    await store.claim(a_claim(presented_token, fingerprint="print-1"))
    first = await store.claim(a_claim(nothing, fingerprint="print-2"))
    assert first is not None
    await store.claim(a_claim(first, attempt="attempt-2", fingerprint=""))
    await freeze(store, why="a test")
    clock.step(timedelta(days=1))  # a change of the wall clock does not end a lease
    waiting = asyncio.create_task(_wait_until_idle(store, clock))
    for _ in range(int(LEASE)):
        await clock.until_sleeping(1)
        assert not waiting.done()
        clock.advance(1)
    await waiting
    records = (await _export(store, cipher))[1]
    assert {record.account_id: record.possibly_spent_token for record in records} == {"1": "print-1", "2": "print-2"}


async def test_export_with_pending_writes_is_refused(store: Store, cipher: Cipher, clock: FakeClock) -> None:
    """A pair in the rescue folder is newer than the stored one, so the export neither begins nor ends."""
    rescue = MemoryRescue()
    await _connect(store, cipher)
    rescue.write("one", b"sealed")
    for exporting in (_wait_until_idle(store, clock, rescue=rescue), _export(store, cipher, rescue=rescue)):
        with pytest.raises(CommandFailed, match=r"the rescue folder contains unsaved token pairs \(1\)"):
            await exporting


async def test_export_undecryptable_pair_is_listed_and_skipped(store: Store, cipher: Cipher) -> None:
    """A connection whose pair no key decrypts is listed, and the others are exported."""
    await _connect(store, cipher, 1)
    lost = await _connect(store, Cipher([new_key()]), 2)
    unreadable, records = await _export(store, cipher)
    assert unreadable == [lost.id]
    assert [record.account_id for record in records] == ["1"]


async def test_export_includes_freeze_of_connection(store: Store, cipher: Cipher) -> None:
    """A connection's own freeze is exported, because the connection may have been moved; the source's freeze is not."""
    one, _ = await _connect(store, cipher, 1), await _connect(store, cipher, 2)
    await store.freeze(one.id, at=START)
    records = (await _export(store, cipher))[1]
    assert {record.account_id: record.frozen for record in records} == {"1": True, "2": False}


async def test_export_of_store_thawed_meanwhile_is_refused(store: Store, cipher: Cipher) -> None:
    """The export of a store thawed meanwhile fails, even after a second freeze, as its tokens may be spent."""
    connection = await _connect(store, cipher)

    async def thawing_page(*, after: str, limit: int, only: object) -> object:
        await store.thaw_all(machine=None)
        if after:
            await store.freeze_all(why="again")
        return await store.page(after=after, limit=limit, only=only)  # type: ignore[arg-type]  # reason: passed through

    with pytest.raises(CommandFailed, match="thawed during the export"):
        await _export(cast("Any", Override(store, page=thawing_page)), cipher)
    assert (await now(store, connection)).attempt is None
