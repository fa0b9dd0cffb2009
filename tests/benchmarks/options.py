"""Options of benchmarks: each has a frozen dataclass of them, of which the command makes its flags."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

T = TypeVar("T")


def option(default: T, *, told: str, quick: T | None = None, choices: Sequence[str] | None = None) -> T:
    """Declare a field of such a dataclass; `quick` stands for the default in a quick run."""
    field: Any = dataclasses.field(
        default=default,
        metadata={"told": told, "quick": default if quick is None else quick, "choices": choices},
    )
    return field  # type: ignore[no-any-return]  # reason: a field's declared type is its default's


def add_flags(parser: argparse.ArgumentParser, name: str, kind: type[Any]) -> None:
    """Add a flag `--NAME-FIELD` for each field."""
    group = parser.add_argument_group(name)
    for field in dataclasses.fields(kind):
        default: Any = field.default
        several = isinstance(default, tuple)
        shown = " ".join(map(str, default)) if several else default
        group.add_argument(
            _flag(name, field.name),
            dest=_place(name, field.name),
            type=type(default[0]) if several else type(default),
            nargs="+" if several else None,
            choices=field.metadata["choices"],
            metavar=None if field.metadata["choices"] else "N",
            help=f"{field.metadata['told']} (default: {shown})",
        )


def read_options(given: Mapping[str, Any], name: str, kind: type[T], *, quick: bool) -> T:
    """Return the options: what was given, else the defaults, or those of a quick run."""
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # reason: each is a dataclass
        value = given.get(_place(name, field.name))
        if value is None:
            value = field.metadata["quick"] if quick else field.default
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _flag(name: str, field: str) -> str:
    return f"--{name}-{field.replace('_', '-')}"


def _place(name: str, field: str) -> str:
    return f"{name}_{field}"
