"""Import: a plan of the whole file first, then the writing; where anything is wrong nothing is written."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from amo_callback.brought import Brought
from amo_callback.event import Event, happened
from amo_callback.hosts import check_host
from amo_callback.model import Connection, Status, fingerprint, short
from amo_callback.schedule import REFRESH_TOKEN_LIFE, refresh_due
from amo_callback.transfer.record import Arrival, Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from datetime import datetime

    from amo_callback.cipher import Cipher
    from amo_callback.clock import Clock
    from amo_callback.custody.leases import Leases
    from amo_callback.model import RefreshRules, TokenPair
    from amo_callback.store import Store
    from amo_callback.transfer.record import Record

T = TypeVar("T")

_LOOK_AGAIN = 1.0
"""Seconds."""
BATCH = 500
"""Connections that are looked up, or written, in one transaction."""
TURN = 50
"""Connections that are worked on before others have a turn of the loop: some ten milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Which connections may come in: the configuration's `[amo]`, and whether they may replace others."""

    client_id: str
    allowed_domains: Sequence[str]
    allowed_accounts: Sequence[str]
    replace: bool


@dataclass(kw_only=True, slots=True)
class Plan:
    """What an import would do, and why it may not."""

    new: list[Record] = field(default_factory=list)
    replaced: list[tuple[Record, Connection]] = field(default_factory=list)
    same: int = 0
    """Here already, with the same tokens: an import that was broken off goes on."""
    newer: int = 0
    """Here already, with later tokens: theirs have been spent."""
    owned: int = 0
    problems: list[Problem] = field(default_factory=list)


async def make_plan(arrivals: Iterable[Arrival | Problem], *, store: Store, cipher: Cipher, rules: Rules) -> Plan:
    """Return what is to be done with a file's connections; changes nothing."""
    plan, seen = Plan(), _Seen()
    async for batch in _batches(arrivals):
        good = []
        for arrival in batch:
            if isinstance(arrival, Problem):
                plan.problems.append(arrival)
            elif problem := _objection(arrival, rules) or seen.again(arrival):
                plan.problems.append(problem)
            else:
                good.append(arrival)
        stored = {each.id: each for each in await store.connections_by_id([one.record.id for one in good])}
        async for arrival in _in_turns(good):
            _place(plan, arrival, stored.get(arrival.record.id), cipher, rules)
    return plan


