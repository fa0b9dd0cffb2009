"""What the store knows of itself, as a protocol: whose keys wrote it, whether it is frozen, what time it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from amo_callback.model import AmoBlock, Freeze


class Marks(Protocol):
    """What holds for the whole store."""

    async def canary(self, fresh: bytes) -> bytes:
        """Return the record by which the store tells whose keys wrote it; a new store keeps the fresh one."""

    async def deaths_held(self) -> bool:
        """Tell whether more deaths are not to be believed, as some process has found."""

    async def hold_deaths(self, *, now: datetime) -> None:
        """Believe no more deaths, also after a restart."""

    async def believe_deaths(self) -> None:
        """Believe those that were, and those to come."""

    async def pair_obtained(self, client_id: str) -> bool:
        """Return whether AMO has ever issued a pair that is or was stored here to this client id; imports aside."""

    async def refused_credentials(self) -> str | None:
        """Return what AMO says against our credentials, as some process has found; `None` where it says nothing."""

    async def refuse_credentials(self, words: str) -> None:
        """Store what AMO says against our credentials, for every process and the next start."""

    async def accept_credentials(self) -> None:
        """Store that AMO accepts our credentials."""

    async def frozen(self) -> Freeze | None:
        """Return since when nothing is spent, and why."""

    async def freeze_all(self, *, why: str, elsewhere: bool = False) -> bool:
        """Spend nothing from now on, the tokens living `elsewhere` maybe; `False` where that was so."""

    async def thaw_all(self, *, machine: str | None) -> bool:
        """Spend again, here: this machine is the store's from now on; `False` where it was not frozen.

        Where the tokens may have lived elsewhere meanwhile, all are due: so the dead are soon found out.
        """

    async def check_machine(self, machine: str) -> Freeze | None:
        """Return why nothing is spent, as `frozen` does; a store that was last used elsewhere is frozen now."""

    async def amo_block(self) -> AmoBlock | None:
        """Return the block of our address, as some process has found it."""

    async def begin_amo_block(self, probed: str, *, probe_every: timedelta) -> None:
        """Store that AMO blocks our address, unless that is stored; `probed` is the connection that showed it."""

    async def end_amo_block(self) -> None:
        """Store that AMO no longer blocks our address."""

    async def take_amo_probe(self, connection_id: str, *, every: timedelta) -> bool:
        """Reserve the next probe for a connection; `False` where none may leave yet, by the store's clock."""

    async def take_amo_exchange(self, *, every: timedelta) -> bool:
        """Reserve the next exchange; `False` where none may leave yet, by the store's clock."""

    async def keep_time(self, *, now: Callable[[], datetime]) -> timedelta:
        """Note what time it is; where that is before what was noted last, take all times back by as much.

        Returns by how much: nothing, where the clock has not gone back.
        """
