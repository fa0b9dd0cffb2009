"""What `serve` tells the log never to write."""

from __future__ import annotations

import pytest

from amo_callback.cli.serve import check_stop_timeout, secrets_of
from amo_callback.crypto import new_key
from amo_callback.deploy.units import STOP_TIMEOUT
from amo_callback.errors import ConfigurationError
from tests.cli.harness import settings_with


def test_a_unit_that_would_kill_it_too_early_stops_the_start() -> None:
    """Where `TimeoutStopSec` is less than `amo.timeout` and ten seconds; without a unit there is nothing to compare."""
    settings = settings_with(AMO__TIMEOUT="51")
    with pytest.raises(ConfigurationError, match=r"amo\.timeout: 51 s is more than the unit's TimeoutStopSec=60"):
        check_stop_timeout(settings, {STOP_TIMEOUT: "60"})
    check_stop_timeout(settings, {STOP_TIMEOUT: "61"})
    check_stop_timeout(settings, {})


def test_every_configured_secret_is_kept_out_of_the_log() -> None:
    """The client's secret, keys of both kinds, each by itself; those of JWTs, webhooks and the database, if any."""
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
