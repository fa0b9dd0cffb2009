"""The file of an export: a JSON header, one encrypted record per line, and an encrypted trailer.

The encryption of each record is bound to the record's number and to the header's fingerprint. The reader therefore
detects a changed header, lines that were changed, reordered, repeated or removed, and lines from other files. The
encryption of the trailer is bound to the number of records, so that a truncated file is detected.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Annotated, Literal

from pydantic import AwareDatetime, Base64Bytes, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from amo_callback.crypto import Cipher, derive_key
from amo_callback.errors import CommandFailed, DecryptionFailed
from amo_callback.files import atomic_file
from amo_callback.model import Reason, Status, TokenPair, abbreviated, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from amo_callback.model import Connection

FORMAT: Literal["amo-callback export"] = "amo-callback export"
VERSION: Literal[1] = 1
MAX_LINE = 512 * 1024
"""The maximum size of a line in bytes: enough for two encrypted tokens of `MAX_TOKEN` characters."""
MAX_TOKEN = 128 * 1024
"""The maximum length of a token in characters."""
_END = b"end"
_STRICT = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

Token = Annotated[str, Field(min_length=1, max_length=MAX_TOKEN, pattern=r"^[ -~]*$")]
OptionalToken = Annotated[str, Field(max_length=MAX_TOKEN, pattern=r"^[ -~]*$")]
"""A token, or an empty string."""
Host = Annotated[str, Field(max_length=253)]
_Name = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_-]*$")]
_Owner = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00]+$")]


@validated(frozen=True, kw_only=True, slots=True, config=_STRICT)
class ExportRecord:
    """A connection with its token pair and owners, for import into another store."""

    id: Annotated[_Name, Field(min_length=1)]
    account_id: _Name
    user_id: _Name
    domain: Host
    api_domain: Host | None = None
    client_id: Annotated[str, Field(max_length=1024)]
    status: Status = Status.ACTIVE
    reason: Reason | None = None
    access_token: Token = dataclasses.field(repr=False)
    refresh_token: OptionalToken = dataclasses.field(repr=False)
    issued_at: AwareDatetime
    expires_at: AwareDatetime
    refresh_expires_at: AwareDatetime | None
    refreshed_at: AwareDatetime | None = None
    connected_at: AwareDatetime
    grant_iat: int | None = None
    possibly_spent_token: str | None = None
    """The fingerprint of a refresh token that may have been spent; it is introspected before it is presented."""
    recheck_at: AwareDatetime | None = None
    frozen: bool = False
    """Whether this connection is frozen individually, because another host may use its tokens."""
    precedence: int
    """The connection's position in the order by which `account:` names one of several connections."""
    owners: Mapping[_Owner, int] = dataclasses.field(default_factory=dict)
    """The owners, each with a position in the order in which users last connected."""

    @property
    def pair(self) -> TokenPair:
        return TokenPair(**{name: getattr(self, name) for name in _PAIR})


_PAIR = tuple(field.name for field in dataclasses.fields(TokenPair))
OF_CONNECTION = tuple(
    field.name
    for field in dataclasses.fields(ExportRecord)
    if field.name not in {*_PAIR, "owners", "possibly_spent_token"}
)
_RECORD = TypeAdapter(ExportRecord)


