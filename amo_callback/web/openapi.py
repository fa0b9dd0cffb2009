"""`GET /openapi.json`: OpenAPI 3.1 of both doors, made from what their routes take and answer.

It tells of what this process serves: routes for the app's users are in it where their JWTs are configured.
"""

from __future__ import annotations

import asyncio
import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from aiohttp import web
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypedDict

from amo_callback import __version__
from amo_callback.identity import Scope
from amo_callback.web.openapi_writer import REF, Json, Served, Writer, key_of
from amo_callback.web.operation import Operation, operation_of
from amo_callback.web.private.authorization import require
from amo_callback.web.private.operation import operation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic.json_schema import JsonSchemaMode


_ABOUT = """\
The private door is for backends, with an API key whose scopes are named beside each operation; the public door is for
browsers, the app and AMO. Bodies are read as JSON, whatever their Content-Type, up to 64 KiB (an import: 1 MiB and
1,000 connections). What HTTP itself refuses (405 of another method, 413) is answered by either door as its other
errors; what the parser cannot read is 400 in plain text. Clients pass over what they do not know: answers may get more
members.
"""


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
            [(key_of(shape), mode, TypeAdapter(shape)) for shape, mode in wanted],
            ref_template=REF + "{model}",
            schema_generator=_Schemas,
        )
        schemas = {key: schema for (key, _), schema in found.items()}
        components = cast("Json", rest.get("$defs", {}))
        writer = Writer(schemas=schemas, components=components)
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


def _served(door: str, app: web.Application) -> Iterator[Served]:
    for route in app.router.routes():
        known = operation_of(route.handler)
        if known is not None and route.resource is not None:
            yield Served(door=door, method=route.method, path=route.resource.canonical, operation=known)


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


def _referred(part: object, components: Mapping[str, Any]) -> set[str]:
    """Return the names of the schemas that a part of the document leads to."""
    found: set[str] = set()
    waiting = [part]
    while waiting:
        names = set(re.findall(REF + r'([^"]+)"', json.dumps(waiting.pop()))) - found
        found |= names
        waiting += [components[name] for name in names]
    return found
