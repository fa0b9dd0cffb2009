"""The table `meta`, statistics and re-encryption.

The table contains, for example, the canary, the location, the last recorded time, the freeze, the mass failure and the
address block.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from amo_callback.crypto import EncryptedRecord, RecordKind, ReencryptedRecord
from amo_callback.events import Event, Level
from amo_callback.model import AmoBlock, Freeze, Reason, Status
from amo_callback.stats import StoreStats
from amo_callback.store.engine import ANY, from_micros, in_transaction, json_object, row_reader, to_micros
from amo_callback.store.history import Repository, pair_obtained_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from amo_callback.store.engine import Transaction

_STEPPED = timedelta(seconds=60)
"""The minimum backward step of the clock that causes stored times to be corrected; smaller steps are harmless."""
_BLOCK_TIMES = ("since", "probe_at", "exchange_at")


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedState:
    """The stored conditions that can pause refreshing in all processes."""

    frozen: Freeze | None
    terminal_suspended: bool
    amo_block: AmoBlock | None
    refused_credentials: str | None


def _needs_reauth(columns: Mapping[str, Any]) -> Mapping[Reason, int]:
    others = json.loads(columns["not_active"])
    return {reason: others.get(reason, 0) for reason in Reason}


_read_stats = row_reader(
    StoreStats,
    computed={
        "needs_reauth": _needs_reauth,
        "disconnected": lambda columns: json.loads(columns["not_active"]).get(Status.DISCONNECTED, 0),
    },
)


class Meta(Repository):
    """The store's methods for the table `meta`, for statistics, and for re-encryption."""

    async def shared_state(self) -> SharedState:
        found = {row["name"]: bytes(row["value"]) for row in await self.read("shared_state")}
        frozen, block, words = (found.get(name) for name in ("frozen", "amo_block", "refused_credentials"))
        return SharedState(
            frozen=None if frozen is None else read_freeze(frozen),
            terminal_suspended="terminal_suspended" in found,
            amo_block=None if block is None else read_amo_block(block),
            refused_credentials=None if words is None else words.decode(),
        )

    @in_transaction
    async def canary(self, transaction: Transaction, fresh: bytes) -> bytes:
        """Return the store's canary; if there is none yet, store and return `fresh`."""
        await transaction.run("add_meta", name="canary", value=fresh)
        [row] = await transaction.run("get_meta", name="canary")
        return bytes(row["value"])

    async def stored_canary(self) -> bytes | None:
        """Return the store's canary; `None` before the first start."""
        return await self._get("canary")

    async def is_whole(self) -> bool:
        """Return whether SQLite's `quick_check` finds no damage; always true for PostgreSQL."""
        return [row["quick_check"] for row in await self.read("quick_check")] in ([], ["ok"])

    async def suspend_terminal(self, *, now: datetime) -> None:
        """Suspend further terminal failures until `resume_terminal` is called, even after a restart."""
        await self.write("add_meta", name="terminal_suspended", value=now.isoformat().encode())

    async def resume_terminal(self) -> None:
        """End the suspension of terminal failures. Earlier failures no longer count towards a mass failure."""

        async def work(transaction: Transaction) -> None:
            await transaction.run("drop_meta", name="terminal_suspended")
            await transaction.run("forget_terminal_failures")

        await self.transact(work)

    async def pair_obtained(self, client_id: str) -> bool:
        """Return whether AMO has ever issued a pair to this client id in this store."""
        return await self._get(pair_obtained_key(client_id)) is not None

    async def refuse_credentials(self, words: str) -> None:
        await self.write("add_meta", name="refused_credentials", value=words.encode())

    async def accept_credentials(self) -> None:
        await self.write("drop_meta", name="refused_credentials")

    async def _get(self, name: str) -> bytes | None:
        found = await self.read("get_meta", name=name)
        return bytes(found[0]["value"]) if found else None

    # --- the freeze ------------------------------------------------------------------------------

    async def frozen(self) -> Freeze | None:
        """Return the freeze of all connections; `None` if they are not frozen."""
        value = await self._get("frozen")
        return None if value is None else read_freeze(value)

    @in_transaction
    async def freeze_all(self, transaction: Transaction, *, why: str, may_be_copy: bool = False) -> bool:
        """Freeze all connections; `False` if they were frozen already.

        A freeze with `may_be_copy` replaces a freeze without it, so that the thaw takes into account that another host
        may have refreshed the tokens.
        """
        return await self._freeze_all(transaction, why, may_be_copy=may_be_copy)

    @in_transaction
    async def thaw_all(self, transaction: Transaction, *, machine: str | None) -> bool:
        """Thaw all connections, and record the store's current location; `False` if they were not frozen.

        `machine` is the name of this machine. If it is `None`, the recorded location does not change. If another host
        may have refreshed the tokens, all active connections become due, so that spent tokens are detected soon.
        """
        await transaction.run("lock_for_freezing")
        found = await transaction.run("drop_meta", name="frozen")
        if found:
            transaction.changes.append(ANY)
            if read_freeze(found[0]["value"]).may_be_copy:
                await transaction.run("all_due", now=self.clock.now())
            if machine is not None:
                here = await self.location(machine)
                await transaction.run("put_meta", name="machine", value=here.encode())
            await self._save_event(transaction, Event(name="service.thawed"))
        return bool(found)

    @in_transaction
    async def check_machine(self, transaction: Transaction, machine: str) -> Freeze | None:
        """Freeze all connections if the store was last used at another location.

        Returns the freeze in effect, or `None` if the connections are not frozen.
        """
        here = await self.location(machine)
        found = await transaction.run("get_meta", name="machine")
        if not found:
            await transaction.run("put_meta", name="machine", value=here.encode())
        elif found[0]["value"] != here.encode():
            await self._freeze_all(
                transaction,
                "the database was last used at another location (machine, folder or server), and may still be in use "
                "there",
                may_be_copy=True,
            )
        frozen = await transaction.run("get_meta", name="frozen")
        return read_freeze(frozen[0]["value"]) if frozen else None

    async def is_elsewhere(self, machine: str) -> bool:
        """Return whether the store was last used at another location."""
        served = await self._get("machine")
        return served is not None and served.decode() != await self.location(machine)

    async def _freeze_all(self, transaction: Transaction, why: str, *, may_be_copy: bool) -> bool:
        value = freeze_value(Freeze(at=self.clock.now(), why=why, may_be_copy=may_be_copy))
        await transaction.run("lock_for_freezing")
        before = await transaction.run("get_meta", name="frozen")
        if before and (not may_be_copy or read_freeze(before[0]["value"]).may_be_copy):
            return False
        await transaction.run("put_meta", name="frozen", value=value)
        transaction.changes.append(ANY)
        await self._save_event(transaction, Event(name="service.frozen", fields={"reason": why}))
        return not before

    # --- the address block -----------------------------------------------------------------------

    async def amo_block(self) -> AmoBlock | None:
        """Return AMO's block of this server's address, as recorded by any process; `None` without a block."""
        value = await self._get("amo_block")
        return None if value is None else read_amo_block(value)

    async def begin_amo_block(self, probed: str, *, probe_every: timedelta) -> None:
        """Record that AMO blocks this server's address, unless a block is recorded already.

        `probed` is the id of the connection whose refresh confirmed the block.
        """

        async def work(transaction: Transaction) -> None:
            [row] = await transaction.run("amo_block")
            now = from_micros(row["clock"])
            block = AmoBlock(since=now, probe_at=now + probe_every, exchange_at=now, probed=(probed,))
            if await transaction.run("add_meta", name="amo_block", value=amo_block_value(block)):
                await self._save_event(transaction, Event(name="amo_blocked.started"))

        await self.transact(work)

    async def end_amo_block(self) -> None:
        async def work(transaction: Transaction) -> None:
            if ended := await transaction.run("drop_meta", name="amo_block"):
                fields = {"since": read_amo_block(ended[0]["value"]).since}
                await self._save_event(transaction, Event(name="amo_blocked.ended", fields=fields))

        await self.transact(work)

    async def take_amo_probe(self, connection_id: str, *, every: timedelta) -> bool:
        """Reserve the next probe for a connection; `False` if no probe is due yet by the store's clock."""

        def taken(block: AmoBlock, now: datetime) -> AmoBlock | None:
            if now < block.probe_at:
                return None
            round_over = connection_id in block.probed  # every other connection has been probed in this round
            probed = (connection_id,) if round_over else (*block.probed, connection_id)
            return dataclasses.replace(block, probe_at=now + every, probed=probed)

        return await self._take_at_block(taken)

    async def take_amo_exchange(self, *, every: timedelta) -> bool:
        """Reserve the next code exchange; `False` if no exchange is allowed yet by the store's clock."""

        def taken(block: AmoBlock, now: datetime) -> AmoBlock | None:
            return dataclasses.replace(block, exchange_at=now + every) if now >= block.exchange_at else None

        return await self._take_at_block(taken)

    @in_transaction
    async def _take_at_block(
        self, transaction: Transaction, taken: Callable[[AmoBlock, datetime], AmoBlock | None]
    ) -> bool:
        [row] = await transaction.run("amo_block")
        if row["value"] is None:
            return True  # the block has ended
        before = bytes(row["value"])
        block = taken(read_amo_block(before), from_micros(row["clock"]))
        if block is None:
            return False
        value = amo_block_value(block)
        return bool(await transaction.run("change_meta", name="amo_block", value=value, before=before))

    async def _shift_amo_block(self, transaction: Transaction, *, back: timedelta, now: datetime) -> None:
        found = await transaction.run("get_meta", name="amo_block")
        if not found:
            return
        block = read_amo_block(found[0]["value"])
        times = {name: getattr(block, name) for name in _BLOCK_TIMES}
        ahead = {name: time - back for name, time in times.items() if time > now}
        value = amo_block_value(dataclasses.replace(block, **ahead))
        await transaction.run("put_meta", name="amo_block", value=value)

    # --- time ------------------------------------------------------------------------------------

    async def record_time(self, *, now: Callable[[], datetime]) -> timedelta:
        """Store the current time; if the clock was moved back, also correct stored times that lie in the future.

        Returns the backward step, or zero if the step is less than a minute. If several instances can share the store,
        nothing is corrected and the result is zero, because one wrong clock must not change the times of others.
        """
        if self.has_shared_clock:
            await self.write("put_meta", name="seen_at", value=str(to_micros(now())).encode())
            return timedelta(0)

        async def work(transaction: Transaction) -> timedelta:
            # Read under the lock, because another process may store a later time before the lock is acquired.
            time = now()
            found = await transaction.run("get_meta", name="seen_at")
            back = from_micros(int(found[0]["value"])) - time if found else timedelta(0)
            await transaction.run("put_meta", name="seen_at", value=str(to_micros(time)).encode())
            if back < _STEPPED:
                return timedelta(0)
            await transaction.run("shift_times", by=back, now=time)
            await transaction.run("shift_webhooks", by=back, now=time)
            await self._shift_amo_block(transaction, back=back, now=time)
            fields = {"seconds": back.total_seconds(), "text": "all tokens are refreshed, because their age is unknown"}
            await self._record(transaction, [Event(name="clock.moved_back", level=Level.WARNING, fields=fields)])
            return back

        return await self.transact(work)

    # --- statistics and encrypted records ----------------------------------------------------------

    async def stats(self, *, now: datetime, late: datetime) -> StoreStats:
        """Count connections and webhooks; refreshes that were due before `late` count as overdue."""
        [row] = await self.read("stats", now=now, late=late)
        return _read_stats(row)

    async def count_sealed(self) -> int:
        [[number]] = await self.read("count_sealed")
        return int(number)

    async def sealed(self, kind: RecordKind, *, after: str, limit: int) -> Sequence[EncryptedRecord]:
        """Return up to `limit` encrypted records of one kind in the order of their names, starting after `after`."""
        if kind is RecordKind.CANARY:
            canary = await self._get("canary") if after < "canary" else None
            return [] if canary is None else [EncryptedRecord(kind=kind, name="canary", content=canary)]
        found = await self.read(f"sealed_{kind}", after=after, limit=limit)
        return [EncryptedRecord(kind=kind, name=row["name"], content=row["content"]) for row in found]

    @in_transaction
    async def reencrypt(
        self, transaction: Transaction, reencrypted: Sequence[ReencryptedRecord]
    ) -> Sequence[EncryptedRecord]:
        """Commit re-encrypted records in one transaction; return those that had changed and were not replaced."""
        left = []
        for one in reencrypted:
            read = one.read
            if read.kind is RecordKind.CANARY:
                statement, named = "change_meta", {"name": read.name, "value": one.content, "before": read.content}
            else:
                statement = f"reencrypt_{read.kind}"
                named = {"id": read.name, "content": one.content, "read": read.content}
            if not await transaction.run(statement, **named):
                left.append(read)
        return left


