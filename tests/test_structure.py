"""Import directions, and one importing package per external library."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "amo_callback"

ONE_PLACE = {
    "aiosqlite": {"store"},
    "sqlite3": {"store"},
    "asyncpg": {"store"},
    "cryptography": {"crypto"},
    "jwt": {"identity", "demo"},
    "prometheus_client": {"observe"},
    "jinja2": {"web", "amo", "demo"},
    "pydantic_settings": {"config"},
    "segno": {"web"},
    "standardwebhooks": {"webhooks"},
    "uvloop": {"cli"},
    "aiohttp": {"amo", "identity", "webhooks", "web", "cli", "demo"},
}
EDGES = {"amo", "store", "observe"}
USE_CASES = {"refresh", "tokens", "oauth", "transfer", "webhooks", "key_rotation", "web"}
COMPOSITION = {"web.composition"}
"""Modules that connect `amo`, `store` and `observe` with the use cases, as `cli` and `demo` do."""

SECRETS_COMPARED = {
    "amo.introspection",
    "oauth.authorization",
    "oauth.ownership",
    "tokens.access_tokens",
    "identity",
}


def _parsed() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "__init__.py"
    }


def _imported(tree: ast.AST) -> set[str]:
    """Return the names of imported modules, without imports for types."""
    found = set[str]()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            found |= _imported(node)
    return found


def _place(module: str) -> str:
    return module.removeprefix("amo_callback.").partition(".")[0]


MODULES = _parsed()
IMPORTS = {module: _imported(tree) for module, tree in MODULES.items()}
OURS = {module: {name for name in names if name.startswith("amo_callback.")} for module, names in IMPORTS.items()}


def test_imports_are_acyclic_and_libraries_have_one_package() -> None:
    """Imports have no cycle; edges and use cases are connected in the composition only."""
    graph: dict[str, set[str]] = {}
    for module, names in OURS.items():
        graph.setdefault(_place(module), set()).update({_place(name) for name in names} - {_place(module)})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(reversed(error.args[1]))) from None
    offenders = [
        f"{module} imports {name}"
        for module, names in OURS.items()
        for name in names
        if _place(name) != _place(module)
        and (
            (_place(module) in USE_CASES and module not in COMPOSITION and _place(name) in EDGES)
            or (_place(module) in EDGES and _place(name) in USE_CASES | EDGES)
        )
    ]
    offenders += [
        f"{module} imports {library}"
        for module, names in IMPORTS.items()
        for library in {name.partition(".")[0] for name in names} & ONE_PLACE.keys()
        if _place(module) not in ONE_PLACE[library]
    ]
    assert offenders == []


def test_constructors_have_five_parameters_and_class_names_are_unique() -> None:
    """A constructor has at most five parameters, and no two classes have the same name, apart from leading `_`."""
    classes = [node for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names = Counter(node.name.lstrip("_") for node in classes)
    offenders = [
        f"{node.name}: {len(parameters)} parameters"
        for node in classes
        for function in node.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
        if len(parameters := [*function.args.args[1:], *function.args.kwonlyargs]) > 5
    ]
    offenders += [name for name, times in names.items() if times > 1]
    assert offenders == []


def test_secrets_are_compared_in_constant_time() -> None:
    """A comparison's duration is not visible in answers, so the calls are checked here."""
    compared = {
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hmac.compare_digest"
    }
    assert compared == SECRETS_COMPARED


def test_tests_have_docstrings() -> None:
    """Every test has a docstring, so that the tests can be read as a manual."""
    offenders = [
        f"{path.name}: {node.name}"
        for path in sorted(Path(__file__).parent.rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        if not ast.get_docstring(node)
    ]
    assert offenders == []


def test_repository_top_level_is_complete() -> None:
    """There are no other files at the top level of the repository."""
    names = {path.name for path in PACKAGE.parent.iterdir() if not path.name.startswith(".")}
    assert names - {"build", "dist"} == {"pyproject.toml", "README.md", "amo_callback", "tests", "config.example.toml"}
