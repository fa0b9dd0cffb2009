"""The tests against one mutant after the other, each in a process and a copy of the repository.

A process is forked from one that has loaded the libraries, which is most of what a short run takes.
"""

from __future__ import annotations

import compileall
import importlib
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.util import cache_from_source
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import pytest

from tests.mutation.mutants import mutants_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from multiprocessing.queues import SimpleQueue

    from tests.mutation.mutants import Mutant

Outcome = Literal["killed", "survived", "timed out"]

_REPOSITORY = Path(__file__).parent.parent.parent
_COPIED = ("amo_callback", "tests", "pyproject.toml", "README.md", "config.example.toml")
_LIBRARIES = (
    "aiohttp.web", "aiosqlite", "asyncpg", "cryptography.fernet", "hypothesis", "jinja2", "jwt", "pydantic_settings",
    "prometheus_client", "standardwebhooks", "structlog",
)  # fmt: skip
_OPTIONS = (
    "-x", "-q", "--tb=no", "-o", "addopts=", "--import-mode=importlib", "--assert=plain", "-p", "no:cacheprovider",
    "-p", "no:xdist", "-p", "no:schemathesis",
)  # fmt: skip
_FORK = get_context("fork")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is changed, and who should notice."""

    module: Path
    tests: tuple[str, ...]
    lines: frozenset[int] = frozenset()
    patience: float = 60.0


def run(plan: Plan, *, workers: int) -> Iterator[tuple[Mutant, Outcome]]:
    """Yield each mutant with what became of it; raises `RuntimeError` where the tests fail without any change."""
    source = (_REPOSITORY / plan.module).read_text(encoding="utf-8")
    mutants = [one for one in mutants_of(source) if not plan.lines or one.line in plan.lines]
    for library in _LIBRARIES:
        importlib.import_module(library)
    found: SimpleQueue[tuple[int, Outcome] | None] = _FORK.SimpleQueue()
    with TemporaryDirectory(prefix="mutants-") as folder:
        for number in range(workers):
            mine = {index: mutants[index].source for index in range(number, len(mutants), workers)}
            _FORK.Process(target=_work, args=(Path(folder, str(number)), plan, mine, found)).start()
        for _ in mutants:
            told = found.get()
            if told is None:
                raise RuntimeError("the tests fail without any change")
            index, outcome = told
            yield mutants[index], outcome


def _work(copy: Path, plan: Plan, sources: Mapping[int, str], found: SimpleQueue[tuple[int, Outcome] | None]) -> None:
    _make(copy)
    module = copy / plan.module
    Path(cache_from_source(str(module))).unlink(missing_ok=True)
    if _outcome(copy, plan) != "survived":
        found.put(None)
        return
    for index, source in sources.items():
        module.write_text(source, encoding="utf-8")
        found.put((index, _outcome(copy, plan)))


def _make(copy: Path) -> None:
    copy.mkdir()
    for name in _COPIED:
        origin = _REPOSITORY / name
        if origin.is_dir():
            shutil.copytree(origin, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, copy / name)
    compileall.compile_dir(copy, quiet=1)


def _outcome(copy: Path, plan: Plan) -> Outcome:
    tests = _FORK.Process(target=_test, args=(copy, plan))
    tests.start()
    tests.join(plan.patience)
    if tests.exitcode is None:
        tests.kill()
        tests.join()
        return "timed out"
    return "killed" if tests.exitcode else "survived"


def _test(copy: Path, plan: Plan) -> None:
    """Run the tests in this process, in which nothing of ours may have been loaded from elsewhere."""
    for name in [name for name in sys.modules if name.partition(".")[0] in {"amo_callback", "tests"}]:
        del sys.modules[name]
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    os._exit(pytest.main([*_OPTIONS, *plan.tests]))
