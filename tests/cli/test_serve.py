"""What `serve` tells the log never to write."""

from __future__ import annotations

import pytest

from amo_callback.cli.serve import check_stop_timeout, secrets_of
from amo_callback.config.loader import load_settings
from amo_callback.crypto import new_key
from amo_callback.deploy.units import STOP_TIMEOUT
from amo_callback.errors import ConfigurationError

KNOWN = {
    "AMO_CALLBACK_AMO__CLIENT_ID": "c619",
    "AMO_CALLBACK_AMO__CLIENT_SECRET": "the-client-secret",
    "AMO_CALLBACK_AMO__REDIRECT_URI": "https://admin.example.com/api/amo-crm/callback",
    "AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS": new_key(),
}


def test_a_unit_that_would_kill_it_too_early_stops_the_start() -> None:
    """Where `TimeoutStopSec` is less than `amo.timeout` and ten seconds; without a unit there is nothing to compare."""
    settings = load_settings(None, {**KNOWN, "AMO_CALLBACK_AMO__TIMEOUT": "51"})
    with pytest.raises(ConfigurationError, match=r"amo\.timeout: 51 s is more than the unit's TimeoutStopSec=60"):
        check_stop_timeout(settings, {STOP_TIMEOUT: "60"})
    check_stop_timeout(settings, {STOP_TIMEOUT: "61"})
    check_stop_timeout(settings, {})


def test_every_configured_secret_is_kept_out_of_the_log() -> None:
    """The client's secret, keys of both kinds, each by itself; those of JWTs, webhooks and the database, if any."""
    keys = [new_key(), new_key()]
    environ = {
        **KNOWN,
        "AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS": "\n".join(keys),
        "AMO_CALLBACK_API__KEYS": f"a:{'k' * 32}\nb:read:{'l' * 32}",
    }
    known = ["the-client-secret", *keys, "k" * 32, "l" * 32]
    assert secrets_of(load_settings(None, environ)) == known
    environ |= {"AMO_CALLBACK_APP__JWT_SECRET": "j" * 32, "AMO_CALLBACK_APP__JWT_AUDIENCE": "foryoure-api"}
    assert secrets_of(load_settings(None, environ)) == [*known, "j" * 32]
    secrets = ["whsec_" + "A" * 32, "whsec_" + "B" * 32]
    environ |= {"AMO_CALLBACK_WEBHOOK__URL": "https://a.example", "AMO_CALLBACK_WEBHOOK__SECRET": "\n".join(secrets)}
    assert secrets_of(load_settings(None, environ)) == [*known, "j" * 32, *secrets]
    environ["AMO_CALLBACK_STORAGE__URL"] = "postgresql://u:pass%20word@a.example/b"
    assert {"pass%20word", "pass word"} <= set(secrets_of(load_settings(None, environ)))
