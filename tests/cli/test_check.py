"""`amo-callback config …`, and `check` where it asks nobody."""

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


def test_a_configuration_is_checked_by_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Findings are those of the settings; no database is made, and nobody is asked."""
    environ = {**environ_with(), "STATE_DIRECTORY": str(tmp_path)}
    assert main(["config", "check", "--json"], environ=environ) == 0
    checks = [finding["check"] for finding in json.loads(capsys.readouterr().out)["findings"]]
    assert checks == ["redirect_uri", "deep_link", "api_keys", "private_door"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("AMO__TIMEOUT", "soon"), ("APP__COLOUR", "red")])
def test_a_configuration_that_cannot_be_used_exits_78(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The problem is named, as at the service's start."""
    assert main(["config", "check"], environ=environ_with(**{name: value})) == 78
    assert name.lower().replace("__", ".") in capsys.readouterr().err


def test_the_reference_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """It is the whole file, and valid TOML."""
    assert main(["config", "example"]) == 0
    assert {"server", "amo", "app", "storage"} <= tomllib.loads(capsys.readouterr().out).keys()


def test_the_schema_accepts_what_the_reference_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """An editor finds an unknown key, and takes the reference's values."""
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    valid = {"amo": {"client_id": "c", "client_secret": "s", "redirect_uri": "https://a.example/callback"}}
    valid["storage"] = {"encryption_keys": "k"}
    assert jsonschema_rs.is_valid(schema, valid)
    assert not jsonschema_rs.is_valid(schema, {**valid, "sever": {}})


def test_a_check_of_a_configuration_that_cannot_be_used_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    """One finding for each problem."""
    assert main(["check", "--json"], environ=environ_with(AMO__TIMEOUT="soon")) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {one["check"] for one in findings if one["severity"] == "fail"} == {"configuration"}


def test_a_timeout_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """As any other misuse of the command."""
    assert main(["check", "--timeout", "0"]) == 2
    assert "--timeout" in capsys.readouterr().err
