"""`amo-callback config …`, and `check` without network requests."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING

import jsonschema_rs
import pytest

from amo_callback.cli.main import main
from tests.cli.harness import environ_with

if TYPE_CHECKING:
    from pathlib import Path


def test_config_check_reports_settings_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`config check` reports the settings, creates no database and sends no request."""
    environ = {**environ_with(), "STATE_DIRECTORY": str(tmp_path)}
    assert main(["config", "check", "--json"], environ=environ) == 0
    checks = [finding["check"] for finding in json.loads(capsys.readouterr().out)["findings"]]
    assert checks == ["redirect_uri", "deep_link", "api_keys", "private_address"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("AMO__TIMEOUT", "soon"), ("APP__COLOUR", "red")])
def test_config_check_invalid_configuration_exits_78(name: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid setting is named as at the service's start, with exit status 78."""
    assert main(["config", "check"], environ=environ_with(**{name: value})) == 78
    assert name.lower().replace("__", ".") in capsys.readouterr().err


def test_config_example_prints_valid_toml(capsys: pytest.CaptureFixture[str]) -> None:
    """`config example` prints the whole reference as valid TOML."""
    assert main(["config", "example"]) == 0
    assert {"server", "amo", "app", "storage"} <= tomllib.loads(capsys.readouterr().out).keys()


def test_config_schema_accepts_reference(capsys: pytest.CaptureFixture[str]) -> None:
    """The schema accepts the reference's settings and rejects unknown ones."""
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    valid = {"amo": {"client_id": "c", "client_secret": "s", "redirect_uri": "https://a.example/callback"}}
    valid["storage"] = {"encryption_keys": "k"}
    assert jsonschema_rs.is_valid(schema, valid)
    assert not jsonschema_rs.is_valid(schema, {**valid, "sever": {}})


def test_check_invalid_configuration_is_finding(capsys: pytest.CaptureFixture[str]) -> None:
    """Each problem of the configuration is a finding."""
    assert main(["check", "--json"], environ=environ_with(AMO__TIMEOUT="soon")) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {one["check"] for one in findings if one["severity"] == "fail"} == {"configuration"}


def test_check_zero_timeout_is_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A timeout of zero is a usage error."""
    assert main(["check", "--timeout", "0"]) == 2
    assert "--timeout" in capsys.readouterr().err
