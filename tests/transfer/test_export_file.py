"""The file of an export: what was sealed comes out, and whatever was done to the file is noticed."""

from __future__ import annotations

import io
import json
import stat
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.crypto import new_key
from amo_callback.errors import CommandFailed
from amo_callback.model import Reason, Status
from amo_callback.transfer.export_file import (
    MAX_LINE,
    ExportRecord,
    ExportWriter,
    ParsedRecord,
    RecordError,
    cipher_for,
    is_export,
    key_from_passphrase,
    key_of_host,
    new_file,
    read_export,
)
from tests.transfer.samples import a_record, sealed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY, OTHER_KEY = new_key(), new_key()
PASSPHRASE = "correct horse battery staple"
SALT = b"a salt of 16 b.."
RECORDS = [a_record(number) for number in range(1, 4)]


def _never() -> str:
    raise AssertionError("nobody is to be asked")


def _read(content: bytes, *, key: str = KEY) -> list[ParsedRecord | RecordError]:
    cipher = key_of_host(key).cipher
    return list(read_export(io.BytesIO(content), cipher=cipher))


def _records(content: bytes) -> list[ExportRecord]:
    return [one.record for one in _read(content) if isinstance(one, ParsedRecord)]


def _problems(content: bytes, *, key: str = KEY) -> list[tuple[str, str]]:
    return [(one.place, one.why) for one in _read(content, key=key) if isinstance(one, RecordError)]


def test_what_is_sealed_comes_out_as_it_went_in() -> None:
    """Every field, times to the microsecond, and tokens as long as AMO's answers could bring them."""
    odd = a_record(
        9, status=Status.NEEDS_REAUTH, reason=Reason.IN_DOUBT, possibly_spent_token="a fingerprint", frozen=True,
        refresh_token="r" * 128 * 1024, access_token="a" * 128 * 1024,
    )  # fmt: skip
    content = sealed([*RECORDS, odd], key=KEY).read()
    assert _records(content) == [*RECORDS, odd]
    assert _problems(content) == []
    assert max(map(len, content.splitlines())) < MAX_LINE


def test_a_file_without_connections_is_a_whole_file() -> None:
    """Nothing comes out of it, and nothing is wrong with it."""
    assert _read(sealed([], key=KEY).read()) == []


def test_a_passphrase_opens_what_it_sealed_and_no_other_one_does() -> None:
    """Its cost stands in the header, so that a later version can raise it."""
    file = io.BytesIO()
    writer = ExportWriter(file, key_from_passphrase(PASSPHRASE, salt=SALT), file_id="1")
    writer.add(RECORDS[0])
    writer.end()
    header = file.getvalue().splitlines()[0]
    read: dict[str, list[ParsedRecord | RecordError]] = {}
    for passphrase in (PASSPHRASE, "another passphrase"):
        file.seek(0)
        cipher = cipher_for(header, keys=[KEY], passphrase=lambda said=passphrase: said)  # type: ignore[misc]  # reason: its default is its value
        read[passphrase] = list(read_export(file, cipher=cipher))
    assert read[PASSPHRASE] == [ParsedRecord(place="line 2", record=RECORDS[0])]
    [problem] = read["another passphrase"]
    assert isinstance(problem, RecordError)
    assert problem.why == "the passphrase or key is another one, or the file was changed"


def test_another_hosts_key_opens_what_it_sealed_and_is_named_where_it_is_missing() -> None:
    """The newest key or an older one; the name in the header tells nothing of the key."""
    file = sealed(RECORDS, key=KEY)
    header = file.readline()
    file.seek(0)
    cipher = cipher_for(header, keys=[OTHER_KEY, KEY], passphrase=_never)
    assert len(list(read_export(file, cipher=cipher))) == 3
    with pytest.raises(CommandFailed, match="which is not in storage") as raised:
        cipher_for(header, keys=[OTHER_KEY], passphrase=_never)
    assert json.loads(header)["sealed_with"]["key"] in str(raised.value)
    assert KEY[:8] not in header.decode()


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    return b"".join(change(sealed(RECORDS, key=KEY).readlines()))


def test_whatever_was_done_to_the_lines_is_noticed_where_it_was_done() -> None:
    """Swapped, doubled, dropped, added, or brought from another file under the same key: told by the line."""
    foreign = sealed(RECORDS, key=KEY, file_id="another file").readlines()
    changes: dict[str, tuple[str, Callable[[list[bytes]], list[bytes]]]] = {
        "swapped": ("line 3", lambda of: [*of[:2], of[3], of[2], of[4]]),
        "doubled": ("line 3", lambda of: [*of[:2], of[1], *of[2:]]),
        "dropped": ("line 3", lambda of: [*of[:2], *of[3:]]),
        "the last dropped": ("line 4", lambda of: [*of[:3], of[4]]),
        "brought": ("line 3", lambda of: [*of[:2], foreign[2], *of[3:]]),
        "added after the end": ("line 5", lambda of: [*of, of[3]]),
        "empty": ("line 3", lambda of: [*of[:2], b"\n", *of[2:]]),
        "header": ("line 2", lambda of: [of[0].replace(b"a file", b"b file"), *of[1:]]),
    }
    told = {what: _problems(_lines(change)) for what, (_, change) in changes.items()}
    assert {what: [place for place, _ in problems] for what, problems in told.items()} == {
        what: [place] for what, (place, _) in changes.items()
    }


