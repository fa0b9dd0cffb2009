"""What outlives the process, as a protocol: its parts are in the modules beside this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from amo_callback.ports.connections import Connections
from amo_callback.ports.grants import Grants, Owners
from amo_callback.ports.history import History, Outbox
from amo_callback.ports.marks import Marks
from amo_callback.ports.moves import Seals, Transfers

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.model import Changed
    from amo_callback.ports import Clock
    from amo_callback.ports.shared import Shared


class Store(Marks, Connections, Grants, Owners, History, Outbox, Transfers, Seals, Protocol):
    """What outlives the process. Every method raises `StoreUnavailable` where it cannot do its work."""

    @property
    def keeps_time(self) -> bool:
        """Whether leases are told by the store's own clock, one for all instances."""

    @property
    def clock(self) -> Clock:
        """The clock of what is stored: whatever is stored, or compared with what is, is told by it."""

    @property
    def ahead(self) -> float:
        """Seconds by which this machine's wall clock is ahead of that one."""

    @property
    def shared(self) -> Shared | None:
        """What all instances share beside it; `None` where it is one process's own."""

    @property
    def failed_at(self) -> float | None:
        """The monotonic time when it last could not do its work."""

    @property
    def failing(self) -> str | None:
        """Why the last write failed; `None` where it did not."""

    def watch(self, listener: Callable[[Changed], None]) -> None:
        """Let `listener` hear of every write of this process that changes connections, or whose they are.

        It hears after the commit, and before whoever wrote does; and of other processes' as soon as they can be heard
        of. It must not raise.
        """

    async def others_version(self) -> int:
        """Return a number that is another one once any other process has committed anything that was not told."""
