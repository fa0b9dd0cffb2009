"""A machine booted by systemd, with amo-callback installed as an administrator installs it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from amo_callback.amo.sandbox.fake_amo import SandboxIntegration
from tests.service import BASE
from tests.wait_limit import WAIT_LIMIT

VARIABLE = "TEST_SYSTEMD"
PROJECT = Path(__file__).parent.parent.parent
ETC = "/etc/amo-callback"
PUBLIC, PRIVATE, AMO = "127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:9100"
_OURS = ("AMO_CALLBACK", "COVERAGE", "PYTEST", "PYTHON")
_KNOWN = SandboxIntegration()
CONFIG = f"""
[server]
secrets = "credentials"
[amo]
client_id = "{_KNOWN.client_id}"
redirect_uri = "{_KNOWN.redirect_uri}"
endpoint = "http://{AMO}/{{domain}}"
authorize_url = "http://{AMO}/oauth"
[storage]
url = "sqlite:////var/lib/amo-callback/amo-callback.db"
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """The result of a command."""

    status: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Lab:
    """The machine, in which commands run as root."""

    command: list[str]
    folder: Path
    """A folder shared with the machine: a virtual environment with the package, and the guest commands."""
    program: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "program", self.folder / "guest_commands.py")

    @property
    def python(self) -> str:
        return f"{self.folder}/venv/bin/python"

    @property
    def amo_callback(self) -> str:
        return f"{self.folder}/venv/bin/amo-callback"

    def sh(self, *words: str, given: str = "", check: bool = True) -> Done:
        """Run a command inside the machine and return its result."""
        done = _run([*self.command, "sh", *words], given=given)
        assert not check or done.status == 0, (words, done)
        return done

    def inside(self, *words: str, given: str = "") -> Any:
        """Run a guest command and return its output as JSON."""
        return json.loads(self.sh(self.python, str(self.program), *words, given=given).out)

    def ask(self, url: str, *headers: str, method: str = "GET", body: str = "") -> Any:
        """Send a request from inside the machine; the status is 0 if the connection fails."""
        return self.inside("ask", method, url, *headers, given=body)

    def write(self, path: str, text: str) -> None:
        """Write a file inside the machine."""
        self.sh("sh", "-c", f"mkdir -p {Path(path).parent} && cat >{path}", given=text)

    def show(self, unit: str, *properties: str) -> Mapping[str, str]:
        """Return properties of a unit."""
        lines = self.sh("systemctl", "show", unit, *(f"-p{name}" for name in properties)).out.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def state(self) -> str:
        return self.sh("systemctl", "is-active", "amo-callback", check=False).out.strip()

    def journal(self) -> str:
        return self.sh("journalctl", "-u", "amo-callback", "-o", "cat", "--no-pager").out

    def key(self) -> str:
        """Return the authorization header with the installation's API key."""
        line = self.sh("cat", f"{ETC}/credentials/api.keys").out.strip()
        return f"Authorization: Bearer {line.rpartition(':')[2]}"

    def connect(self) -> None:
        """Connect the stand-in's account as a user returning from its consent page does."""
        allowed = self.ask(f"http://{AMO}/oauth/allow?host=reforyou.amocrm.ru&state=s")
        query = allowed["headers"]["Location"].partition("?")[2]
        answer = self.ask(f"http://{PUBLIC}{BASE}/callback?{query}")
        assert (answer["status"], answer["headers"]["Location"][:33]) == (302, "foryoure://amo-crm/callback?code=")

    @contextmanager
    def loaded(self, url: str, *, clients: int) -> Iterator[dict[str, int]]:
        """Send requests continuously during the block and count them."""
        words = [*self.command, "sh", self.python, str(self.program), "load", url, str(clients), self.key()]
        counts: dict[str, int] = {}
        load = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 -- the tests' command
        try:
            yield counts
        finally:
            out, _ = load.communicate("", timeout=WAIT_LIMIT)
        counts.update(json.loads(out))


def until(condition: Callable[[], bool]) -> None:
    """Poll a condition until it is true."""
    end = time.monotonic() + WAIT_LIMIT
    while not condition():
        assert time.monotonic() < end, "it has not become so"
        time.sleep(0.05)


@contextmanager
def booted() -> Iterator[Lab]:
    """Boot a machine with the package installed under /opt, or skip the test if no machine is available."""
    if not (result := os.environ.get(VARIABLE)):
        pytest.skip(f"{VARIABLE} names no command that boots a systemd")
    if os.geteuid() != 0 or not Path("/usr/bin/python3").exists():
        pytest.skip("a systemd is booted by root, with /usr/bin/python3")
    command = shlex.split(result)
    if _run([*command, "sh", "true"]).status == 0:
        pytest.skip(f"{result}: is up already, for somebody else")
    folder = Path(mkdtemp(prefix="amo-callback-test-", dir="/opt"))
    folder.chmod(0o755)
    try:
        _install_package(folder)
        assert (started := _run([*command, "start"])).status == 0, started
        yield Lab(command=command, folder=folder)
    finally:
        _run([*command, "stop"])
        shutil.rmtree(folder)


def _install_package(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    venv = folder / "venv"
    for step in (
        [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(PROJECT)],
        ["/usr/bin/python3", "-m", "venv", "--without-pip", str(venv)],
    ):
        assert (done := _run(step)).status == 0, done
    wheel = next(folder.glob("*.whl"))
    done = _run([*pip, "--python", str(venv / "bin/python"), "install", "--quiet", str(wheel)])
    assert done.status == 0, done
    shutil.copy(Path(__file__).with_name("guest_commands.py"), folder / "guest_commands.py")


def _run(words: list[str], *, given: str = "") -> Done:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False, env=environ)  # noqa: S603 -- the tests' command
    return Done(status=done.returncode, out=done.stdout, err=done.stderr)
