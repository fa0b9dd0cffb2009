"""`GET /openapi.json`: OpenAPI 3.1 of both doors, made from what their routes take and answer.

It tells of what this process serves: routes for the app's users are in it where their JWTs are configured.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypedDict

from amo_callback import __version__
from amo_callback.identity import Scope
from amo_callback.web.operation import Jwt, Operation, operation_of
from amo_callback.web.private.authorization import require
from amo_callback.web.private.operation import operation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic.json_schema import JsonSchemaMode

    from amo_callback.web.operation import Reply

Json = dict[str, Any]

_REF = "#/components/schemas/"
_ABOUT = """\
The private door is for backends, with an API key whose scopes are named beside each operation; the public door is for
browsers, the app and AMO. Bodies are read as JSON, whatever their Content-Type, up to 64 KiB. What HTTP itself refuses
(400 of what cannot be read at all, 405 of another method, 413) is answered by either door as its other errors, but what
the parser cannot read is plain text. Clients pass over what they do not know: answers may get more members.
"""
_HEADERS = {
    "Location": "Where to go on.",
    "Retry-After": "After how many seconds to try again.",
    "WWW-Authenticate": "`Bearer`.",
}


class OpenApi(TypedDict):
    """This document."""

    openapi: str
    info: dict[str, Any]
    servers: list[dict[str, Any]]
    paths: dict[str, Any]
    components: dict[str, Any]
    tags: list[dict[str, Any]]


class _Schemas(GenerateJsonSchema):
    """Schemas without titles, which only repeat the names."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 -- because it is pydantic's signature
        """Set none."""
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Served:
    """A route of a door, and its operation."""

    door: str
    method: str
    path: str
    operation: Operation


class Document:
    """The document of two doors; it is made when it is first asked for, and then kept."""

    def __init__(self, *, public: web.Application, private: web.Application, redirect_uri: str) -> None:
        self._doors = {"private": private, "public": public}
        address = urlsplit(redirect_uri)
        self._servers = {
            "private": {"url": "/", "description": "The private door, where this document is served."},
            "public": {"url": f"{address.scheme}://{address.netloc}", "description": "The public door."},
        }

    @cached_property
    def text(self) -> str:
        """The document, as JSON."""
        return json.dumps(self.content)

    @cached_property
    def content(self) -> OpenApi:
        """The document."""
        served = [route for name, app in self._doors.items() for route in _served(name, app)]
        wanted = [wish for route in served for wish in _wishes(route.operation)]
        found, rest = TypeAdapter.json_schemas(
            [(_key(shape), mode, TypeAdapter(shape)) for shape, mode in wanted],
            ref_template=_REF + "{model}",
            schema_generator=_Schemas,
        )
        schemas = {key: schema for (key, _), schema in found.items()}
        components = cast("Json", rest.get("$defs", {}))
        writer = _Writer(schemas=schemas, components=components)
        paths: dict[str, Json] = {}
        for route in served:
            item = paths.setdefault(route.path, {})
            if route.method.lower() in item:  # both doors have it
                item[route.method.lower()]["servers"].append(self._servers[route.door])
            else:
                told = writer.operation(route)
                item[route.method.lower()] = {**told, "servers": [self._servers[route.door]]}
        used = _referred(paths, components)
        return {
            "openapi": "3.1.0",
            "info": {"title": "amo-callback", "version": __version__, "description": _ABOUT},
            "servers": [self._servers["private"]],
            "tags": [{"name": name, "description": told["description"]} for name, told in self._servers.items()],
            "paths": paths,
            "components": {
                "schemas": {name: schema for name, schema in components.items() if name in used},
                "securitySchemes": {
                    "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key of a backend."},
                    "jwt": {
                        "type": "http",
                        "scheme": "bearer",
                        "bearerFormat": "JWT",
                        "description": "The JWT of the app's user.",
                    },
                },
            },
        }


DOCUMENT = web.AppKey("openapi", Document)


def routes() -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [web.get("/openapi.json", document, allow_head=False)]


@operation("openapi", scope=Scope.READ, answer=OpenApi)
async def document(request: web.Request) -> web.Response:
    """Tell what both doors take and answer: this document."""
    require(request, Scope.READ)
    made = request.app[DOCUMENT]
    text = await asyncio.to_thread(lambda: made.text)  # the first time it takes longer than others may be kept waiting
    return web.Response(text=text, content_type="application/json", headers={"Cache-Control": "no-store"})


def _served(door: str, app: web.Application) -> Iterator[_Served]:
    for route in app.router.routes():
        known = operation_of(route.handler)
        if known is not None and route.resource is not None:
            yield _Served(door=door, method=route.method, path=route.resource.canonical, operation=known)


def _wishes(known: Operation) -> Iterator[tuple[Any, JsonSchemaMode]]:
    """Yield every type of an operation, and whether it is read or written."""
    for shape in known.path.values():
        yield shape, "validation"
    for model in (known.query, known.body):
        if model is not None:
            yield model, "validation"
    for reply in known.replies.values():
        if reply.shape is not None:
            yield reply.shape, "serialization"


def _key(shape: object) -> str:
    """Return a name for a type: equal types may come from several places."""
    return repr(shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Writer:
    """Write operations, with the schemas of their types."""

    schemas: Mapping[str, Any]
    components: Mapping[str, Any]

    def operation(self, route: _Served) -> Json:
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
            schema = self.schemas[_key(known.body)]
            told["requestBody"] = {
                "required": bool(known.body.model_json_schema().get("required")),
                "content": {"application/json": {"schema": schema}},
            }
        return told

    def _places(self, route: _Served) -> Iterator[Json]:
        for name in re.findall(r"\{(\w+)\}", route.path):
            schema = {"type": "string", "minLength": 1}
            if name in route.operation.path:
                schema = dict(self.schemas[_key(route.operation.path[name])])
            yield {"name": name, "in": "path", "required": True, **_taken_apart(schema)}

    def _parameters(self, model: type[BaseModel] | None) -> Iterator[Json]:
        if model is None:
            return
        shape = self.schemas[_key(model)]
        shape = self.components[shape["$ref"].removeprefix(_REF)] if "$ref" in shape else shape
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
            content: Json = {"schema": self.schemas[_key(reply.shape)]}
            if reply.examples:
                content["examples"] = {name: {"value": value} for name, value in reply.examples.items()}
            told["content"] = dict.fromkeys(reply.media, content)
        return told


def _id(route: _Served) -> str:
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


def _referred(part: object, components: Mapping[str, Any]) -> set[str]:
    """Return the names of the schemas that a part of the document leads to."""
    found: set[str] = set()
    waiting = [part]
    while waiting:
        names = set(re.findall(_REF + r'([^"]+)"', json.dumps(waiting.pop()))) - found
        found |= names
        waiting += [components[name] for name in names]
    return found
