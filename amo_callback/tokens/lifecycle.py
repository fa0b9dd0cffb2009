"""The lifecycle of token pairs, put together: who may refresh, when, how it is judged, and what is handed out."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from amo_callback.refresh.address_block import AddressBlock
from amo_callback.refresh.attempt import RefreshAttempts
from amo_callback.refresh.breaker import Breaker
from amo_callback.refresh.coordinator import RefreshCoordinator
from amo_callback.refresh.credentials import Credentials
from amo_callback.refresh.disconnection import Disconnector
from amo_callback.refresh.failure_recorder import FailureRecorder
from amo_callback.refresh.freeze import FreezeSwitch
from amo_callback.refresh.introspector import Introspector
from amo_callback.refresh.leases import Leases
from amo_callback.refresh.maintenance import Maintenance
from amo_callback.refresh.pending_writes import PendingWrites
from amo_callback.refresh.raw_answers import RawAnswers
from amo_callback.refresh.rechecks import Rechecker
from amo_callback.refresh.scheduler import RefreshScheduler
from amo_callback.refresh.stats_poller import StatsPoller
from amo_callback.refresh.stored_hosts import StoredHosts
from amo_callback.tokens.access_token_check import AccessTokenCheck
from amo_callback.tokens.access_tokens import AccessTokens
from amo_callback.tokens.cache import ConnectionCache
from amo_callback.tokens.decrypted_pairs import DecryptedPairCache
from amo_callback.tokens.lookup import ConnectionLookup

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.amo.client import AmoClient
    from amo_callback.clock import Clock
    from amo_callback.crypto import Cipher
    from amo_callback.events import Observer
    from amo_callback.model import RefreshRules
    from amo_callback.refresh.rescue import RescueFolder
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


class TokenLifecycle:
    """The parts that keep the tokens of one process, built and not started.

    `owner` names the process in its claims, `machine` the place of its store.
    """

    def __init__(self, core: Core, *, rescue: RescueFolder, rules: RefreshRules, owner: str, machine: str) -> None:
        store, amo, cipher, clock, random = core.store, core.amo, core.cipher, core.clock, core.random
        edges: _Edges = {"store": store, "clock": clock, "observer": core.observer}
        sealed: _Sealed = {**edges, "cipher": cipher}
        self.leases = leases = Leases(length=rules.lease, store=store, clock=clock)
        address_block = AddressBlock(**edges, probe_every=rules.retry_cap)
        self.breaker = breaker = Breaker(**edges, retry_cap=rules.retry_cap, address_block=address_block)
        self.pending_writes = pending_writes = PendingWrites(**sealed, rescue=rescue)
        self.raw_answers = raw_answers = RawAnswers(**sealed, rescue=rescue, pending_writes=pending_writes)
        failure_recorder = FailureRecorder(
            **edges, breaker=breaker, leases=leases, raw_answers=raw_answers, rules=rules, random=random
        )
        self.hosts = hosts = StoredHosts(**edges, amo=amo, retry_cap=rules.retry_cap)
        introspector = Introspector(
            store=store,
            amo=amo,
            cipher=cipher,
            clock=clock,
            breaker=breaker,
            failure_recorder=failure_recorder,
            hosts=hosts,
            raw_answers=raw_answers,
            rules=rules,
            random=random,
        )
        attempts = RefreshAttempts(
            **sealed,
            amo=amo,
            introspector=introspector,
            failure_recorder=failure_recorder,
            breaker=breaker,
            pending_writes=pending_writes,
            rules=rules,
            owner=owner,
            random=random,
        )
        self.coordinator = coordinator = RefreshCoordinator(
            **edges,
            introspector=introspector,
            attempts=attempts,
            breaker=breaker,
            leases=leases,
            pending_writes=pending_writes,
            hosts=hosts,
            concurrency=rules.concurrency,
        )
        self.checks = Rechecker(
            **sealed,
            introspector=introspector,
            coordinator=coordinator,
            leases=leases,
            pending_writes=pending_writes,
            breaker=breaker,
            rules=rules,
        )
        self.credentials = Credentials(**edges, client_id=amo.client_id)
        self.freeze_switch = FreezeSwitch(**edges, machine=machine)
        self.scheduler = RefreshScheduler(
            **edges,
            coordinator=coordinator,
            checks=self.checks,
            breaker=breaker,
            watches=[Maintenance(**edges).watch, self.credentials.watch, raw_answers.watch],
            freeze_switch=self.freeze_switch,
            leases=leases,
            pending_writes=pending_writes,
            rules=dataclasses.replace(
                rules, concurrency=rules.concurrency + math.ceil(rules.concurrency * _AT_THE_DOOR)
            ),
        )
        self.access_token_check = AccessTokenCheck(introspector=introspector, leases=leases, clock=clock)
        self.memory = ConnectionCache(store=store, clock=clock)
        self.lookup = ConnectionLookup(store=store, pending_writes=pending_writes, memory=self.memory)
        self.access_tokens = AccessTokens(
            lookup=self.lookup,
            amo=amo,
            coordinator=coordinator,
            access_token_check=self.access_token_check,
            opened=DecryptedPairCache(store=store, cipher=cipher),
            hosts=hosts,
            clock=clock,
        )
        self.disconnector = Disconnector(**edges)
        self.stats_poller = StatsPoller(**edges)

    async def switched_off(self, account_id: str) -> None:
        """Check an account of which AMO's hook says that the integration was switched off there."""
        if await self.checks.begin(account_id):
            self.scheduler.wake()

    def stop(self) -> None:
        """Begin nothing new from now on."""
        self.scheduler.stop()
        self.coordinator.stop()

    async def drain(self) -> None:
        """Wait until what is in flight is stored, or in its rescue file."""
        await self.memory.drain()
        await self.access_token_check.drain()
        await self.coordinator.drain()
