"""The OpenAPI 3.1 document of both APIs, generated from their routes.

It describes the routes of one configuration: those that require a JWT are included only if JWTs are configured.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import hdrs
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, NoDefault
from typing_extensions import TypedDict

from amo_callback import __version__
from amo_callback.identity import Scope
from amo_callback.web.route import ClientSecret, Jwt, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaMode
    from pydantic_core.core_schema import WithDefaultSchema

    from amo_callback.web.route import Api, Route

Json = dict[str, Any]

_REF = "#/components/schemas/"
_ABOUT = """\
The private API is for backends; each operation names the scope that the API key must have. The public API is for
browsers, the app and AMO; each of its operations names the server. Bodies are parsed as JSON (that of `/oauth/token`
also as a form), regardless of their Content-Type. A body can be up to 64 KiB; an import can be up to 1 MiB, with 1,000
connections. HTTP errors such as 405 and 413 have the same format as the API's other errors, but the response to a
malformed HTTP request is 400 in plain text. HEAD is allowed wherever GET is. Clients must ignore unknown members,
because new members may be added to responses.
"""
_HEADERS = {
    "Location": "The URL to redirect to.",
    "Retry-After": "The number of seconds to wait before a retry.",
    "WWW-Authenticate": "A `Bearer` challenge with the parameters of RFC 6750.",
    "X-Amo-Authorization": "The value of the `Authorization` header for AMO: `Bearer` and the access token.",
    "X-Amo-Base-Url": "The base URL of AMO's API for this account.",
    "X-Amo-Domain": "The account's host.",
    "X-Amo-Error": "The `code` of the error, for a proxy that does not read the body.",
}
_SECURITY_SCHEMES = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "A backend's API key."},
    "oauthClient": {"type": "http", "scheme": "basic", "description": "Any user name, and an API key as the password."},
    "jwt": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "An app user's JWT."},
}
_SECURITY: dict[object, list[Json]] = {
    None: [],
    Jwt.REQUIRED: [{"jwt": []}],
    Jwt.OPTIONAL: [{}, {"jwt": []}],
    ClientSecret.BASIC_OR_BODY: [{}, {"oauthClient": []}],
    **{scope: [{"apiKey": []}] for scope in Scope},
}
COMMON = "common"
_TAGS = {
    "private": "The private API, which also serves this document.",
    "public": "The public API.",
    COMMON: "Operations of both APIs.",
}
_PATH_NAMES = {
    "id": {
        "schema": {"type": "string", "minLength": 1},
        "description": (
            "A connection's id, or a name: `account:ID` is the active connection of the AMO account that was connected "
            "last; `owner:ID` is the connection that the app user connected last, whatever its status. A refresh never "
            "changes the meaning of a name. If several connections match, DELETE, freeze and thaw respond with 409."
        ),
        "example": "account:31920194",
    },
    "webhook": {
        "schema": {"type": "string", "minLength": 1},
        "description": "A webhook's id.",
        "example": "2f0c9f6a1c7b4c0f8d3e5a6b7c8d9e0f",
    },
    "handle": {
        "schema": {"type": "string", "minLength": 1},
        "description": "The return handle in the URL of the return page.",
    },
}
"""The documentation of path parameters."""


class OpenApi(TypedDict):
    """An OpenAPI document."""

    openapi: str
    info: dict[str, Any]
    servers: list[dict[str, Any]]
    paths: dict[str, Any]
    components: dict[str, Any]
    tags: list[dict[str, Any]]


class _Schemas(GenerateJsonSchema):
    """A generator of schemas without titles of fields, and without the default `null`, which is the same as none."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 -- pydantic's signature
        return False

    def get_default_value(self, schema: WithDefaultSchema) -> Any:  # noqa: ANN401 -- pydantic's signature
        return NoDefault if (value := super().get_default_value(schema)) is None else value

    def normalize_name(self, name: str) -> str:
        """Return a schema's name; the name of a generic type begins with its parameter: `AppStatusSuccess`."""
        return super().normalize_name(re.sub(r"^(\w+)\[(\w+)\]$", r"\2\1", name))


