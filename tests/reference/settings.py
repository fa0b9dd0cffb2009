"""The table of settings: values and defaults from the model, descriptions from the example's comments."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from amo_callback.config.settings import Settings
from tests.reference.markdown import code, codes, table

_SECTION = re.compile(r"\[(?P<name>\w+)\]")
_KEY = re.compile(r'(?:# )?(?P<name>\w+) = (?:"[^"]*"|\[.*?\]|[^\s#]+)\s+# (?P<comment>.*)')
_MORE = re.compile(r"\s{20,}# (?P<comment>.*)")
_VALUE = re.compile(r'"[^" ]+"')
_ADMINISTRATIVE = re.compile(r"\(secret\) |; required(?=\.|$)|[;,] see README")
_NAMES = re.compile(rf"\b(?:{'|'.join(Settings.model_fields)})\.[a-z_]+\b")
_BOUNDS = {"exclusiveMinimum": "> {}", "minimum": "≥ {}", "exclusiveMaximum": "< {}", "maximum": "≤ {}"}
_KINDS = {"boolean": "`true`, `false`", "integer": "whole number", "array": "list", "string": "text"}
_FORMATS = {"password": "secret", "path": "folder", "file-path": "file", "uri": "URL"}


def settings(example: str) -> list[str]:
    comments = comments_of(example)
    rows = [
        [code(name), _values(schema), _default(setting), _about(comments.get(name, ""))]
        for name, setting, schema in known_settings()
    ]
    return table(["setting", "value", "default", "what it is for"], rows)


def comments_of(example: str) -> dict[str, str]:
    """Return the example's comment on each setting, by the setting's name."""
    found: dict[str, str] = {}
    section = name = ""
    for line in example.splitlines():
        if match := _SECTION.fullmatch(line):
            section = match["name"]
        elif section and (match := _KEY.fullmatch(line)):
            name = f"{section}.{match['name']}"
            found[name] = match["comment"]
        elif name and (match := _MORE.fullmatch(line)):
            end = "." if match["comment"][:1].isupper() and not found[name].endswith(".") else ""
            found[name] += f"{end} {match['comment']}"
    return found


def known_settings() -> Iterator[tuple[str, FieldInfo, Mapping[str, Any]]]:
    """Yield each setting: its name, its field, its JSON schema."""
    for section, field in Settings.model_fields.items():
        model = field.annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)  # noqa: PT018 -- because mypy reads it
        schemas = model.model_json_schema()["properties"]
        for key, setting in model.model_fields.items():
            yield f"{section}.{key}", setting, schemas[key]


def _values(schema: Mapping[str, Any]) -> str:
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) > 1:
        return " or ".join(map(_values, kinds))
    schema = next(iter(kinds), schema)
    if "enum" in schema:
        return codes(json.dumps(value) for value in schema["enum"])
    kind = _FORMATS.get(schema.get("format", ""), _KINDS.get(schema["type"], schema["type"]))
    bounds = [result.format(schema[bound]) for bound, result in _BOUNDS.items() if bound in schema]
    return ", ".join([kind, *bounds])


def _default(setting: FieldInfo) -> str:
    value = setting.default
    if setting.is_required():
        return "required"
    if value is None:
        return ""
    plain = value.get_secret_value() if isinstance(value, SecretStr) else value
    return code(json.dumps(plain))


def _about(comment: str) -> str:
    """Return a comment without the content of other columns, with its values and settings as code."""
    parts = _ADMINISTRATIVE.sub("", comment).split("`")
    parts[::2] = [_VALUE.sub(r"`\g<0>`", _NAMES.sub(r"`\g<0>`", prose)) for prose in parts[::2]]
    return "`".join(parts)
