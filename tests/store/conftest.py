"""The tests of what every store promises run on both engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from amo_callback.store import open_store
from tests.postgres import WrittenClock, in_our_time, written_clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from amo_callback.store import Store
    from tests.postgres import Databases

    Beside = Callable[[str], AbstractAsyncContextManager[Store]]


@pytest.fixture
def clock() -> Iterator[WrittenClock]:
    """Return the clock of the process, and of its database."""
    with written_clock() as clock:
        yield clock


@pytest.fixture(params=["sqlite", "postgresql"])
async def either(request: pytest.FixtureRequest, clock: WrittenClock) -> AsyncIterator[str]:
    """Return a new database of either engine, which has the test's time."""
    if request.param == "sqlite":
        yield "sqlite:///amo-callback.db"
        return
    async with in_our_time(request.getfixturevalue("postgres"), clock) as url:
        yield url


@pytest.fixture
async def url(postgres: Databases) -> AsyncIterator[str]:
    async with postgres.fresh() as found:
        yield found


@pytest.fixture
def beside(either: str, tmp_path: Path, clock: WrittenClock) -> Beside:
    """Return how another process, named so, opens the same database."""
    return lambda process: open_store(either, folder=tmp_path, clock=clock, process=process)


@pytest.fixture
async def store(beside: Beside) -> AsyncIterator[Store]:
    async with beside("one") as opened:
        yield opened
