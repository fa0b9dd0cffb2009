"""What of the configuration may change while the service runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from amo_callback.config import Settings

    Taker = Callable[[Settings], None]


class Reloader:
    """Take in a configuration that was read again."""

    def __init__(self, settings: Settings, takers: Mapping[str, Taker]) -> None:
        self._settings = settings
        self._takers = dict(takers)

    def also(self, setting: str, taker: Taker) -> None:
        """Let `taker` take a setting, too, that is named `section.key`."""
        self._takers[setting] = taker

    def take(self, fresh: Settings) -> Sequence[str]:
        """Take what may be taken, and return what is not as it was at the start, and needs a restart."""
        for taker in self._takers.values():
            taker(fresh)
        return [
            f"{section}.{key}"
            for section in type(fresh).model_fields
            for key in type(getattr(fresh, section)).model_fields
            if f"{section}.{key}" not in self._takers
            and getattr(getattr(fresh, section), key) != getattr(getattr(self._settings, section), key)
        ]
