"""The command `check` with a real service."""

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.process import command
from tests.e2e.processes import Stage, staged
from tests.service import API_KEY, BASE, HOST

NOBODY = 65534


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _fix_addresses(stage: Stage, folder: Path) -> None:
    """Set the listeners' addresses in the configuration, because a port chosen at start is not known to `check`."""
    public = f"127.0.0.1:{_free_port()}"
    stage.settings |= {
        "SERVER__PUBLIC": public,
        "SERVER__PRIVATE": f"unix:{folder}/private.sock",
        "AMO__REDIRECT_URI": f"http://{public}{BASE}/callback",
        "AMO__DEFAULT_DOMAIN": HOST,
    }


async def _checked(stage: Stage) -> tuple[int, dict[str, Any]]:
    status, out, err = await command("check", "--json", folder=stage.folder, environ=stage.environ())
    assert err == ""
    for secret in (API_KEY, stage.key, stage.amo.fake.integration.client_secret):
        assert secret not in out
    return status, json.loads(out)


async def test_check_of_running_service_is_ok(tmp_path: Path, encryption_key: str) -> None:
    """Every check is OK except for https; no token request is sent, and no secret is printed."""
    async with staged(tmp_path, encryption_key, accounts=2) as stage:
        _fix_addresses(stage, tmp_path)
        stage.amo.fake.integration = stage.amo.fake.integration.__class__(
            redirect_uri=stage.settings["AMO__REDIRECT_URI"]
        )
        async with stage.connected():
            before = stage.amo.sandbox.requests
            status, result = await _checked(stage)
            assert stage.amo.sandbox.requests == before
        not_ok = {one["check"] for one in result["findings"] if one["severity"] != "ok"}
        assert not_ok - {"systemd", "disk"} == {"redirect_uri"}
        assert (status, result["severity"]) == (0, "warn")
        by_name = {one["check"]: one["message"] for one in result["findings"]}
        assert by_name["keys"] == "the keys decrypt all 2 token pairs"
        assert "leads to this service" in by_name["proxy"]


async def test_check_without_service_reports_findings(tmp_path: Path, encryption_key: str) -> None:
    """Each finding has its fix and is counted at the end, and no database is created."""
    async with staged(tmp_path, encryption_key, accounts=1) as stage:
        _fix_addresses(stage, tmp_path)
        status, out, err = await command("check", folder=tmp_path, environ=stage.environ())
        assert (status, err) == (0, "")
        assert "warn  store            the database " in out
        assert "> run `amo-callback serve`" in out
        assert out.splitlines()[-1].endswith("0 fail")
        stage.settings["SERVER__BASE_PATH"] = "/elsewhere"
        status, result = await _checked(stage)
        assert (status, result["severity"]) == (1, "fail")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that another user can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at what is another's")
async def test_check_as_root_acts_as_database_owner(folder: Path, encryption_key: str) -> None:
    """No file owned by root remains, and a file that the database's owner cannot read is reported."""
    async with staged(folder, encryption_key, accounts=1) as stage:
        _fix_addresses(stage, folder)
        async with stage.serving() as process:
            await process.until("service.started")
            await process.stop()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        before = sorted(folder.rglob("*"))
        _, result = await _checked(stage)
        severities = {one["check"]: one["severity"] for one in result["findings"]}
        assert (severities["store"], severities["keys"], severities["rescue"]) == ("ok", "ok", "ok")
        assert sorted(folder.rglob("*")) == before
        assert {path.stat().st_uid for path in before} == {NOBODY}
        os.chown(folder / "rescue", 0, 0)
        status, result = await _checked(stage)
        [rescue] = [one for one in result["findings"] if one["check"] == "rescue"]
        assert (status, rescue["message"]) == (
            1,
            "the check could not be completed: PermissionError: Permission denied",
        )
