"""Code that the engines share: named statements, the conversion of parameters and rows, and transactions.

In a statement, `:clock` is the current time of the clock that determines leases, in microseconds since 1970.
"""

from __future__ import annotations

import dataclasses
import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache, wraps
from importlib import resources
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from amo_callback.model import ChangeNotice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence

    from amo_callback.clock import Clock
    from amo_callback.rate_limit import SharedLimits

T = TypeVar("T")
S = TypeVar("S", bound="Database")
P = ParamSpec("P")

# --- statements ----------------------------------------------------------------------------------


class Engine(StrEnum):
    SQLITE = "sqlite"
    POSTGRES = "postgres"


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """A statement for one engine, with numbered parameters."""

    text: str
    """The SQL; empty if this engine has nothing to execute."""
    parameters: tuple[str, ...]
    """The names of the parameters in the order of their numbers."""
    notes: frozenset[str] = frozenset()
    """The notes after the statement's name: the rows that it changes, and `slow` if it reads a whole table."""


SQL_FOLDER = resources.files("amo_callback.store") / "sql"
_NAME = re.compile(r"^-- name: ([\w{}]+)(?: \(([\w{}, ]+)\))?$", re.MULTILINE)
_PARAMETER = re.compile(r"(?<!:):(\w+)")
_SEALED: Sequence[Mapping[str, str]] = (
    {
        "kind": "connection",
        "table": "connections",
        "key": "id",
        "sealed": "sealed_pair",
        "only": "",
        "also": ", row_version = row_version + 1",
    },
    {"kind": "grant", "table": "grants", "key": "code_hash", "sealed": "sealed", "only": "", "also": ""},
    {
        "kind": "state",
        "table": "grants",
        "key": "state_hash",
        "sealed": "sealed",
        "only": " AND code_hash IS NULL",
        "also": "",
    },
)
"""The kinds of encrypted records. A statement with `{kind}` in its name is expanded once for each kind."""
_POSTGRES_PHRASES = (
    (re.compile(r"json_each\((:\w+)\)"), r"jsonb_array_elements_text(CAST(\1 AS JSONB)) AS value"),
    (re.compile(r"CAST\(value AS INTEGER\)"), "CAST(convert_from(value, 'UTF8') AS BIGINT)"),
    (re.compile(r"\bIS (:\w+)"), r"IS NOT DISTINCT FROM \1"),
    (re.compile(r":clock\b"), "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS BIGINT)"),
)


@cache
def load_statements(engine: Engine) -> Mapping[str, Statement]:
    """Return an engine's statements, by name."""
    _, *parts = _NAME.split((SQL_FOLDER / "statements.sql").read_text(encoding="utf-8"))
    statements: dict[str, Statement] = {}
    for name, notes, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        for words in _SEALED if "{kind}" in name else ({},):
            filled = [part.format(**words) if words else part for part in (name, notes or "", text)]
            if filled[0] in statements:
                raise ValueError(f"the statement {filled[0]} is defined twice")
            statements[filled[0]] = _numbered(filled[2], engine, frozenset(filter(None, filled[1].split(", "))))
    return statements


def own_lines(text: str, engine: Engine) -> str:
    """Return the SQL for one engine, without comments and without lines for other engines."""
    own = f"--{engine} "
    lines = (line.replace(own, "", 1) if line.startswith(own) else line for line in text.splitlines())
    return "\n".join(line for line in lines if not line.lstrip().startswith("--")).strip()


def _numbered(text: str, engine: Engine, notes: frozenset[str]) -> Statement:
    """Translate a statement for an engine, and replace its named parameters with numbered ones."""
    text = own_lines(text, engine)
    if engine is Engine.POSTGRES:
        for phrase, other in _POSTGRES_PHRASES:
            text = phrase.sub(other, text)
    names = tuple(dict.fromkeys(_PARAMETER.findall(text)))
    sign = "?" if engine is Engine.SQLITE else "$"
    text = _PARAMETER.sub(lambda match: f"{sign}{names.index(match[1]) + 1}", text)
    return Statement(text=text, parameters=names, notes=notes)