def read_freeze(value: bytes) -> Freeze:
    """Parse a stored freeze; with a malformed value, the store stays frozen until it is thawed."""
    content = json_object(value)
    try:
        at, why = from_micros(int(str(content["at"]))), str(content["why"])
    except (KeyError, ValueError):
        return Freeze(
            at=from_micros(0),
            why="the freeze stored in the database is malformed, so its reason is unknown",
            may_be_copy=True,
        )
    return Freeze(at=at, why=why, may_be_copy=bool(content.get("may_be_copy")))


def freeze_value(freeze: Freeze) -> bytes:
    return json.dumps({"at": to_micros(freeze.at), "why": freeze.why, "may_be_copy": freeze.may_be_copy}).encode()


def read_amo_block(value: bytes) -> AmoBlock:
    """Parse a stored address block; a malformed value becomes a new block, whose first probe is due immediately."""
    content = json_object(value)
    try:
        times = {name: from_micros(int(content[name])) for name in _BLOCK_TIMES}
        return AmoBlock(**times, probed=tuple(map(str, content["probed"])))
    except (KeyError, TypeError, ValueError):
        start = from_micros(0)
        return AmoBlock(since=start, probe_at=start, exchange_at=start, probed=())


def amo_block_value(block: AmoBlock) -> bytes:
    times = {name: to_micros(getattr(block, name)) for name in _BLOCK_TIMES}
    return json.dumps({**times, "probed": block.probed}).encode()
