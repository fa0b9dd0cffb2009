"""The code blocks of a document: a comment above each block names its kind and its name."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs

from amo_callback.cli.info import EXAMPLE_ENVIRONMENT
from amo_callback.config.loader import load_settings
from amo_callback.web.apis import openapi_text

_FOLDER = Path(__file__).parent.parent / "amo_callback/docs"
_BLOCK = re.compile(r"<!-- (?P<kind>\w+): (?P<name>[^\n]+) -->\n```\w+\n(?P<text>.*?\n)```\n", re.DOTALL)


def read_document(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def blocks_of(document: str, kind: str) -> list[tuple[str, str]]:
    """Return the name and the text of each block of this kind."""
    return [(one["name"], one["text"]) for one in _BLOCK.finditer(document) if one["kind"] == kind]


def json_examples(document: str) -> list[tuple[str, str, Any]]:
    """Return each example's operation, its part (`request` or a status) and its value."""
    return [(*name.rsplit(" ", 1), json.loads(text)) for name, text in blocks_of(document, "json")]


def openapi_paths() -> dict[str, Any]:
    paths: dict[str, Any] = _openapi()["paths"]
    return paths


def validate_example(operation: str, part: str, value: Any, *, base: str = "") -> None:
    """Validate an example against the schema of its operation, whose path begins with `base`."""
    document = _openapi()
    method, path = operation.split()
    described = document["paths"][base + path][method.lower()]
    content = described["requestBody"] if part == "request" else described["responses"][part]
    [media] = content["content"].values()
    jsonschema_rs.Draft202012Validator({**media["schema"], "components": document["components"]}).validate(value)


def _openapi() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(openapi_text(load_settings(None, EXAMPLE_ENVIRONMENT)))
    return document
