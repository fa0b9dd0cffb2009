"""Several instances on one PostgreSQL: killed, stopped and continued, the database restarted and away.

In the gate it goes quickly; with `--rounds 40` a process is stopped for 20 seconds, and the database is away for a
minute.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from amo_callback.clock import SystemClock
from amo_callback.model import fingerprint
from tests.conftest import ROUNDS
from tests.e2e.stage import eventually, postgres_rows, staged
from tests.postgres import serving_postgres, why_not

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from datetime import datetime
    from pathlib import Path

    from amo_callback.amo.sandbox.fake_amo import SandboxAccount
    from tests.e2e.process import Process
    from tests.e2e.stage import Row, Stage
    from tests.postgres import Server

ACCOUNTS, CALLERS, INSTANCES = 15, 30, 3
REFUSED_WITHIN = 6.0
"""Seconds for which a token that AMO refuses may be handed out as fresh. For 5 seconds another process's open attempt
is no reason for doubt, though AMO may have answered it; and what was read is certain for a second. From then on AMO is
asked about the token, or it is stale."""
LATENCY = 0.3
"""Seconds that AMO takes: so that there is something in flight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """How long it all takes; in seconds."""

    every: float
    """Between two refreshes of a connection."""
    lease: float
    timeout: float
    stopped: float
    away: float


QUICK = Times(every=5, lease=8, timeout=7, stopped=4, away=4)
FULL = Times(every=15, lease=8, timeout=7, stopped=20, away=60)


@pytest.fixture
def times(rounds: int) -> Times:
    return FULL if rounds > ROUNDS else QUICK


@pytest.fixture
def server() -> Iterator[Server]:
    if (why := why_not(ours=True)) is not None:
        pytest.skip(why)
    with serving_postgres() as served:
        yield served


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessToken:
    """An answer to a caller."""

    account: SandboxAccount
    instance: Process
    began_at: datetime
    forced: bool
    """Whether a refresh was asked for."""
    status: int
    token: str = field(repr=False, default="")
    stale: bool = False
    problem: str = ""
    """What an answer without a token says."""


