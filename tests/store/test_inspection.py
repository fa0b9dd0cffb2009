"""A database looked at from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from amo_callback.errors import StoreUnavailable
from amo_callback.store.inspection import open_inspection

if TYPE_CHECKING:
    from pathlib import Path


def test_none_is_made(tmp_path: Path) -> None:
    """Where there is no database, or it goes away at this moment, there is none afterwards."""
    with pytest.raises(StoreUnavailable), open_inspection(tmp_path / "amo-callback.db") as inspected:
        inspected.schema()
    assert list(tmp_path.iterdir()) == []
