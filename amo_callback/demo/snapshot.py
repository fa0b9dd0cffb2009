"""The state of the demonstration, polled through the private API and AMO's ledger."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from amo_callback.amo.sandbox.app import Sandbox
    from amo_callback.clock import Clock
    from amo_callback.demo.backend import ApiAnswer, Backend

LOOK_EVERY = 0.5
"""Seconds between two looks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionSnapshot:
    """A connection's state."""

    id: str
    account_id: str
    domain: str
    status: str
    reason: str
    pairs: int
    """Pairs that AMO has issued to this account."""
    left: float
    """Seconds until the access token expires."""
    life: float
    """Seconds for which an access token is valid."""
    due_in: float | None
    """Seconds until it is refreshed; `None` where it will not be."""
    backend_status: int
    backend_words: str
    """The response to a backend that asks for a token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The whole state."""

    connections: Sequence[ConnectionSnapshot] = ()
    not_ready: Sequence[str] = ()
    """The checks of `/readyz` that are not good."""
    away: bool = False
    """Whether AMO is."""
    issued: int = 0
    """Refresh tokens that AMO has issued."""
    spent: int = 0
    again: int = 0
    """Presentations of spent tokens: after a lost response the second one is how this is found out."""


class Poller:
    """Polls the service's private API and AMO's ledger."""

    def __init__(self, backend: Backend, sandbox: Sandbox, *, clock: Clock) -> None:
        self._backend = backend
        self._sandbox = sandbox
        self._clock = clock
        self.snapshot = Snapshot()

    async def run(self) -> None:
        """Poll until cancelled; while the service does not answer, the last snapshot stays."""
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                self.snapshot = await self._look()
            await self._clock.sleep(LOOK_EVERY)

    async def _look(self) -> Snapshot:
        fake = self._sandbox.fake
        pairs = {str(account.id): fake.pairs_of(account) for account in fake.accounts}
        connections = [
            connection_snapshot(
                item,
                answer=await self._backend.token(item["id"]),
                now=self._clock.now(),
                pairs=pairs.get(item["account_id"], 0),
                life=fake.lives.access,
            )
            for item in await self._backend.connections()
        ]
        return Snapshot(
            connections=connections,
            not_ready=await self._backend.not_ready(),
            away=self._sandbox.faults.standing is not None,
            issued=len(fake.ledger.issued),
            spent=sum(entry.spent for entry in fake.ledger.refreshes()),
            again=fake.ledger.doubles(),
        )


def connection_snapshot(
    item: Mapping[str, Any], *, answer: ApiAnswer, now: datetime, pairs: int, life: float
) -> ConnectionSnapshot:
    """Return a connection's snapshot from its item of the private API and the response for its token."""
    return ConnectionSnapshot(
        id=item["id"],
        account_id=item["account_id"],
        domain=item["domain"],
        status=item["status"],
        reason=item["reason"] or "",
        pairs=pairs,
        left=max(0.0, _seconds_to(item["access_expires_at"], now) or 0.0),
        life=life,
        due_in=_seconds_to(item["next_refresh_at"], now) if item["status"] == "active" else None,
        backend_status=answer.status,
        backend_words=answer.words,
    )


def _seconds_to(moment: str | None, now: datetime) -> float | None:
    return None if moment is None else (datetime.fromisoformat(moment) - now).total_seconds()
