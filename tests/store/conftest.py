"""The tests of what every store promises run on both engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from amo_callback.store import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from amo_callback.ports import Store
    from tests.fakes import FakeClock

    Beside = Callable[[str], AbstractAsyncContextManager[Store]]


@pytest.fixture
def beside(either: str, tmp_path: Path, clock: FakeClock) -> Beside:
    """Return how another process, named so, opens the same database."""
    return lambda process: open_store(either, folder=tmp_path, clock=clock, process=process)


@pytest.fixture
async def store(beside: Beside) -> AsyncIterator[Store]:
    async with beside("one") as opened:
        yield opened
