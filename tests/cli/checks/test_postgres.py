"""Checks of a PostgreSQL database and its server."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.cli.checks.finding import Severity, run_check_async
from amo_callback.cli.main import main
from amo_callback.clock import SystemClock
from amo_callback.config.database_url import PostgresUrl, read_postgres
from amo_callback.crypto import Cipher, new_key
from amo_callback.store import open_store
from tests.cli.harness import by_check, context_in, environ_with, fill
from tests.fakes import START, ShiftedClock
from tests.postgres import why_not, with_option

if (why := why_not()) is not None:
    pytest.skip(why, allow_module_level=True)

import asyncpg

from amo_callback.cli.checks.postgres import check_postgres, check_server, check_server_settings
from amo_callback.store.postgres_server import SETTINGS, ServerFacts
from tests.wait_limit import WAIT_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amo_callback.clock import Clock
    from tests.postgres import Databases

CONNECTIONS = 3
SERVER = ("server", "server_tls", "server_clock", "server_capacity")


async def _check(url: str, *keys: str, clock: Clock | None = None) -> dict[str, tuple[Severity, str]]:
    context = context_in(Path(), *(keys or [new_key()]), STORAGE__URL=url)
    clock = clock or SystemClock()
    opening = open_store(url, folder=Path(), clock=clock, read_only=True)
    found = check_postgres(context, opening, clock=clock, wait_limit=WAIT_LIMIT)
    return by_check(await run_check_async("store", found))


async def _fetch(url: str, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    found = await connection.fetch(query)
    await connection.close()
    return list(found)


async def _run(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


@pytest.fixture
async def empty(postgres: Databases) -> AsyncIterator[str]:
    async with postgres.fresh() as url:
        yield url


@pytest.fixture
async def served(empty: str, tmp_path: Path, encryption_key: str) -> str:
    """Return the URL of a database with three connections, not in use."""
    cipher = Cipher([encryption_key])
    async with open_store(empty, folder=tmp_path, clock=SystemClock()) as store:
        await store.check_machine("")
        await fill(store, cipher, CONNECTIONS)
    return empty


async def test_check_postgres_valid_database_is_ok(served: str, encryption_key: str) -> None:
    """Server, schema, keys and pairs of a valid database are OK."""
    found = await _check(served, encryption_key)
    assert found.pop("server_settings") in {
        (Severity.WARN, "fsync = off"),
        (Severity.OK, "commits are durable; the isolation level is read committed"),
    }
    assert {name: severity for name, (severity, _) in found.items()} == dict.fromkeys(
        (*SERVER, "store", "keys", "frozen"), Severity.OK
    )
    assert f"{CONNECTIONS} connections, schema " in found["store"][1]
    assert found["keys"][1] == "the keys decrypt all 3 token pairs"


@pytest.mark.parametrize(
    ("settings", "severity", "result"),
    [
        ({}, Severity.OK, "commits are durable; the isolation level is read committed"),
        ({"synchronous_commit": "local"}, Severity.OK, "commits are durable; the isolation level is read committed"),
        ({"synchronous_commit": "off"}, Severity.NOTE, "synchronous_commit = off"),
        (
            {"default_transaction_isolation": "serializable"},
            Severity.NOTE,
            "default_transaction_isolation = serializable",
        ),
        ({"default_transaction_read_only": "on"}, Severity.WARN, "default_transaction_read_only = on"),
        ({"full_page_writes": "off"}, Severity.WARN, "full_page_writes = off"),
    ],
)
def test_check_server_settings_names_unexpected_setting(
    settings: dict[str, str], severity: Severity, result: str
) -> None:
    """An unexpected setting is a note if each session overrides it, otherwise a warning."""
    good = {name: values[0] for name, values in SETTINGS.items()}
    finding = check_server_settings({**good, **settings})
    assert (finding.severity, finding.message) == (severity, result)


async def test_check_server_settings_includes_user_and_database(empty: str) -> None:
    """The check reports the user's and database's settings for a new session, not those of its own session."""
    [[name]] = await _fetch(empty, "SELECT current_database()")
    for setting in ("synchronous_commit = off", "default_transaction_isolation = 'repeatable read'"):
        await _run(empty, f"ALTER DATABASE {name} SET {setting}")
    _, result = (await _check(empty))["server_settings"]
    assert "synchronous_commit = off" in result
    assert "default_transaction_isolation = repeatable read" in result
    assert "read_only" not in result


async def test_check_postgres_empty_database_stays_empty(empty: str, encryption_key: str) -> None:
    """An empty database is a warning, also in a second check, because the check creates no table."""
    for _ in range(2):
        found = await _check(empty, encryption_key)
        assert set(found) == {*SERVER, "server_settings", "store"}
        assert found["store"][0] is Severity.WARN
        assert found["store"][1].endswith("is empty")


async def test_check_postgres_foreign_database_fails(empty: str, encryption_key: str) -> None:
    """A database with another program's tables fails."""
    await _run(empty, "CREATE TABLE theirs (x INTEGER)")
    assert (await _check(empty, encryption_key))["store"][0] is Severity.FAIL


async def test_check_postgres_other_schema_is_one_finding(served: str, encryption_key: str) -> None:
    """A database with another schema is one finding and is not upgraded."""
    await _run(served, "UPDATE schema_version SET version = 99")
    for _ in range(2):
        found = await _check(served, encryption_key)
        assert found["store"][0] is Severity.FAIL
        assert found["store"][1].endswith("was written by a newer amo-callback (schema 99; this version uses schema 1)")
        assert "keys" not in found


