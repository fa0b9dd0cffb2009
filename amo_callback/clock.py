"""The machine's clock, behind the `Clock` port."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime


class SystemClock:
    """Tell the machine's time."""

    def now(self) -> datetime:
        """Return the wall clock's time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that no step of the wall clock changes."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await asyncio.sleep(seconds)


def rfc3339(moment: datetime) -> str:
    """Write a time as others read it: RFC 3339, UTC, whole seconds."""
    return moment.isoformat()[:19] + "Z"  # a tenth of what `strftime` takes