@dataclass(kw_only=True, slots=True)
class ConnectionCounts:
    """The instances, who asks them, and what is in their database."""

    stage: Stage
    server: Server
    instances: list[Process]
    asked: list[Process]
    """Those that callers ask."""
    answers: list[AccessToken] = field(default_factory=list)
    clock: SystemClock = field(default_factory=SystemClock)

    async def rows(self) -> dict[int, Row]:
        """Read the connections, by their accounts."""
        return await postgres_rows(self.server.url(), self.stage.key)

    async def claimed_by(self, instance: Process) -> dict[int, Row]:
        """Return the connections that an instance is at."""
        owner = f":{instance.process.pid}:"
        return {
            name: row for name, row in (await self.rows()).items() if row.attempt and owner in (row.lease_owner or "")
        }

    async def until_it_claims(self, instance: Process) -> None:
        """Wait until an instance is in the middle of a refresh."""

        async def is_so() -> bool:
            return bool(await self.claimed_by(instance))

        await eventually(is_so)

    async def until_settled(self, claimed: dict[int, Row]) -> float:
        """Wait until each has a new pair, or is given up as in doubt; return how many seconds that took."""
        began = self.clock.monotonic()
        open_still: list[Row] = []

        async def is_so() -> bool:
            rows = await self.rows()
            open_still[:] = [
                rows[name]
                for name, row in claimed.items()
                if rows[name].pair_version <= row.pair_version
                and (rows[name].status, rows[name].reason) != ("needs_reauth", "in_doubt")
            ]
            return not open_still

        try:
            await eventually(is_so)
        except TimeoutError:
            pytest.fail(f"not settled: {open_still}")
        return self.clock.monotonic() - began

    async def reconnect(self, lost: Iterable[int]) -> None:
        """Let the people of these accounts connect again."""
        accounts = [account for account in self.stage.accounts if account.id in lost]
        await self.stage.connect(self.asked[0], accounts)

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Have callers ask for tokens of all accounts at all instances, and now and then for a refresh."""
        callers = [asyncio.create_task(self._ask(number)) for number in range(CALLERS)]
        try:
            yield
            assert [caller for caller in callers if caller.done()] == []
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)

    async def _ask(self, number: int) -> None:
        turn = number
        while True:
            account, instance = self.stage.accounts[turn % ACCOUNTS], self.asked[turn // ACCOUNTS % len(self.asked)]
            began_at = self.clock.now()
            with suppress(aiohttp.ClientError):  # it was killed, or stopped
                forced = turn % 40 == number
                answer = await (self.stage.refresh if forced else self.stage.token)(instance, account)
                told: dict[str, Any] = answer.json()
                self.answers.append(
                    AccessToken(
                        account=account,
                        instance=instance,
                        began_at=began_at,
                        forced=forced,
                        status=answer.status,
                        token=told.get("access_token", ""),
                        stale=told.get("stale", False),
                        problem=told.get("code", ""),
                    )
                )
            turn += 1 + number
            await asyncio.sleep(0.02)

    async def until_all_are_known(self) -> None:
        """Wait until each instance that is asked has handed out a token of each account."""

        def is_so() -> bool:
            known = {(one.account.id, one.instance) for one in self.answers if one.token}
            return len(known) == ACCOUNTS * len(self.asked)

        await eventually(is_so)

    def outdated(self, apart_from: Iterable[int]) -> list[AccessToken]:
        """Return what was handed out as fresh though AMO refused it already when there was reason for doubt."""
        spent = [entry for entry in self.stage.ledger.entries if entry.spent]
        issued = dict(zip(self.stage.ledger.access_tokens, spent, strict=True))
        replaced = {}
        for token, entry in issued.items():
            later = [other.at for other in spent if other.host == entry.host and other.at > entry.at]
            replaced[token] = min(later, default=None)
        return [
            answer
            for answer in self.answers
            if answer.token
            and not answer.stale
            and answer.account.id not in set(apart_from)
            and (at := replaced[answer.token]) is not None
            and (answer.began_at - at).total_seconds() > REFUSED_WITHIN
        ]

    def doubles(self, apart_from: Iterable[str]) -> int:
        """Count presentations of what had been spent, apart from tokens with these fingerprints."""
        spent, doubles, known = set[str](), 0, set(apart_from)
        for entry in self.stage.ledger.refreshes():
            doubles += entry.presented in spent and fingerprint(entry.presented) not in known
            if entry.spent:
                spent.add(entry.presented)
        return doubles

    def unserved(self, *, since: datetime) -> list[AccessToken]:
        """Return who has asked since then for a token that there is, and has got none."""
        return [
            answer for answer in self.answers if answer.began_at > since and not answer.forced and answer.status != 200
        ]


@asynccontextmanager
async def _fleet(
    folder: Path, key: str, server: Server, times: Times, *, kills: bool = True
) -> AsyncIterator[ConnectionCounts]:
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(
            staged(
                folder, key, accounts=ACCOUNTS, every=times.every,
                STORAGE__URL=server.url(), STORAGE__RESCUE="rescue", AMO__REQUESTS_PER_SECOND="50",
                AMO__TIMEOUT=str(times.timeout), REFRESH__LEASE=str(times.lease),
            )
        )  # fmt: skip
        stage.amo.fake.quirks.refresh_kills_access = kills
        instances = []
        for number in range(INSTANCES):
            own = folder / str(number)
            own.mkdir()
            instances.append(await stack.enter_async_context(dataclasses.replace(stage, folder=own).serving()))
        for instance in instances:
            await instance.until("service.started")
        await stage.connect(instances[0])
        stage.amo.sandbox.latency = LATENCY
        yield ConnectionCounts(stage=stage, server=server, instances=instances, asked=list(instances))


async def test_whatever_becomes_of_an_instance_the_others_go_on(
    tmp_path: Path,
    encryption_key: str,
    server: Server,
    times: Times,
    record_property: Callable[[str, object], None],
) -> None:
    """One is killed, one stopped and continued, the database restarted: nothing is spent twice, nothing old handed out.

    Apart from what the killed and the stopped one were at: that lives, or is in doubt, soon after its lease.
    """
    async with _fleet(tmp_path, encryption_key, server, times) as fleet:
        one, two, three = fleet.instances
        async with fleet.asking():
            await fleet.until_it_claims(three)
            fleet.asked.remove(three)
            three.signal(signal.SIGKILL)
            await three.ended()
            killed = await fleet.claimed_by(three)
            killed_after = await fleet.until_settled(killed)
            lost = {name for name, row in (await fleet.rows()).items() if row.status != "active"}
            await fleet.reconnect(lost)

            await fleet.until_it_claims(two)
            fleet.asked.remove(two)
            two.signal(signal.SIGSTOP)
            stopped_at = fleet.clock.monotonic()
            stopped = await fleet.claimed_by(two)
            stopped_after = await fleet.until_settled(stopped)
            doubted = {name for name, row in (await fleet.rows()).items() if row.status != "active"}
            await asyncio.sleep(max(times.stopped - (fleet.clock.monotonic() - stopped_at), 0))
            two.signal(signal.SIGCONT)
            await fleet.stage.until_ready(two)
            fleet.asked.append(two)
            late = {name for name in doubted if (await fleet.rows())[name].status == "active"}
            await fleet.reconnect(doubted - late)

            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            for instance in (one, two):
                await fleet.stage.until_ready(instance)
            await fleet.stage.until_refreshed()
        for instance in (one, two):
            instance.signal(signal.SIGTERM)
            assert await instance.ended() == 0
        apart = [row.spending or "" for row in (*killed.values(), *stopped.values())]
        figures = {
            "answers": len(fleet.answers),
            "refreshes": len(fleet.stage.ledger.refreshes()),
            "claims of the killed": len(killed),
            "of these lost": len(lost),
            "settled after": round(killed_after, 1),
            "claims of the stopped": len(stopped),
            "of these in doubt": len(doubted),
            "mended by its late answer": len(late),
            "settled then after": round(stopped_after, 1),
            "double spends": fleet.stage.ledger.doubles(),
            "double spends of others": fleet.doubles(apart),
            "hand-outs of others that AMO refuses": len(fleet.outdated({*killed, *stopped})),
        }
        for name, figure in figures.items():
            record_property(name, figure)
        assert (fleet.doubles(apart), fleet.outdated({*killed, *stopped})) == (0, [])
        assert lost <= set(killed)
        assert doubted <= set(stopped)
        assert {row.status for row in (await fleet.rows()).values()} == {"active"}


@pytest.mark.parametrize("kills", [False, True])
async def test_a_database_that_is_away_in_the_middle_of_refreshes_costs_nothing(
    kills: bool,  # noqa: FBT001 -- because it is not known of AMO whether a refresh ends the access token before it
    tmp_path: Path,
    encryption_key: str,
    server: Server,
    times: Times,
    record_property: Callable[[str, object], None],
) -> None:
    """Pairs are kept in memory and in rescue files, and stored when it is back; hand-outs go on, nothing is spent.

    The rules for what is handed out: while the store is away it is stale. When it is back, a pair may be known only to
    the instance that has yet to store it; about the pair before, which the others read, AMO is asked once that attempt
    has been open for 5 seconds. What AMO knows is handed out until it expires; what it refuses is handed out by nobody,
    and an instance that knows nothing else answers with an error.
    """
    async with _fleet(tmp_path, encryption_key, server, times, kills=kills) as fleet:
        async with fleet.asking():
            await fleet.until_all_are_known()
            await fleet.stage.until_refreshed()
            for instance in fleet.instances:
                await fleet.until_it_claims(instance)
            away_at = fleet.clock.now()
            await asyncio.to_thread(server.stop)
            gone_at = fleet.clock.now()
            for instance in fleet.instances:
                await fleet.stage.until_ready(instance, failing=("store",), among=True)
            await asyncio.sleep(times.away)
            rescued = _rescued(tmp_path)
            presented = [entry.at for entry in fleet.stage.ledger.refreshes() if entry.at > away_at]
            back_at = fleet.clock.now()
            await asyncio.to_thread(server.start)
            for instance in fleet.instances:
                await fleet.stage.until_ready(instance)
            ready_after = (fleet.clock.now() - back_at).total_seconds()
            await fleet.stage.until_refreshed()
        unserved = fleet.unserved(since=away_at)
        for instance in fleet.instances:
            instance.signal(signal.SIGTERM)
            assert await instance.ended() == 0
        pending_writes, saved = (
            [line for instance in fleet.instances for line in instance.named(name)]
            for name in ("pair.write_pending", "pair.write_completed")
        )
        figures = {
            "answers while it was away": len([one for one in fleet.answers if away_at < one.began_at < back_at]),
            "unserved": len(unserved),
            "presented while it was away": len(presented),
            "the last of these after": round(max(((at - away_at).total_seconds() for at in presented), default=0), 1),
            "pairs kept in memory": len(pending_writes),
            "in rescue files": rescued,
            "stored when it was back": len(saved),
            "ready after": round(ready_after, 1),
            "double spends": fleet.stage.ledger.doubles(),
            "refused by AMO": len(fleet.outdated(())) if kills else 0,
        }
        for name, figure in figures.items():
            record_property(name, figure)
        assert fleet.stage.ledger.doubles() == 0
        assert (fleet.outdated(()) if kills else unserved) == []
        assert all((at - gone_at).total_seconds() < times.lease for at in presented)  # claimed when it was there
        assert all(line["rescued"] for line in pending_writes)
        assert len(saved) == len(pending_writes)
        assert _rescued(tmp_path) == 0
        assert {row.status for row in (await fleet.rows()).values()} == {"active"}


def _rescued(folder: Path) -> int:
    """Count the rescue files of all instances."""
    return sum(not file.name.startswith(".") for file in folder.glob("*/rescue/*"))
