"""Settings that are valid each, and do not fit together."""

from __future__ import annotations

import pytest

from amo_callback.cli.checks.finding import Severity
from amo_callback.cli.checks.settings import check_settings
from amo_callback.config.loader import load_settings
from amo_callback.crypto import new_key

KEY = "k" * 32
GOOD = {
    "AMO__CLIENT_ID": "c619",
    "AMO__CLIENT_SECRET": "the-client-secret",
    "AMO__REDIRECT_URI": "https://admin.example.com/api/amo-crm/callback",
    "API__KEYS": f"backend:{KEY}",
}


def _found(**more: str) -> dict[str, tuple[Severity, str]]:
    environ = {**GOOD, "STORAGE__ENCRYPTION_KEYS": new_key(), **more}
    settings = load_settings(None, {f"AMO_CALLBACK_{name}": value for name, value in environ.items()})
    findings = list(check_settings(settings))
    assert all(finding.fix for finding in findings if finding.severity is not Severity.OK)
    return {finding.check: (finding.severity, finding.message) for finding in findings}


def test_settings_that_fit_are_ok() -> None:
    """Each says what it means, and none of them a secret."""
    found = _found()
    assert {name: severity for name, (severity, _) in found.items()} == dict.fromkeys(
        ("redirect_uri", "deep_link", "api_keys", "private_door"), Severity.OK
    )
    assert found["deep_link"][1] == "leads back to foryoure://amo-crm/callback?code=CODE&state=STATE"
    assert found["api_keys"][1] == "backend (read+token)"
    assert KEY not in str(found)


@pytest.mark.parametrize(
    ("setting", "value", "check", "severity"),
    [
        ("AMO__REDIRECT_URI", "https://admin.example.com/other/callback", "redirect_uri", Severity.FAIL),
        ("AMO__REDIRECT_URI", "https://admin.example.com/x-api/amo-crm/callback", "redirect_uri", Severity.FAIL),
        ("AMO__REDIRECT_URI", "https://admin.example.com/api/amo-crm/callback?a=b", "redirect_uri", Severity.FAIL),
        ("AMO__REDIRECT_URI", "http://127.0.0.1:8080/api/amo-crm/callback", "redirect_uri", Severity.WARN),
        ("AMO__REDIRECT_URI", "https://admin.example.com/v1/api/amo-crm/callback", "redirect_uri", Severity.OK),
        ("SERVER__BASE_PATH", "/amo", "redirect_uri", Severity.FAIL),
        ("APP__DEEP_LINK", "intent://amo-crm/callback", "deep_link", Severity.FAIL),
        ("APP__DEEP_LINK", "ForYoure://amo-crm/callback", "deep_link", Severity.WARN),
        ("APP__DEEP_LINK", "foryoure://AMO-crm/callback", "deep_link", Severity.WARN),
        ("APP__DEEP_LINK", "http://localhost/app", "deep_link", Severity.WARN),
        ("APP__DEEP_LINK", "https://example.com/App", "deep_link", Severity.OK),
        ("API__KEYS", "", "api_keys", Severity.WARN),
        ("API__KEYS", f"reader:read:{KEY}", "api_keys", Severity.WARN),
        ("SERVER__TRUSTED_PROXIES", "127.0.0.1,0.0.0.0/0", "trusted_proxies", Severity.WARN),
        ("SERVER__TRUSTED_PROXIES", "::/0", "trusted_proxies", Severity.WARN),
        ("SERVER__TRUSTED_PROXIES", "::ffff:0:0/96", "trusted_proxies", Severity.WARN),
        ("SERVER__PRIVATE", "0.0.0.0:8081", "private_door", Severity.WARN),
        ("SERVER__PRIVATE", "[::]:8081", "private_door", Severity.WARN),
        ("SERVER__PRIVATE", "8.8.8.8:8081", "private_door", Severity.WARN),
        ("SERVER__PRIVATE", "10.0.0.7:8081", "private_door", Severity.OK),
        ("SERVER__PRIVATE", "unix:/run/private.sock", "private_door", Severity.OK),
    ],
)
def test_each_setting_is_judged(setting: str, value: str, check: str, severity: Severity) -> None:
    """What cannot work fails, what is doubtful warns, and both say what to do."""
    assert _found(**{setting: value})[check][0] is severity
