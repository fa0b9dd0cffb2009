"""The house: imports run one way, and each outside library has one importing room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "amo_callback"

FLOORS = [
    {"errors"},
    {"model", "event"},
    {"grant", "sealing", "survey", "slots"},
    {"ports", "identity", "hosts", "alone"},
    {
        "schedule",
        "deeplink",
        "tasks",
        "clock",
        "cipher",
        "config",
        "machine",
        "outage",
        "disk",
        "webhook",
        "probe",
    },
    {"custody", "amo", "store", "observe"},
    {"connect", "transfer", "notices", "key_rotation", "deploy"},
    {"web"},
    {"demo"},
    {"cli"},
]
"""From the ground up: a room may import from its own floor and below."""

ONE_ROOM = {
    "aiosqlite": {"store.sqlite", "store.migrate"},
    "sqlite3": {"store.copies", "store.rebuild", "store.sqlite", "store.migrate", "store.inspection", "store.wal"},
    "asyncpg": {
        "store.postgres",
        "store.postgres_pool",
        "store.pooler",
        "store.listener",
        "store.migrate",
        "store.refusals",
        "store.postgres_inspection",
    },
    "cryptography": {"cipher"},
    "jwt": {"identity.jwk", "identity.signatures", "demo.phone"},
    "prometheus_client": {"observe.metrics", "observe.gauges"},
    "jinja2": {"web.pages.render", "amo.sandbox.app", "demo.render"},
    "pydantic_settings": {"config.settings", "config.loader", "config.types"},
    "standardwebhooks": {"webhook"},
    "uvloop": {"cli.context"},
}
CALLERS = {"amo.client", "amo.wire", "identity.key_set", "notices.sender"}
"""Where others are asked over HTTP."""
EDGES = {"amo", "store", "observe"}
USE_CASES = {"custody", "connect", "transfer", "notices", "key_rotation", "web"}
JOINED_IN = {"web.lifecycle", "web.services", "web.resources", "cli", "demo"}
"""Where `amo`, `store` and `observe` meet the use cases; the demonstration has AMO's stand-in on its stage."""

SECRETS_COMPARED = {"amo.lookup", "connect.admission", "connect.proof", "custody.handout", "identity.api_keys"}
"""Where what somebody presents is compared with what only he should know."""


def _modules() -> list[tuple[str, ast.Module]]:
    return [
        (
            ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"),
            ast.parse(path.read_text()),
        )
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "__init__.py"
    ]


def _imports(tree: ast.Module) -> set[str]:
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return found | {
        f"{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }


def _floor(module: str) -> int:
    room = module.partition(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


MODULES = _modules()


@pytest.mark.parametrize(("module", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_imports_run_downward(module: str, tree: ast.Module) -> None:
    """No module imports from a floor above its own."""
    ours = {name.removeprefix("amo_callback.") for name in _imports(tree) if name.startswith("amo_callback.")}
    assert {name for name in ours if _floor(name) > _floor(module)} == set()


@pytest.mark.parametrize(("module", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_edges_are_joined_in_one_place(module: str, tree: ast.Module) -> None:
    """Only where all is opened it is known which vendor, store and log there are, and these know no use case."""
    room = module.partition(".")[0]
    if {module, room} & JOINED_IN:
        return
    met = {name.split(".")[1] for name in _imports(tree) if name.startswith("amo_callback.")} - {room}
    assert met & EDGES == set()
    if room in EDGES:
        assert met & USE_CASES == set()


@pytest.mark.parametrize(("module", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_each_outside_library_has_one_room(module: str, tree: ast.Module) -> None:
    """A library is imported where the plan of the house says, so that it can be replaced there."""
    libraries = {name.partition(".")[0] for name in _imports(tree)}
    assert {library for library in libraries & set(ONE_ROOM) if module not in ONE_ROOM[library]} == set()
    if libraries & {"click", "rich"}:
        assert module.startswith("cli")
    if "aiohttp" in libraries:
        assert module in CALLERS or module.startswith(("web", "cli", "demo", "amo.sandbox"))


def test_secrets_are_compared_in_constant_time() -> None:
    """No other test could tell: the answers are the same, and only how long they take would tell a secret."""
    compared = {
        module
        for module, tree in MODULES
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hmac.compare_digest"
    }
    assert compared == SECRETS_COMPARED


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("test_*.py")), ids=lambda path: path.stem)
def test_each_test_states_a_behaviour(path: Path) -> None:
    """Every test has a docstring of one sentence or two, so that the tests can be read as the manual."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_the_top_level_holds_what_it_should() -> None:
    """Nothing lies about at the top of the repository."""
    names = {path.name for path in PACKAGE.parent.iterdir() if not path.name.startswith(".")}
    assert names - {"build", "dist"} == {"pyproject.toml", "README.md", "amo_callback", "tests", "config.example.toml"}
