"""What the OpenAPI document says of an answer: every answer that a test gets through `Running` is held against it."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import jsonschema_rs

from amo_callback.web.app import make_apps
from amo_callback.web.openapi import DOCUMENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.conftest import Answer, Running

UNREADABLE = "this request cannot be read"
"""What the parser says of what is no HTTP: it knows no operation."""

_kept: dict[tuple[bool, bool, str], Agreed] = {}


def agreed(running: Running) -> Agreed:
    """Return what is agreed on with this service; the document is the same where the routes are."""
    services, settings = running.service.services, running.settings
    key = (services.users is not None, settings.server.metrics_auth, settings.server.base_path)
    if key not in _kept:
        apps = make_apps(settings, services, running.quiet)
        _kept[key] = Agreed(json.loads(apps.private[DOCUMENT].text))
    return _kept[key]


class Agreed:
    """The operations of a document, and whether an answer is one of theirs."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.paths: Mapping[str, Any] = document["paths"]
        self._components = _closed(document["components"])
        self._patterns = {
            template: re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))) for template in self.paths
        }
        self.validator = cache(self._validator)

    def operation(self, door: str, method: str, path: str) -> Any:
        """Return the operation at a path; `None` where there is none."""
        path = path.partition("?")[0]
        for template, pattern in self._patterns.items():
            found = self.paths[template].get(method.lower()) if pattern.fullmatch(path) else None
            if found and (door in found["tags"] or len(found["servers"]) > 1):
                return found
        return None

    def check(self, door: str, method: str, path: str, answer: Answer) -> None:
        """Fail where an answer is none that the document tells of."""
        operation = self.operation(door, method, path)
        if operation is None or UNREADABLE in answer.text:
            return
        name = f"{operation['operationId']} {answer.status}"
        assert str(answer.status) in operation["responses"], name
        told = operation["responses"][str(answer.status)]
        for header in told.get("headers", ()):
            assert header in answer.headers, f"{name}: {header}"
        if "content" not in told:
            assert answer.text == "", name
            return
        media = answer.headers["Content-Type"].partition(";")[0]
        assert media in told["content"], f"{name}: {media}"
        if media.endswith("json"):
            schema = json.dumps(told["content"][media]["schema"], sort_keys=True)
            self.validator(schema).validate(answer.json())

    def _validator(self, schema: str) -> jsonschema_rs.Draft202012Validator:
        whole = {**json.loads(schema), "components": self._components}
        return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


def _closed(components: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schemas without room for more: to clients they are open, but a test sees what is not told of."""
    closed = copy.deepcopy(dict(components))
    for schema in closed["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return closed
