"""Who may read what is secret."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from amo_callback.cli.checks.files import check_disk, check_secrets
from amo_callback.cli.checks.finding import Severity
from tests.cli.harness import context_in

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder that everybody may enter, as pytest's own may not be."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _verdicts(config: Path | None, **environ: str) -> list[Severity]:
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
def test_a_configuration_file_is_closed_where_it_holds_secrets(
    mode: int, text: str, severity: Severity, folder: Path
) -> None:
    """Its secrets are named, not shown; one that anybody may change is never good."""
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
def test_files_of_secrets_are_closed(mode: int, above: int, severity: Severity, folder: Path) -> None:
    """Their own mode closes them, or that of a folder above; other files beside them are nobody's business."""
    secrets = folder / "secrets"
    secrets.mkdir()
    (secrets / "README").touch(0o666)
    file = secrets / "amo.client_secret"
    file.touch()
    file.chmod(mode)
    secrets.chmod(above)
    assert _verdicts(None, CREDENTIALS_DIRECTORY=str(secrets)) == [severity]
    config = folder / "config.toml"
    config.write_text('[server]\nsecrets = "secrets"')
    assert _verdicts(config) == [severity]


def test_the_room_is_told_also_before_there_is_a_folder(folder: Path) -> None:
    """The nearest folder that is there has the same disk."""
    [finding] = check_disk(context_in(folder / "no"))
    assert finding.severity in {Severity.OK, Severity.WARN}
    assert "MiB are free" in finding.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_beside_the_database_are_its_owners(folder: Path) -> None:
    """One that root has left keeps the service from writing; one that others may read tells who the accounts are."""
    place = context_in(folder)
    database = folder / "amo-callback.db"
    database.touch()
    database.chmod(0o644)
    (folder / "amo-callback.db-wal").touch()
    os.chown(database, NOBODY, NOBODY)
    first, second, _ = check_disk(place)
    assert (first.severity, second.severity) == (Severity.FAIL, Severity.WARN)
    assert "amo-callback.db-wal is another user's" in first.message
