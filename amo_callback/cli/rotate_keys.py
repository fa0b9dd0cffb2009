"""`amo-callback rotate-keys` and `keygen`."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from amo_callback.cli import output
from amo_callback.cli.context import json_option, open_as_owner, run_loop, with_context
from amo_callback.crypto import RecordKind, new_key
from amo_callback.key_rotation import KeyUsage, Rotation, RotationResult
from amo_callback.refresh.rescue import RescueFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from amo_callback.cli.context import CommandContext

_HEADS = {
    RecordKind.CONNECTION: "connections",
    RecordKind.GRANT: "grants",
    RecordKind.STATE: "states",
    RecordKind.CANARY: "canary",
    RecordKind.RESCUE: "rescue files",
}
_SHOWN = 20
"""The maximum number of unreadable records printed by name; the JSON output has no such maximum."""
_NAMED = {RecordKind.CONNECTION, RecordKind.RESCUE}
"""The kinds of unreadable records that are printed by name."""
_OVERTAKEN = """\
While this command ran, a process encrypted data with an older key, because the newest key is not first in its
configuration. Restart all processes with the newest key as the first key, then run this command again. Do not remove
any key before the second run has ended."""
_IDLE = """\
Keys that no record needs anymore: {keys}. Remove them from storage.encryption_keys, and restart all processes. Keep a
separate copy of each removed key: earlier backups, and exports encrypted with the key, still need it."""


@click.command()
def keygen() -> None:
    """Print a new encryption key."""
    click.echo(new_key())


@click.command()
@with_context
@json_option
@click.option("--dry-run", is_flag=True, help="Count the records that each key decrypts, and change nothing.")
def rotate_keys(context: CommandContext, *, as_json: bool, dry_run: bool) -> int:
    """Re-encrypt stored records with the newest encryption key, without stopping the service."""
    return run_loop(_rotate(context, as_json=as_json, dry_run=dry_run))


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
                usage = await rotation.dry_run(advance)
                click.echo(json.dumps(_usage(usage)) if as_json else _usage_text(usage))
                return 1 if usage.unreadable else 0
            result = await rotation.run(advance)
    in_use = result.old_key_still_in_use
    found = {
        "reencrypted": result.reencrypted,
        **_usage(result.after),
        "old_key_still_in_use": in_use,
        "not_needed": [] if in_use else [place + 1 for place in result.after.unused_keys],
    }
    click.echo(json.dumps(found) if as_json else "\n".join(_result_lines(result)))
    return 0 if result.is_complete else 1


def _usage(usage: KeyUsage) -> dict[str, Any]:
    return {
        "keys": [
            {"key": number, **{_HEADS[kind].replace(" ", "_"): found[kind] for kind in RecordKind}}
            for number, found in enumerate(usage.keys, start=1)
        ],
        "unreadable": {"count": len(usage.unreadable), "named": _names(usage)},
    }


def _usage_text(usage: KeyUsage) -> str:
    counts: list[tuple[str, Mapping[RecordKind, int]]] = [
        (f"{number}{', the newest' if number == 1 else ''}", found) for number, found in enumerate(usage.keys, start=1)
    ]
    if usage.unreadable:
        counts.append(("none", Counter(one.kind for one in usage.unreadable)))
    rows = [(name, *(f"{found[kind]:,}" for kind in RecordKind)) for name, found in counts]
    text = output.table(("key", *_HEADS.values()), rows)
    if not usage.unreadable:
        return text
    shown = _names(usage)[:_SHOWN]
    if others := len(usage.unreadable) - len(shown):
        shown.append(f"{others:,} not listed by name (see the table above)")
    return f"{text}\n\nNo key decrypts these records: {', '.join(shown)}"


def _names(usage: KeyUsage) -> list[str]:
    return [one.place for one in usage.unreadable if one.kind in _NAMED]


def _result_lines(result: RotationResult) -> Iterator[str]:
    """Yield the result and the next step; keys are numbered from 1."""
    usage = result.after
    yield from (_usage_text(usage), "", f"Re-encrypted records: {result.reencrypted:,}.")
    if len(usage.keys) == 1:
        yield 'Only one key is configured. To replace it, see "Changing keys and secrets" in the README.'
    elif result.old_key_still_in_use:
        yield _OVERTAKEN
        return
    elif usage.unused_keys:
        yield _IDLE.format(keys=", ".join(f"key {place + 1}" for place in usage.unused_keys))
    needed = [f"key {place + 1}" for place in range(1, len(usage.keys)) if place not in usage.unused_keys]
    if needed:
        text = "Run this command again once the pairs in the rescue folder are stored."
        yield f"Still needed: {', '.join(needed)}. {text}"
