"""Refreshes under faults, crashes, delays and requests in any order."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, initialize, precondition, rule

from amo_callback.crypto import Cipher, new_key
from amo_callback.errors import AmoCallbackError, ShuttingDown
from tests.conftest import ROUNDS
from tests.fakes import FakeClock
from tests.refresh.in_process_store import open_in_process_store
from tests.refresh.simulation import COMMITS, FAULTS, Process, Simulation

KEY = new_key()
PROCESSES = 2
ROUNDS_A_PART = 20
numbers = st.integers(min_value=0, max_value=9)
aheads = st.sampled_from(
    [timedelta(seconds=seconds) for seconds in (0, 5, 120, -3600, 43_200, -3 * 86_400, 30 * 86_400)]
)
"""Differences of a machine's clock from the database's."""


class Machine(RuleBasedStateMachine):
    """Every event that can affect two processes and three to ten connections."""

    steps: ClassVar[int] = 0
    recovery_steps: ClassVar[int] = 0
    drawn: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        # The simulation records what a task raises. Logging it at the task's collection could call the parser while
        # pytest's report uses it, and the parser is not reentrant.
        self.loop.set_exception_handler(lambda _loop, _context: None)
        self.stack = ExitStack()
        self.stepped = timedelta(0)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(
        shared=st.booleans(),
        accounts=st.sampled_from([3, 3, 8, 10]),
        kills=st.booleans(),
        knows=st.booleans(),
        status=st.sampled_from([401, 404]),
    )
    def begin(self, *, shared: bool, accounts: int, kills: bool, knows: bool, status: int) -> None:
        """Start the processes on one machine, whose clock may be stepped, or on several with different clocks."""
        self.do(self._begin(shared=shared, accounts=accounts, kills=kills, knows=knows, status=status))

    async def _begin(self, *, shared: bool, accounts: int, kills: bool, knows: bool, status: int) -> None:
        clock = FakeClock()
        store = self.stack.enter_context(open_in_process_store(clock=clock, shared=shared))
        self.simulation = Simulation(store, Cipher([KEY]), clock=clock, accounts=accounts)
        quirks = self.simulation.fake.quirks
        quirks.refresh_kills_access, quirks.introspection_accepts_spent, quirks.moved_status = kills, knows, status
        for account in self.simulation.accounts:
            await self.simulation.grant(account)
        for number in range(PROCESSES):
            self.simulation.start(timedelta(days=30 * number))
        await self.simulation.settle()

    def process(self, number: int) -> Process:
        living = self.simulation.living()
        return living[number % len(living)]

    # --- steps -----------------------------------------------------------------------------------

    @rule(process=numbers, gate=numbers)
    def one_step(self, process: int, gate: int) -> None:
        self.do(self.simulation.open(self.process(process), gate))

    @rule(process=numbers, steps=st.integers(min_value=2, max_value=12))
    def some_steps(self, process: int, steps: int) -> None:
        chosen = self.process(process)
        for _ in range(steps):
            self.do(self.simulation.open(chosen))

    @rule()
    def all_steps(self) -> None:
        self.do(self.simulation.open_gates())

    @rule(seconds=st.sampled_from([0.3, 5, 16, 40, 61, 900, 43200]))
    def time_passes(self, seconds: float) -> None:
        self.simulation.clock.advance(seconds)
        self.do(self.simulation.settle())

    @rule(hours=st.sampled_from([1, 4, 26]))
    def hours_pass(self, hours: int) -> None:
        self.do(self._pass(hours // 2 + 1, seconds=3600 * min(hours, 2)))

    async def _pass(self, times: int, *, seconds: float) -> None:
        for _ in range(times):
            await self.simulation.open_gates()
            self.simulation.clock.advance(seconds)
            await self.simulation.settle()

    @precondition(lambda self: not self.simulation.shared)
    @rule(hours=st.sampled_from([-3, 3]))
    def the_clock_is_stepped(self, hours: int) -> None:
        self.stepped += timedelta(hours=hours)
        self.simulation.step(timedelta(hours=hours))
        self.do(self.simulation.settle())

    @precondition(lambda self: self.simulation.shared)
    @rule(process=numbers, ahead=aheads)
    def a_machines_clock_is_stepped(self, process: int, ahead: timedelta) -> None:
        self.process(process).ahead = ahead

    # --- faults ----------------------------------------------------------------------------------

    @rule(faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=3))
    def amo_falls_ill(self, faults: list[Any]) -> None:
        self.simulation.faults.extend(faults)

    @rule(away=st.booleans())
    def look_ups_go_and_come(self, *, away: bool) -> None:
        self.simulation.introspection_away = away

    @rule(process=numbers, minutes=st.sampled_from([0, 20, 90]))
    def amo_blocks_the_address(self, process: int, minutes: int) -> None:
        self.simulation.blocked = True
        if minutes:
            self.a_backend_asks_for_all(process, is_local=True)
            self.do(self._pass(minutes // 5, seconds=300))

    @rule()
    def amo_ends_the_block(self) -> None:
        self.simulation.blocked = False

    @rule(lying=st.booleans())
    def amo_calls_good_tokens_revoked(self, *, lying: bool) -> None:
        self.simulation.lying = lying

    @rule(
        process=numbers,
        writes=st.lists(st.sampled_from(COMMITS[:4]) | st.sampled_from(COMMITS), min_size=1, max_size=3),
        refreshing=st.booleans(),
    )
    def commits_stay_without_an_answer(self, process: int, writes: list[str], *, refreshing: bool) -> None:
        self.process(process).lost_answers = [*writes]
        if refreshing:
            self.a_backend_asks_for_all(process, is_local=True)

    @rule(process=numbers, away=st.booleans())
    def the_store_goes_and_comes(self, process: int, *, away: bool) -> None:
        self.process(process).store_away = away

    @rule(full=st.booleans())
    def the_rescue_folder_is_full(self, *, full: bool) -> None:
        self.simulation.disk.full = full

    @rule(process=numbers, ahead=aheads)
    def a_process_is_killed_and_another_starts(self, process: int, ahead: timedelta) -> None:
        self.process(process).dead = True
        self.simulation.start(ahead)
        self.do(self.simulation.settle())

    @rule(process=numbers, ahead=aheads)
    def a_process_is_told_to_stop_and_another_starts(self, process: int, ahead: timedelta) -> None:
        chosen = self.process(process)
        if chosen.ended is None and len(self.simulation.living()) <= PROCESSES:
            chosen.stop()
            self.simulation.start(ahead)
            self.do(self.simulation.settle())

    # --- requests --------------------------------------------------------------------------------

    @rule(process=numbers, account=numbers, forced=st.booleans(), min_ttl=st.sampled_from([300, 60_000]))
    def a_backend_asks(self, process: int, account: int, *, forced: bool, min_ttl: int) -> None:
        chosen = self.process(process)
        _ = chosen.run(self._asked(chosen, self.name(account), forced=forced, min_ttl=min_ttl))
        self.do(self.simulation.settle())

    @rule(process=numbers, is_local=st.booleans())
    def a_backend_asks_for_all(self, process: int, *, is_local: bool) -> None:
        """Refresh all connections at once, so that many can fail terminally within minutes."""
        chosen = self.process(process)
        self.simulation.clock.advance(11)  # because a pair younger than ten seconds is returned unchanged
        for account in self.simulation.accounts:
            _ = chosen.run(self._asked(chosen, self.simulation.name(account), forced=True, min_ttl=0))
        self.do(self.simulation.open_gates() if is_local else self.simulation.settle())

    @rule(account=numbers)
    def a_person_connects_again(self, account: int) -> None:
        self.do(self.simulation.grant(self.account(account)))

    @rule(process=numbers, account=numbers)
    def a_person_connects_through_a_process(self, process: int, account: int) -> None:
        chosen = self.process(process)
        if chosen.ended is None:  # because a stopping process starts no grant
            self.do(self.simulation.grant_by(chosen, self.account(account)))
            self.do(self.simulation.settle())

    @rule(process=numbers, account=numbers)
    def somebody_replays_the_hook(self, process: int, account: int) -> None:
        chosen = self.process(process)
        _ = chosen.run(self._hooked(chosen, str(self.account(account).id)))
        self.do(self.simulation.settle())

    @rule(account=numbers)
    def a_stranger_spends_a_token(self, account: int) -> None:
        self.do(self.simulation.spend_elsewhere(self.account(account)))

    @rule(account=numbers)
    def an_account_is_switched_off(self, account: int) -> None:
        self.simulation.switch_off(self.account(account))

    @rule(first=numbers, number=st.integers(min_value=5, max_value=7))
    def many_accounts_are_switched_off(self, first: int, number: int) -> None:
        if len(self.simulation.accounts) > number:
            for account in range(first, first + number):
                self.simulation.switch_off(self.account(account))

    @rule(account=numbers, page=st.booleans())
    def an_account_is_deleted(self, account: int, *, page: bool) -> None:
        self.simulation.delete(self.account(account), page=page)

    @rule(account=numbers)
    def a_deleted_account_comes_back(self, account: int) -> None:
        self.simulation.bring_back(self.account(account))

    @rule(account=numbers, everything=st.booleans(), frozen=st.booleans())
    def somebody_freezes_or_thaws(self, account: int, *, everything: bool, frozen: bool) -> None:
        self.do(self.simulation.freeze(None if everything else self.account(account), frozen=frozen))

    @rule(account=numbers, name=st.sampled_from(["x", "y", "z"]))
    def an_account_moves(self, account: int, name: str) -> None:
        chosen = self.account(account)
        chosen.host = f"{name}-{chosen.id}.amocrm.ru"

    def account(self, number: int) -> Any:
        return self.simulation.accounts[number % len(self.simulation.accounts)]

    def name(self, number: int) -> str:
        return self.simulation.name(self.account(number))

    async def _hooked(self, process: Process, account_id: str) -> None:
        with suppress(AmoCallbackError):
            await process.lifecycle.integration_disabled(account_id)

    async def _asked(self, process: Process, name: str, *, forced: bool, min_ttl: int) -> None:
        access_tokens = process.lifecycle.access_tokens
        try:
            given = await (access_tokens.refresh(name) if forced else access_tokens.token(name, min_ttl=min_ttl))
        except AmoCallbackError:
            return
        await self.simulation.check_handed_out(process, given.connection, given.token.value)

    # --- the end ---------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "simulation"):
                fault_steps = self.simulation.steps
                self.do(self._recover())
                Machine.steps += fault_steps
                Machine.recovery_steps += self.simulation.steps - fault_steps
                Machine.drawn += self.simulation.drawn
        finally:
            if hasattr(self, "simulation"):
                self.do(self.simulation.close())
            self.stack.close()
            self.loop.close()

    async def _recover(self) -> None:
        """End every fault that can end, let time pass, and check the result."""
        simulation = self.simulation
        if self.stepped:
            simulation.step(-self.stepped)
        simulation.faults, simulation.introspection_away, simulation.disk.full = [], False, False
        simulation.blocked = simulation.lying = False
        for account in simulation.accounts[1:]:  # the first account is not restored
            simulation.bring_back(account)
        for frozen in (None, *simulation.accounts):
            await simulation.freeze(frozen, frozen=False)
        for process in simulation.living():
            process.store_away, process.lost_answers = False, []
        for seconds in (1, 1, 61, 61, *[900] * 12, *[3600] * 26):
            await simulation.open_gates()
            simulation.clock.advance(seconds)
            await simulation.settle()
        await simulation.open_gates()
        for process in simulation.living():
            for task in process.tasks:
                if task.done() and not task.cancelled() and not isinstance(task.exception(), ShuttingDown):
                    task.result()
        await simulation.check_recovered()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Split a number of rounds above the default into parts for parallel test processes."""
    if "part" in metafunc.fixturenames:
        rounds = metafunc.config.getoption("rounds")
        metafunc.parametrize("part", range(max(rounds // ROUNDS_A_PART, 1)))


@pytest.mark.timeout(3600)
def test_simulation_any_order_of_faults_breaks_no_rule(
    part: int, rounds: int, pytestconfig: pytest.Config, record_property: Callable[[str, object], None]
) -> None:
    """No token is spent twice, no pair lost or replaced by an older one, and no rejected token handed out."""
    Machine.steps, Machine.recovery_steps, Machine.drawn = 0, 0, Counter()
    more = rounds > ROUNDS
    examples = 10 * min(rounds, ROUNDS_A_PART)
    test = get_state_machine_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            derandomize=not more,  # the default rounds are reproducible, more rounds are random
            phases=[Phase.generate],  # because the steps of a failure are printed, and shrinking them takes long
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    if more:
        chosen = pytestconfig.getoption("--hypothesis-seed") or random.getrandbits(32)
        test = seed(f"{chosen} {part}")(test)
        record_property("seed", f"{chosen} {part}")
    test()
    record_property("examples", examples)
    record_property("steps", Machine.steps)
    record_property("steps at peace", Machine.recovery_steps)
    for fault, times in sorted(Machine.drawn.items()):
        record_property(fault, times)
