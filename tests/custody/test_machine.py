"""Faults, crashes, delays and callers in any order: whatever happens, custody's promises hold."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from amo_callback.cipher import Cipher, new_key
from amo_callback.errors import AmoCallbackError, ShuttingDown
from amo_callback.store import open_store
from tests.conftest import ROUNDS
from tests.custody.world import FAULTS, Process, World

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

KEY = new_key()
PROCESSES = 2
_MEMORY = Path("/dev/shm")  # noqa: S108 -- because nobody pulls the plug here, and a disk would take minutes
numbers = st.integers(min_value=0, max_value=7)


class Machine(RuleBasedStateMachine):
    """Everything that can happen to a fleet of three connections and two processes."""

    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.stepped = timedelta(0)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(kills=st.booleans(), knows=st.booleans(), status=st.sampled_from([401, 404]))
    def begin(self, *, kills: bool, knows: bool, status: int) -> None:
        self.do(self._begin(kills=kills, knows=knows, status=status))

    async def _begin(self, *, kills: bool, knows: bool, status: int) -> None:
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None)))
        # The world's clock is made within it, and the store's own failures are not of interest here.
        from amo_callback.clock import SystemClock  # noqa: PLC0415 -- because nothing else here may use it

        store = await self.stack.enter_async_context(
            open_store("sqlite:///world.db", folder=folder, clock=SystemClock())
        )
        self.world = World(store, Cipher([KEY]))
        unknowns = self.world.vendor.unknowns
        unknowns.refresh_kills_access, unknowns.look_up_knows_spent, unknowns.moved_status = kills, knows, status
        for account in self.world.accounts:
            await self.world.grant(account)
        for _ in range(PROCESSES):
            self.world.start()
        await self.world.settle()

    def process(self, number: int) -> Process:
        living = self.world.living()
        return living[number % len(living)]

    # --- steps -----------------------------------------------------------------------------------

    @rule(process=numbers, gate=numbers)
    def one_step(self, process: int, gate: int) -> None:
        self.do(self.world.open(self.process(process), gate))

    @rule(process=numbers, steps=st.integers(min_value=2, max_value=12))
    def some_steps(self, process: int, steps: int) -> None:
        chosen = self.process(process)
        for _ in range(steps):
            self.do(self.world.open(chosen))

    @rule()
    def all_steps(self) -> None:
        self.do(self.world.flow())

    @rule(seconds=st.sampled_from([0.3, 5, 16, 40, 61, 900, 43200]))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        self.do(self.world.settle())

    @rule(hours=st.sampled_from([-3, 3]))
    def the_clock_is_stepped(self, hours: int) -> None:
        self.stepped += timedelta(hours=hours)
        self.world.clock.step(timedelta(hours=hours))
        self.do(self.world.settle())

    # --- faults ----------------------------------------------------------------------------------

    @rule(faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=3))
    def amo_falls_ill(self, faults: list[Any]) -> None:
        self.world.faults.extend(faults)

    @rule(away=st.booleans())
    def look_ups_go_and_come(self, *, away: bool) -> None:
        self.world.look_ups_away = away

    @rule(process=numbers, away=st.booleans())
    def the_store_goes_and_comes(self, process: int, *, away: bool) -> None:
        self.process(process).store_away = away

    @rule(full=st.booleans())
    def the_rescue_folder_is_full(self, *, full: bool) -> None:
        self.world.disk.full = full

    @rule(process=numbers)
    def a_process_is_killed_and_another_starts(self, process: int) -> None:
        self.process(process).dead = True
        self.world.start()
        self.do(self.world.settle())

    @rule(process=numbers)
    def a_process_is_told_to_stop_and_another_starts(self, process: int) -> None:
        chosen = self.process(process)
        if chosen.ended is None and len(self.world.living()) <= PROCESSES:
            chosen.stop()
            self.world.start()
            self.do(self.world.settle())

    # --- people ----------------------------------------------------------------------------------

    @rule(process=numbers, account=numbers, forced=st.booleans(), min_ttl=st.sampled_from([300, 60_000]))
    def a_backend_asks(self, process: int, account: int, *, forced: bool, min_ttl: int) -> None:
        chosen = self.process(process)
        _ = chosen.run(self._asked(chosen, self.name(account), forced=forced, min_ttl=min_ttl))
        self.do(self.world.settle())

    @rule(account=numbers)
    def a_person_connects_again(self, account: int) -> None:
        self.do(self.world.grant(self.account(account)))

    @rule(process=numbers, account=numbers)
    def a_person_connects_through_a_process(self, process: int, account: int) -> None:
        chosen = self.process(process)
        if chosen.ended is None:  # one that is stopping begins nothing
            self.do(self.world.grant_by(chosen, self.account(account)))
            self.do(self.world.settle())

    @rule(process=numbers, account=numbers)
    def somebody_replays_the_hook(self, process: int, account: int) -> None:
        chosen = self.process(process)
        _ = chosen.run(self._hooked(chosen, str(self.account(account).id)))
        self.do(self.world.settle())

    @rule(account=numbers)
    def a_stranger_spends_a_token(self, account: int) -> None:
        self.do(self.world.steal(self.account(account)))

    @rule(account=numbers)
    def an_account_is_switched_off(self, account: int) -> None:
        self.world.switch_off(self.account(account))

    @rule(account=numbers, everything=st.booleans(), frozen=st.booleans())
    def somebody_freezes_or_thaws(self, account: int, *, everything: bool, frozen: bool) -> None:
        self.do(self.world.freeze(None if everything else self.account(account), frozen=frozen))

    @rule(account=numbers, name=st.sampled_from(["x", "y", "z"]))
    def an_account_moves(self, account: int, name: str) -> None:
        chosen = self.account(account)
        chosen.host = f"{name}-{chosen.id}.amocrm.ru"

    def account(self, number: int) -> Any:
        return self.world.accounts[number % len(self.world.accounts)]

    def name(self, number: int) -> str:
        return self.world.name(self.account(number))

    async def _hooked(self, process: Process, account_id: str) -> None:
        with suppress(AmoCallbackError):
            await process.custody.switched_off(account_id)

    async def _asked(self, process: Process, name: str, *, forced: bool, min_ttl: int) -> None:
        handout = process.custody.handout
        try:
            given = await (handout.refresh(name) if forced else handout.token(name, min_ttl=min_ttl))
        except AmoCallbackError:
            return
        await self.world.check_handed_out(process, given.connection, given.pair.access_token)

    # --- the end ---------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.do(self._peace())
                Machine.steps += self.world.steps
        finally:
            if hasattr(self, "world"):
                self.do(self.world.close())
            self.do(self.stack.aclose())
            self.loop.close()

    async def _peace(self) -> None:
        """Mend everything, let time pass, and look at what is left."""
        world = self.world
        world.clock.step(-self.stepped)
        world.faults, world.look_ups_away, world.disk.full = [], False, False
        for frozen in (None, *world.accounts):
            await world.freeze(frozen, frozen=False)
        for process in world.living():
            process.store_away = False
        for seconds in (1, 1, 61, 61, *[900] * 100):
            await world.flow()
            world.clock.advance(seconds)
            await world.settle()
        await world.flow()
        for process in world.living():
            for task in process.tasks:
                if task.done() and not task.cancelled() and not isinstance(task.exception(), ShuttingDown):
                    task.result()
        await world.check_at_peace()


@pytest.mark.timeout(1800)
def test_whatever_happens_nothing_is_lost_by_our_fault(
    rounds: int, record_property: Callable[[str, object], None]
) -> None:
    """No double spend, no older pair over a newer one, no pair lost, no wrong verdict, no dead token handed out."""
    Machine.steps = 0
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=10 * rounds,
            stateful_step_count=50,
            derandomize=rounds <= ROUNDS,  # the gate is the same each time; whoever asks for more looks elsewhere
            phases=[Phase.generate],  # the steps of a failure are printed; to make them fewer takes long
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    record_property("examples", 10 * rounds)
    record_property("steps", Machine.steps)
