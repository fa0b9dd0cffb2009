"""The custody of token pairs, put together: who may refresh, when, how it is judged, and what is handed out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from amo_callback.custody.address_block import AddressBlock
from amo_callback.custody.attempt import Attempts
from amo_callback.custody.breaker import Breaker
from amo_callback.custody.checks import Checks
from amo_callback.custody.credentials import Credentials
from amo_callback.custody.deadlines import Deadlines
from amo_callback.custody.farewell import Farewell
from amo_callback.custody.freezer import Freezer
from amo_callback.custody.handout import Handout
from amo_callback.custody.hosts import Hosts
from amo_callback.custody.inquiry import Inquiry
from amo_callback.custody.judge import Judge
from amo_callback.custody.keeper import Keeper
from amo_callback.custody.leases import Leases
from amo_callback.custody.liveness import Liveness
from amo_callback.custody.memory import Memory
from amo_callback.custody.opened import Opened
from amo_callback.custody.raw_answers import RawAnswers
from amo_callback.custody.refresher import Refresher
from amo_callback.custody.selection import Selection
from amo_callback.custody.surveyor import Surveyor
from amo_callback.custody.unsaved import Unsaved

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.amo.client import AmoClient
    from amo_callback.cipher import Cipher
    from amo_callback.clock import Clock
    from amo_callback.custody.rescue import Rescue
    from amo_callback.event import Observer
    from amo_callback.model import RefreshRules
    from amo_callback.store import Store

_AT_THE_DOOR = 1 / 8
"""How many more than go at once are begun, as a share: they have been read when a place gets free, and go on then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """The edges of one process: what talks to the outside, time and randomness; never a part of our own."""

    store: Store
    amo: AmoClient
    cipher: Cipher
    clock: Clock
    observer: Observer
    random: Callable[[], float]


class _Edges(TypedDict):
    store: Store
    clock: Clock
    observer: Observer


class _Sealed(_Edges):
    cipher: Cipher


class Custody:
    """The parts that keep the tokens of one process, built and not started.

    `owner` names the process in its claims, `machine` the place of its store.
    """

    def __init__(self, core: Core, *, rescue: Rescue, rules: RefreshRules, owner: str, machine: str) -> None:
        store, amo, cipher, clock, random = core.store, core.amo, core.cipher, core.clock, core.random
        edges: _Edges = {"store": store, "clock": clock, "observer": core.observer}
        sealed: _Sealed = {**edges, "cipher": cipher}
        self.leases = leases = Leases(length=rules.lease, store=store, clock=clock)
        address_block = AddressBlock(**edges, probe_every=rules.retry_cap)
        self.breaker = breaker = Breaker(**edges, retry_cap=rules.retry_cap, address_block=address_block)
        self.unsaved = unsaved = Unsaved(**sealed, rescue=rescue)
        self.raw_answers = raw_answers = RawAnswers(**sealed, rescue=rescue, unsaved=unsaved)
        judge = Judge(**edges, breaker=breaker, leases=leases, raw_answers=raw_answers, rules=rules, random=random)
        self.hosts = hosts = Hosts(**edges, amo=amo, retry_cap=rules.retry_cap)
        inquiry = Inquiry(
            store=store,
            amo=amo,
            cipher=cipher,
            clock=clock,
            breaker=breaker,
            judge=judge,
            hosts=hosts,
            raw_answers=raw_answers,
            rules=rules,
            random=random,
        )
        attempts = Attempts(
            **sealed,
            amo=amo,
            inquiry=inquiry,
            judge=judge,
            breaker=breaker,
            unsaved=unsaved,
            rules=rules,
            owner=owner,
            random=random,
        )
        self.keeper = keeper = Keeper(
            **edges,
            inquiry=inquiry,
            attempts=attempts,
            breaker=breaker,
            leases=leases,
            unsaved=unsaved,
            hosts=hosts,
            concurrency=rules.concurrency,
        )
        self.checks = Checks(
            **sealed, inquiry=inquiry, keeper=keeper, leases=leases, unsaved=unsaved, breaker=breaker, rules=rules
        )
        self.credentials = Credentials(**edges, client_id=amo.client_id)
        self.freezer = Freezer(**edges, machine=machine)
        self.refresher = Refresher(
            **edges,
            keeper=keeper,
            checks=self.checks,
            breaker=breaker,
            watches=[Deadlines(**edges).watch, self.freezer.watch, self.credentials.watch, raw_answers.watch],
            leases=leases,
            unsaved=unsaved,
            concurrency=rules.concurrency + math.ceil(rules.concurrency * _AT_THE_DOOR),
            poll_interval=rules.poll_interval,
            rest=rules.retry_base,
        )
        self.liveness = Liveness(inquiry=inquiry, leases=leases, clock=clock)
        self.memory = Memory(store=store, clock=clock)
        self.selection = Selection(store=store, unsaved=unsaved, memory=self.memory)
        self.handout = Handout(
            selection=self.selection,
            amo=amo,
            keeper=keeper,
            liveness=self.liveness,
            opened=Opened(store=store, cipher=cipher),
            hosts=hosts,
            clock=clock,
        )
        self.farewell = Farewell(**edges)
        self.surveyor = Surveyor(**edges)

    async def switched_off(self, account_id: str) -> None:
        """Check an account of which AMO's hook says that the integration was switched off there."""
        if await self.checks.begin(account_id):
            self.refresher.wake()

    def stop(self) -> None:
        """Begin nothing new from now on."""
        self.refresher.stop()
        self.keeper.stop()

    async def drain(self) -> None:
        """Wait until what is in flight is stored, or in its rescue file."""
        await self.memory.drain()
        await self.liveness.drain()
        await self.keeper.drain()
