"""The custody of token pairs, put together: who may refresh, when, how it is judged, and what is handed out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
class Custody:
    """What keeps tokens, of one process."""

    keeper: Keeper
    refresher: Refresher
    handout: Handout
    checks: Checks
    breaker: Breaker
    credentials: Credentials
    farewell: Farewell
    freezer: Freezer
    hosts: Hosts
    selection: Selection
    leases: Leases
    liveness: Liveness
    unsaved: Unsaved
    raw_answers: RawAnswers
    memory: Memory
    surveyor: Surveyor

    @property
    def credentials_refused(self) -> str | None:
        """Why AMO does not accept our credentials, in its words; `None` where it is not known to refuse them."""
        return self.breaker.refused or self.credentials.refused

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


def make_custody(
    *,
    store: Store,
    amo: AmoClient,
    cipher: Cipher,
    rescue: Rescue,
    clock: Clock,
    observer: Observer,
    rules: RefreshRules,
    owner: str,
    machine: str,
    random: Callable[[], float],
) -> Custody:
    """Build it all; nothing is started. `owner` names the process in its claims, `machine` where its store is."""
    leases = Leases(length=rules.lease, store=store, clock=clock)
    breaker = Breaker(
        store=store,
        clock=clock,
        observer=observer,
        retry_cap=rules.retry_cap,
        address_block=AddressBlock(store=store, clock=clock, observer=observer, probe_every=rules.retry_cap),
    )
    unsaved = Unsaved(store=store, rescue=rescue, cipher=cipher, clock=clock, observer=observer)
    raw_answers = RawAnswers(store=store, rescue=rescue, cipher=cipher, clock=clock, observer=observer, unsaved=unsaved)
    judge = Judge(
        store=store,
        clock=clock,
        observer=observer,
        breaker=breaker,
        leases=leases,
        raw_answers=raw_answers,
        rules=rules,
        random=random,
    )
    hosts = Hosts(store=store, amo=amo, clock=clock, observer=observer, retry_cap=rules.retry_cap)
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
        store=store,
        amo=amo,
        cipher=cipher,
        clock=clock,
        observer=observer,
        inquiry=inquiry,
        judge=judge,
        breaker=breaker,
        unsaved=unsaved,
        rules=rules,
        owner=owner,
        random=random,
    )
    keeper = Keeper(
        store=store,
        clock=clock,
        observer=observer,
        inquiry=inquiry,
        attempts=attempts,
        breaker=breaker,
        leases=leases,
        unsaved=unsaved,
        hosts=hosts,
        concurrency=rules.concurrency,
    )
    checks = Checks(
        store=store,
        cipher=cipher,
        clock=clock,
        observer=observer,
        inquiry=inquiry,
        keeper=keeper,
        leases=leases,
        unsaved=unsaved,
        breaker=breaker,
        rules=rules,
    )
    credentials = Credentials(store=store, clock=clock, observer=observer, client_id=amo.client_id)
    freezer = Freezer(store=store, clock=clock, observer=observer, machine=machine)
    deadlines = Deadlines(store=store, clock=clock, observer=observer)
    refresher = Refresher(
        store=store,
        keeper=keeper,
        clock=clock,
        observer=observer,
        checks=checks,
        breaker=breaker,
        watches=[deadlines.watch, freezer.watch, credentials.watch, raw_answers.watch],
        leases=leases,
        unsaved=unsaved,
        concurrency=rules.concurrency + math.ceil(rules.concurrency * _AT_THE_DOOR),
        poll_interval=rules.poll_interval,
        rest=rules.retry_base,
    )
    liveness = Liveness(inquiry=inquiry, leases=leases, clock=clock)
    memory = Memory(store=store, clock=clock)
    opened = Opened(store=store, cipher=cipher)
    selection = Selection(store=store, unsaved=unsaved, memory=memory)
    return Custody(
        keeper=keeper,
        refresher=refresher,
        handout=Handout(
            selection=selection,
            amo=amo,
            keeper=keeper,
            liveness=liveness,
            opened=opened,
            hosts=hosts,
            clock=clock,
        ),
        checks=checks,
        breaker=breaker,
        credentials=credentials,
        farewell=Farewell(store=store, clock=clock, observer=observer),
        freezer=freezer,
        hosts=hosts,
        selection=selection,
        leases=leases,
        liveness=liveness,
        unsaved=unsaved,
        raw_answers=raw_answers,
        memory=memory,
        surveyor=Surveyor(store=store, clock=clock, observer=observer),
    )
