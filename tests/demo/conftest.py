"""The demonstration, opened for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.demo.walkthrough import Walkthrough, open_walkthrough

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def show() -> AsyncIterator[Walkthrough]:
    async with open_walkthrough() as opened:
        yield opened
