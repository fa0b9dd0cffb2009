"""Values for tests, with defaults for the fields that a test does not set."""

import asyncio
import dataclasses
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from amo_callback.core import Core
from amo_callback.events import Event
from amo_callback.grant import Grant, GrantStatus, NewConnection
from amo_callback.model import (
    Account,
    Claim,
    Connection,
    LeaseExtension,
    Reason,
    RefreshedPair,
    RefreshFailure,
    RefreshRules,
    Status,
    connection_id,
    fingerprint,
)
from amo_callback.stats import ServiceStatus, StoreStats
from amo_callback.store import Store
from tests.fakes import START, FakeClock, RecordingObserver

T = TypeVar("T")
DAY = timedelta(days=1)


def a_core(**edges: Any) -> Core:
    """Return the shared objects of a process, with these in place of the defaults."""
    values: dict[str, Any] = {
        "store": None,
        "amo": None,
        "cipher": None,
        "clock": FakeClock(),
        "observer": RecordingObserver(),
        "random": lambda: 0.5,
        "rules": RefreshRules(),
        "process": "process-1",
        "stop": asyncio.Event(),
    }
    return Core(**{**values, **edges})


def a_connection(number: int = 1, **more: Any) -> Connection:
    """Return a connection as a grant creates it."""
    values: dict[str, Any] = {
        "id": connection_id(Account(account_id=str(number), user_id="1"), "a.amocrm.ru"),
        "account_id": str(number),
        "user_id": "1",
        "domain": f"a{number}.amocrm.ru",
        "api_domain": None,
        "client_id": "c619",
        "status": Status.ACTIVE,
        "sealed_pair": b"sealed",
        "access_issued_at": START,
        "access_expires_at": START + DAY,
        "refresh_expires_at": START + 90 * DAY,
        "refreshed_at": None,
        "next_refresh_at": START + DAY / 2,
        "connected_at": START,
        "pair_version": 1,
        "row_version": 1,
    }
    return Connection(**{**values, **more})


def a_grant(code: str = "code", **more: Any) -> Grant:
    values: dict[str, Any] = {
        "code_hash": fingerprint(code),
        "handle_hash": fingerprint(f"handle of {code}"),
        "sealed": b"sealed",
        "status": GrantStatus.EXCHANGING,
        "attempt": "attempt-1",
        "lease_until": START + timedelta(seconds=60),
        "expires_at": START + timedelta(minutes=20),
    }
    return Grant(**{**values, **more})


def a_claim(connection: Connection, **more: Any) -> Claim:
    values: dict[str, Any] = {
        "connection_id": connection.id,
        "row_version": connection.row_version,
        "attempt": "attempt-1",
        "owner": "process-1",
        "lease": timedelta(seconds=60),
        "fingerprint": "print-1",
    }
    return Claim(**{**values, **more})


def an_extension(connection: Connection, **more: Any) -> LeaseExtension:
    values: dict[str, Any] = {
        "connection_id": connection.id,
        "attempt": "attempt-1",
        "lease": timedelta(seconds=60),
        "domain": "b.amocrm.ru",
    }
    return LeaseExtension(**{**values, **more})


def a_refreshed(connection: Connection, **more: Any) -> RefreshedPair:
    at: datetime = more.pop("at", START + DAY / 2)
    values: dict[str, Any] = {
        "connection_id": connection.id,
        "pair_version": connection.pair_version,
        "sealed_pair": b"sealed again",
        "api_domain": "api-b.amocrm.ru",
        "issued_at": at,
        "expires_at": at + DAY,
        "refresh_expires_at": at + 90 * DAY,
        "next_refresh_at": at + DAY / 2,
    }
    return RefreshedPair(**{**values, **more})


def a_failure(connection: Connection, **more: Any) -> RefreshFailure:
    values: dict[str, Any] = {
        "connection_id": connection.id,
        "attempt": "attempt-1",
        "status": Status.ACTIVE,
        "last_error": "outcome_open",
        "next_refresh_at": START + DAY,
    }
    return RefreshFailure(**{**values, **more})


def some_stats(**more: Any) -> StoreStats:
    """Return the store's stats for two healthy connections."""
    values: dict[str, Any] = {
        "active": 2,
        "fresh": 2,
        "needs_reauth": dict.fromkeys(Reason, 0),
        "disconnected": 0,
        "mismatched": 0,
        "hosts_not_allowed": 0,
        "expired": 0,
        "due": 0,
        "overdue": 0,
        "next_expiry": START + DAY,
        "next_deadline": START + 90 * DAY,
        "waiting": 0,
        "waiting_since": None,
        "dead_lettered": 0,
    }
    return StoreStats(**{**values, **more})


def a_service_status(**more: Any) -> ServiceStatus:
    """Return the status of a healthy service."""
    checks = ("store", "amo_credentials", "amo_blocked", "frozen", "mass_failure")
    values: dict[str, Any] = {
        "checks": dict.fromkeys(checks, True),
        "stats": some_stats(),
        "stats_age": 3.0,
        "stats_seconds": 0.01,
        "heartbeat_age": 1.0,
        "in_flight": 0,
        "pending_writes": 0,
        "webhooks_delivered": True,
    }
    return ServiceStatus(**{**values, **more})


async def switch_off(store: Store) -> Sequence[str]:
    """Record AMO's hook for account 1; return the ids of the connections for which a recheck was scheduled."""
    return await store.record_disabled_hook("1", shortest=timedelta(seconds=5), quiet=timedelta(hours=1))


def present(value: T | None) -> T:
    assert value is not None
    return value


async def now(store: Store, connection: Connection) -> Connection:
    return present(await store.connection(connection.id))


async def save(store: Store, connection: Connection, *, iat: int | None = None, code: str | None = None) -> Connection:
    """Store a connection through a grant, and return the stored connection."""
    grant = a_grant(code or f"code of {connection.id} {iat}")
    claimed = await store.claim_grant(grant, now=START)
    await store.save_connected(NewConnection(grant=claimed, connection=connection, token_iat=iat))
    return await now(store, connection)


async def connected_grant(store: Store, code: str) -> str:
    """Store a successful grant without its connection, and return the fingerprint of its code."""
    grant = await store.claim_grant(a_grant(code), now=START)
    number = await store.reserve_serials(1) + 1
    await store.finish_grant(dataclasses.replace(grant, status=GrantStatus.CONNECTED, connected_no=number))
    return grant.code_hash


async def bind(store: Store, connection_id: str, owner: str, *, first_only: bool = False) -> bool:
    """Present a new grant of a connection as an app user, and return whether the user is an owner."""
    code_hash = await connected_grant(store, f"code {uuid.uuid4()}")
    return await store.bind(connection_id, owner=owner, code_hash=code_hash, first_only=first_only)


def an_event(connection: Connection, name: str = "connection.moved", **fields: object) -> Event:
    """Return an event of a connection."""
    return Event(name=name, connection_id=connection.id, fields={"reason": None, **fields})
