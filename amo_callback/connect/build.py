"""Grants, put together: who may start one, how it is completed, and to whom its end is told."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from amo_callback.connect.admission import Admission
from amo_callback.connect.authorization import Authorizations, Starts
from amo_callback.connect.completion import Connect
from amo_callback.connect.exchange import Exchanger, ExchangeRules
from amo_callback.connect.limits import Limits, Rooms, room_for
from amo_callback.connect.records import Records
from amo_callback.connect.redemption import Redeemer
from amo_callback.model import RefreshRules

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from amo_callback.amo.client import AmoClient
    from amo_callback.cipher import Cipher
    from amo_callback.clock import Clock
    from amo_callback.custody.build import Custody
    from amo_callback.event import Observer
    from amo_callback.model import Connection
    from amo_callback.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectRules:
    """Who may connect, and how many at once: of the configuration."""

    issued_only: bool = False
    """Whether only states are taken that were issued here."""
    allowed_accounts: Collection[str] = ()
    default_domain: str | None = None
    refresh: RefreshRules = field(default_factory=RefreshRules)
    unproven: int = 30
    window: float = 60.0
    requests_per_second: float = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Connecting:
    """What connects accounts, of one process."""

    authorizations: Authorizations
    connect: Connect
    redeemer: Redeemer
    limits: Limits


def make_connecting(
    *,
    store: Store,
    amo: AmoClient,
    cipher: Cipher,
    clock: Clock,
    observer: Observer,
    custody: Custody,
    rules: ConnectRules,
    random: Callable[[], float],
    connected: Callable[[Connection], None],
) -> Connecting:
    """Build it all; nothing is started. `connected` is called where AMO has accepted a code."""
    limits = Limits(
        attempts=rules.unproven, window=rules.window, requests_per_second=rules.requests_per_second, clock=clock
    )
    room = room_for(per_second=rules.requests_per_second, seconds=rules.refresh.lease - amo.timeout)
    authorizations = Authorizations(
        store=store,
        amo=amo,
        cipher=cipher,
        clock=clock,
        starts=Starts(
            each=limits.starts,
            links=limits.links,
            rooms=Rooms(size=room),
        ),
        new_secret=_new_secret,
    )
    records = Records(cipher=cipher, clock=clock, lease=rules.refresh.lease, new_secret=_new_secret)
    connect = Connect(
        store=store,
        amo=amo,
        records=records,
        clock=clock,
        observer=observer,
        exchanger=Exchanger(
            store=store,
            amo=amo,
            cipher=cipher,
            clock=clock,
            observer=observer,
            unsaved=custody.unsaved,
            raw_answers=custody.raw_answers,
            credentials=custody.credentials,
            address_block=custody.breaker.address_block,
            rules=ExchangeRules(
                allowed_accounts=rules.allowed_accounts, default_domain=rules.default_domain, refresh=rules.refresh
            ),
            random=random,
            connected=connected,
        ),
        admission=Admission(
            authorizations=authorizations,
            issued_only=rules.issued_only,
            lists_accounts=bool(rules.allowed_accounts),
        ),
        attempts=limits.codes,
        rooms=Rooms(size=room),
        leases=custody.leases,
    )
    redeemer = Redeemer(
        store=store,
        records=records,
        clock=clock,
        connect=connect,
        attempts=limits.codes,
        issued_only=rules.issued_only,
    )
    return Connecting(authorizations=authorizations, connect=connect, redeemer=redeemer, limits=limits)


def _new_secret() -> str:
    """Return 128 random bits, as `[A-Za-z0-9_-]`: what links carry unharmed."""
    return secrets.token_urlsafe(16)
