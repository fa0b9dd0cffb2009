"""What the tests of custody share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.custody.house import House

if TYPE_CHECKING:
    from amo_callback.amo.client import AmoClient
    from amo_callback.cipher import Cipher
    from amo_callback.ports import Store
    from tests.conftest import Amo
    from tests.fakes import FakeClock, Witness


@pytest.fixture
def house(store: Store, amo: Amo, client: AmoClient, cipher: Cipher, clock: FakeClock, witness: Witness) -> House:
    return House(store=store, amo=amo, client=client, cipher=cipher, clock=clock, witness=witness)
