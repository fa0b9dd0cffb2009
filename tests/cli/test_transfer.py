"""The commands `connections export` and `import`: output, exit status and secrets."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import stat
import sys
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.clock import SystemClock
from amo_callback.crypto import Cipher, new_key
from amo_callback.model import ConnectionFilter
from amo_callback.refresh.raw_answers import file_name
from amo_callback.refresh.rescue import RescueFolder
from amo_callback.store import open_store
from amo_callback.transfer.importer import make_plan
from tests.builders import DAY
from tests.cli.harness import environ_with, typed
from tests.e2e.process import command, process_environment
from tests.transfer.samples import RULES, a_record, a_token, an_entry, arrivals, keep_raw, written
from tests.wait_limit import WAIT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from amo_callback.transfer.export_file import ExportRecord

URL = "sqlite:///amo-callback.db"
PASSPHRASE = "correct horse battery staple"


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A machine with a configuration and a database."""

    folder: Path
    key: str = field(repr=False)

    def environ(self) -> dict[str, str]:
        return environ_with(STORAGE__ENCRYPTION_KEYS=self.key)

    async def run(self, *arguments: str, **more: str) -> tuple[int, str, str]:
        environ = self.environ() | {f"AMO_CALLBACK_{name}": value for name, value in more.items()}
        return await command("connections", *arguments, folder=self.folder, environ=environ)

    def file(self, name: str, content: str | bytes) -> str:
        (self.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    async def fill(self, *records: ExportRecord) -> None:
        cipher = Cipher([self.key])
        async with open_store(URL, folder=self.folder, clock=SystemClock()) as store:
            await store.canary(cipher.seal_canary())
            plan = await make_plan(arrivals(*records), store=store, cipher=cipher, rules=RULES)
            assert await written(plan, store, cipher) == []

    async def tokens(self) -> dict[str, tuple[str, str]]:
        """Return access and refresh token per account."""
        cipher = Cipher([self.key])
        async with open_store(URL, folder=self.folder, clock=SystemClock()) as store:
            found = await store.page(after="", limit=1000, only=ConnectionFilter())
        pairs = {one.account_id: cipher.decrypt_pair(one) for one in found}
        return {name: (pair.access_token, pair.refresh_token) for name, pair in pairs.items() if pair is not None}

    def rows(self) -> list[tuple[Any, ...]]:
        """Return the rows of connections and events."""
        with closing(sqlite3.connect(self.folder / "amo-callback.db")) as database:
            return [*database.execute("SELECT * FROM connections"), *database.execute("SELECT * FROM events")]

    def is_frozen(self) -> bool:
        with closing(sqlite3.connect(self.folder / "amo-callback.db")) as database:
            return bool(database.execute("SELECT * FROM meta WHERE name = 'frozen'").fetchall())


@pytest.fixture
def here(tmp_path: Path) -> Host:
    (tmp_path / "here").mkdir()
    return Host(folder=tmp_path / "here", key=new_key())


@pytest.fixture
def there(tmp_path: Path) -> Host:
    (tmp_path / "there").mkdir()
    return Host(folder=tmp_path / "there", key=new_key())


def _tokens_of(records: Sequence[ExportRecord]) -> dict[str, tuple[str, str]]:
    return {record.account_id: (record.access_token, record.refresh_token) for record in records}


async def test_transfer_with_passphrase_moves_connections(here: Host, there: Host, tmp_path: Path) -> None:
    """Connections are exported, frozen and imported; a second import changes nothing."""
    records = [a_record(number) for number in range(1, 4)]
    await here.fill(*records)
    for host in (here, there):
        host.file("passphrase", PASSPHRASE + "\n")
    export = str(tmp_path / "all.export")
    status, out, err = await here.run("export", export, "--passphrase-file", "passphrase")
    assert (status, err) == (0, "")
    assert out == (
        f"Exported 3 connections to {export}. This database is frozen: its tokens are not refreshed.\n"
        "Next, run on the other host: amo-callback connections import all.export\n"
        "After that import, do not thaw this database: if two hosts refresh the same tokens, both lose them.\n"
    )
    assert stat.S_IMODE((tmp_path / "all.export").stat().st_mode) == 0o600
    imported = await there.run("import", export, "--passphrase-file", "passphrase", "--yes")
    assert imported == (0, "        3  new\nImported 3 connections.\n", "")
    assert await there.tokens() == await here.tokens() == _tokens_of(records)
    before = there.rows()
    again = await there.run("import", export, "--passphrase-file", "passphrase", "--yes")
    assert again == (0, "        0  new\n        3  already stored, skipped\n", "")
    assert there.rows() == before
    assert (here.is_frozen(), there.is_frozen()) == (True, False)


async def test_thaw_after_export_requires_confirmation(here: Host) -> None:
    """Exported connections need `--yes` to thaw, because another host may use them; other freezes do not."""
    await here.fill(a_record())
    here.file("passphrase", PASSPHRASE + "\n")
    assert (await here.run("export", "all.export", "--passphrase-file", "passphrase"))[0] == 0
    status, _, err = await here.run("thaw", "--all")
    assert (status, here.is_frozen()) == (1, True)
    assert "exported to another host" in err
    assert "--yes" in err
    assert (await here.run("thaw", "--all", "--yes"))[0] == 0
    for action in ("freeze", "thaw"):
        assert (await here.run(action, "--all"))[0] == 0
    assert not here.is_frozen()


async def test_import_raw_recovers_pair_of_unreadable_answer(here: Host) -> None:
    """The pair replaces the spent one, its file is removed, and a second import changes nothing."""
    now = datetime.now(UTC)
    await here.fill(a_record(issued_at=now, expires_at=now + DAY, refresh_expires_at=now + 90 * DAY))
    issued = {"access_token": a_token(at=now), "refresh_token": "the-next-token"}
    name = await _keep_raw(here, json.dumps(issued)[:-1].encode())
    file = here.folder / "rescue" / name
    content = file.read_bytes()
    status, out, err = await here.run("import", "--raw", f"rescue/{name}")
    assert (status, out) == (1, "        0  new\n        1  replaced\n")
    assert err == "amo-callback: cannot ask for confirmation without a terminal: use --yes; nothing was changed\n"
    imported = await here.run("import", "--raw", f"rescue/{name}", "--yes")
    assert imported == (0, "        0  new\n        1  replaced\nImported 1 connections.\n", "")
    assert await here.tokens() == {"1": (issued["access_token"], issued["refresh_token"])}
    assert not file.exists()
    file.write_bytes(content)
    status, _, err = await here.run("import", "--raw", f"rescue/{name}", "--yes")
    assert status == 1
    assert err.startswith(f"{name}: the connection has newer tokens, or is not in this database\n")


async def _keep_raw(host: Host, body: bytes) -> str:
    """Keep an answer as the service does and return its file name."""
    cipher, clock = Cipher([host.key]), SystemClock()
    async with open_store(URL, folder=host.folder, clock=clock) as store:
        [connection] = await store.page(after="", limit=10, only=ConnectionFilter())
        rescue = RescueFolder(host.folder / "rescue")
        rescue.open()
        await keep_raw(store, cipher, rescue, body, file_name(connection), domain=connection.domain)
        return file_name(connection)


async def test_transfer_with_key_of_other_host_moves_connections(here: Host, there: Host, tmp_path: Path) -> None:
    """No passphrase is needed, and a host with another key cannot decrypt the file."""
    await here.fill(a_record())
    export = str(tmp_path / "all.export")
    status, _, err = await here.run("export", export, "--to-key-file", here.file("their.key", there.key))
    assert (status, err) == (0, "")
    assert (await there.run("import", export, "--yes"))[0] == 0
    assert await there.tokens() == _tokens_of([a_record()])
    stranger = Host(folder=there.folder, key=new_key() + "\n" + there.key)
    assert (await stranger.run("import", export, "--yes"))[0] == 0
    status, out, err = await here.run("import", export, "--yes")
    assert (status, out) == (1, "")
    assert "is not in storage.encryption_keys" in err


async def test_export_failure_names_reason_and_leaves_no_file(here: Host) -> None:
    """An existing file, a short passphrase, an invalid key, a missing terminal or a pending write fails the export."""
    await here.fill(a_record())
    here.file("passphrase", PASSPHRASE)
    here.file("there.export", "what was there")
    here.file("short", "short\n")
    here.file("junk", "this-is-no-key-but-some-other-secret")
    result = {
        "cannot write there.export: File exists": ["there.export", "--passphrase-file", "passphrase"],
        "the passphrase must have at least 12 characters": ["x.export", "--passphrase-file", "short"],
        "junk must begin with one of the other host's encryption keys": [
            "x.export",
            "--to-key-file",
            "junk",
        ],
        "cannot read nowhere: No such file": ["x.export", "--to-key-file", "nowhere"],
        "cannot ask for the passphrase without a terminal": ["x.export"],
    }
    for words, arguments in result.items():
        status, out, err = await here.run("export", *arguments)
        assert (status, out) == (1, "")
        assert words in err
        assert "secret" not in err
    assert not here.is_frozen()
    (here.folder / "rescue").mkdir()
    (here.folder / "rescue" / "some-pair").write_bytes(b"sealed")
    status, out, err = await here.run("export", "x.export", "--passphrase-file", "passphrase")
    assert status == 1
    assert "the rescue folder contains unsaved token pairs (1)" in err
    assert "still frozen" in err
    assert here.is_frozen()
    assert not list(here.folder.glob("*x.export*"))
    assert (here.folder / "there.export").read_text() == "what was there"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_export_stopped_by_signal_leaves_no_partial_file(here: Host, number: int) -> None:
    """The source stays frozen, the error reports the freeze, and a second export succeeds."""
    await here.fill(a_record())
    with closing(sqlite3.connect(here.folder / "amo-callback.db")) as database, database:
        database.execute("UPDATE connections SET attempt = 'of a dead process', presented_token = 'a token'")
    here.file("key", new_key())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "amo_callback.cli.main", "connections", "export", "x.export", "--to-key-file", "key",
        cwd=here.folder, env=process_environment(here.environ()),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    waiting = await asyncio.wait_for(process.stdout.readline(), WAIT_LIMIT)
    assert waiting == b"Waiting up to 60 s for refreshes in progress.\n"
    process.send_signal(number)
    _, err = await asyncio.wait_for(process.communicate(), WAIT_LIMIT)
    assert (process.returncode, b"still frozen" in err, b"Traceback" in err) == (130, True, False)
    assert {file.name for file in here.folder.iterdir()} <= {
        "key",
        *(f"amo-callback.db{end}" for end in ("", "-wal", "-shm")),
    }
    assert here.is_frozen()
    environ = {"REFRESH__LEASE": "1.5", "AMO__TIMEOUT": "1"}
    status, out, err_again = await here.run("export", "x.export", "--to-key-file", "key", **environ)
    assert (status, err_again) == (0, "")
    assert "Exported 1 connections to" in out


async def test_export_undecryptable_pair_is_named_and_skipped(here: Host, there: Host) -> None:
    """A connection whose pair no key decrypts is named and skipped."""
    await here.fill(a_record(1))
    with closing(sqlite3.connect(here.folder / "amo-callback.db")) as database, database:
        database.execute("UPDATE connections SET sealed_pair = x'00'")
    await here.fill(a_record(2))
    _, out, _ = await here.run("export", "x.export", "--to-key-file", here.file("key", there.key))
    assert "Exported 1 connections to" in out
    assert f"Connections not exported, because no key decrypts their token pairs: {a_record(1).id}" in out


# --- import from another system ------------------------------------------------------------------


def _now(number: int = 1, **more: Any) -> dict[str, object]:
    """Return an entry whose token is valid at the machine's time."""
    return an_entry(number, access_token=a_token(number, at=SystemClock().now()), **more)


async def test_import_of_other_system_shows_plan_and_requires_yes(there: Host) -> None:
    """The plan is shown first, and without a terminal `--yes` is required."""
    entries = [_now(1, owner="user-1"), _now(2), _now(3, refresh_token=None)]
    name = there.file("tokens.json", json.dumps({"connections": entries}))
    plan = (
        "        3  new\n"
        "        1  with an owner; owners are not imported: a user becomes an owner by connecting in the app\n"
        "        1  without a refresh token: usable only until the access token expires\n"
        "The other system must stop refreshing these tokens: if two systems refresh one token, both lose it.\n"
    )
    assert await there.run("import", name, "--dry-run") == (0, plan, "")
    status, out, err = await there.run("import", name)
    assert (status, out) == (1, plan)
    assert "cannot ask for confirmation without a terminal: use --yes; nothing was changed" in err
    assert there.rows() == []
    assert await there.run("import", name, "--yes") == (0, plan + "Imported 3 connections.\n", "")
    assert set(await there.tokens()) == {"1", "2", "3"}
    status, out, err = await there.run("list", "--json")
    assert {one["account_id"]: one["status"] for one in json.loads(out)} == {
        "1": "active", "2": "active", "3": "active"
    }  # fmt: skip


JUNK: dict[str, tuple[str, list[str]]] = {
    "broken": ('[{"access_token": "access-secret", 1}]', ["amo-callback: line 1, column 36: invalid JSON"]),
    "host": (json.dumps([_now(1), _now(2, domain="evil.example")]), ['entry 2: "domain" is neither an AMO host n']),
    "lines": (
        json.dumps(_now(1)) + '\n{"access_token": "access-secret\n' + json.dumps(_now(2, domain=5)),
        ["line 2: invalid JSON", "line 3: domain: input should be a valid string"],
    ),
}


@pytest.mark.parametrize("kind", JUNK)
async def test_import_invalid_entry_changes_nothing(there: Host, kind: str) -> None:
    """Each invalid entry is one line with its place, and valid entries are not written either."""
    await there.fill(a_record(9))
    before = there.rows()
    content, wanted = JUNK[kind]
    status, out, err = await there.run("import", there.file("junk", content), "--yes", "--replace")
    result = [line for line in err.splitlines() if "nothing was changed" not in line]
    assert (status, out) == (1, "")
    assert [line[: len(words)] for line, words in zip(result, wanted, strict=True)] == wanted
    assert there.rows() == before
    assert not any(secret in err for secret in ("access-secret", "refresh-token", "evil", a_token()[:20]))


async def test_transfer_output_and_files_contain_no_secret(here: Host, there: Host, tmp_path: Path) -> None:
    """No output, database or export file contains a token, a key or the passphrase."""
    records = [a_record(number) for number in range(1, 4)]
    await here.fill(*records)
    for host in (here, there):
        host.file("passphrase", PASSPHRASE)
        host.file("wrong", "another passphrase")
    export = str(tmp_path / "all.export")
    other = there.file("tokens.json", json.dumps([_now(7), an_entry(8, domain="evil.example")]))
    said = [
        await here.run("export", export, "--passphrase-file", "passphrase"),
        await here.run("export", export, "--passphrase-file", "passphrase"),
        await there.run("import", export, "--passphrase-file", "wrong", "--yes"),
        await there.run("import", export, "--passphrase-file", "passphrase", "--yes", AMO__CLIENT_ID="another"),
        await there.run("import", export, "--passphrase-file", "passphrase", "--yes"),
        await there.run("import", other, "--yes"),
        await there.run("list"),
    ]
    assert [status for status, _, _ in said] == [0, 1, 1, 1, 0, 1, 0]
    written_files = [(tmp_path / "all.export"), *there.folder.glob("*.db*")]
    everything = repr(said) + "".join(file.read_bytes().decode("latin-1") for file in written_files)
    secrets = {
        here.key, there.key, PASSPHRASE, "another passphrase", "the-client-secret", a_token(8), "refresh-token-of-8",
        *(record.access_token for record in records), *(record.refresh_token for record in records),
    }  # fmt: skip
    assert [secret for secret in secrets if secret in everything] == []
    assert "Traceback" not in everything


# --- on a terminal -------------------------------------------------------------------------------


async def _typed(host: Host, *arguments: str, answers: Sequence[tuple[str, str]]) -> tuple[int, str]:
    return await typed("connections", *arguments, folder=host.folder, environ=host.environ(), answers=answers)


async def test_transfer_on_terminal_asks_for_passphrase_and_confirmation(here: Host, there: Host) -> None:
    """A new passphrase is asked for twice, and a no changes nothing."""
    await here.fill(a_record())
    export = str(here.folder / "all.export")
    first, again = ("Passphrase", f"{PASSPHRASE}\n"), ("Repeat the passphrase", f"{PASSPHRASE}\n")
    status, shown = await _typed(here, "export", export, answers=[first, ("Repeat", "something else\n")])
    assert (status, "the two passphrases differ" in shown, here.is_frozen()) == (1, True, False)
    status, shown = await _typed(here, "export", export, answers=[first, again])
    assert (status, "Exported 1 connections to" in shown) == (0, True)
    status, shown = await _typed(there, "import", export, answers=[first, ("Import these connections?", "n\n")])
    assert (status, "Nothing was changed." in shown, there.rows()) == (1, True, [])
    status, shown = await _typed(there, "import", export, answers=[first, ("Import these connections?", "y\n")])
    assert (status, "Imported 1 connections." in shown) == (0, True)
    assert await there.tokens() == _tokens_of([a_record()])
    assert PASSPHRASE not in shown


async def test_import_many_problems_prints_first_hundred(there: Host) -> None:
    """The first hundred problems and their total are printed."""
    (there.folder / "tokens.json").write_text(json.dumps([{}] * 150))
    status, _, err = await there.run("import", "tokens.json", "--yes")
    assert status == 1
    lines = err.splitlines()
    assert (len(lines), lines[99].partition(":")[0]) == (102, "entry 100")
    assert lines[100:] == ["…", "amo-callback: nothing was changed; problems found in the file: 150"]
