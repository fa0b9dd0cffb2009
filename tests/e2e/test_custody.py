"""Processes stopped, killed and run in parallel during refreshes lose no connection.

Each test runs a number of rounds (`--rounds`) on one database and checks the stand-in's ledger.
"""

import asyncio
import signal
import sqlite3
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

from amo_callback.amo.sandbox.app import Fault
from amo_callback.amo.sandbox.fake_amo import SandboxAccount
from tests.e2e.process import Process
from tests.e2e.processes import DATABASE, Row, Stage, eventually, problem, staged

CALLERS, PROCESSES = 60, 3


async def test_stop_during_refreshes_loses_no_connection(
    tmp_path: Path, encryption_key: str, rounds: int, record_property: Callable[[str, object], None]
) -> None:
    """The process exits with 0 at each stop, and every stored refresh token is the valid one."""
    in_flight = lost = 0
    async with staged(tmp_path, encryption_key, accounts=8, every=1) as stage:
        for number in range(rounds):
            async with stage.serving() as process:
                if number == 0:
                    await stage.connect(process)
                await stage.some_moment(latency=0.6)  # longer than the listeners take to close
                in_flight += len(stage.open_claims())
                await process.stop()
            assert stage.open_claims() == {}
            lost += len(stage.lost())
            assert {row.refresh_token for row in stage.rows().values()} == stage.valid_refresh_tokens()
        async with stage.serving() as process:
            await stage.until_refreshed()
    record_property("rounds", rounds)
    record_property("in flight", in_flight)
    record_property("lost", lost)
    record_property("refreshes", len(stage.ledger.refreshes()))
    assert (lost, stage.ledger.doubles()) == (0, 0)


async def test_kill_during_refreshes_loses_only_reported_connections(
    tmp_path: Path, encryption_key: str, rounds: int, record_property: Callable[[str, object], None]
) -> None:
    """Only a pair issued to a killed process is lost; its token is presented once more and reported as in doubt."""
    in_flight = lost = result = 0
    claimed: dict[int, Row] = {}
    async with staged(
        tmp_path, encryption_key, accounts=10, every=1,
        AMO__TIMEOUT="6", REFRESH__LEASE="6.5", REFRESH__CONCURRENCY="4",
    ) as stage:  # fmt: skip
        for number in range(rounds + 1):
            async with stage.serving() as process:
                if number == 0:
                    await stage.connect(process)
                await _until_settled(stage, claimed)
                given_up = {name: row for name, row in stage.rows().items() if row.status != "active"}
                assert set(given_up) == _spent_unheard(stage, claimed)
                assert {row.reason for row in given_up.values()} <= {"in_doubt"}
                for account in [account for account in stage.accounts if account.id in given_up]:
                    assert problem(await stage.refresh(process, account)) == (409, "needs_reauth", "in_doubt")
                    await stage.connect(process, [account])
                await (stage.some_moment(latency=0.15) if number < rounds else stage.until_refreshed())
                process.signal(signal.SIGKILL if number < rounds else signal.SIGTERM)
                assert await process.ended() == (-signal.SIGKILL if number < rounds else 0)
            reasons = [line["reason"] for line in process.named("connection.needs_reauth")]
            assert reasons == ["in_doubt"] * len(given_up)
            claimed = stage.open_claims()
            in_flight, lost, result = in_flight + len(claimed), lost + len(given_up), result + len(reasons)
            assert {row.account_id for row in stage.lost()} <= set(claimed)
    figures = {"kills": rounds, "in flight": in_flight, "lost": lost, "result in_doubt": result}
    for name, figure in figures.items():
        record_property(name, figure)
    record_property("presented again", stage.ledger.doubles())
    record_property("refreshes", len(stage.ledger.refreshes()))
    assert (stage.lost(), claimed) == ([], {})
    assert stage.ledger.doubles() == lost <= in_flight


async def _until_settled(stage: Stage, claimed: dict[int, Row]) -> None:
    """Wait until each claimed connection has been refreshed or needs reauthorization."""

    def is_so() -> bool:
        rows = stage.rows()
        return all(
            rows[name].status == "needs_reauth" or rows[name].pair_version > row.pair_version
            for name, row in claimed.items()
        )

    await eventually(is_so)


def _spent_unheard(stage: Stage, claimed: dict[int, Row]) -> set[int]:
    """Return the accounts whose token the killed process had spent and the next process presented once more."""
    statuses = {
        name: [entry.status for entry in stage.presented(row.presented_token or "")] for name, row in claimed.items()
    }
    assert [each for each in statuses.values() if each not in ([200], [200, 401])] == []
    return {name for name, each in statuses.items() if each == [200, 401]}


