"""All tables by block name: routes and errors from the OpenAPI document, metrics from Prometheus's text."""

import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amo_callback.cli.info import EXAMPLE_ENVIRONMENT
from amo_callback.cli.main import COMMANDS, STATUSES
from amo_callback.config.loader import load_settings
from amo_callback.deeplink import DEEP_LINK_ERRORS
from amo_callback.errors import AmoCallbackError, InternalError, error_classes
from amo_callback.observe.metrics import Metrics
from amo_callback.web.apis import openapi_text
from amo_callback.web.openapi import COMMON
from amo_callback.web.public.api import error_actions
from tests.builders import a_service_status, some_stats
from tests.fakes import START
from tests.reference.markdown import code, codes, table
from tests.reference.settings import settings

Document = dict[str, Any]

REPOSITORY = Path(__file__).parent.parent.parent
DOCUMENTS = ("README.md", "amo_callback/docs/mobile-app.md", "amo_callback/docs/backends.md")
"""The documents with generated tables."""

_FAMILY = re.compile(
    r"# HELP (?P<name>amo_callback_\S+) (?P<about>.*)\n# TYPE (?P=name) (?P<type>\w+)\n(?P<samples>(?:[^#\n].*\n)*)"
)


def all_tables() -> dict[str, list[str]]:
    document, guarded = (_document(metrics_auth=choice) for choice in ("no", "yes"))
    return {
        "public endpoints": _endpoints(document, guarded, api="public"),
        "private endpoints": _endpoints(document, guarded, api="private"),
        "settings": settings((REPOSITORY / "config.example.toml").read_text(encoding="utf-8")),
        "app errors": _app_errors(document),
        "private errors": _private_errors(document),
        "commands": table(
            ["command", "does"], [[code(f"amo-callback {name}"), one[1]] for name, one in COMMANDS.items()]
        ),
        "exit statuses": table(["exit status", "when"], [[str(status), when] for status, when in STATUSES.items()]),
        "metrics": _metrics(),
    }


def _document(*, metrics_auth: str) -> Document:
    more = {"AMO_CALLBACK_SERVER__METRICS_AUTH": metrics_auth}
    document: Document = json.loads(openapi_text(load_settings(None, EXAMPLE_ENVIRONMENT | more)))
    return document


def _endpoints(document: Document, guarded: Document, *, api: str) -> list[str]:
    """Return the table of an API's routes; the routes of both APIs are last, because readers seldom need them."""
    found = []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            common = COMMON in operation["tags"]
            if method == "head" or not (common or api in operation["tags"]):
                continue
            methods = "GET, HEAD" if method == "get" and "head" in item else method.upper()
            row = [
                code(f"{methods} {path}"),
                operation["summary"].removesuffix("."),
                codes(_taken(operation, document)),
                _caller(operation, guarded["paths"][path][method]),
                ", ".join(operation["responses"]),
            ]
            found.append((common, row))
    rows = [row for _, row in sorted(found, key=lambda one: one[0])]
    return table(["route", "what it does", "takes", "for", "statuses"], rows)


def _taken(operation: Any, document: Document) -> Iterator[str]:
    """Yield the names of query and body parameters; an optional one is followed by its default or a `?`."""
    parts = [(one["name"], one["schema"], one["required"]) for one in operation["parameters"] if one["in"] == "query"]
    if "requestBody" in operation:
        [content] = operation["requestBody"]["content"].values()
        name = content["schema"]["$ref"].rpartition("/")[2]
        shape = document["components"]["schemas"][name]
        parts += [(name, part, name in shape.get("required", ())) for name, part in shape["properties"].items()]
    for name, schema, required in parts:
        default = schema.get("default")
        yield name if required else f"{name}={json.dumps(default)}" if default else f"{name}?"


def _caller(operation: Any, guarded: Any) -> str:
    """Return the callers allowed to use an operation."""
    if "x-scope" in operation:
        return f"key: {code(operation['x-scope'])}"
    if "x-scope" in guarded:
        return f"anybody; with `server.metrics_auth` key: {code(guarded['x-scope'])}"
    kinds = [next(iter(kind), None) for kind in operation["security"]]
    return "user's JWT" if kinds == ["jwt"] else "anybody, or user's JWT" if "jwt" in kinds else "anybody"


def _app_errors(document: Document) -> list[str]:
    """Return the table of all errors that an app receives; the page has the same status as the routes."""
    statuses = _statuses(document, api="public")
    statuses["not_found"].add(404)
    statuses["method_not_allowed"].add(405)
    kinds = {kind.code: kind for kind in error_classes() if "code" in vars(kind) or kind is InternalError}
    rows = []
    for error, action in error_actions().items():
        known = DEEP_LINK_ERRORS.get(error)
        if known is not None:
            statuses[error].add(known.status)
            both = action if action == known.action else f"{known.action}; for a response: {action}"
            rows.append([code(error), "yes", _listed(statuses[error]), known.meaning, both])
        else:
            happened = _clause(kinds[error]) if error in kinds else "the route has other methods"
            rows.append([code(error), "", _listed(statuses[error]), happened, action])
    return table(["`error`", "deep link", "status", "what happened", "what the app should do"], rows)


def _clause(kind: type[AmoCallbackError]) -> str:
    """Return an error's docstring as a table's cell."""
    text = inspect.cleandoc(kind.__doc__ or "").removesuffix(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _private_errors(document: Document) -> list[str]:
    statuses = _statuses(document, api="private")
    errors = {kind.api_code: kind for kind in reversed([*error_classes()])}  # if several share a code, the parent
    rows = [
        [code(problem), _listed({error.http_status, *statuses[problem]}), error.action]
        for problem, error in sorted(errors.items(), key=lambda item: (item[1].http_status, item[0]))
    ]
    return table(["`code`", "status", "what the backend should do"], rows)


def _statuses(document: Document, *, api: str) -> dict[str, set[int]]:
    """Return the statuses with which an API answers each error code."""
    found: dict[str, set[int]] = defaultdict(set)
    operations = [one for item in document["paths"].values() for one in item.values() if api in one["tags"]]
    for operation in operations:
        for status, reply in operation["responses"].items():
            for content in reply.get("content", {}).values():
                for member, rule in content["schema"].get("dependentSchemas", {}).items():
                    for name in rule["properties"][member]["enum"]:
                        found[name].add(int(status))
    return found


def _listed(statuses: set[int]) -> str:
    return ", ".join(map(str, sorted(statuses)))


def _metrics() -> list[str]:
    """Return the table of all metrics except the process metrics, which every program has."""
    text = Metrics().text(a_service_status(stats=some_stats(waiting_since=START))).decode()
    rows = []
    for family in _FAMILY.finditer(text):
        labels = [label for label in dict.fromkeys(re.findall(r'[{,](\w+)="', family["samples"])) if label != "le"]
        rows.append([code(family["name"]), family["type"], codes(labels), family["about"].removesuffix(".")])
    return table(["metric", "type", "labels", "what it tells"], rows)
