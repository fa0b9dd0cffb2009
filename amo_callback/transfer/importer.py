"""Import: plan the whole import first, then write it; if the file contains an error, nothing is written."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from amo_callback.events import Event, connection_event
from amo_callback.hosts import parse_account_host
from amo_callback.model import Connection, ImportedConnection, Status, abbreviated, fingerprint
from amo_callback.schedule import REFRESH_TOKEN_LIFETIME, refresh_due
from amo_callback.transfer.export_file import OF_CONNECTION, ParsedRecord, RecordError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from amo_callback.clock import Clock
    from amo_callback.crypto import Cipher
    from amo_callback.model import RefreshRules
    from amo_callback.refresh.leases import Leases
    from amo_callback.store import Store
    from amo_callback.transfer.export_file import ExportRecord

T = TypeVar("T")

_POLL = 1.0
"""Seconds between two checks of leases."""
BATCH = 500
"""Connections per transaction."""
TURN = 50
"""Connections that are processed, in about ten milliseconds, before other tasks can run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportRules:
    """Rules for accepting connections: settings of `[amo]`, and whether to replace different stored tokens."""

    client_id: str
    allowed_domains: Sequence[str]
    allowed_accounts: Sequence[str]
    replace: bool


@dataclass(kw_only=True, slots=True)
class ImportPlan:
    """The changes that an import would make, and the errors in its file."""

    new: list[ExportRecord] = field(default_factory=list)
    replaced: list[tuple[ExportRecord, Connection]] = field(default_factory=list)
    same: int = 0
    """The number of connections that are already stored with the same tokens, for example by an interrupted import."""
    newer: int = 0
    """The number of connections that are already stored with later tokens, which are kept."""
    owned: int = 0
    problems: list[RecordError] = field(default_factory=list)


async def make_plan(
    parsed: Iterable[ParsedRecord | RecordError], *, store: Store, cipher: Cipher, rules: ImportRules
) -> ImportPlan:
    """Return the plan for importing the records of a file; write nothing."""
    plan, seen = ImportPlan(), dict[str, str]()
    async for batch in _batches(parsed):
        valid = []
        for one in batch:
            problem = one if isinstance(one, RecordError) else _refusal(one, rules) or _repetition(one, seen)
            if problem:
                plan.problems.append(problem)
            elif isinstance(one, ParsedRecord):
                valid.append(one)
        stored = {each.id: each for each in await store.connections_by_id([one.record.id for one in valid])}
        async for one in _in_turns(valid):
            _plan_one(plan, one, stored.get(one.record.id), cipher=cipher, replace=rules.replace)
    return plan


def _refusal(parsed: ParsedRecord, rules: ImportRules) -> RecordError | None:
    """Return an error if the configuration does not permit the connection."""
    record, why = parsed.record, None
    if record.client_id != rules.client_id:
        why = "the tokens were granted to a client_id other than amo.client_id"
    elif parse_account_host(record.domain.encode(), allowed=rules.allowed_domains) != record.domain:
        why = '"domain" is neither an AMO host nor in amo.allowed_domains'
    elif record.api_domain and parse_account_host(record.api_domain.encode(), allowed=rules.allowed_domains) is None:
        why = '"api_domain" is neither an AMO host nor in amo.allowed_domains'
    elif rules.allowed_accounts and record.account_id not in rules.allowed_accounts:
        why = "the account is not in amo.allowed_accounts"
    return None if why is None else RecordError(place=parsed.place, why=why)


def _repetition(parsed: ParsedRecord, seen: dict[str, str]) -> RecordError | None:
    """Return an error if the file repeats a connection or a refresh token, which would be spent twice."""
    record = parsed.record
    names = {record.id: "the account and user are the same as in"}
    if record.refresh_token:
        names[fingerprint(record.refresh_token)] = "the refresh token is the same as in"
    for name, what in names.items():
        place = seen.setdefault(name, parsed.place)
        if place != parsed.place:
            return RecordError(place=parsed.place, why=f"{what} {place}")
    return None


def _plan_one(
    plan: ImportPlan, parsed: ParsedRecord, stored: Connection | None, *, cipher: Cipher, replace: bool
) -> None:
    record = parsed.record
    plan.owned += parsed.names_owner
    if stored is None:
        plan.new.append(record)
    elif (pair := cipher.decrypt_pair(stored)) and (pair.access_token, pair.refresh_token) == (
        record.access_token,
        record.refresh_token,
    ):
        plan.same += 1
    elif _is_newer(stored, record, replace=replace):
        plan.newer += 1
    elif replace:
        plan.replaced.append((record, stored))
    else:
        why = 'is already stored with different tokens: use --replace (API: "replace": true) to replace them'
        if stored.status is Status.DISCONNECTED:
            why = 'was disconnected: use --replace (API: "replace": true) to connect it again'
        plan.problems.append(RecordError(place=parsed.place, why=f"{stored.id} {why}"))


