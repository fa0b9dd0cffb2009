"""The routes of both APIs, by their OpenAPI document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.reference.markdown import code, codes, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_REF = "#/components/schemas/"


def endpoints(document: Mapping[str, Any], *, api: str, guarded: Mapping[str, Any]) -> list[str]:
    """Return the table of an API's routes; `guarded` is the document where a key is asked for as often as can be."""
    # Routes of both APIs come last: nobody looks for them.
    routes = sorted(_routes(document, api), key=lambda route: len(route[3]["servers"]))
    rows = [
        [
            f"`{methods} {path}`",
            operation["summary"].removesuffix("."),
            codes(_taken(operation, document)),
            _caller(operation, guarded["paths"][path][method]),
            ", ".join(operation["responses"]),
        ]
        for path, methods, method, operation in routes
    ]
    return table(["route", "what it does", "takes", "for", "statuses"], rows)


def _routes(document: Mapping[str, Any], api: str) -> Iterator[tuple[str, str, str, Any]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method == "head" or not _is_at(operation, api, document):
                continue
            methods = f"{method.upper()}, HEAD" if method == "get" and "head" in item else method.upper()
            yield path, methods, method, operation


def _is_at(operation: Any, api: str, document: Mapping[str, Any]) -> bool:
    about = {tag["name"]: tag["description"] for tag in document["tags"]}
    return any(server["description"] == about[api] for server in operation["servers"])


def _taken(operation: Any, document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of what is in the query and in the body; what may be left out has its default, or a `?`."""
    for parameter in operation["parameters"]:
        if parameter["in"] == "query":
            yield _name(parameter["name"], parameter["schema"], required=parameter["required"])
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        shape = document["components"]["schemas"][schema["$ref"].removeprefix(_REF)]
        for name, part in shape["properties"].items():
            yield _name(name, part, required=name in shape.get("required", ()))


def _name(name: str, schema: Any, *, required: bool) -> str:
    if required:
        return name
    default = schema.get("default")
    return f"{name}={json.dumps(default)}" if default else f"{name}?"


def _caller(operation: Any, guarded: Any) -> str:
    """Return who may call an operation."""
    if "x-scope" in operation:
        return f"key: {code(operation['x-scope'])}"
    if "x-scope" in guarded:
        return f"anybody; with `server.metrics_auth` key: {code(guarded['x-scope'])}"
    kinds = [next(iter(kind), None) for kind in operation["security"]]
    if kinds == ["jwt"]:
        return "user's JWT"
    return "anybody, or user's JWT" if "jwt" in kinds else "anybody"
