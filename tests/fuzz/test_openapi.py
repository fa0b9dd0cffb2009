"""Both APIs asked what their OpenAPI document allows, and what it does not, by schemathesis over a real socket."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.service import ADMIN_KEY, API_KEY, HOST, Running
from tests.web.phone import WITH_USERS, jwt_of

WRONG_KEY = "wrong-api-key-0123456789-0123456789-012345678"
ROOM = {"LIMITS__FAILED_CODES": "1000000", "AMO__DEFAULT_DOMAIN": HOST}
"""As many tries as the fuzzer likes: what a limit says is tested elsewhere."""

RULES = """
warnings = false

# What AMO, a signature, a grant's verifier or what is stored decides is refused though its form is good.
[[operations]]
include-operation-id = [
  "exchange_code", "callback", "connect", "return_page", "start_grant", "start", "hook_disconnect",
  "import_connections",
]
checks.positive_data_acceptance.expected-statuses = [200, 204, 302, 303, 400, 401, 403, 404, 429]

# What a link or a redirect says is read leniently: what nobody asked for is passed over, and what is damaged
# brings the person back to the app, with a word for it.
[[operations]]
include-operation-id = ["callback", "connect", "return_page"]
checks.negative_data_rejection.enabled = false

# GET and DELETE of this path are those of a connection whose id is "import": `Allow` tells of them, too.
[[operations]]
include-operation-id = "import_connections"
checks.allow_header_conformance.enabled = false

# A name that is none is refused by 404 only, and before the key: HEAD does no work, whatever is asked.
[[operations]]
include-method = "HEAD"
checks.negative_data_rejection.enabled = false
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fuzz:
    """One run of schemathesis: at which API, as whom."""

    api: str
    key: str | None
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """The names of operations that are asked for alone, or left out."""
    phases: str = "examples,coverage,fuzzing,stateful"


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with users, and one connection."""
    async with run(**WITH_USERS, **ROOM) as running:
        yield running


FROZEN = ("take_token", "refresh_token", "readyz", "head_readyz")
"""A frozen service answers these 503: a backend, which cannot freeze it, asks for them; an administrator for others."""
RUNS = {
    "a backend": Fuzz(api="private", key=API_KEY, only=FROZEN),
    "an administrator": Fuzz(api="private", key=ADMIN_KEY, without=FROZEN),
    "a stranger": Fuzz(api="private", key=WRONG_KEY, phases="coverage"),
    "the app": Fuzz(api="public", key="jwt"),
    "anybody": Fuzz(api="public", key=None, phases="coverage,fuzzing"),
}


@pytest.mark.parametrize("fuzz", RUNS.values(), ids=RUNS.keys())
async def test_a_door_answers_as_its_document_says(
    app: Running, fuzz: Fuzz, fuzz_cases: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """No 5xx, no status, header, type or body that is not told of, whatever comes; bad data is refused, good taken."""
    await app.connected()
    (tmp_path / "openapi.json").write_text((await app.private("/openapi.json", key=ADMIN_KEY)).text, encoding="utf-8")
    (tmp_path / "schemathesis.toml").write_text(RULES, encoding="utf-8")
    before = len(app.lines())
    status, told = await _schemathesis(tmp_path, *_arguments(app, fuzz, fuzz_cases))
    requests = [line for line in app.lines()[before:] if line["event"] == "http.request"]
    record_property("cases", len(requests))
    record_property("2xx and 3xx", sum(1 for line in requests if line["status"] < 400))
    record_property("5xx", sum(1 for line in requests if line["status"] >= 500))
    assert status == 0, told
    assert len(requests) > 100
    assert [line for line in requests if line["status"] >= 500] == []
    assert [line for line in app.lines() if line["event"] == "http.bug"] == []


def _arguments(app: Running, fuzz: Fuzz, cases: int) -> list[str]:
    address = app.service.public if fuzz.api == "public" else app.service.private
    chosen = [("--include-operation-id", name) for name in fuzz.only] or [("--include-tag", fuzz.api)]
    key = jwt_of("42") if fuzz.key == "jwt" else fuzz.key
    return [
        "run", "openapi.json", "--url", f"http://{address}", "--max-examples", str(cases),
        *(["--header", f"Authorization: Bearer {key}"] if key else []),
        *(part for option in chosen for part in option),
        *(part for name in fuzz.without for part in ("--exclude-operation-id", name)),
        "--seed", "1", "--no-color", "--suppress-health-check", "all", "--max-redirects", "0",
        "--phases", fuzz.phases, "--workers", "1", "--continue-on-failure",
    ]  # fmt: skip


async def _schemathesis(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the command beside the service, which lives in this process, and return its status and what it says."""
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(errors="replace")
