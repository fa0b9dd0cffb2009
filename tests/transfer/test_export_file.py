"""Export files: records are read as they were sealed, and every change of the file is detected."""

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
    raise AssertionError("no passphrase must be asked for")


def _read(content: bytes, *, key: str = KEY) -> list[ParsedRecord | RecordError]:
    cipher = key_of_host(key).cipher
    return list(read_export(io.BytesIO(content), cipher=cipher))


def _records(content: bytes) -> list[ExportRecord]:
    return [one.record for one in _read(content) if isinstance(one, ParsedRecord)]


def _problems(content: bytes, *, key: str = KEY) -> list[tuple[str, str]]:
    return [(one.place, one.why) for one in _read(content, key=key) if isinstance(one, RecordError)]


def test_export_record_is_read_unchanged() -> None:
    """Every field is kept, with microseconds and tokens as long as AMO's answers allow."""
    odd = a_record(
        9, status=Status.NEEDS_REAUTH, reason=Reason.IN_DOUBT, possibly_spent_token="a fingerprint", frozen=True,
        refresh_token="r" * 128 * 1024, access_token="a" * 128 * 1024,
    )  # fmt: skip
    content = sealed([*RECORDS, odd], key=KEY).read()
    assert _records(content) == [*RECORDS, odd]
    assert _problems(content) == []
    assert max(map(len, content.splitlines())) < MAX_LINE


def test_export_without_records_is_valid() -> None:
    """A file without records is read without a problem."""
    assert _read(sealed([], key=KEY).read()) == []


def test_export_is_decrypted_only_by_its_passphrase() -> None:
    """Another passphrase is reported; the header contains the cost, so that a later version can raise it."""
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
    assert problem.why == "the passphrase or key is wrong, or the file was modified"


def test_export_is_decrypted_by_named_key_of_host() -> None:
    """The host's newest or older key decrypts the file, and a missing key is named without its value."""
    file = sealed(RECORDS, key=KEY)
    header = file.readline()
    file.seek(0)
    cipher = cipher_for(header, keys=[OTHER_KEY, KEY], passphrase=_never)
    assert len(list(read_export(file, cipher=cipher))) == 3
    with pytest.raises(CommandFailed, match="is not in storage") as raised:
        cipher_for(header, keys=[OTHER_KEY], passphrase=_never)
    assert json.loads(header)["sealed_with"]["key"] in str(raised.value)
    assert KEY[:8] not in header.decode()


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    return b"".join(change(sealed(RECORDS, key=KEY).readlines()))


def test_export_changed_lines_are_reported_by_line() -> None:
    """Lines that are swapped, repeated, missing, added or from another file are reported by their number."""
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
    result = {what: _problems(_lines(change)) for what, (_, change) in changes.items()}
    assert {what: [place for place, _ in problems] for what, problems in result.items()} == {
        what: [place] for what, (place, _) in changes.items()
    }


def test_export_truncated_file_is_reported() -> None:
    """A file truncated anywhere has one problem, and never a partial record."""
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
def test_export_hostile_header_is_refused_before_passphrase(header: bytes) -> None:
    """Excessive scrypt costs, unknown versions and fields are refused before a passphrase is asked for."""
    with pytest.raises(CommandFailed, match="this amo-callback version cannot read the header") as raised:
        cipher_for(header, keys=[KEY], passphrase=_never)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("sealed_with", "why"),
    [
        ({"passphrase": COST | {"n": 3 * 2**10}}, "sealed_with contains invalid scrypt parameters"),
        ({"passphrase": COST | {"n": 3}}, "sealed_with contains invalid scrypt parameters"),
        ({}, "is not in storage"),
    ],
)
def test_export_header_without_usable_key_is_refused(sealed_with: dict[str, Any], why: str) -> None:
    """A cost that scrypt refuses, or a header without a key, is an error."""
    with pytest.raises(CommandFailed, match=why):
        cipher_for(_header(sealed_with=sealed_with), keys=[KEY], passphrase=lambda: PASSPHRASE)


def test_is_export_recognizes_header() -> None:
    """An export of any version is recognized by its first line, and nothing else is."""
    assert is_export(_header())
    assert is_export(_header(version=99))
    for other in (b"", b"{", b"[]", b"{}", b'"x"', b"\xff", b"[" * 100_000, b'{"format": 1}'):
        assert not is_export(other)


def test_export_repr_and_file_contain_no_token() -> None:
    """Neither the repr of a record or a key nor the file shows a token or the key."""
    content = sealed(RECORDS, key=KEY).read()
    shown = repr(_read(content)) + repr(key_of_host(KEY)) + content.decode()
    for secret in (KEY, *(record.access_token for record in RECORDS), *(record.refresh_token for record in RECORDS)):
        assert secret not in shown


# --- new files -----------------------------------------------------------------------------------


def test_new_file_appears_complete_with_mode_600(tmp_path: Path) -> None:
    """A file gets its name when it is complete, with mode 600."""
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
def test_new_file_interrupted_leaves_no_file(tmp_path: Path, error: BaseException) -> None:
    """Any error or interruption leaves no file."""

    def fail() -> None:
        raise error

    with pytest.raises((CommandFailed, KeyboardInterrupt)):
        _write(tmp_path / "x.export", then=fail)
    assert list(tmp_path.iterdir()) == []


def test_new_file_existing_target_is_kept(tmp_path: Path) -> None:
    """A file created meanwhile or a dangling link is kept, and a missing folder is named."""
    path, link = tmp_path / "x.export", tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CommandFailed, match=r"cannot write .*: File exists"):
        _write(link, then=lambda: None)
    with pytest.raises(CommandFailed, match=r"cannot write .*: File exists"):
        _write(path, then=lambda: path.write_bytes(b"old"))
    with pytest.raises(CommandFailed, match=r"cannot write .*: No such file or directory"):
        _write(tmp_path / "nowhere" / "x.export", then=lambda: None)
    assert path.read_bytes() == b"old"
    assert {each.name for each in tmp_path.iterdir()} == {"link", "x.export"}