class _Seen:
    """What a file has named already, and where."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}

    def again(self, arrival: Arrival) -> Problem | None:
        """Tell whether a connection, or its refresh token, was there before: one of the two would be spent twice."""
        record = arrival.record
        names = {record.id: "is the same account and user as"}
        if record.refresh_token:
            names[fingerprint(record.refresh_token)] = "has the same refresh token as"
        for name, what in names.items():
            place = self._places.setdefault(name, arrival.place)
            if place != arrival.place:
                return Problem(place=arrival.place, why=f"{what} {place}")
        return None


def _objection(arrival: Arrival, rules: Rules) -> Problem | None:
    """Return what keeps a connection out of this service, whatever it has stored."""
    record, why = arrival.record, None
    if record.client_id != rules.client_id:
        why = "its tokens were granted to another client_id than amo.client_id"
    elif check_host(record.domain.encode(), allowed=rules.allowed_domains) != record.domain:
        why = "domain: is no host of AMO's, nor in amo.allowed_domains"
    elif record.api_domain and check_host(record.api_domain.encode(), allowed=rules.allowed_domains) is None:
        why = "api_domain: is no host of AMO's, nor in amo.allowed_domains"
    elif rules.allowed_accounts and record.account_id not in rules.allowed_accounts:
        why = "its account is not in amo.allowed_accounts"
    return None if why is None else Problem(place=arrival.place, why=why)


def _place(plan: Plan, arrival: Arrival, stored: Connection | None, cipher: Cipher, rules: Rules) -> None:
    record = arrival.record
    if stored is None:
        plan.new.append(record)
    elif _is_same(cipher.pair_of(stored), record):
        plan.same += 1
    elif _is_newer(stored, record, replace=rules.replace):
        plan.newer += 1
    elif rules.replace:
        plan.replaced.append((record, stored))
    else:
        plan.problems.append(Problem(place=arrival.place, why=_why_not(stored)))
    plan.owned += arrival.owned


def _is_same(pair: TokenPair | None, record: Record) -> bool:
    """Tell whether these tokens are stored already, whatever is thought of their times."""
    return pair is not None and (pair.access_token, pair.refresh_token) == (record.access_token, record.refresh_token)


def _is_newer(stored: Connection, record: Record, *, replace: bool) -> bool:
    """Tell whether the stored tokens are the later ones: those are kept, unless they are dead and to be replaced."""
    if stored.access_issued_at is None or stored.access_issued_at <= record.issued_at:
        return False
    return stored.status is Status.ACTIVE or not replace


def _why_not(stored: Connection) -> str:
    if stored.status is Status.DISCONNECTED:
        return f"{stored.id} was disconnected here: --replace connects it again"
    return f"{stored.id} is here already, with other tokens: --replace replaces them"


# --- writing -------------------------------------------------------------------------------------


async def until_settled(
    plan: Plan, *, store: Store, leases: Leases, clock: Clock, tell: Callable[[float], None]
) -> None:
    """Wait until nobody can be at work on what is replaced: a lease's length, where an attempt is open.

    A host that was frozen keeps the attempts of processes that died before. `tell` hears how many seconds are left.
    """
    waiting = [stored for _, stored in plan.replaced]
    while waiting := [stored for stored in waiting if leases.left(stored)]:
        left = max(map(leases.left, waiting))
        tell(left)
        await clock.sleep(min(left, _LOOK_AGAIN))
        waiting = list(await store.connections_by_id([stored.id for stored in waiting]))


async def carry_out(
    plan: Plan,
    *,
    store: Store,
    cipher: Cipher,
    rules: RefreshRules,
    random: Callable[[], float],
    source: str,
    advance: Callable[[int], None],
) -> Sequence[str]:
    """Write what was planned, a batch at a time, and return what is left: connections changed since the plan."""
    over = {stored.id: stored for _, stored in plan.replaced}
    records = [*plan.new, *(record for record, _ in plan.replaced)]
    left: list[str] = []
    done = 0
    async for batch in _batches(records):
        brought = [
            Brought(
                connection=(connection := _connection(record, cipher, rules, random)),
                over=over.get(record.id),
                event=_event(connection, record, source=source, replaces=record.id in over),
                owners=record.owners,
            )
            async for record in _in_turns(batch)
        ]
        left += await store.bring(brought)
        done += len(batch)
        advance(done)
    return left


def _connection(record: Record, cipher: Cipher, rules: RefreshRules, random: Callable[[], float]) -> Connection:
    is_due = record.status is Status.ACTIVE and record.refresh_token
    due = refresh_due(record.pair, at=rules.at, jitter=rules.jitter, random=random)
    return Connection(
        id=record.id,
        account_id=record.account_id,
        user_id=record.user_id,
        domain=record.domain,
        api_domain=record.api_domain,
        client_id=record.client_id,
        status=record.status,
        reason=record.reason,
        sealed_pair=cipher.seal_pair(record.pair, connection_id=record.id),
        access_issued_at=record.issued_at,
        access_expires_at=record.expires_at,
        refresh_expires_at=(record.refresh_expires_at or _last_use(record)) if record.refresh_token else None,
        refreshed_at=record.refreshed_at,
        next_refresh_at=due if is_due else None,
        connected_at=record.connected_at,
        pair_version=1,
        row_version=1,
        doubtful=record.doubtful,
        look_up_at=record.look_up_at,
        grant_iat=record.grant_iat,
        frozen=record.frozen,
    )


def _last_use(record: Record) -> datetime:
    """Return when the refresh token ends where nothing says when."""
    return record.issued_at + REFRESH_TOKEN_LIFE


def _event(connection: Connection, record: Record, *, source: str, replaces: bool) -> Event:
    told = {
        "source": source,
        "status": record.status,
        "next_token": short(fingerprint(record.refresh_token)),
        "replaced": replaces or None,
        "frozen": record.frozen or None,
    }
    return happened("connection.imported", connection, told=told)


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
    """Go through items, which may take some work each, and let others run after every `TURN` of them."""
    for number, item in enumerate(items, start=1):
        yield item
        if number % TURN == 0:
            await asyncio.sleep(0)
