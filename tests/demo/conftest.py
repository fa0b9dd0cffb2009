"""The demonstration, opened for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.demo.show import Show, open_show

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def show() -> AsyncIterator[Show]:
    async with open_show() as opened:
        yield opened
