"""Two processes that share a store."""

import pytest

from amo_callback.amo.client import AmoClient
from amo_callback.crypto import Cipher
from amo_callback.store import Store
from tests.fakes import FakeClock
from tests.oauth.process import Process
from tests.service import Amo


@pytest.fixture
def process(store: Store, amo: Amo, client: AmoClient, cipher: Cipher, clock: FakeClock) -> Process:
    return Process(store=store, amo=amo, client=client, cipher=cipher, clock=clock)


@pytest.fixture
def other(store: Store, amo: Amo, client: AmoClient, cipher: Cipher, clock: FakeClock) -> Process:
    return Process(store=store, amo=amo, client=client, cipher=cipher, clock=clock)
