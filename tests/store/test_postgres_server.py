"""Errors of a PostgreSQL server that cannot be used: their text, and whether a restart may help."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import pytest

from amo_callback.clock import SystemClock
from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.store import open_store
from tests.postgres import ASKING, CLOSED, GIVEN, why_not

if (why := why_not()) is not None:
    pytest.skip(why, allow_module_level=True)

from amo_callback.store.postgres_server import explain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.postgres import Databases

OWN_ACCESS_RULES = pytest.mark.skipif(GIVEN in os.environ, reason="a given server has its own access rules")


async def _refused(url: str, folder: Path) -> ConfigurationError | StoreUnavailable:
    with pytest.raises((ConfigurationError, StoreUnavailable)) as raised:
        async with open_store(url, folder=folder, clock=SystemClock()):
            pass
    assert raised.value.__cause__ is None
    error = raised.value
    assert isinstance(error, ConfigurationError | StoreUnavailable)
    assert "sekret" not in f"{error}{error.fields}"
    return error


async def _configuration_error(url: str, folder: Path) -> str:
    error = await _refused(url, folder)
    assert isinstance(error, ConfigurationError)
    return str(error)


async def _unavailable(url: str, folder: Path) -> str:
    error = await _refused(url, folder)
    assert isinstance(error, StoreUnavailable)
    return error.detail


def _other(postgres: Databases, *, database: str, user: str = "", query: str = "") -> str:
    """Return the URL of another database, or of another user, on the server."""
    parts = urlsplit(postgres.address)
    place = f"{user}@{parts.netloc.rpartition('@')[2]}" if user else parts.netloc
    return urlunsplit(parts._replace(netloc=place, path=f"/{database}", query=f"{parts.query}{query}"))


@OWN_ACCESS_RULES
async def test_open_with_wrong_password_is_configuration_error(postgres: Databases, tmp_path: Path) -> None:
    """A password that the server rejects is a configuration error."""
    result = await _configuration_error(_other(postgres, database=ASKING, user="postgres:sekret"), tmp_path)
    why = "the server does not accept this user and password (InvalidPasswordError)"
    assert result == f"storage.url: {why}"


@OWN_ACCESS_RULES
async def test_open_refused_by_pg_hba_is_configuration_error(postgres: Databases, tmp_path: Path) -> None:
    """A user that pg_hba.conf does not admit is a configuration error."""
    assert "the server does not accept this user from this machine" in await _configuration_error(
        _other(postgres, database=CLOSED), tmp_path
    )


async def test_open_missing_database_is_configuration_error(postgres: Databases, tmp_path: Path) -> None:
    """A missing database is not created, because the service's user should not have that privilege."""
    assert "the server does not have the database in the URL" in await _configuration_error(
        _other(postgres, database="nowhere"), tmp_path
    )


async def test_open_with_unknown_parameter_is_configuration_error(postgres: Databases, tmp_path: Path) -> None:
    """A URL parameter that neither asyncpg nor the server knows is a configuration error."""
    url = _other(postgres, database="postgres", query="&colour=sekret")
    assert "a parameter that the server does not know" in await _configuration_error(url, tmp_path)


async def test_open_without_create_privilege_is_configuration_error(postgres: Databases, tmp_path: Path) -> None:
    """A user without the privilege to create tables, by default in PostgreSQL 15, is reported."""
    import asyncpg  # noqa: PLC0415 -- an optional dependency

    async with postgres.fresh() as url:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("CREATE ROLE a_guest LOGIN")
            database = urlsplit(url).path[1:]
            result = await _configuration_error(_other(postgres, database=database, user="a_guest"), tmp_path)
        finally:
            await connection.execute("DROP ROLE a_guest")
            await connection.close()
    assert "the user cannot create or use tables" in result


async def test_open_unreachable_server_is_unavailable(tmp_path: Path) -> None:
    """A refused connection or a missing socket is temporary: the next start may succeed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert (await _unavailable(f"postgresql://u:sekret@127.0.0.1:{port}/amo", tmp_path)).startswith(
        "connection refused ("
    )
    assert (await _unavailable(f"postgresql:///amo?host={tmp_path}", tmp_path)).startswith(
        "the socket, or a certificate, does not exist"
    )


async def test_open_server_without_tls_is_configuration_error(tmp_path: Path) -> None:
    """A server without the required TLS is a configuration error, and receives no password."""
    async with _declining() as (port, heard):
        result = await _configuration_error(f"postgresql://u:sekret@127.0.0.1:{port}/amo?sslmode=require", tmp_path)
    assert "the server does not offer TLS, which sslmode requires" in result
    assert b"sekret" not in heard


@asynccontextmanager
async def _declining() -> AsyncIterator[tuple[int, bytearray]]:
    heard, done = bytearray(), asyncio.Event()

    async def decline(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readexactly(8))
        writer.write(b"N")
        heard.extend(await reader.read())
        writer.close()
        done.set()

    server = await asyncio.start_server(decline, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heard
        await done.wait()


@pytest.mark.parametrize(
    ("error", "said", "mistake"),
    [
        (socket.gaierror(-2, "sekret"), "the host's name cannot be resolved (gaierror)", False),
        (TimeoutError("sekret"), "the server did not respond in time (TimeoutError)", False),
        (ssl.SSLCertVerificationError("sekret"), "the server's certificate cannot be verified", True),
        (ssl.SSLError("sekret"), "the TLS handshake failed (SSLError)", False),
        (OSError("Multiple exceptions: sekret"), "the server cannot be reached (OSError)", False),
        (ValueError("sekret"), "the URL cannot be parsed (ValueError)", True),
        (RuntimeError("sekret"), "RuntimeError", False),
    ],
)
def test_explain_names_error_without_library_text(error: Exception, said: str, *, mistake: bool) -> None:
    """Each error has its own text, without the library's message, which may contain a secret."""
    result = explain(error)
    text = str(result) if isinstance(result, ConfigurationError) else result.detail
    assert said in text
    assert "sekret" not in text
    assert isinstance(result, ConfigurationError) is mistake
