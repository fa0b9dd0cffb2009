"""Operations as OpenAPI writes them, with the schemas of their types."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs

from amo_callback.web.operation import Jwt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import BaseModel

    from amo_callback.web.operation import Operation, Reply

Json = dict[str, Any]

REF = "#/components/schemas/"
_HEADERS = {
    "Location": "Where to go on.",
    "Retry-After": "After how many seconds to try again.",
    "WWW-Authenticate": "`Bearer`, with the parameters of RFC 6750.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A route of a door, and its operation."""

    door: str
    method: str
    path: str
    operation: Operation


def key_of(shape: object) -> str:
    """Return a name for a type: equal types may come from several places."""
    return repr(shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Writer:
    """Write operations, with the schemas of their types."""

    schemas: Mapping[str, Any]
    components: Mapping[str, Any]

    def operation(self, route: Served) -> Json:
        """Write one operation."""
        known = route.operation
        summary, _, more = known.summary.partition("\n\n")
        if known.scope is not None:
            more = f"{more}\n\nThe API key needs the scope `{known.scope}`.".strip()
        told: Json = {
            "operationId": _id(route),
            "tags": [route.door],
            "summary": " ".join(summary.split()),
            "description": more,
            "parameters": [*self._places(route), *self._parameters(known.query)],
            "security": _security(known),
            "responses": {
                str(status): self._reply(reply, bare=route.method == hdrs.METH_HEAD)
                for status, reply in sorted(known.replies.items())
            },
        }
        if known.scope is not None:
            told["x-scope"] = known.scope
        if known.body is not None and route.method != hdrs.METH_HEAD:
            schema = self.schemas[key_of(known.body)]
            told["requestBody"] = {
                "required": bool(known.body.model_json_schema().get("required")),
                "content": {"application/json": {"schema": schema}},
            }
        return told

    def _places(self, route: Served) -> Iterator[Json]:
        for name in re.findall(r"\{(\w+)\}", route.path):
            schema = {"type": "string", "minLength": 1}
            if name in route.operation.path:
                schema = dict(self.schemas[key_of(route.operation.path[name])])
            yield {"name": name, "in": "path", "required": True, **_taken_apart(schema)}

    def _parameters(self, model: type[BaseModel] | None) -> Iterator[Json]:
        if model is None:
            return
        shape = self.schemas[key_of(model)]
        shape = self.components[shape["$ref"].removeprefix(REF)] if "$ref" in shape else shape
        for name, schema in shape["properties"].items():
            wanted = _not_null(schema)
            yield {"name": name, "in": "query", "required": name in shape.get("required", ()), **_taken_apart(wanted)}

    def _reply(self, reply: Reply, *, bare: bool) -> Json:
        told: Json = {"description": reply.about}
        if reply.headers:
            told["headers"] = {
                name: {"required": True, "description": _HEADERS[name], "schema": {"type": "string"}}
                for name in reply.headers
            }
        if reply.shape is not None and not bare:
            content: Json = {"schema": self.schemas[key_of(reply.shape)]}
            if reply.examples:
                content["examples"] = {name: {"value": value} for name, value in reply.examples.items()}
            told["content"] = dict.fromkeys(reply.media, content)
        return told


def _id(route: Served) -> str:
    """Return an operation's name; HEAD is named after the last part of its path."""
    if route.method != hdrs.METH_HEAD:
        return route.operation.id
    return "head_" + re.sub(r"\W", "", route.path.replace("/{", "_").rpartition("/")[2])


def _security(known: Operation) -> list[Json]:
    if known.scope is not None:
        return [{"apiKey": []}]
    return {None: [], Jwt.REQUIRED: [{"jwt": []}], Jwt.OPTIONAL: [{}, {"jwt": []}]}[known.jwt]


def _taken_apart(schema: Json) -> Json:
    """Return a parameter's description and example beside its schema."""
    kept = {name: value for name, value in schema.items() if name not in {"description", "examples"}}
    told: Json = {"schema": kept}
    if "description" in schema:
        told["description"] = schema["description"]
    if schema.get("examples"):
        told["example"] = schema["examples"][0]
    return told


def _not_null(schema: Json) -> Json:
    """Return the schema of what may be left out: a query knows no null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name != "anyOf" and value is not None}
    return {**kinds[0], **rest} if len(kinds) == 1 else {**rest, **({"anyOf": kinds} if kinds else {})}
