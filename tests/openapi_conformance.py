"""Conformance to the OpenAPI document: every answer that a test gets through `Running` is checked against it."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import jsonschema_rs

from amo_callback.web.apis import openapi_text
from amo_callback.web.openapi import COMMON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.service import Answer, Running

UNREADABLE = "malformed request"
"""The parser's answer to a request that is not valid HTTP."""

_kept: dict[tuple[bool, bool, str, str], Conformance] = {}


def conformance_of(running: Running) -> Conformance:
    """Return the check for this service, shared by services with the same routes and base path."""
    settings, app = running.settings, running.settings.app
    links = repr((app.deep_link, app.ios_app_ids, app.android_cert_fingerprints))
    key = (app.jwt_audience is not None, settings.server.metrics_auth, settings.server.base_path, links)
    if key not in _kept:
        _kept[key] = Conformance(json.loads(openapi_text(settings)))
    return _kept[key]


class Conformance:
    """The operations of a document, and a check that they describe an answer."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.paths: Mapping[str, Any] = document["paths"]
        self._components = _closed(document["components"])
        self._patterns = {
            template: re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))) for template in self.paths
        }
        self.validator = cache(self._validator)

    def operation(self, api: str, method: str, path: str) -> Any:
        """Return the operation of a method and path, or `None` if there is none."""
        path = path.partition("?")[0]
        for template, pattern in self._patterns.items():
            found = self.paths[template].get(method.lower()) if pattern.fullmatch(path) else None
            if found and {api, COMMON} & {*found["tags"]}:
                return found
        return None

    def check(self, api: str, method: str, path: str, answer: Answer) -> None:
        """Fail if the document does not describe the answer of a documented operation."""
        operation = self.operation(api, method, path)
        if operation is None or UNREADABLE in answer.text:
            return
        name = f"{operation['operationId']} {answer.status}"
        assert str(answer.status) in operation["responses"], name
        result = operation["responses"][str(answer.status)]
        for header in result.get("headers", ()):
            assert header in answer.headers, f"{name}: {header}"
        if "content" not in result:
            assert answer.text == "", name
            return
        media = answer.headers["Content-Type"].partition(";")[0]
        assert media in result["content"], f"{name}: {media}"
        if media.endswith("json"):
            schema = json.dumps(result["content"][media]["schema"], sort_keys=True)
            self.validator(schema).validate(answer.json())

    def _validator(self, schema: str) -> jsonschema_rs.Draft202012Validator:
        whole = {**json.loads(schema), "components": self._components}
        return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


def _closed(components: Mapping[str, Any]) -> dict[str, Any]:
    """Forbid additional members, which the document allows, so that a test finds undocumented members."""
    closed = copy.deepcopy(dict(components))
    for schema in closed["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return closed