def document_text(apis: Sequence[tuple[type[Api], Sequence[Route]]], redirect_uri: str) -> str:
    address = urlsplit(redirect_uri)
    public = {"url": f"{address.scheme}://{address.netloc}", "description": _TAGS["public"]}
    served = [(api.name, route, _replies(api, route)) for api, routes in apis for route in routes]
    wanted = {(_key(kind), mode): kind for _, route, replies in served for kind, mode in _types(route, replies)}
    found, rest = TypeAdapter.json_schemas(
        [(key, mode, TypeAdapter(kind)) for (key, mode), kind in wanted.items()],
        ref_template=_REF + "{model}",
        schema_generator=_Schemas,
    )
    components: Json = {name: _component(schema) for name, schema in rest.get("$defs", {}).items()}
    writer = _Writer({key: schema for (key, _), schema in found.items()}, components)
    paths: dict[str, Json] = {}
    for name, route, replies in served:
        item, method = paths.setdefault(route.path, {}), route.method.lower()
        if method in item:  # both APIs serve this operation
            item[method]["tags"] = [COMMON]
            continue
        item[method] = {"tags": [name], **writer.operation(route, replies)}
        if name == "public":  # on a private operation, a server would replace the one that a client's user sets
            item[method]["servers"] = [public]
    responses = [operation["responses"] for item in paths.values() for operation in item.values()]
    for name in _references(responses, components):
        if "properties" in components[name]:  # without this, OpenAPI Generator's Go client rejects new members
            components[name]["additionalProperties"] = True
    used = _references(paths, components)
    document: OpenApi = {
        "openapi": "3.1.0",
        "info": {"title": "amo-callback", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/", "description": _TAGS["private"]}],
        "tags": [{"name": name, "description": about} for name, about in _TAGS.items()],
        "paths": _wrapped(paths),
        "components": {
            "schemas": {name: schema for name, schema in components.items() if name in used},
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }
    return json.dumps(document)


class _Writer:
    def __init__(self, schemas: Mapping[str, Any], components: Mapping[str, Any]) -> None:
        self._schemas = schemas
        self._components = components

    def operation(self, route: Route, replies: Mapping[int, Reply]) -> Json:
        summary, _, description = (route.handler.__doc__ or "").partition("\n\n")
        scope = route.access if isinstance(route.access, Scope) else None
        if scope is not None:
            description = f"{description}\n\nThe API key must have the scope `{scope}`.".strip()
        bare = route.method == hdrs.METH_HEAD
        operation: Json = {
            "operationId": _operation_id(route),
            "summary": " ".join(summary.split()),
            "description": description,
            "parameters": [*_path_parameters(route), *self._query(route.query or route.unparsed_query)],
            "security": _SECURITY[route.access],
            "responses": {str(status): self._response(reply, bare=bare) for status, reply in sorted(replies.items())},
        }
        if scope is not None:
            operation["x-scope"] = scope
        if route.body is not None:
            operation["requestBody"] = {
                "required": bool(route.body.model_json_schema().get("required")),
                "content": {route.body.media: {"schema": self._schemas[_key(route.body)]}},
            }
        return operation

    def _query(self, model: type[BaseModel] | None) -> Iterator[Json]:
        if model is None:
            return
        schema = self._schemas[_key(model)]
        schema = self._components[schema["$ref"].removeprefix(_REF)] if "$ref" in schema else schema
        for name, field in schema.get("properties", {}).items():
            required = name in schema.get("required", ())
            yield {"name": name, "in": "query", "required": required, **_parameter(_not_null(field))}

    def _response(self, reply: Reply, *, bare: bool) -> Json:
        response: Json = {"description": reply.about}
        if reply.headers:
            response["headers"] = {
                name: {"required": True, "description": _HEADERS[name], "schema": {"type": "string"}}
                for name in reply.headers
            }
        if reply.type is not None and not bare:
            schema = self._schemas[_key(reply.type)]
            if reply.values:
                # Client generators ignore `dependentSchemas`, so that all errors have one class.
                rules = {name: {"properties": {name: {"enum": [*values]}}} for name, values in reply.values.items()}
                schema = {**schema, "dependentSchemas": rules}
            response["content"] = {media: {"schema": schema} for media in reply.media}
        return response


def _key(kind: object) -> str:
    """Return the key of a type's schema; equal types from several modules have the same key."""
    return repr(kind)


def _replies(api: type[Api], route: Route) -> Mapping[int, Reply]:
    done = {} if route.answer is None else {200: Reply(about="The request succeeded.", type=route.answer)}
    return {**done, **api.error_replies(route), **route.replies}


def _types(route: Route, replies: Mapping[int, Reply]) -> Iterator[tuple[Any, JsonSchemaMode]]:
    """Yield each type of a route's input and output with the mode of its schema."""
    for kind in (route.query, route.unparsed_query, route.body):
        if kind is not None:
            yield kind, "validation"
    for reply in replies.values():
        if reply.type is not None:
            yield reply.type, "serialization"


def _path_parameters(route: Route) -> Iterator[Json]:
    for name in re.findall(r"\{(\w+)\}", route.path):
        yield {"name": name, "in": "path", "required": True, **_PATH_NAMES[name]}


def _operation_id(route: Route) -> str:
    """Return the operation's id: the handler's name; for HEAD, an id made from the last part of the path."""
    if route.method != hdrs.METH_HEAD:
        return route.operation or route.handler.__name__
    name = route.operation or re.sub(r"\W+", "_", route.path.replace("/{", "_").rpartition("/")[2]).strip("_")
    return f"head_{name}"


def _component(schema: Json) -> Json:
    """Return a schema without the title, which only repeats its name."""
    found: Json = _wrapped(schema)
    return {name: value for name, value in found.items() if name != "title"}


def _wrapped(part: Any) -> Any:  # noqa: ANN401 -- any JSON
    """Return a part of the document in which no `$ref` has siblings, because client generators reject them.

    The reference moves to an `anyOf`: with an `allOf`, OpenAPI Generator's PHP client has wrong class names.
    """
    if isinstance(part, list):
        return [_wrapped(one) for one in part]
    if not isinstance(part, dict):
        return part
    found = {name: _wrapped(value) for name, value in part.items()}
    return {"anyOf": [{"$ref": found.pop("$ref")}], **found} if "$ref" in found and len(found) > 1 else found


def _parameter(schema: Json) -> Json:
    """Return a parameter with its schema; the schema's description and first example are moved to the parameter."""
    kept = {name: value for name, value in schema.items() if name not in {"description", "examples"}}
    parameter: Json = {"schema": kept}
    if "description" in schema:
        parameter["description"] = schema["description"]
    if schema.get("examples"):
        parameter["example"] = schema["examples"][0]
    return parameter


def _not_null(schema: Json) -> Json:
    """Return the schema of an optional parameter without `null`, which a query cannot contain."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return {**kinds[0], **rest} if len(kinds) == 1 else {**rest, **({"anyOf": kinds} if kinds else {})}


def _references(part: object, components: Mapping[str, Any]) -> set[str]:
    """Return the names of all schemas that a part of the document references, directly or indirectly."""
    found: set[str] = set()
    waiting = [part]
    while waiting:
        names = set(re.findall(_REF + r'([^"]+)"', json.dumps(waiting.pop()))) - found
        found |= names
        waiting += [components[name] for name in names]
    return found
