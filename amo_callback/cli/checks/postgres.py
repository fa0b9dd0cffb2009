"""Checks of a PostgreSQL database and its server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.cli.checks.database import check_contents, check_schema
from amo_callback.cli.checks.finding import Finding, fail, note, ok, warn
from amo_callback.config.database_url import read_postgres
from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.store.engine import Engine
from amo_callback.store.migrate import ENCODINGS, OtherSchema, latest_schema
from amo_callback.store.postgres_server import MISTAKEN, SETTINGS, USE_SESSIONS, read_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from amo_callback.cli.context import CommandContext
    from amo_callback.clock import Clock
    from amo_callback.config.database_url import PostgresUrl
    from amo_callback.store import Store
    from amo_callback.store.postgres_server import ServerFacts

_OLDEST = 12
"""The oldest supported version of PostgreSQL."""
_APART = 3.0
"""The minimum clock skew, in seconds, that causes a warning."""
_AN_INSTANCE_TAKES = 11
"""Database connections per instance: ten in the pool, and one that listens for notifications."""


async def check_postgres(
    context: CommandContext, opening: AbstractAsyncContextManager[Store], *, clock: Clock, wait_limit: float
) -> AsyncIterator[Finding]:
    """Check a PostgreSQL database and its server; `opening` opens the database."""
    url = context.settings.storage.url.get_secret_value()
    address, began = read_postgres(url), clock.monotonic()
    try:
        server, at = await read_server(url, wait_limit=wait_limit, clock=clock)
        for finding in check_server(server, address, took=clock.monotonic() - began, at=at):
            yield finding
        yield check_server_settings(server.settings)
        async with opening as store:
            async for finding in check_contents(store, f"{address}", context, schema=latest_schema(Engine.POSTGRES)):
                yield finding
    except OtherSchema as error:
        yield check_schema(f"{address}", error, upgrade="start this version of the service: it upgrades the database")
    except ConfigurationError as error:
        reason = str(error).removeprefix(MISTAKEN)
        fix = USE_SESSIONS if reason.endswith(USE_SESSIONS) else "correct storage.url, or the server's access rules"
        yield fail("store", f"{address}: {reason.removesuffix(f': {USE_SESSIONS}')}", fix=fix)
    except StoreUnavailable as error:
        yield fail(
            "store", f"{address}: {error.detail}", fix="start the server, and allow connections from this machine"
        )


# --- the server ----------------------------------------------------------------------------------


def check_server(server: ServerFacts, address: PostgresUrl, *, took: float, at: datetime) -> Iterator[Finding]:
    """Check the facts about a server.

    Reading them took `took` seconds; `at` is the time of the response, by this machine's clock.
    """
    yield _version(server, took)
    yield _tls(server, address)
    yield _clock(server, at)
    yield _room(server)
    if server.encoding not in ENCODINGS:
        yield fail(
            "server_encoding",
            f"the database's encoding is {server.encoding}, which cannot store all Unicode characters",
            fix="create another database: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
        )


def check_server_settings(settings: Mapping[str, str]) -> Finding:
    """Compare the server settings of a new session with the values that the store relies on."""
    others = {name: value for name, value in settings.items() if value not in SETTINGS[name]}
    values = ", ".join(f"{name} = {value}" for name, value in others.items())
    if not others:
        return ok("server_settings", "commits are durable; the isolation level is read committed")
    if others.keys() & {"fsync", "full_page_writes"}:
        fix = "set fsync and full_page_writes to on: otherwise, a crash of the server's machine may lose tokens"
    elif "default_transaction_read_only" in others:
        fix = "set default_transaction_read_only to off for this user and database: otherwise, nothing can be stored"
    else:
        fix = "these settings do not affect the service, because its sessions override them; other clients use them"
        return note("server_settings", values, fix=fix)
    return warn("server_settings", values, fix=fix)


def _version(server: ServerFacts, took: float) -> Finding:
    message = f"PostgreSQL {server.version} responded in {took * 1000:.0f} ms"
    if server.major < _OLDEST:
        return fail("server", f"{message}, but version {_OLDEST} or newer is required", fix="upgrade the server")
    if server.is_standby:
        return fail(
            "server",
            f"{message}, but is a standby, which accepts no writes",
            fix="in storage.url, specify the primary, or all hosts with target_session_attrs=read-write",
        )
    return ok("server", message)


def _tls(server: ServerFacts, address: PostgresUrl) -> Finding:
    if server.tls is not None:
        believed = (
            ""
            if address.is_verified or address.is_local
            else "; the server's identity is not verified, because sslmode is not verify-full"
        )
        return ok("server_tls", f"{server.tls}{believed}")
    if address.is_local:
        return ok("server_tls", "no TLS; not needed, because the server is on this machine")
    return warn(
        "server_tls",
        "no TLS: accounts, owners and the password exchange are sent unencrypted",
        fix="set sslmode=verify-full in storage.url, and ssl = on in the server's configuration",
    )


def _clock(server: ServerFacts, at: datetime) -> Finding:
    ahead = (at - server.now).total_seconds()
    if abs(ahead) < _APART:
        return ok("server_clock", f"the server's clock is within {_APART:.0f} s of this machine's clock")
    return warn(
        "server_clock",
        f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's clock",
        fix="synchronize both clocks by NTP: stored times come from the database server's clock, and JWTs are checked "
        "against this machine's clock",
    )


def _room(server: ServerFacts) -> Finding:
    instances = server.allowed // _AN_INSTANCE_TAKES
    message = f"{server.allowed} database connections are allowed; an instance uses up to {_AN_INSTANCE_TAKES}"
    if instances == 0:
        return warn(
            "server_capacity", message, fix="raise max_connections, or the connection limit of the user or database"
        )
    return ok("server_capacity", f"{message}, so {instances} instances can run if no other client connects")
