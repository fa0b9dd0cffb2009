"""Checks of the secrets' file permissions, of settings that do not fit together, and of proxy variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from amo_callback.cli.checks.configuration import check_outgoing, check_secrets, check_settings
from amo_callback.cli.checks.finding import Severity
from tests.cli.harness import API_KEY, by_check, settings_with

if TYPE_CHECKING:
    from pathlib import Path

PROXY = "http://user:sekret@proxy.example:3128"


def _found(**more: str) -> dict[str, tuple[Severity, str]]:
    findings = list(check_settings(settings_with(**more)))
    assert all(finding.fix for finding in findings if finding.severity is not Severity.OK)
    return by_check(findings)


def test_check_settings_valid_settings_are_ok() -> None:
    """Valid settings are reported as OK, with their meaning and without a secret."""
    found = _found()
    assert {name: severity for name, (severity, _) in found.items()} == dict.fromkeys(
        ("redirect_uri", "deep_link", "api_keys", "private_address"), Severity.OK
    )
    assert found["deep_link"][1] == "the deep link is foryoure://amo-crm/callback?code=CODE&state=STATE"
    assert found["api_keys"][1] == "backend (read+token)"
    assert API_KEY not in str(found)


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
        ("APP__DEEP_LINK", "foryoure://a ForYoure://a", "deep_link", Severity.WARN),
        ("API__KEYS", "", "api_keys", Severity.WARN),
        ("API__KEYS", f"reader:read:{API_KEY}", "api_keys", Severity.WARN),
        ("API__KEYS", f"shop:account=1:{API_KEY}", "api_keys", Severity.OK),
        ("SERVER__TRUSTED_PROXIES", "127.0.0.1,0.0.0.0/0", "trusted_proxies", Severity.WARN),
        ("SERVER__TRUSTED_PROXIES", "::/0", "trusted_proxies", Severity.WARN),
        ("SERVER__TRUSTED_PROXIES", "::ffff:0:0/96", "trusted_proxies", Severity.WARN),
        ("SERVER__PRIVATE", "0.0.0.0:8081", "private_address", Severity.WARN),
        ("SERVER__PRIVATE", "[::]:8081", "private_address", Severity.WARN),
        ("SERVER__PRIVATE", "8.8.8.8:8081", "private_address", Severity.WARN),
        ("SERVER__PRIVATE", "10.0.0.7:8081", "private_address", Severity.OK),
        ("SERVER__PRIVATE", "unix:/run/private.sock", "private_address", Severity.OK),
    ],
)
def test_check_settings_doubtful_setting_warns_or_fails(
    setting: str, value: str, check: str, severity: Severity
) -> None:
    """A setting that cannot work fails, a doubtful one warns, and both report a fix."""
    assert _found(**{setting: value})[check][0] is severity


@pytest.mark.parametrize(
    "name", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "Https_Proxy"]
)
def test_check_outgoing_names_proxy_variable_without_value(name: str) -> None:
    """A proxy variable is named without its value, which may contain a password."""
    [finding] = check_outgoing({"PATH": "/bin", name: PROXY})
    assert (finding.severity, finding.message.startswith(f"{name}: proxy variables are ignored")) == (
        Severity.WARN,
        True,
    )
    assert "sekret" not in str(finding)
    assert "proxy.example" not in str(finding)


def test_check_outgoing_reports_variables_in_one_finding() -> None:
    """All proxy variables are named in one finding."""
    [finding] = check_outgoing({"https_proxy": PROXY, "HTTP_PROXY": PROXY})
    assert finding.message.startswith("HTTP_PROXY, https_proxy: proxy variables are ignored")


@pytest.mark.parametrize("environ", [{}, {"NO_PROXY": "localhost"}, {"HTTP_PROXY": ""}, {"MY_HTTP_PROXY": PROXY}])
def test_check_outgoing_without_proxy_variable_reports_nothing(environ: dict[str, str]) -> None:
    """Without a proxy variable, or with an empty one, there is no finding."""
    assert list(check_outgoing(environ)) == []


# --- files ---------------------------------------------------------------------------------------


def _severities(config: Path | None, **environ: str) -> list[Severity]:
    return [finding.severity for finding in check_secrets(config, environ)]


@pytest.mark.parametrize(
    ("mode", "text", "severity"),
    [
        (0o644, '[amo]\nclient_secret = "x"', Severity.FAIL),
        (0o640, '[amo]\nclient_secret = "x"', Severity.OK),
        (0o644, '[amo]\nclient_id = "x"', Severity.OK),
        (0o644, '[storage]\nurl = "sqlite:///a.db"', Severity.OK),
        (0o644, '[storage]\nurl = "postgresql://u@h/d"', Severity.OK),
        (0o644, '[storage]\nurl = "postgresql://u:x@h/d"', Severity.FAIL),
        (0o602, '[amo]\nclient_id = "x"', Severity.FAIL),
    ],
)
def test_check_secrets_configuration_file_needs_closed_mode(
    mode: int, text: str, severity: Severity, folder: Path
) -> None:
    """A configuration file with secrets must not be readable by others, and none may be writable by them."""
    config = folder / "config.toml"
    config.write_text(text)
    config.chmod(mode)
    [finding] = check_secrets(config, {})
    assert finding.severity is severity
    assert '"x"' not in finding.message
    assert "u:x" not in finding.message


@pytest.mark.parametrize(
    ("mode", "above", "severity"),
    [(0o644, 0o755, Severity.FAIL), (0o644, 0o700, Severity.OK), (0o600, 0o755, Severity.OK)],
)
def test_check_secrets_secret_file_needs_closed_mode(mode: int, above: int, severity: Severity, folder: Path) -> None:
    """A secret file is protected by its own mode or a folder's; other files are ignored."""
    secrets = folder / "secrets"
    secrets.mkdir()
    (secrets / "README").touch(0o666)
    file = secrets / "amo.client_secret"
    file.touch()
    file.chmod(mode)
    secrets.chmod(above)
    assert _severities(None, CREDENTIALS_DIRECTORY=str(secrets)) == [severity]
    config = folder / "config.toml"
    config.write_text('[server]\nsecrets = "secrets"')
    assert _severities(config) == [severity]
