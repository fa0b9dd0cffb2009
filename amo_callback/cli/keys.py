"""`amo-callback rotate-keys`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from amo_callback.cli.local import add_config, find_place, open_local
from amo_callback.cli.loop import run_loop
from amo_callback.cli.progress import Progress
from amo_callback.cli.table import table
from amo_callback.custody.rescue import Rescue
from amo_callback.rotation import Rotated, Rotation, Tally
from amo_callback.sealing import Kind

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from amo_callback.cli.local import Place

_HEADS = {
    Kind.CONNECTION: "connections",
    Kind.GRANT: "grants",
    Kind.STATE: "states",
    Kind.CANARY: "canary",
    Kind.RESCUE: "rescue files",
}
_SHOWN = 20
"""Connections that are named to a person; a program gets all."""
_NAMED = {Kind.CONNECTION, Kind.RESCUE}
"""Kinds whose names tell a person anything."""
_OVERTAKEN = """\
While this ran, an older key has sealed again: some process does not have the newest key first. Restart them all with
it, and run this again. Until then every key is needed."""
_IDLE = """\
Nothing needs {keys} any more: take it out of storage.encryption_keys, and restart. Backups made before now still need
it, and so do exports sealed to it: keep it apart, for them."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "rotate-keys", help="seal everything with the newest encryption key, also while the service runs"
    )
    add_config(parser)
    parser.add_argument("--dry-run", action="store_true", help="count what is sealed with which key, change nothing")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    return run_loop(_rotate(find_place(options, environ), options))


async def _rotate(place: Place, options: argparse.Namespace) -> int:
    async with open_local(place) as local:
        rotation = Rotation(
            store=local.store,
            rescue=Rescue(place.rescue),
            cipher=local.cipher,
            keys=len(place.settings.storage.encryption_keys.get_secret_value().split()),
            clock=local.clock,
        )
        total = await local.store.count_sealed()
        label = "counted" if options.dry_run else "sealed"
        with Progress(label, total=total, stream=sys.stderr, monotonic=local.clock.monotonic) as advance:
            if options.dry_run:
                tally = await rotation.survey(advance)
                print(json.dumps(_shape(tally)) if options.json else _told(tally))
                return 1 if tally.unreadable else 0
            rotated = await rotation.run(advance)
    print(json.dumps(_rotated_shape(rotated)) if options.json else _rotated_told(rotated))
    return 0 if rotated.is_complete else 1


# --- for programs --------------------------------------------------------------------------------


def _shape(tally: Tally) -> dict[str, Any]:
    return {
        "keys": [
            {"key": number, **{_HEADS[kind].replace(" ", "_"): found[kind] for kind in Kind}}
            for number, found in enumerate(tally.keys, start=1)
        ],
        "unreadable": {"count": len(tally.unreadable), "named": _names(tally)},
    }


def _rotated_shape(rotated: Rotated) -> dict[str, Any]:
    return {
        "resealed": rotated.resealed,
        **_shape(rotated.after),
        "overtaken": rotated.overtaken,
        "not_needed": [] if rotated.overtaken else _numbers(rotated.after.idle),
    }


# --- for people ----------------------------------------------------------------------------------


def _told(tally: Tally) -> str:
    rows = [
        (f"{number}, the newest" if number == 1 else number, *(f"{found[kind]:,}" for kind in Kind))
        for number, found in enumerate(tally.keys, start=1)
    ]
    if tally.unreadable:
        none = [sum(one.kind is kind for one in tally.unreadable) for kind in Kind]
        rows.append(("none of them", *(f"{number:,}" for number in none)))
    lines = [table(("key", *_HEADS.values()), rows)]
    if tally.unreadable:
        lines += ["", _unreadable(tally)]
    return "\n".join(lines)


def _unreadable(tally: Tally) -> str:
    shown = _names(tally)[:_SHOWN]
    others = len(tally.unreadable) - len(shown)
    return f"No key opens: {', '.join([*shown, *([f'{others:,} others'] if others else [])])}"


def _names(tally: Tally) -> list[str]:
    return [one.place for one in tally.unreadable if one.kind in _NAMED]


def _rotated_told(rotated: Rotated) -> str:
    tally = rotated.after
    lines = [_told(tally), "", f"Sealed again: {rotated.resealed:,}."]
    needed = [number for number, _ in enumerate(tally.keys) if number > 0 and number not in tally.idle]
    if len(tally.keys) == 1:
        lines.append("There is one key. To replace it, put a new one on the line before it: see the README.")
    elif rotated.overtaken:
        lines.append(_OVERTAKEN)
    elif tally.idle:
        lines.append(_IDLE.format(keys=_named(tally.idle)))
    if needed and not rotated.overtaken:
        lines.append(
            f"Still needed: {_named(needed)}. Pairs wait in the rescue folder: once they are stored, run this again."
        )
    return "\n".join(lines)


def _named(places: Sequence[int]) -> str:
    return ", ".join(f"key {number}" for number in _numbers(places))


def _numbers(places: Sequence[int]) -> list[int]:
    """Return keys as a person counts them: the lines of storage.encryption_keys."""
    return [place + 1 for place in places]
