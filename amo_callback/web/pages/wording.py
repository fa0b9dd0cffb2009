"""The texts of the pages: one TOML file for each language."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Texts = dict[str, dict[str, str]]
"""Section, key, text."""

PLACEHOLDER = re.compile(r"\{(\w+)\}")


def read_texts(language: str) -> Texts:
    """Read a language's texts."""
    file = resources.files("amo_callback.web.pages") / "texts" / f"{language}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def fill(texts: Texts, values: Mapping[str, str]) -> Texts:
    """Put values in for the placeholders, all at once: a value that looks like one stays as it is."""
    return {
        section: {
            key: PLACEHOLDER.sub(lambda placeholder: values[placeholder[1]], text) for key, text in content.items()
        }
        for section, content in texts.items()
    }
