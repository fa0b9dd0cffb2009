"""The demo, opened for each test."""

from collections.abc import AsyncIterator

import pytest

from tests.demo.walkthrough import Walkthrough, open_walkthrough


@pytest.fixture
async def show() -> AsyncIterator[Walkthrough]:
    async with open_walkthrough() as opened:
        yield opened