async def test_locked_database_loses_no_connection(tmp_path: Path, encryption_key: str) -> None:
    """While another process holds the lock, tokens are handed out; issued pairs are stored afterwards."""
    async with staged(tmp_path, encryption_key, accounts=4, every=2) as stage:
        async with stage.connected() as process:
            stage.amo.sandbox.faults.add(Fault.SLOW, Fault.SLOW)
            await stage.until_asked(2)
            with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as other:
                other.execute("BEGIN EXCLUSIVE")
                stage.amo.sandbox.go_on.set()
                while len(process.named("pair.write_pending")) < 2:  # SQLite waits for the lock until its timeout
                    answers = [await stage.token(process, account, min_ttl=0) for account in stage.accounts]
                    assert [answer.status for answer in answers] == [200] * 4
                    await asyncio.sleep(0.1)
                other.execute("ROLLBACK")
            await stage.until_ready(process)
            await stage.until_refreshed()
            await process.stop()
        assert (stage.lost(), stage.open_claims(), stage.ledger.doubles()) == ([], {}, 0)
        assert len(process.named("pair.write_completed")) == len(process.named("pair.write_pending"))


async def test_two_processes_spend_each_token_once_and_serve_all_callers(
    tmp_path: Path, encryption_key: str, rounds: int, record_property: Callable[[str, object], None]
) -> None:
    """Schedules and callers of two processes cause single refreshes, and every caller gets a valid token."""
    served = 0
    async with staged(tmp_path, encryption_key, accounts=6, every=1.5) as stage:
        stage.amo.sandbox.latency = 0.1
        async with stage.serving() as one, stage.serving() as other:
            await stage.connect(one)
            forced = stage.accounts[::2]  # callers of the other accounts request the current token
            for _ in range(rounds):
                answers = [(account, await stage.token(one, account)) for account in forced]
                rejected = {account.id: answer.json()["access_token"] for account, answer in answers}
                callers = [
                    _served(stage, process, account, rejected=rejected.get(account.id))
                    for process in (one, other, one, other)
                    for account in stage.accounts
                ]
                served += sum(await asyncio.gather(*callers))
                await stage.until_refreshed()
            for process in (one, other):
                process.signal(signal.SIGTERM)
            assert [await one.ended(), await other.ended()] == [0, 0]
        assert stage.lost() == []
    asked = rounds * 4 * len(stage.accounts)
    record_property("rounds", rounds)
    record_property("unserved", asked - served)
    record_property("refreshes", len(stage.ledger.refreshes()))
    record_property("double spends", stage.ledger.doubles())
    assert (served, stage.ledger.doubles()) == (asked, 0)


async def _served(stage: Stage, process: Process, account: SandboxAccount, *, rejected: str | None) -> bool:
    """Request a token, or one other than `rejected`, and check that it or a later one is valid."""
    if rejected is None:
        answer = await stage.token(process, account, min_ttl=1)
    else:
        answer = await stage.refresh(process, account, rejected=rejected)
    if answer.status != 200:
        return False
    issued = stage.ledger.access_tokens
    since = issued[issued.index(answer.json()["access_token"]) :]
    return any(stage.amo.fake.live_account(token) is account for token in since)


async def test_concurrent_callers_of_three_processes_share_refreshes(
    tmp_path: Path, encryption_key: str, rounds: int, record_property: Callable[[str, object], None]
) -> None:
    """Callers during a refresh share it, and no token is spent twice."""
    served = 0
    async with staged(tmp_path, encryption_key, accounts=1) as stage, AsyncExitStack() as stack:
        stage.amo.sandbox.latency = 0.2
        processes = [await stack.enter_async_context(stage.serving()) for _ in range(PROCESSES)]
        await stage.connect(processes[0])
        for number in range(1, rounds + 1):
            rejected = stage.ledger.access_tokens[-1]
            callers = [
                _served(stage, process, stage.accounts[0], rejected=rejected)
                for _ in range(CALLERS // PROCESSES)
                for process in processes
            ]
            served += sum(await asyncio.gather(*callers))
            assert len(stage.ledger.refreshes()) == number
        assert stage.lost() == []
    record_property("rounds", rounds)
    record_property("callers", rounds * CALLERS)
    record_property("refreshes", len(stage.ledger.refreshes()))
    record_property("double spends", stage.ledger.doubles())
    record_property("unserved", rounds * CALLERS - served)
    assert (served, stage.ledger.doubles()) == (rounds * CALLERS, 0)
