"""A real PgBouncer in front of a test's PostgreSQL server."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.wait_limit import WAIT_LIMIT

GIVEN = "AMO_CALLBACK_TEST_PGBOUNCER"
_PORT = 6432


def program() -> str | None:
    return os.environ.get(GIVEN) or shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def why_no_pgbouncer() -> str | None:
    """Return why PgBouncer is unavailable, or `None` if it is available."""
    return None if program() else f"no PgBouncer: install it, or name its program in {GIVEN}"


@contextmanager
def pooled(url: str, *, mode: str, size: int = 20, options: str = "") -> Iterator[str]:
    """Run PgBouncer for the server of `url`; yield the URL of the same database through PgBouncer."""
    parts = urlsplit(url)
    [server] = parse_qs(parts.query)["host"]
    with tempfile.TemporaryDirectory(prefix="pgb-") as name:
        folder = Path(name)
        (folder / "users").write_text('"postgres" ""\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={server}\n[pgbouncer]\nlisten_addr =\nlisten_port = {_PORT}\n"
            f"unix_socket_dir = {folder}\nauth_type = trust\nauth_file = {folder}/users\npool_mode = {mode}\n"
            f"default_pool_size = {size}\nlogfile = {folder}/log\n{options}\n"
        )
        folder.chmod(0o755)
        user = "nobody" if os.geteuid() == 0 else None  # PgBouncer does not run as root
        if user:
            shutil.chown(folder, user)
        given = program()
        assert given is not None
        process = subprocess.Popen([given, "-q", str(folder / "pgbouncer.ini")], user=user, cwd="/")  # noqa: S603 -- because it is ours
        try:
            give_up_at = time.monotonic() + WAIT_LIMIT
            while not _listens(folder / f".s.PGSQL.{_PORT}"):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < give_up_at
                time.sleep(0.02)
            yield f"postgresql://postgres@{parts.path}?host={folder}&port={_PORT}"
        finally:
            process.terminate()
            process.wait(WAIT_LIMIT)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0