def record_of(connection: Connection, pair: TokenPair, owners: Mapping[str, int]) -> ExportRecord:
    """Return the record of a connection; the token of an unfinished attempt is recorded as possibly spent."""
    return ExportRecord(
        **{name: getattr(connection, name) for name in OF_CONNECTION},
        **{name: getattr(pair, name) for name in _PAIR},
        possibly_spent_token=connection.presented_token or connection.possibly_spent_token,
        owners=owners,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ParsedRecord:
    """A record and its position in the file."""

    place: str
    record: ExportRecord
    names_owner: bool = False
    """Whether the entry is from another system and names an owner; the owner is not imported."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RecordError:
    """An error and its position in a file; the error quotes no content of the file."""

    place: str
    why: str


def describe(error: ValidationError) -> str:
    """Return a description that names the invalid fields and the reasons, without the values."""
    found: dict[str, list[str]] = {}
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        text = fault["msg"]
        found.setdefault(str(fault["loc"][0]) if fault["loc"] else "", []).append(text[:1].lower() + text[1:])
    return "; ".join(f"{field}: {', or '.join(texts)}".removeprefix(": ") for field, texts in found.items())


# --- the header ----------------------------------------------------------------------------------


@validated(frozen=True, kw_only=True, config=_STRICT)
class PassphraseCost:
    """The salt and the cost parameters of scrypt.

    The defaults are recommended by OWASP. The maximums (256 MiB and 4 passes) limit the cost of an untrusted file.
    """

    salt: Annotated[Base64Bytes, Field(min_length=12, max_length=96)]
    n: Annotated[int, Field(ge=2, le=2**18)] = 2**17
    r: Annotated[int, Field(ge=1, le=8)] = 8
    p: Annotated[int, Field(ge=1, le=4)] = 1

    def cipher(self, passphrase: str) -> Cipher:
        """Return the cipher for the passphrase; raises `ValueError` if `n` is not a power of two."""
        return Cipher([derive_key(passphrase, salt=self.salt, n=self.n, r=self.r, p=self.p)])


@validated(frozen=True, kw_only=True, config=_STRICT)
class _SealedWith:
    """The means of decryption: scrypt parameters for a passphrase, or the fingerprint of a key."""

    passphrase: PassphraseCost | None = None
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None


@validated(frozen=True, kw_only=True, config=_STRICT)
class _Header:
    """The header, which is the first line of the file."""

    format: Literal["amo-callback export"] = FORMAT
    version: Literal[1] = VERSION
    id: Annotated[str, Field(min_length=1, max_length=64)]
    sealed_with: _SealedWith


_HEADER = TypeAdapter(_Header)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FileKey:
    """The key of a file, and the description of the key in the header."""

    described: _SealedWith
    cipher: Cipher = dataclasses.field(repr=False)


def key_from_passphrase(passphrase: str, *, salt: bytes) -> FileKey:
    """Derive a key from a passphrase; each file has its own random salt."""
    cost = PassphraseCost(salt=base64.b64encode(salt))
    return FileKey(described=_SealedWith(passphrase=cost), cipher=cost.cipher(passphrase))


def key_of_host(key: str) -> FileKey:
    return FileKey(described=_SealedWith(key=_hint(key)), cipher=Cipher([key]))


def _hint(key: str) -> str:
    """Return a fingerprint of the key; it reveals nothing about a key of 256 random bits."""
    return abbreviated(fingerprint(key))


# --- writing -------------------------------------------------------------------------------------


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file (mode 0600) that is written completely or not at all.

    Raises `CommandFailed` if the file exists or cannot be written.
    """
    try:
        with atomic_file(path) as file:
            yield file
    except OSError as error:
        raise CommandFailed(f"cannot write {path}: {error.strerror}") from None


class ExportWriter:
    def __init__(self, file: IO[bytes], key: FileKey, *, file_id: str) -> None:
        self._file = file
        self._cipher = key.cipher
        header = _Header(id=file_id, sealed_with=key.described)
        self._name = self._write(_HEADER.dump_json(header, exclude_none=True))
        self.count = 0

    def add(self, record: ExportRecord) -> None:
        self.count += 1
        self._write(self._cipher.seal(_RECORD.dump_json(record), context=f"{self._name}:{self.count}"))

    def end(self) -> None:
        self._write(self._cipher.seal(_END, context=f"{self._name}:end:{self.count}"))

    def _write(self, line: bytes) -> str:
        self._file.write(line + b"\n")
        return fingerprint(line)


# --- reading -------------------------------------------------------------------------------------


def is_export(first_line: bytes) -> bool:
    """Return whether a first line is the header of an export of any version."""
    try:
        header = json.loads(first_line)
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.get("format") == FORMAT


def cipher_for(first_line: bytes, *, keys: Sequence[str], passphrase: Callable[[], str]) -> Cipher:
    """Return the cipher of a file; calls `passphrase` if the file is encrypted with a passphrase.

    Raises `CommandFailed` if the header is invalid, or if the file's key is not in `keys`.
    """
    try:
        sealed_with = _HEADER.validate_json(first_line).sealed_with
    except ValidationError as error:
        raise CommandFailed(f"line 1: this amo-callback version cannot read the header ({describe(error)})") from None
    if cost := sealed_with.passphrase:
        try:
            return cost.cipher(passphrase())
        except ValueError:  # n is not a power of two
            raise CommandFailed("line 1: sealed_with contains invalid scrypt parameters") from None
    if sealed_with.key not in {_hint(key) for key in keys}:
        raise CommandFailed(
            f"the file's encryption key (fingerprint {sealed_with.key}) is not in storage.encryption_keys: add the "
            "key, or export again with this host's key (--to-key-file) or a passphrase"
        )
    return Cipher(keys)


def read_export(file: IO[bytes], *, cipher: Cipher) -> Iterator[ParsedRecord | RecordError]:
    """Yield the records and errors of a file; a line that cannot be decrypted yields an error, and reading ends."""
    name = fingerprint(file.readline(MAX_LINE).rstrip(b"\n"))
    count = 0
    line = file.readline(MAX_LINE)
    while following := file.readline(MAX_LINE):
        count += 1
        place = f"line {count + 1}"
        try:
            content = cipher.open(line.rstrip(b"\n"), context=f"{name}:{count}")
            yield ParsedRecord(place=place, record=_RECORD.validate_json(content))
        except DecryptionFailed:
            yield RecordError(place=place, why=_WRONG_KEY if count == 1 else _NOT_ITS_PLACE)
            return
        except ValidationError as error:
            yield RecordError(place=place, why=describe(error))
        line = following
    try:
        cipher.open(line.rstrip(b"\n"), context=f"{name}:end:{count}")
    except DecryptionFailed:
        yield RecordError(
            place=f"line {count + 2}", why=_CUT_OFF if count else f"{_CUT_OFF}, or the passphrase or key is wrong"
        )


_WRONG_KEY = "the passphrase or key is wrong, or the file was modified"
_NOT_ITS_PLACE = "the line was modified, or is out of place in this file"
_CUT_OFF = "the end of the file is missing or was modified"