def test_a_file_that_was_cut_off_anywhere_is_noticed() -> None:
    """After any byte but the last line's end, a problem comes out, and never a record that was not whole."""
    content = sealed(RECORDS, key=KEY).read()
    after_header = content.index(b"\n") + 1
    for length in range(after_header, len(content) - 1, 97):
        assert len(_problems(content[:length])) == 1
        assert _records(content[:length]) == RECORDS[: len(_records(content[:length]))]
    assert _problems(content[:after_header]) != []
    for lines in range(1, 5):
        assert len(_problems(b"".join(content.splitlines(keepends=True)[:lines]))) == 1


def _header(**more: Any) -> bytes:
    header = {"format": "amo-callback export", "version": 1, "id": "1", "sealed_with": {"key": "0" * 16}}
    return json.dumps(header | more).encode()


COST = {"salt": "YSBzYWx0IG9mIDE2IGIuLg==", "n": 2**14, "r": 8, "p": 1}


BAD_COSTS: list[dict[str, Any]] = [
    {"n": 2**40}, {"n": 2**19}, {"n": 0}, {"n": -1}, {"n": "16384"}, {"n": 1e9}, {"r": 2**30}, {"r": 9}, {"p": 2**30},
    {"p": 5}, {"salt": "!" * 32}, {"salt": "short"}, {"salt": "A" * 10**6},
]  # fmt: skip


@pytest.mark.parametrize(
    "header",
    [
        _header(version=2),
        _header(sealed_with={"key": "x" * 1000}),
        _header(sealed_with={"passphrase": COST, "more": 1}),
        _header(more=1),
        *(_header(sealed_with={"passphrase": COST | cost}) for cost in BAD_COSTS),
    ],
)
def test_a_hostile_header_eats_nothing(header: bytes) -> None:
    """Costs of scrypt out of bounds, unknown versions and fields are refused before a passphrase is asked for."""
    with pytest.raises(CommandFailed, match="not the header of an export that this version can read") as raised:
        cipher_for(header, keys=[KEY], passphrase=_never)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("sealed_with", "why"),
    [
        ({"passphrase": COST | {"n": 3 * 2**10}}, "invalid parameters of scrypt"),
        ({"passphrase": COST | {"n": 3}}, "invalid parameters of scrypt"),
        ({}, "which is not in storage"),
    ],
)
def test_a_header_that_names_no_key_opens_nothing(sealed_with: dict[str, Any], why: str) -> None:
    """A cost within bounds that scrypt itself refuses, and nothing at all."""
    with pytest.raises(CommandFailed, match=why):
        cipher_for(_header(sealed_with=sealed_with), keys=[KEY], passphrase=lambda: PASSPHRASE)


def test_an_export_is_told_from_plain_json_by_its_first_line() -> None:
    """Of whatever version; nothing else is one."""
    assert is_export(_header())
    assert is_export(_header(version=99))
    for other in (b"", b"{", b"[]", b"{}", b'"x"', b"\xff", b"[" * 100_000, b'{"format": 1}'):
        assert not is_export(other)


def test_nothing_of_a_record_shows_its_tokens() -> None:
    """Neither a record nor what comes from a file, nor the lock; and nothing of them stands in the file."""
    content = sealed(RECORDS, key=KEY).read()
    shown = repr(_read(content)) + repr(key_of_host(KEY)) + content.decode()
    for secret in (KEY, *(record.access_token for record in RECORDS), *(record.refresh_token for record in RECORDS)):
        assert secret not in shown


# --- the file itself -----------------------------------------------------------------------------


def test_a_file_appears_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    """Nothing of it bears its name before it ends."""
    path = tmp_path / "x.export"
    with new_file(path) as file:
        file.write(b"all of it")
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def _write(path: Path, *, then: Callable[[], object]) -> None:
    with new_file(path) as file:
        file.write(b"new")
        then()


@pytest.mark.parametrize("error", [CommandFailed(), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_file_that_was_not_ended_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    """Whatever broke it off."""

    def fail() -> None:
        raise error

    with pytest.raises((CommandFailed, KeyboardInterrupt)):
        _write(tmp_path / "x.export", then=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    """Also one that came meanwhile, and a link that leads nowhere; a folder that is missing is named."""
    path, link = tmp_path / "x.export", tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CommandFailed, match="cannot be written: File exists"):
        _write(link, then=lambda: None)
    with pytest.raises(CommandFailed, match="cannot be written: File exists"):
        _write(path, then=lambda: path.write_bytes(b"old"))
    with pytest.raises(CommandFailed, match="cannot be written: No such file or directory"):
        _write(tmp_path / "nowhere" / "x.export", then=lambda: None)
    assert path.read_bytes() == b"old"
    assert {each.name for each in tmp_path.iterdir()} == {"link", "x.export"}