def _is_newer(stored: Connection, record: ExportRecord, *, replace: bool) -> bool:
    """Return whether to keep the stored tokens because they are later than those in the record.

    If `replace` is true, later tokens are kept only for an active connection.
    """
    if stored.access_issued_at is None or stored.access_issued_at <= record.issued_at:
        return False
    return stored.status is Status.ACTIVE or not replace


# --- writing -------------------------------------------------------------------------------------


async def wait_for_leases(
    plan: ImportPlan, *, store: Store, leases: Leases, clock: Clock, report: Callable[[float], None]
) -> None:
    """Wait until no process can still be refreshing a connection that the import replaces.

    This waits for leases to expire, not for attempts to end, because a frozen store keeps the attempts of killed
    processes. Calls `report` with the seconds left.
    """
    waiting = [stored for _, stored in plan.replaced]
    while waiting := [stored for stored in waiting if leases.remaining(stored)]:
        left = max(map(leases.remaining, waiting))
        report(left)
        await clock.sleep(min(left, _POLL))
        waiting = list(await store.connections_by_id([stored.id for stored in waiting]))


async def apply(
    plan: ImportPlan,
    *,
    store: Store,
    cipher: Cipher,
    rules: RefreshRules,
    random: Callable[[], float],
    source: str,
    advance: Callable[[int], None],
) -> Sequence[str]:
    """Write the plan in batches; return the ids of connections that were skipped because they had changed."""
    replaced = {stored.id: stored for _, stored in plan.replaced}
    left: list[str] = []
    done = 0
    records = [*plan.new, *(record for record, _ in plan.replaced)]
    order = _order(records)
    before = await store.reserve_serials(len(order))
    async for batch in _batches(records):
        imported, events = [], []
        async for record in _in_turns(batch):
            connection, replaces = _connection(record, cipher, rules, random), replaced.get(record.id)
            connection = dataclasses.replace(connection, precedence=before + order[record.id, None])
            owners = {owner: before + order[record.id, owner] for owner in record.owners}
            imported.append(ImportedConnection(connection=connection, replaces=replaces, owners=owners))
            events.append(_event(connection, record, source=source, replaces=replaces is not None))
        left += await store.import_connections(imported, events=events)
        done += len(batch)
        advance(done)
    return left


def _order(records: Sequence[ExportRecord]) -> dict[tuple[str, str | None], int]:
    """Return the position (from 1) of each connection and each owner in the order of the numbers in the file."""
    numbers: dict[tuple[str, str | None], int] = {}
    for record in records:
        numbers[record.id, None] = record.precedence
        numbers.update({(record.id, owner): bound_no for owner, bound_no in record.owners.items()})
    return {name: place for place, name in enumerate(sorted(numbers, key=numbers.__getitem__), start=1)}


def _connection(record: ExportRecord, cipher: Cipher, rules: RefreshRules, random: Callable[[], float]) -> Connection:
    renewable = bool(record.refresh_token)
    due = refresh_due(record.pair, at=rules.at, jitter=rules.jitter, random=random)
    refresh_expires_at = record.refresh_expires_at or record.issued_at + REFRESH_TOKEN_LIFETIME
    fields = {name: getattr(record, name) for name in OF_CONNECTION}
    fields["refresh_expires_at"] = refresh_expires_at if renewable else None
    return Connection(
        **fields,
        sealed_pair=cipher.seal_pair(record.pair, connection_id=record.id),
        access_issued_at=record.issued_at,
        access_expires_at=record.expires_at,
        next_refresh_at=due if renewable and record.status is Status.ACTIVE else None,
        pair_version=1,
        row_version=1,
        possibly_spent_token=record.possibly_spent_token,
    )


def _event(connection: Connection, record: ExportRecord, *, source: str, replaces: bool) -> Event:
    fields = {
        "source": source,
        "status": record.status,
        "next_token": abbreviated(fingerprint(record.refresh_token)),
        "replaced": replaces or None,
        "frozen": record.frozen or None,
    }
    return connection_event("connection.imported", connection, fields=fields)


async def _batches(items: Iterable[T]) -> AsyncIterator[list[T]]:
    batch: list[T] = []
    async for item in _in_turns(items):
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield the items, and let other tasks run after every `TURN` items."""
    for number, item in enumerate(items, start=1):
        yield item
        if number % TURN == 0:
            await asyncio.sleep(0)
