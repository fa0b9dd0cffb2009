"""The private door, asked by the command."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp

from amo_callback import probe
from amo_callback.errors import CommandFailed, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from amo_callback.cipher import Cipher

_PATIENCE = 30.0
"""Seconds."""
_UNIX = "unix:"
MANY = 10_000
"""How many items are listed at most."""


@asynccontextmanager
async def private_session(address: str, *, patience: float = _PATIENCE) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session to the private door at an address of the configuration: `host:port` or `unix:/path`."""
    connector = aiohttp.UnixConnector(address.removeprefix(_UNIX)) if address.startswith(_UNIX) else None
    base = "http://localhost" if connector else f"http://{address}"
    timeout = aiohttp.ClientTimeout(total=patience)
    async with aiohttp.ClientSession(base, connector=connector, timeout=timeout, trust_env=False) as session:
        yield session


def why_unconnected(error: aiohttp.ClientConnectorError) -> str:
    """Say why there is no connection; the library's text names addresses once more."""
    number = error.os_error.errno
    return os.strerror(number) if number else "nobody listens"


async def is_served(session: aiohttp.ClientSession, cipher: Cipher, *, nonce: str) -> bool:
    """Tell whether the service listens: it proves that by our keys, before it is shown one of its own.

    Raises `CommandFailed` where somebody else answers as it does.
    """
    try:
        async with session.head("/healthz", headers={probe.HEADER: probe.ask(cipher, nonce=nonce)}) as response:
            status, answer = response.status, response.headers.get(probe.HEADER, "")
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
    if status != 200:
        return False
    if probe.read_answer(cipher, answer, nonce=nonce) is None:
        raise CommandFailed(
            "server.private: who listens there does not prove to be the service with the keys of this configuration, "
            "and is sent no API key: restart the service if it was upgraded or its keys were changed"
        )
    return True


class Door:
    """What the private door does, asked with one of its keys."""

    def __init__(self, session: aiohttp.ClientSession, key: str) -> None:
        self._session = session
        self._headers = {"Authorization": f"Bearer {key}"}

    async def connections(self, only: Mapping[str, str]) -> list[dict[str, Any]]:
        """List connections."""
        return await self._pages("/connections", {**only, "limit": "200"}, most=MANY)

    async def connection(self, selector: str) -> dict[str, Any]:
        """Show one, with its last events."""
        return await self._ask("GET", _path(selector))

    async def events(self, selector: str | None, *, limit: int) -> list[dict[str, Any]]:
        """List what happened, newest first."""
        named = {} if selector is None else {"connection": selector}
        return await self._pages("/events", {**named, "limit": str(min(limit, 200))}, most=limit)

    async def freeze(self, selector: str | None, *, frozen: bool) -> dict[str, Any]:
        """Freeze or thaw one connection, or all where none is named."""
        one = "" if selector is None else _path(selector)
        return await self._ask("POST", f"{one}/{'freeze' if frozen else 'thaw'}")

    async def token(self, selector: str) -> dict[str, Any]:
        """Hand out an access token."""
        return await self._ask("GET", f"{_path(selector)}/token")

    async def refresh(self, selector: str) -> dict[str, Any]:
        """Refresh a pair now, and hand out its access token."""
        return await self._ask("POST", f"{_path(selector)}/refresh")

    async def disconnect(self, selector: str) -> dict[str, Any]:
        """Forget a connection."""
        return await self._ask("DELETE", _path(selector))

    async def notices(self) -> list[dict[str, Any]]:
        """List what was not delivered."""
        return await self._pages("/notices", {"limit": "200"}, most=MANY)

    async def retry_notices(self, notice_id: str | None) -> dict[str, Any]:
        """Try one again, or all that are parked where none is named."""
        one = "" if notice_id is None else f"/{_quoted(notice_id)}"
        return await self._ask("POST", f"/notices{one}/retry")

    async def _pages(self, path: str, query: Mapping[str, str], *, most: int) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while len(items) < most:
            page = await self._ask("GET", path, **query, **cursor)
            if not {"items", "next_cursor"} <= page.keys():
                raise _stranger(200)
            items += page["items"]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        return items[:most]

    async def _ask(self, method: str, path: str, **query: str) -> dict[str, Any]:
        try:
            async with self._session.request(
                method, path, params=query, headers=self._headers, allow_redirects=False
            ) as response:
                content = await _json(response)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise CommandFailed(f"the service did not answer: {type(error).__name__}") from None
        if response.status >= 400 and "code" in content:
            raise CommandFailed(f"{content['code']}: {content.get('detail')}")
        if response.status >= 400 or not content:
            raise _stranger(response.status)
        return content


def _stranger(status: int) -> CommandFailed:
    return CommandFailed(f"server.private: what listens there is no service of ours: it answers {status}")


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return what was answered; nothing, where that is no object."""
    try:
        content = await response.json(content_type=None)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _path(selector: str) -> str:
    return f"/connections/{_quoted(selector)}"


def _quoted(name: str) -> str:
    if name in {"", ".", ".."}:  # they would name another place: all of them
        raise NotFound
    return quote(name, safe="")