# --- values and rows -----------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EARLIEST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LATEST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


def to_micros(time: datetime) -> int:
    """Convert a time to its stored form: microseconds since 1970."""
    return (time - _EPOCH) // _MICROSECOND


def from_micros(value: int) -> datetime:
    """Convert a stored time; a value out of range for `datetime` becomes the nearest valid time."""
    return _EPOCH + min(max(value, _EARLIEST), _LATEST) * _MICROSECOND


def arguments(statement: Statement, values: Mapping[str, object]) -> list[object]:
    """Return a statement's arguments in order, with times and durations in microseconds."""
    found: list[object] = []
    for name in statement.parameters:
        value = values[name]
        if isinstance(value, datetime):
            value = (value - _EPOCH) // _MICROSECOND
        elif isinstance(value, timedelta):
            value //= _MICROSECOND
        found.append(value)
    return found


def values_of(value: Any) -> dict[str, Any]:  # noqa: ANN401 -- any dataclass instance is accepted
    """Return the fields of a frozen dataclass instance by name, as parameters for a statement."""
    names: tuple[str, ...] = value.__slots__
    return dict(zip(names, attrgetter(*names)(value), strict=True))


def json_list(names: Sequence[str]) -> str:
    """Encode names as a JSON array, the form in which statements accept lists."""
    return json.dumps(list(names))


class Row(Protocol):
    """The common interface of the rows of both database libraries."""

    def __getitem__(self, key: Any, /) -> Any:  # noqa: ANN401 -- columns have various types
        ...

    def __iter__(self) -> Iterator[Any]: ...

    def keys(self) -> Iterable[str]: ...


def row_reader(
    build: type[T],
    *,
    converters: Mapping[str, Callable[[Any], Any]] = MappingProxyType({}),
    computed: Mapping[str, Callable[[Mapping[str, Any]], object]] = MappingProxyType({}),
    leave: frozenset[str] = frozenset(),
) -> Callable[[Row], T]:
    """Return a function that builds a frozen dataclass instance from a row.

    Each field is read from the column of the same name. Times are converted to `datetime`, and fields in `converters`
    with the given functions. Fields in `computed` are computed from the whole row. Fields in `leave` have no column and
    keep their default values.
    """
    plan = tuple(
        (field.name, from_micros if str(field.type).startswith("datetime") else converters.get(field.name))
        for field in dataclasses.fields(build)  # type: ignore[arg-type]  # reason: T is a dataclass
        if field.name not in computed and field.name not in leave
    )
    others = tuple(computed.items())

    def read(row: Row) -> T:
        columns = dict(zip(row.keys(), row, strict=True))  # faster than looking up each name in SQLite's row
        values: dict[str, object] = {}
        for name, convert in plan:
            value = columns[name]
            if value is not None and convert is not None:
                if convert is from_micros:  # inlined, because a call would double the reading time
                    value = _EPOCH + min(max(value, _EARLIEST), _LATEST) * _MICROSECOND
                else:
                    value = convert(value)
            values[name] = value
        for name, compute in others:
            values[name] = compute(columns)
        return build(**values)

    return read


def lease_left(columns: Mapping[str, Any]) -> float | None:
    """Return the remaining time of a lease, in seconds, when its row was read.

    Returns `None` if there is no lease, or if the row has no column `clock`.
    """
    until, clock = columns["lease_until"], columns.get("clock")
    return None if until is None or clock is None else float((until - clock) / 1e6)


