"""A backend that uses the private API, and a poller that takes snapshots of the demo's state."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from amo_callback.amo.sandbox.app import Sandbox
    from amo_callback.clock import Clock

_LOOK_EVERY = 0.5
"""Seconds between two polls."""
_FRESH = 1
"""The `min_ttl` of token requests; low, because access tokens in the demo are valid for half a minute by default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiAnswer:
    status: int
    content: Mapping[str, Any] = field(repr=False)

    @property
    def words(self) -> str:
        if self.status == 200 and "expires_in" in self.content:
            left = f"an access token valid for {self.content['expires_in']} s"
            return f"{left}, stale: {self.content['reason']}" if self.content.get("stale") else left
        return f"{self.content.get('code', '')} {self.content.get('reason') or ''}".strip()


class Backend:
    def __init__(self, http: aiohttp.ClientSession, *, private: str, key: str) -> None:
        self._http = http
        self._base = f"http://{private}"
        self._headers = {"Authorization": f"Bearer {key}"}

    async def connections(self) -> Sequence[Mapping[str, Any]]:
        """Return the connections that are not disconnected, sorted by account id."""
        answer = await self._ask("GET", "/connections")
        living = [item for item in answer.content.get("items", ()) if item["status"] != "disconnected"]
        return sorted(living, key=lambda item: str(item["account_id"]))

    async def token(self, connection: str) -> ApiAnswer:
        return await self._ask("GET", f"/connections/{connection}/token?min_ttl={_FRESH}")

    async def refresh(self, connection: str) -> ApiAnswer:
        """Force a refresh by reporting the current access token as rejected."""
        [answer] = await self.reject(connection, times=1)
        return answer

    async def reject(self, connection: str, *, times: int) -> Sequence[ApiAnswer]:
        """Report the current access token as rejected, in `times` concurrent requests, and return the responses.

        If no access token is available, return only the response to the token request.
        """
        token = await self.token(connection)
        if token.status != 200:
            return [token]
        rejected = {"rejected_access_token": token.content["access_token"]}
        asked = (self._ask("POST", f"/connections/{connection}/refresh", rejected) for _ in range(times))
        return await asyncio.gather(*asked)

    async def not_ready(self) -> Sequence[str]:
        """Return the names of the failed checks of `/readyz`."""
        answer = await self._ask("GET", "/readyz")
        return [name for name, check in answer.content["checks"].items() if not check["ok"]]

    async def _ask(self, method: str, path: str, body: Mapping[str, str] | None = None) -> ApiAnswer:
        async with self._http.request(method, self._base + path, json=body, headers=self._headers) as response:
            return ApiAnswer(status=response.status, content=await response.json(content_type=None))


# --- snapshots ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionSnapshot:
    id: str
    account_id: str
    domain: str
    status: str
    reason: str
    owners: Sequence[str]
    """The app users who own the connection."""
    pairs: int
    """The number of token pairs that AMO has issued for this account."""
    left: float
    """Seconds until the access token expires."""
    lifetime: float
    """The lifetime of an access token, in seconds."""
    due_in: float | None
    """Seconds until the next refresh; `None` if no refresh is scheduled."""
    backend_status: int
    backend_words: str
    """A summary of the response to a backend's token request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    connections: Sequence[ConnectionSnapshot] = ()
    not_ready: Sequence[str] = ()
    """The names of the failed checks of `/readyz`."""
    away: bool = False
    """Whether AMO is unreachable."""
    issued: int = 0
    """The number of refresh tokens that AMO has issued."""
    spent: int = 0
    again: int = 0
    """The number of spent credentials that were presented again; expected only after a lost response."""


class Poller:
    def __init__(self, backend: Backend, sandbox: Sandbox, *, clock: Clock) -> None:
        self._backend = backend
        self._sandbox = sandbox
        self._clock = clock
        self.snapshot = Snapshot()

    async def run(self) -> None:
        """Poll until cancelled; keep the last snapshot while the service does not respond."""
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                self.snapshot = await self._look()
            await self._clock.sleep(_LOOK_EVERY)

    async def _look(self) -> Snapshot:
        fake = self._sandbox.fake
        pairs = {str(account.id): fake.pairs_of(account) for account in fake.accounts}
        connections = [
            _connection_snapshot(
                item,
                answer=await self._backend.token(item["id"]),
                now=self._clock.now(),
                pairs=pairs.get(item["account_id"], 0),
                lifetime=fake.lifetimes.access,
            )
            for item in await self._backend.connections()
        ]
        return Snapshot(
            connections=connections,
            not_ready=await self._backend.not_ready(),
            away=self._sandbox.faults.persistent is not None,
            issued=len(fake.ledger.issued),
            spent=sum(entry.spent for entry in fake.ledger.refreshes()),
            again=fake.ledger.doubles(),
        )


def _connection_snapshot(
    item: Mapping[str, Any], *, answer: ApiAnswer, now: datetime, pairs: int, lifetime: float
) -> ConnectionSnapshot:
    return ConnectionSnapshot(
        id=item["id"],
        account_id=item["account_id"],
        domain=item["domain"],
        status=item["status"],
        reason=item["reason"] or "",
        owners=item["owners"],
        pairs=pairs,
        left=max(0.0, _seconds_to(item["access_expires_at"], now) or 0.0),
        lifetime=lifetime,
        due_in=_seconds_to(item["next_refresh_at"], now) if item["status"] == "active" else None,
        backend_status=answer.status,
        backend_words=answer.words,
    )


def _seconds_to(moment: str | None, now: datetime) -> float | None:
    return None if moment is None else (datetime.fromisoformat(moment) - now).total_seconds()
