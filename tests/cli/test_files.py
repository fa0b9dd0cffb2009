"""Files given to a command that are not regular or are too long: the command reports them and does not block."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.process import command, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


HANDED = {
    "import": ["connections", "import", "it", "--yes"],
    "import --raw": ["connections", "import", "--raw", "it", "--yes"],
    "export --passphrase-file": ["connections", "export", "out", "--passphrase-file", "it"],
    "export --to-key-file": ["connections", "export", "out", "--to-key-file", "it"],
    "--config": ["check", "--config", "it"],
    "init --client-secret-file": ["init", "--no-input", "--client-secret-file", "it"],
}
UNSUITABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "Not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "Not a regular file"),
    "a huge file": (_huge, "arger than"),
}


@pytest.mark.parametrize("made", ["a pipe", "a huge file"])
@pytest.mark.parametrize("handed", HANDED)
async def test_command_given_unsuitable_file_fails_immediately(
    handed: str, made: str, tmp_path: Path, environ: dict[str, str]
) -> None:
    """The error names the file and the problem, and nothing is written."""
    make, why = UNSUITABLE[made]
    make(tmp_path / "it")
    status, out, err = await command(*HANDED[handed], folder=tmp_path, environ=environ)
    assert status in {1, 2, 78}
    assert "Traceback" not in err
    assert any("it: " in line and why in line for line in (out + err).splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


@pytest.mark.parametrize("made", ["a pipe", "a device", "a huge file"])
async def test_serve_unsuitable_secret_file_fails_immediately(
    made: str, tmp_path: Path, environ: dict[str, str]
) -> None:
    """An unsuitable secret file counts as missing: the service does not start and does not block."""
    (tmp_path / "secrets").mkdir()
    UNSUITABLE[made][0](tmp_path / "secrets" / "amo.client_secret")
    del environ["AMO_CALLBACK_AMO__CLIENT_SECRET"]
    secrets = {**environ, "CREDENTIALS_DIRECTORY": str(tmp_path / "secrets")}
    status, _, err = await command("serve", folder=tmp_path, environ=secrets)
    assert status == 78
    assert "amo.client_secret" in err


async def test_backup_and_export_existing_target_is_not_opened(tmp_path: Path, environ: dict[str, str]) -> None:
    """An existing target is neither opened nor replaced."""
    (tmp_path / "passphrase").write_text("correct horse battery staple\n")
    async with serving(environ, tmp_path) as service:
        await service.until("service.started")
        service.signal(signal.SIGTERM)
        await service.ended()
    os.mkfifo(tmp_path / "it")
    for arguments in (["backup", "it"], ["connections", "export", "it", "--passphrase-file", "passphrase"]):
        status, out, err = await command(*arguments, folder=tmp_path, environ=environ)
        assert (status, out) == (1, "")
        assert "it: " in err
        assert "File exists" in err