def json_object(text: str | bytes) -> Mapping[str, Any]:
    """Parse a stored JSON object; a malformed value becomes an empty object."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


# --- transactions --------------------------------------------------------------------------------

ANY = ChangeNotice(connections=None, membership_changed=True)
"""A change that may concern any connection."""
CHANGES = frozenset({"changes connection", "changes owners", "changes all", "erases connection"})
"""The notes that mark statements as changing connections or owners."""


class Transaction(ABC):
    """A transaction that collects its changes and the functions to call after the commit."""

    def __init__(self, statements: Mapping[str, Statement]) -> None:
        self._statements = statements
        self.changes: list[ChangeNotice] = []
        self.on_commit: list[Callable[[], None]] = []

    async def run(self, statement: str, /, **values: object) -> Sequence[Row]:
        sql = self._statements[statement]
        found = await self._execute(sql, values) if sql.text else []
        if sql.notes & CHANGES:
            self._note(sql, values, found)
        return found

    async def run_many(self, statement: str, /, rows: Sequence[Mapping[str, object]]) -> None:
        """Execute a statement once for each row of values; this is faster than separate calls of `run`."""
        sql = self._statements[statement]
        await self._execute_many(sql, rows)
        if sql.notes & CHANGES:
            for values in rows:
                self._note(sql, values, None)

    @abstractmethod
    async def _execute(self, sql: Statement, values: Mapping[str, object]) -> Sequence[Row]: ...

    @abstractmethod
    async def _execute_many(self, sql: Statement, rows: Sequence[Mapping[str, object]]) -> None: ...

    def _note(self, statement: Statement, values: Mapping[str, object], found: Sequence[Row] | None) -> None:
        """Record the change that a statement declares; `found` is the result, or `None` if the result is unknown."""
        if "changes all" in statement.notes:
            self.changes.append(ANY)
            return
        if found is not None and not found and "RETURNING" in statement.text:
            return
        named = values.get("connection_id", values.get("id"))
        ids = frozenset(str(row["id"]) for row in found or ()) if named is None else frozenset((str(named),))
        if not ids:
            self.changes.append(ANY)
            return
        owners, erased = "changes owners" in statement.notes, "erases connection" in statement.notes
        self.changes.append(ChangeNotice(connections=ids, membership_changed=owners, erased=erased))


class Database(ABC):
    """An open database. Methods raise `StoreUnavailable` if it cannot be used; `failed_at` records the last outage."""

    has_shared_clock: bool
    """Whether the database's clock determines leases for all instances."""
    shared: SharedLimits | None = None
    """The rate limit that all instances share; `None` if there is only one instance."""

    def __init__(self, *, clock: Clock, statements: Mapping[str, Statement], process: str) -> None:
        self.clock = clock
        """The clock used for every stored time."""
        self.process = process
        self.statements = statements
        self.failed_at: float | None = None
        self.last_write_error: str | None = None
        self._subscribers: list[Callable[[ChangeNotice], None]] = []

    @abstractmethod
    async def read(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Execute a statement that changes nothing."""

    @abstractmethod
    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `work` in a transaction. `work` may run more than once, and must await nothing but the transaction."""

    async def write(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Execute one statement in its own transaction."""
        return await self.transact(lambda transaction: transaction.run(statement, **values))

    async def claim_work(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Execute a statement that assigns work to this instance; with a single instance, the statement only reads."""
        return await self.read(statement, **values)

    async def coordinate(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run a transaction that only coordinates instances; it may succeed even if other writes fail."""
        return await self.transact(work)

    @abstractmethod
    async def data_version(self) -> int:
        """Return a number that changes if another process commits a change without sending a notification."""

    @property
    def clock_skew(self) -> float:
        """The time in seconds by which this process's clock is ahead of the clock that determines leases."""
        return 0.0

    async def location(self, machine: str) -> str:
        """Return a name for the database's location; for a file, return `machine`, the name of this machine."""
        return machine

    async def cleanup(self) -> None:
        """Delete expired rows used to coordinate instances."""
        await self.claim_work("forget_turns")

    def subscribe(self, listener: Callable[[ChangeNotice], None]) -> None:
        """Call `listener` with every change of connections or owners that was, or may have been, committed."""
        self._subscribers.append(listener)

    def _notify(self, changes: Iterable[ChangeNotice]) -> None:
        for changed in changes:
            for listener in self._subscribers:
                listener(changed)


def in_transaction(
    method: Callable[Concatenate[S, Transaction, P], Awaitable[T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Run a method in a transaction, which the method receives as its first argument.

    The method may run more than once, and must not await anything but the transaction.
    """

    @wraps(method)
    async def transact(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.transact(lambda transaction: method(self, transaction, *args, **kwargs))

    return transact
