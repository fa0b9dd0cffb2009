"""Fixtures that run the store's tests with both engines."""

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

    OpenAs = Callable[[str], AbstractAsyncContextManager[Store]]


@pytest.fixture
def clock() -> Iterator[WrittenClock]:
    """Return the clock that the process and its database share."""
    with written_clock() as clock:
        yield clock


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, clock: WrittenClock) -> AsyncIterator[str]:
    """Return the URL of an empty database of either engine, with the test's clock."""
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
def open_as(database_url: str, tmp_path: Path, clock: WrittenClock) -> OpenAs:
    """Return a function that opens the test's database under a given process name."""
    return lambda process: open_store(database_url, folder=tmp_path, clock=clock, process=process)


@pytest.fixture
async def store(open_as: OpenAs) -> AsyncIterator[Store]:
    async with open_as("one") as opened:
        yield opened
