"""All tables, by the names of their blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.reference.documents import documents
from tests.reference.endpoints import endpoints
from tests.reference.errors import commands, deep_link_errors, exit_statuses, private_errors, public_errors
from tests.reference.metrics import metrics
from tests.reference.settings import settings

if TYPE_CHECKING:
    from pathlib import Path


async def all_tables(repository: Path) -> dict[str, list[str]]:
    """Return the lines of each table."""
    document, guarded = await documents()
    return {
        "public endpoints": endpoints(document, api="public", guarded=guarded),
        "private endpoints": endpoints(document, api="private", guarded=guarded),
        "settings": settings((repository / "config.example.toml").read_text(encoding="utf-8")),
        "deep link errors": deep_link_errors(),
        "public errors": public_errors(document),
        "private errors": private_errors(document),
        "commands": commands(),
        "exit statuses": exit_statuses(),
        "metrics": metrics(),
    }
