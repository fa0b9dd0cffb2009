"""A backend that takes tokens through the private API, and reads `/readyz` as monitoring does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import aiohttp

_FRESH = 1
"""Seconds that a token must have left: the demo's live for half a minute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiAnswer:
    """The service's response."""

    status: int
    content: Mapping[str, Any] = field(repr=False)

    @property
    def words(self) -> str:
        """The response in words."""
        if self.status == 200 and "expires_in" in self.content:
            left = f"a token with {self.content['expires_in']} s left"
            return f"{left}, stale: {self.content['reason']}" if self.content.get("stale") else left
        return f"{self.content.get('code', '')} {self.content.get('reason') or ''}".strip()


class Backend:
    """A client of the private API."""

    def __init__(self, http: aiohttp.ClientSession, *, private: str, key: str) -> None:
        self._http = http
        self._base = f"http://{private}"
        self._headers = {"Authorization": f"Bearer {key}"}

    async def connections(self) -> Sequence[Mapping[str, Any]]:
        """Return the connections that are not disconnected, by account."""
        answer = await self._ask("GET", "/connections")
        living = [item for item in answer.content.get("items", ()) if item["status"] != "disconnected"]
        return sorted(living, key=lambda item: str(item["account_id"]))

    async def token(self, connection: str) -> ApiAnswer:
        """Take a token."""
        return await self._ask("GET", f"/connections/{connection}/token?min_ttl={_FRESH}")

    async def refresh(self, connection: str) -> ApiAnswer:
        """Have the token pair refreshed now, however new it is."""
        [answer] = await self.reject(connection, times=1)
        return answer

    async def reject(self, connection: str, *, times: int) -> Sequence[ApiAnswer]:
        """Report the present token as rejected, so many times at once."""
        token = await self.token(connection)
        if token.status != 200:
            return [token]
        rejected = {"rejected_access_token": token.content["access_token"]}
        asked = (self._ask("POST", f"/connections/{connection}/refresh", rejected) for _ in range(times))
        return await asyncio.gather(*asked)

    async def not_ready(self) -> Sequence[str]:
        """Return the checks of `/readyz` that are not good."""
        answer = await self._ask("GET", "/readyz")
        return [name for name, check in answer.content["checks"].items() if not check["ok"]]

    async def _ask(self, method: str, path: str, body: Mapping[str, str] | None = None) -> ApiAnswer:
        async with self._http.request(method, self._base + path, json=body, headers=self._headers) as response:
            return ApiAnswer(status=response.status, content=await response.json(content_type=None))
