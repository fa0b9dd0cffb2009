"""A client of the private API.

The running service serves the API. If no service is running, the command serves the API itself, from the store.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import click

from amo_callback import probe
from amo_callback.cli import output
from amo_callback.cli.context import (
    acting_as_owner,
    check_database_exists,
    config_option,
    json_option,
    load_context,
)
from amo_callback.crypto import Cipher
from amo_callback.errors import CommandFailed, NotFound
from amo_callback.identity import Scope, key_with

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from amo_callback.cli.context import CommandContext
    from amo_callback.config.settings import Settings

    Work = Callable[..., Awaitable[object]]

MAX_ITEMS = 10_000
"""The maximum number of listed items."""
_TIMEOUT = 30.0
_UNIX = "unix:"
_NO_REFRESH = (
    "only a running service refreshes tokens: start the service; if it is running, add an API key with the `token` "
    "scope, and reload the service"
)


def api_command(scope: Scope, *, text: Callable[[Any], str] = output.facts) -> Callable[[Work], Callable[..., int]]:
    """Return a decorator that turns a coroutine function into a command.

    The function receives a client whose API key has the given scope. Its result is printed as JSON, or as text that
    `text` formats; `None` means that the operator declined.
    """

    def decorate(work: Work) -> Callable[..., int]:
        @config_option
        @json_option
        @click.pass_context
        @wraps(work)
        def run(ctx: click.Context, /, *, config: str | None, as_json: bool, **options: object) -> int:
            if ctx.invoked_subcommand is not None:
                return 0
            context = load_context(config, ctx.obj.environ)

            async def answer() -> object:
                async with open_api(context, scope=scope) as api:
                    return await work(api, **options)

            found = asyncio.run(answer())
            click.echo("nothing was changed" if found is None else json.dumps(found) if as_json else text(found))
            return 1 if found is None else 0

        return run

    return decorate


@asynccontextmanager
async def open_api(context: CommandContext, *, scope: Scope) -> AsyncIterator[ApiClient]:
    """Open a client of the private API.

    If no service is running, or no configured API key has the scope, this process serves the API from the store. Both
    database engines allow access by a second process, and a user who can read the configuration can access the store
    anyway.
    """
    api_key = key_with(context.settings.api.keys.get_secret_value(), scope)
    if api_key is not None:
        async with private_session(context.settings.server.private) as session:
            if await is_service(session, Cipher(context.encryption_keys), nonce=secrets.token_urlsafe(16)):
                yield ApiClient(session, api_key, context.settings)
                return
    check_database_exists(context)
    with acting_as_owner(context.owned):
        from amo_callback.cli.serve import serve_store  # noqa: PLC0415 -- not needed if the service serves the API

        async with serve_store(context) as (address, key), private_session(address) as session:
            yield ApiClient(session, key, context.settings, is_idle=True)


@asynccontextmanager
async def private_session(address: str, *, wait_limit: float = _TIMEOUT) -> AsyncIterator[aiohttp.ClientSession]:
    """Open an HTTP session to the private API at `host:port` or `unix:/path`."""
    connector = aiohttp.UnixConnector(address.removeprefix(_UNIX)) if address.startswith(_UNIX) else None
    base = "http://localhost" if connector else f"http://{address}"
    limit = aiohttp.ClientTimeout(total=wait_limit)
    async with aiohttp.ClientSession(base, connector=connector, timeout=limit, trust_env=False) as session:
        yield session


async def is_service(session: aiohttp.ClientSession, cipher: Cipher, *, nonce: str) -> bool:
    """Return whether the service is listening.

    The service must prove that it has the encryption keys before the client sends an API key. Any status other than 200
    means that no service is running. Raises `CommandFailed` if a server responds with status 200 but without this
    proof.
    """
    try:
        async with session.head("/healthz", headers={probe.HEADER: probe.seal_nonce(cipher, nonce=nonce)}) as response:
            status, answer = response.status, response.headers.get(probe.HEADER, "")
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
    if status != 200:
        return False
    if probe.read_reply(cipher, answer, nonce=nonce) is None:
        raise CommandFailed(
            "server.private: the listening process did not prove that it has the configured encryption keys, so no API "
            "key was sent. If the service was upgraded or these keys were changed, restart it"
        )
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadinessCheck:
    ok: bool
    detail: str


async def read_readiness(address: str, *, wait_limit: float) -> Mapping[str, ReadinessCheck]:
    """Return the checks of `/readyz`, which requires no key.

    Raises `NotRunning` if no server responds, and `CommandFailed` if the server is not amo-callback.
    """
    try:
        async with (
            asyncio.timeout(wait_limit),
            private_session(address, wait_limit=wait_limit) as session,
            session.get("/readyz", allow_redirects=False) as response,
        ):
            status, content = response.status, await json_object(response)
    except TimeoutError:
        raise NotRunning(f"no response from {address} within {wait_limit:g} s") from None
    except aiohttp.ClientConnectorError as error:
        raise NotRunning(f"cannot connect to {address}: {connection_error(error)}") from None
    except (aiohttp.ClientError, OSError):
        raise NotRunning(f"the connection to {address} was lost") from None
    checks = content.get("checks")
    if status not in {200, 503} or not isinstance(checks, dict) or not checks:
        raise CommandFailed(f"another server is listening at {address} (HTTP {status}, no readiness checks)")
    return {
        str(name): ReadinessCheck(ok=check.get("ok") is True, detail=str(check.get("detail", "")))
        for name, check in checks.items()
        if isinstance(check, dict)
    }


class ApiClient:
    """A client of the private API; its methods raise `CommandFailed`."""

    def __init__(self, session: aiohttp.ClientSession, key: str, settings: Settings, *, is_idle: bool = False) -> None:
        self.settings = settings
        self._session = session
        self._headers = {"Authorization": f"Bearer {key}"}
        self._is_idle = is_idle
        """Whether this process serves the API; in that case, no token is refreshed."""

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        return await self._request("GET", path, query)

    async def post(self, path: str) -> dict[str, Any]:
        return await self._request("POST", path, {})

    async def delete(self, path: str) -> dict[str, Any]:
        return await self._request("DELETE", path, {})

    async def get_checks(self) -> dict[str, Any]:
        """Return the checks of `/readyz`, which responds with 503 if a check fails."""
        checks: dict[str, Any] = (await self._send("GET", "/readyz", {}))[1].get("checks", {})
        return checks

    async def token(self, name: str) -> dict[str, Any]:
        """Return an access token; if this process serves the API, the token may expire soon."""
        path = f"{await self.path_of(name)}/token"
        if not self._is_idle:
            return await self.get(path)
        try:
            return await self.get(path, min_ttl="0")
        except ApiError as error:
            if error.api_code == "amo_unavailable":  # misleading, because this process sends no request to AMO
                raise CommandFailed(f"the connection has no valid access token, and {_NO_REFRESH}") from None
            raise

    async def refresh(self, name: str) -> dict[str, Any]:
        if self._is_idle:
            raise CommandFailed(_NO_REFRESH)
        return await self.post(f"{await self.path_of(name)}/refresh")

    async def pages(self, path: str, query: Mapping[str, str] | None = None, *, limit: int) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while len(items) < limit:
            page = await self.get(path, **(query or {}), limit=str(min(limit, 200)), **cursor)
            if not {"items", "next_cursor"} <= page.keys():
                raise _not_ours(200)
            items += page["items"]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        return items[:limit]

    async def path_of(self, name: str) -> str:
        """Return the path of a connection; `name` is its id, `account:ID`, `owner:ID`, or its account's id or host."""
        return f"/connections/{quoted(await self.selector_of(name))}"

    async def selector_of(self, name: str) -> str:
        """Return the API's selector for a connection; `name` has the same forms as in `path_of`."""
        if name.isdecimal():
            return f"account:{name}"
        if "." not in name or ":" in name or not name.isascii():
            return name
        found = (await self.get("/connections", domain=name, limit="2"))["items"]
        if not found:
            raise NotFound(f"no connection has the host {name}: see `amo-callback connections list`")
        if len(found) > 1:
            raise CommandFailed(f"several connections have the host {name}: specify the id of one of them")
        return str(found[0]["id"])

    async def _request(self, method: str, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        status, content = await self._send(method, path, query)
        if status >= 400 and "code" in content:
            raise ApiError(str(content["code"]), str(content.get("detail")))
        if status >= 400 or not content:
            raise _not_ours(status)
        return content

    async def _send(self, method: str, path: str, query: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        try:
            async with self._session.request(
                method, path, params=query, headers=self._headers, allow_redirects=False
            ) as response:
                return response.status, await json_object(response)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise CommandFailed(f"the service did not respond: {type(error).__name__}") from None


class NotRunning(CommandFailed):
    """No service responds at the private API's address."""


class ApiError(CommandFailed):
    """The private API returned an error response."""

    def __init__(self, api_code: str, detail: str) -> None:
        super().__init__(f"{api_code}: {detail}")
        self.api_code = api_code


def quoted(name: str) -> str:
    """Encode a name as one path segment."""
    if name in {"", ".", ".."}:  # such a path segment would address another resource
        raise NotFound
    return quote(name, safe="")


def _not_ours(status: int) -> CommandFailed:
    return CommandFailed(f"server.private: another server is listening at this address (HTTP {status})")


async def json_object(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the JSON object in a response; return an empty object if the body is anything else."""
    try:
        content = await response.json(content_type=None)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def connection_error(error: aiohttp.ClientConnectorError) -> str:
    """Return the reason for a connection failure, without aiohttp's message, which contains the address."""
    number = error.os_error.errno
    if isinstance(error.os_error, socket.gaierror):  # `os.strerror` has no messages for these errors
        return error.os_error.strerror or "the host name has no address"
    return os.strerror(number) if number else "no server is listening"
