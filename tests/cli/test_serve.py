"""Checks of `serve` before the start, and the secrets it keeps out of the log."""

from __future__ import annotations

import pytest

from amo_callback.cli.serve import check_stop_timeout, secrets_of
from amo_callback.crypto import new_key
from amo_callback.deploy.units import STOP_TIMEOUT
from amo_callback.errors import ConfigurationError
from tests.cli.harness import settings_with


def test_serve_short_stop_timeout_is_refused() -> None:
    """`TimeoutStopSec` must exceed `amo.timeout` by ten seconds; without a unit there is no check."""
    settings = settings_with(AMO__TIMEOUT="51")
    with pytest.raises(ConfigurationError, match=r"amo\.timeout: 51 s exceeds the unit's TimeoutStopSec=60"):
        check_stop_timeout(settings, {STOP_TIMEOUT: "60"})
    check_stop_timeout(settings, {STOP_TIMEOUT: "61"})
    check_stop_timeout(settings, {})


def test_secrets_of_includes_every_configured_secret() -> None:
    """The secrets of client, keys, API keys, JWTs, webhooks and database are kept out of the log."""
    keys = [new_key(), new_key()]
    more = {"STORAGE__ENCRYPTION_KEYS": "\n".join(keys), "API__KEYS": f"a:{'k' * 32}\nb:read:{'l' * 32}"}
    known = ["the-client-secret", *keys, "k" * 32, "l" * 32]
    assert secrets_of(settings_with(**more)) == known
    more |= {"APP__JWT_SECRET": "j" * 32, "APP__JWT_AUDIENCE": "foryoure-api"}
    assert secrets_of(settings_with(**more)) == [*known, "j" * 32]
    secrets = ["whsec_" + "A" * 32, "whsec_" + "B" * 32]
    more |= {"WEBHOOK__URL": "https://a.example", "WEBHOOK__SECRET": "\n".join(secrets)}
    assert secrets_of(settings_with(**more)) == [*known, "j" * 32, *secrets]
    more["STORAGE__URL"] = "postgresql://u:pass%20word@a.example/b"
    assert {"pass%20word", "pass word"} <= set(secrets_of(settings_with(**more)))
