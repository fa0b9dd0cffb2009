"""The file of an export: a header in JSON, one sealed record a line, a sealed end.

Each line is sealed under the file's name, which is the header's fingerprint, and its own number: so lines cannot be
changed, swapped, doubled, dropped, or brought from another file, nor can the header. The end tells the count, so a
file that was cut off is noticed.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from amo_callback.cipher import Cipher, Scrypt, key_of_passphrase
from amo_callback.errors import CommandFailed, DecryptionFailed
from amo_callback.model import fingerprint, short
from amo_callback.transfer.record import STRICT, Arrival, Problem, faults, read_record, write_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from amo_callback.transfer.record import Record

FORMAT = "amo-callback export"
VERSION = 1
MAX_LINE = 512 * 1024
"""Bytes: two of the longest tokens that AMO could answer with, sealed."""
_END = b"end"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """What a file is sealed with, and what its header tells of that."""

    told: Mapping[str, object]
    cipher: Cipher = field(repr=False)


def lock_with_passphrase(passphrase: str, *, salt: bytes) -> Lock:
    """Seal with a passphrase; the salt is random and the file's own."""
    cost = Scrypt(salt=salt)
    told = {"salt": base64.b64encode(salt).decode(), "n": cost.n, "r": cost.r, "p": cost.p}
    return Lock(told={"passphrase": told}, cipher=Cipher([key_of_passphrase(passphrase, cost)]))


def lock_with_key(key: str) -> Lock:
    """Seal with another host's encryption key."""
    return Lock(told={"key": _hint(key)}, cipher=Cipher([key]))


def _hint(key: str) -> str:
    """Name a key: of 256 random bits, a fingerprint tells nothing."""
    return short(fingerprint(key))


# --- writing -------------------------------------------------------------------------------------


class SealedWriter:
    """Write a file of an export."""

    def __init__(self, file: IO[bytes], lock: Lock, *, file_id: str) -> None:
        self._file = file
        self._cipher = lock.cipher
        header = {"format": FORMAT, "version": VERSION, "id": file_id, "sealed_with": lock.told}
        self._name = self._write(json.dumps(header).encode())
        self.count = 0

    def add(self, record: Record) -> None:
        """Add a record."""
        self.count += 1
        self._write(self._cipher.seal(write_record(record), bound_to=_place(self._name, self.count)))

    def end(self) -> None:
        """Say that this is all."""
        self._write(self._cipher.seal(_END, bound_to=_end(self._name, self.count)))

    def _write(self, line: bytes) -> str:
        self._file.write(line + b"\n")
        return fingerprint(line)


def _place(name: str, number: int) -> str:
    return f"{name}:{number}"


def _end(name: str, count: int) -> str:
    return f"{name}:end:{count}"


# --- reading -------------------------------------------------------------------------------------


@checked(frozen=True, kw_only=True, config=STRICT)
class _Passphrase:
    """The cost of a passphrase; bounded, for it comes from whoever made the file: 256 MiB, four times."""

    salt: Annotated[str, Field(min_length=16, max_length=128, pattern=r"^[A-Za-z0-9+/]+=*$")]
    n: Annotated[int, Field(ge=2, le=2**18)]
    r: Annotated[int, Field(ge=1, le=8)]
    p: Annotated[int, Field(ge=1, le=4)]


@checked(frozen=True, kw_only=True, config=STRICT)
class _SealedWith:
    """What opens a file: one of these."""

    passphrase: _Passphrase | None = None
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None


@checked(frozen=True, kw_only=True, config=STRICT)
class _Header:
    """The first line."""

    format: Literal["amo-callback export"]
    version: Literal[1]
    id: Annotated[str, Field(min_length=1, max_length=64)]
    sealed_with: _SealedWith


_HEADER = TypeAdapter(_Header)


def is_sealed(first_line: bytes) -> bool:
    """Tell whether a file that begins so is an export, of whatever version."""
    try:
        header = json.loads(first_line)
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.get("format") == FORMAT


def open_lock(first_line: bytes, *, keys: Sequence[str], passphrase: Callable[[], str]) -> Cipher:
    """Return what opens the file, the passphrase asked for where it takes one; raises `CommandFailed`."""
    try:
        sealed_with = _HEADER.validate_json(first_line).sealed_with
    except ValidationError as error:
        raise CommandFailed(f"line 1: is no header of an export that this version reads: {faults(error)}") from None
    if cost := sealed_with.passphrase:
        try:
            salt = base64.b64decode(cost.salt)
            return Cipher([key_of_passphrase(passphrase(), Scrypt(salt=salt, n=cost.n, r=cost.r, p=cost.p))])
        except ValueError:  # n is no power of two, or the salt no base64
            raise CommandFailed("line 1: sealed_with: its numbers are none that scrypt takes") from None
    if sealed_with.key not in {_hint(key) for key in keys}:
        raise CommandFailed(f"it is sealed with the key {sealed_with.key}, which is none of storage.encryption_keys")
    return Cipher(keys)


def read_sealed(file: IO[bytes], *, cipher: Cipher) -> Iterator[Arrival | Problem]:
    """Read a file from its beginning; of a line that cannot be opened the problem is told, and nothing after it."""
    name = fingerprint(file.readline(MAX_LINE).rstrip(b"\n"))
    count = 0
    line = file.readline(MAX_LINE)
    while following := file.readline(MAX_LINE):
        count += 1
        place = f"line {count + 1}"
        try:
            yield Arrival(
                place=place, record=read_record(cipher.open(line.rstrip(b"\n"), bound_to=_place(name, count)))
            )
        except DecryptionFailed:
            yield Problem(place=place, why=_WRONG_KEY if count == 1 else _NOT_ITS_PLACE)
            return
        except ValidationError as error:
            yield Problem(place=place, why=faults(error))
        line = following
    try:
        cipher.open(line.rstrip(b"\n"), bound_to=_end(name, count))
    except DecryptionFailed:
        yield Problem(place=f"line {count + 2}", why=_CUT_OFF if count else f"{_CUT_OFF}; or {_WRONG_KEY}")


_WRONG_KEY = "the passphrase or key is another one, or the file was changed"
_NOT_ITS_PLACE = "was changed, or does not belong there"
_CUT_OFF = "the file's end is missing: it was cut off or changed"
