"""The OpenAPI document of a service that has all its routes."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from amo_callback.clock import SystemClock
from amo_callback.config.loader import load_settings
from amo_callback.crypto import new_key
from amo_callback.observe.log import LogObserver, make_logger
from amo_callback.web.composition import DataPaths, make_apis, open_service

if TYPE_CHECKING:
    from collections.abc import Mapping


async def documents() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the document, with the routes for the app's users; and as it is where `/metrics` asks for a key."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        log = make_logger(level="error", style="json", stream=io.StringIO())
        open_to_all, guarded = (load_settings(None, _environment(guarded=choice)) for choice in ("no", "yes"))
        async with open_service(
            open_to_all,
            paths=DataPaths(folder=folder, rescue=folder / "rescue", machine="here"),
            clock=SystemClock(),
            log=log,
            observer=LogObserver(log),
        ) as service:
            first, second = (
                make_apis(dataclasses.replace(service.services, settings=settings))[-1].content
                for settings in (open_to_all, guarded)
            )
            return first, second


def _environment(*, guarded: str) -> dict[str, str]:
    values = {
        "SERVER__PUBLIC": "127.0.0.1:0",
        "SERVER__PRIVATE": "127.0.0.1:0",
        "SERVER__METRICS_AUTH": guarded,
        "AMO__CLIENT_ID": "c619",
        "AMO__CLIENT_SECRET": "the-client-secret",
        "AMO__REDIRECT_URI": "https://admin.example.com/api/amo-crm/callback",
        "APP__JWT_SECRET": "a-secret-of-the-app-that-is-long-enough",
        "APP__JWT_AUDIENCE": "amo-callback",
        "STORAGE__ENCRYPTION_KEYS": new_key(),
    }
    return {f"AMO_CALLBACK_{key}": value for key, value in values.items()}
