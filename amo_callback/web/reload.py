"""What of the configuration may change while the service runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.identity import ApiKeys, read_api_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.config import Settings

_TAKEN = {("api", "keys")}


class Reloader:
    """Take in a configuration that was read again."""

    def __init__(self, settings: Settings, *, api_keys: ApiKeys) -> None:
        self._settings = settings
        self._api_keys = api_keys

    def take(self, fresh: Settings) -> Sequence[str]:
        """Take what may be taken, and return the settings that have changed and need a restart."""
        self._api_keys.replace(read_api_keys(fresh.api.keys.get_secret_value()))
        return [
            f"{section}.{key}"
            for section in type(fresh).model_fields
            for key in type(getattr(fresh, section)).model_fields
            if (section, key) not in _TAKEN
            and getattr(getattr(fresh, section), key) != getattr(getattr(self._settings, section), key)
        ]
