"""Both APIs tested against their OpenAPI document by schemathesis over a real socket."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from amo_callback.web.openapi import COMMON
from tests.service import ADMIN_KEY, API_KEY, HOST, Running
from tests.web.phone import WITH_USERS, jwt_of

WRONG_KEY = "wrong-api-key-0123456789-0123456789-012345678"
NO_LIMITS = {"LIMITS__FAILED_CODES": "1000000", "AMO__DEFAULT_DOMAIN": HOST}
"""Settings without a limit on the fuzzer's attempts; other tests cover the limits."""
APP_LINK = {
    "APP__DEEP_LINK": "foryoure://amo-crm/callback https://app.example.com/amo-crm",
    "APP__IOS_APP_IDS": "ABCDE12345.com.example.app",
    "APP__ANDROID_PACKAGE": "com.example.app",
    "APP__ANDROID_CERT_FINGERPRINTS": ":".join(["AB"] * 32),
}
"""Settings with which the routes of an https deep link exist."""

RULES = """
warnings = false

# A body with a value that is too long, or with too many of them, can also be too large.
checks.negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 409, 413, 429]

# Well-formed data may be refused by AMO, by the check of a signature or verifier, or because of stored data.
[[operations]]
include-operation-id = [
  "exchange_code", "callback", "connect", "return_page", "start_authorization", "start_owned_authorization",
  "hook_disconnect", "import_connections", "issue_token",
]
checks.positive_data_acceptance.expected-statuses = [200, 204, 302, 303, 400, 401, 403, 404, 429]

# The query of a link or redirect is read leniently: unknown parameters are ignored, and a malformed query returns
# the user to the app with an error word.
[[operations]]
include-operation-id = ["callback", "connect", "return_page"]
checks.negative_data_rejection.enabled = false

# `Allow` also has GET and DELETE, which this path supports for a connection with the id "import".
[[operations]]
include-operation-id = "import_connections"
checks.allow_header_conformance.enabled = false

# HEAD does no work with any data: only an invalid name is refused, by 404 and before the key is checked.
[[operations]]
include-method = "HEAD"
checks.negative_data_rejection.enabled = false
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fuzz:
    """One run of schemathesis: its API and its credentials."""

    api: str
    key: str | None
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """The ids of the operations to include alone, or to exclude."""
    phases: str = "examples,coverage,fuzzing,stateful"


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with JWT settings and without limits."""
    async with run(**WITH_USERS, **NO_LIMITS, **APP_LINK) as running:
        yield running


FROZEN = ("take_token", "take_authorization", "refresh_token", "readyz")
"""Operations that return 503 during a freeze.

A backend's key, which cannot freeze, is used for them; the administrator's run excludes them.
"""
RUNS = {
    "a backend": Fuzz(api="private", key=API_KEY, only=FROZEN),
    "an administrator": Fuzz(api="private", key=ADMIN_KEY, without=FROZEN),
    "a wrong key": Fuzz(api="private", key=WRONG_KEY, phases="coverage"),
    "the app": Fuzz(api="public", key="jwt"),
    "no credentials": Fuzz(api="public", key=None, phases="coverage,fuzzing"),
}


@pytest.mark.parametrize("fuzz", RUNS.values(), ids=RUNS.keys())
async def test_api_conforms_to_its_openapi_document(
    app: Running, fuzz: Fuzz, fuzz_cases: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """No response is 5xx or undocumented; invalid data is refused, and valid data accepted."""
    await app.connected()
    (tmp_path / "openapi.json").write_text((await app.private("/openapi.json", key=ADMIN_KEY)).text, encoding="utf-8")
    (tmp_path / "schemathesis.toml").write_text(RULES, encoding="utf-8")
    before = len(app.lines())
    status, output = await _schemathesis(tmp_path, *_arguments(app, fuzz, fuzz_cases))
    requests = [line for line in app.lines()[before:] if line["event"] == "http.request"]
    record_property("cases", len(requests))
    record_property("2xx and 3xx", sum(1 for line in requests if line["status"] < 400))
    record_property("5xx", sum(1 for line in requests if line["status"] >= 500))
    assert status == 0, output
    assert len(requests) > 100
    assert [line for line in requests if line["status"] >= 500] == []
    assert [line for line in app.lines() if line["event"] == "http.bug"] == []


def _arguments(app: Running, fuzz: Fuzz, cases: int) -> list[str]:
    address = app.service.public if fuzz.api == "public" else app.service.private
    tags = [("--include-tag", fuzz.api), ("--include-tag", COMMON)]
    chosen = [("--include-operation-id", name) for name in fuzz.only] or tags
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
    """Run schemathesis as its own process, and return its exit status and output."""
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
