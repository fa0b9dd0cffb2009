"""Two processes that share a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.oauth.process import Process

if TYPE_CHECKING:
    from amo_callback.amo.client import AmoClient
    from amo_callback.crypto import Cipher
    from amo_callback.store import Store
    from tests.fakes import FakeClock
    from tests.service import Amo


@pytest.fixture
def process(store: Store, amo: Amo, client: AmoClient, cipher: Cipher, clock: FakeClock) -> Process:
    return Process(store=store, amo=amo, client=client, cipher=cipher, clock=clock)


@pytest.fixture
def other(store: Store, amo: Amo, client: AmoClient, cipher: Cipher, clock: FakeClock) -> Process:
    return Process(store=store, amo=amo, client=client, cipher=cipher, clock=clock)
