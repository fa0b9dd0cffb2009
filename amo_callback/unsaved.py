"""A pair that cannot be stored: it has been paid for with the one before, so it is never let go."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from amo_callback.errors import StoreUnavailable
from amo_callback.model import Event, Level

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from amo_callback.ports import Clock, Observer

T = TypeVar("T")

_AGAIN = 1.0
"""Seconds between two tries."""


async def store_paid_for(
    save: Callable[[], Awaitable[T]], *, connection_id: str, clock: Clock, observer: Observer
) -> T:
    """Run `save` until the store takes it, holding the pair in memory meanwhile; tell once."""
    told = False
    while True:
        try:
            saved = await save()
        except StoreUnavailable as error:
            if not told:
                observer(
                    Event(
                        name="pair.unsaved",
                        level=Level.ERROR,
                        connection_id=connection_id,
                        fields={"store": error.what},
                    )
                )
            told = True
            await clock.sleep(_AGAIN)
        else:
            if told:
                observer(Event(name="pair.saved", connection_id=connection_id))
            return saved
