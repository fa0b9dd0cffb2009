"""What the tests of custody share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.conftest import Amo, serve_amo
from tests.custody.house import House
from tests.fakes import InlineExecutor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amo_callback.amo.client import AmoClient
    from amo_callback.cipher import Cipher
    from amo_callback.ports import Store
    from tests.fakes import FakeClock, Witness


@pytest.fixture(params=[False, True], ids=["mild", "harsh"])
async def amo(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[Amo]:
    """Serve the stand-in both ways that AMO may be: what is not known of it is never relied on."""
    async with serve_amo(clock) as served:
        unknowns = served.vendor.unknowns
        unknowns.refresh_kills_access = unknowns.look_up_knows_spent = request.param
        unknowns.moved_status = 401 if request.param else 404
        yield served


@pytest.fixture
async def house(store: Store, amo: Amo, client: AmoClient, cipher: Cipher, clock: FakeClock, witness: Witness) -> House:
    asyncio.get_running_loop().set_default_executor(InlineExecutor())  # no thread of which a test does not know
    return House(store=store, amo=amo, client=client, cipher=cipher, clock=clock, witness=witness)