async def test_check_postgres_clock_difference_warns(served: str, encryption_key: str) -> None:
    """A clock difference warns, because leases use the server's clock and expiries the process's."""
    clock = ShiftedClock()
    clock.advance(60)
    severity, result = (await _check(served, encryption_key, clock=clock))["server_clock"]
    assert severity is Severity.WARN
    assert result == "this machine's clock is 60 s ahead of the server's clock"


async def test_check_postgres_connection_limit_warns(served: str, encryption_key: str) -> None:
    """The smallest connection limit, here of the database, is compared with an instance's need."""
    await _run(served, f"ALTER DATABASE {read_postgres(served).database} CONNECTION LIMIT 5")
    severity, result = (await _check(served, encryption_key))["server_capacity"]
    assert (severity, result) == (Severity.WARN, "5 database connections are allowed; an instance uses up to 11")


FIT = ServerFacts(
    version="12.1", major=12, is_standby=False, tls="TLSv1.3", now=START, encoding="UTF8", allowed=22, settings={}
)


def _check_facts(
    host: str = "db.example.com", *, verified: bool = True, **more: Any
) -> dict[str, tuple[Severity, str]]:
    address = PostgresUrl(hosts=(host,), database="amo", is_verified=verified, secrets=())
    return by_check(check_server(dataclasses.replace(FIT, **more), address, took=0.004, at=START))


def test_check_server_suitable_server_is_ok() -> None:
    """A supported, encrypted server with the same time and enough connections is OK."""
    assert _check_facts() == {
        "server": (Severity.OK, "PostgreSQL 12.1 responded in 4 ms"),
        "server_tls": (Severity.OK, "TLSv1.3"),
        "server_clock": (Severity.OK, "the server's clock is within 3 s of this machine's clock"),
        "server_capacity": (
            Severity.OK,
            (
                "22 database connections are allowed; an instance uses up to 11, so 2 instances can run if no other "
                "client connects"
            ),
        ),
    }


def test_check_server_unverified_identity_is_reported() -> None:
    """An unverified server certificate is reported, except for a server on this machine."""
    believed = "TLSv1.3; the server's identity is not verified, because sslmode is not verify-full"
    assert _check_facts(verified=False)["server_tls"] == (Severity.OK, believed)
    assert _check_facts("127.0.0.1", verified=False)["server_tls"] == (Severity.OK, "TLSv1.3")


@pytest.mark.parametrize(
    ("name", "more", "severity"),
    [
        ("server", {"major": 11}, Severity.FAIL),
        ("server", {"is_standby": True}, Severity.FAIL),
        ("server_tls", {"tls": None}, Severity.WARN),
        ("server_tls", {"tls": None, "host": "127.0.0.1"}, Severity.OK),
        ("server_clock", {"now": START + timedelta(seconds=2)}, Severity.OK),
        ("server_clock", {"now": START + timedelta(seconds=3)}, Severity.WARN),
        ("server_clock", {"now": START - timedelta(seconds=3)}, Severity.WARN),
        ("server_capacity", {"allowed": 11}, Severity.OK),
        ("server_capacity", {"allowed": 10}, Severity.WARN),
        ("server_encoding", {"encoding": "LATIN1"}, Severity.FAIL),
    ],
)
def test_check_server_unsuitable_server_is_reported(name: str, more: dict[str, Any], severity: Severity) -> None:
    """An old, read-only, unencrypted, skewed, full or non-UTF-8 server is one finding, and the others are OK."""
    found = _check_facts(**more)
    assert found.pop(name)[0] is severity
    assert {severity for severity, _ in found.values()} == {Severity.OK}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:sekret@127.0.0.1:1/amo", "PostgreSQL database amo at 127.0.0.1: connection refused"),
        ("postgresql://u:sekret@127.0.0.1:1/amo?sslmode=verify-full&sslrootcert=/no/file", "PostgreSQL database amo"),
    ],
)
async def test_check_postgres_unreachable_server_hides_password(url: str, said: str) -> None:
    """An unreachable server is reported with its address and the reason, without the password."""
    [(name, (severity, result))] = (await _check(url, new_key())).items()
    assert (name, severity) == ("store", Severity.FAIL)
    assert result.startswith(said)
    assert "sekret" not in result


def test_check_command_includes_postgres(
    served: str, encryption_key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check command reports the database and its rescue folder, without the URL's password."""
    environ = environ_with(
        AMO__REDIRECT_URI="http://127.0.0.1:1/api/amo-crm/callback",
        AMO__AUTHORIZE_URL="http://127.0.0.1:1/oauth",
        SERVER__PRIVATE="127.0.0.1:1",
        STORAGE__ENCRYPTION_KEYS=encryption_key,
        STORAGE__URL=with_option(served, "password=sekret"),
    )
    environ["STATE_DIRECTORY"] = str(tmp_path)
    main(["check", "--json", "--timeout", "5"], environ=environ)
    out, err = capsys.readouterr()
    found = {finding["check"]: finding["message"] for finding in json.loads(out)["findings"]}
    assert found["keys"] == "the keys decrypt all 3 token pairs"
    assert found["rescue"] == f"no pending writes in {tmp_path}/rescue"
    assert "sekret" not in out + err
