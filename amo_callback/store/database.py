"""A database of either engine: named statements, reads, and writes that are all committed or not at all.

What the engines share is here: who hears of a commit, and when the database was last out of reach.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

from amo_callback.store.touched import Touched

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from amo_callback.clock import Clock
    from amo_callback.model import Changed
    from amo_callback.slots import Shared
    from amo_callback.store.row import Row

T = TypeVar("T")


class Unit(ABC):
    """A transaction that is under way: what it has changed so far, and whom to tell once it is committed."""

    def __init__(self, touched: Touched) -> None:
        self._touched = touched
        self.changes: list[Changed] = []
        self.told: list[Callable[[], None]] = []

    async def run(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Run a statement."""
        found = await self._run(statement, values)
        self._note(statement, values, found)
        return found

    async def run_many(self, statement: str, /, rows: Sequence[Mapping[str, object]]) -> None:
        """Run a statement once for each row of values: one after the other would take much longer."""
        await self._run_many(statement, rows)
        for values in rows:
            self._note(statement, values, None)

    def afterwards(self, told: Callable[[], None]) -> None:
        """Call `told` once this is committed, and not where it is not."""
        self.told.append(told)

    def _note(self, statement: str, values: Mapping[str, object], found: Sequence[Row] | None) -> None:
        changed = self._touched.by(statement, values, found)
        if changed is not None:
            self.changes.append(changed)

    @abstractmethod
    async def _run(self, statement: str, values: Mapping[str, object]) -> Sequence[Row]: ...

    @abstractmethod
    async def _run_many(self, statement: str, rows: Sequence[Mapping[str, object]]) -> None: ...


class Database(ABC):
    """Run named statements; raises `StoreUnavailable`, and remembers when the database was out of reach.

    In a statement `:clock` is the time of whose clock leases are told by, in microseconds since 1970.
    """

    keeps_time: bool
    """Whether that is the database's own clock, one for all instances."""
    shared: Shared | None = None
    """What all instances share, where there may be several."""

    def __init__(self, *, statements: Mapping[str, str], clock: Clock) -> None:
        self.clock = clock
        """The clock of what is stored: every stored time is written, and compared, by it."""
        self._touched = Touched(statements)
        self._listeners: list[Callable[[Changed], None]] = []
        self.failed_at: float | None = None
        self.failing: str | None = None

    @abstractmethod
    async def read(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Run a statement that changes nothing."""

    async def write(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Run one statement as a unit of its own."""
        return await self.unit(lambda unit: unit.run(statement, **values))

    async def allot(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Run a statement that gives this instance something to do; where there are no others it is only read."""
        return await self.read(statement, **values)

    @abstractmethod
    async def unit(self, work: Callable[[Unit], Awaitable[T]]) -> T:
        """Commit all that `work` runs, or nothing of it."""

    async def aside(self, work: Callable[[Unit], Awaitable[T]]) -> T:
        """Commit what keeps instances apart: whether that can be written tells nothing of what has to last."""
        return await self.unit(work)

    @abstractmethod
    async def others_version(self) -> int:
        """Return a number that is another one once another process has changed anything that was not told."""

    @property
    def ahead(self) -> float:
        """Seconds by which this process's clock is ahead of the one that leases are told by."""
        return 0.0

    @abstractmethod
    async def place(self, machine: str) -> str:
        """Return a name for where the database is, given one for where this process believes it to be."""

    @abstractmethod
    async def tidy(self) -> None:
        """Forget what is over of that which keeps instances apart."""

    def watch(self, listener: Callable[[Changed], None]) -> None:
        """Let `listener` hear of every commit that changes connections, or whose they are."""
        self._listeners.append(listener)

    def _tell(self, changes: Iterable[Changed]) -> None:
        for changed in changes:
            for listener in self._listeners:
                listener(changed)
