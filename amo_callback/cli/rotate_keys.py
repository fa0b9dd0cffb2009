"""`amo-callback rotate-keys` and `keygen`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from amo_callback.cli import output
from amo_callback.cli.context import config_option, json_option, load_context, open_as_owner, run_loop
from amo_callback.crypto import new_key
from amo_callback.encrypted_records import RecordKind
from amo_callback.key_rotation import KeyUsage, Rotation, RotationResult
from amo_callback.refresh.rescue import RescueFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.cli.context import CommandContext
    from amo_callback.cli.main import Invocation

_HEADS = {
    RecordKind.CONNECTION: "connections",
    RecordKind.GRANT: "grants",
    RecordKind.STATE: "states",
    RecordKind.CANARY: "canary",
    RecordKind.RESCUE: "rescue files",
}
_SHOWN = 20
"""Connections that are named to a person; a program gets all."""
_NAMED = {RecordKind.CONNECTION, RecordKind.RESCUE}
"""Kinds whose names are shown."""
_OVERTAKEN = """\
While this ran, an older key has sealed again: some process does not have the newest key first. Restart them all with
it, and run this again. Until then every key is needed."""
_IDLE = """\
Nothing needs {keys} any more: take it out of storage.encryption_keys, and restart. Backups made before now still need
it, and so do exports sealed to it: keep it apart, for them."""


@click.command()
def keygen() -> None:
    """Print a new encryption key."""
    click.echo(new_key())


@click.command()
@config_option
@json_option
@click.option("--dry-run", is_flag=True, help="Count what is encrypted with which key, and change nothing.")
@click.pass_obj
def rotate_keys(invocation: Invocation, *, config: str | None, as_json: bool, dry_run: bool) -> int:
    """Encrypt everything with the newest encryption key, also while the service runs."""
    return run_loop(_rotate(load_context(config, invocation.environ), as_json=as_json, dry_run=dry_run))


async def _rotate(context: CommandContext, *, as_json: bool, dry_run: bool) -> int:
    async with open_as_owner(context) as opened:
        rotation = Rotation(
            store=opened.store,
            rescue=RescueFolder(context.rescue),
            cipher=opened.cipher,
            keys=len(context.encryption_keys),
            clock=opened.clock,
        )
        total = await opened.store.count_sealed()
        with output.progress("counted" if dry_run else "encrypted", total) as advance:
            if dry_run:
                tally = await rotation.dry_run(advance)
                output.show(_shape(tally), as_json=as_json, text=lambda: _told(tally))
                return 1 if tally.unreadable else 0
            rotated = await rotation.run(advance)
    output.show(_rotated_shape(rotated), as_json=as_json, text=lambda: _rotated_told(rotated))
    return 0 if rotated.is_complete else 1


# --- for programs --------------------------------------------------------------------------------


def _shape(tally: KeyUsage) -> dict[str, Any]:
    return {
        "keys": [
            {"key": number, **{_HEADS[kind].replace(" ", "_"): found[kind] for kind in RecordKind}}
            for number, found in enumerate(tally.keys, start=1)
        ],
        "unreadable": {"count": len(tally.unreadable), "named": _names(tally)},
    }


def _rotated_shape(rotated: RotationResult) -> dict[str, Any]:
    return {
        "resealed": rotated.resealed,
        **_shape(rotated.after),
        "old_key_still_in_use": rotated.old_key_still_in_use,
        "not_needed": [] if rotated.old_key_still_in_use else _numbers(rotated.after.unused_keys),
    }


# --- for people ----------------------------------------------------------------------------------


def _told(tally: KeyUsage) -> str:
    rows = [
        (f"{number}, the newest" if number == 1 else number, *(f"{found[kind]:,}" for kind in RecordKind))
        for number, found in enumerate(tally.keys, start=1)
    ]
    if tally.unreadable:
        none = [sum(one.kind is kind for one in tally.unreadable) for kind in RecordKind]
        rows.append(("none of them", *(f"{number:,}" for number in none)))
    lines = [output.table(("key", *_HEADS.values()), rows)]
    if tally.unreadable:
        lines += ["", _unreadable(tally)]
    return "\n".join(lines)


def _unreadable(tally: KeyUsage) -> str:
    shown = _names(tally)[:_SHOWN]
    others = len(tally.unreadable) - len(shown)
    return f"No key opens: {', '.join([*shown, *([f'{others:,} others'] if others else [])])}"


def _names(tally: KeyUsage) -> list[str]:
    return [one.place for one in tally.unreadable if one.kind in _NAMED]


def _rotated_told(rotated: RotationResult) -> str:
    tally = rotated.after
    lines = [_told(tally), "", f"Sealed again: {rotated.resealed:,}."]
    needed = [number for number, _ in enumerate(tally.keys) if number > 0 and number not in tally.unused_keys]
    if len(tally.keys) == 1:
        lines.append("There is one key. To replace it, put a new one on the line before it: see the README.")
    elif rotated.old_key_still_in_use:
        lines.append(_OVERTAKEN)
    elif tally.unused_keys:
        lines.append(_IDLE.format(keys=_named(tally.unused_keys)))
    if needed and not rotated.old_key_still_in_use:
        lines.append(
            f"Still needed: {_named(needed)}. Pairs wait in the rescue folder: once they are stored, run this again."
        )
    return "\n".join(lines)


def _named(places: Sequence[int]) -> str:
    return ", ".join(f"key {number}" for number in _numbers(places))


def _numbers(places: Sequence[int]) -> list[int]:
    """Return the lines of storage.encryption_keys, counted from 1."""
    return [place + 1 for place in places]
