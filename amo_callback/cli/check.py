"""`amo-callback check`: what is right, what is wrong, and what mends it."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import secrets
import sys
from collections import Counter
from typing import TYPE_CHECKING

from amo_callback.cipher import Cipher
from amo_callback.cli.checks.asking import open_asker
from amo_callback.cli.checks.database import check_database, check_rescue
from amo_callback.cli.checks.files import check_disk, check_secrets
from amo_callback.cli.checks.finding import Verdict, fail, guarded, guarded_async, ok
from amo_callback.cli.checks.network import check_amo, check_key_set, check_receiver
from amo_callback.cli.checks.outgoing import check_outgoing
from amo_callback.cli.checks.proxy import check_proxy
from amo_callback.cli.checks.running import check_service, check_unit
from amo_callback.cli.checks.words import check_words
from amo_callback.cli.local import acting_as_owner, add_config, find_place
from amo_callback.cli.progress import Progress
from amo_callback.cli.table import printable
from amo_callback.clock import SystemClock
from amo_callback.config_load import find_config
from amo_callback.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from amo_callback.cli.checks.finding import Finding
    from amo_callback.cli.local import Place
    from amo_callback.clock import Clock

_PATIENCE = 10.0
_NAMES = 15
"""Characters of the longest check's name."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("check", help="look at everything, and say what is wrong and what mends it")
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--timeout", type=_seconds, default=_PATIENCE, metavar="SECONDS", help="for each answer; default: %(default)g"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Check; return 1 where something fails."""
    tell = _collect if options.json else _show
    counted = tell(_findings(options, environ, SystemClock()))
    return 1 if counted[Verdict.FAIL] else 0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError("must be more than 0")
    return seconds


# --- looking -------------------------------------------------------------------------------------


def _findings(options: argparse.Namespace, environ: Mapping[str, str], clock: Clock) -> Iterator[Finding]:
    """Look at one thing after the other; without a configuration, at what needs none."""
    config = find_config(options.config, environ)
    yield from guarded("secrets", check_secrets(config, environ))
    try:
        place = find_place(options, environ)
    except ConfigurationError as error:
        for problem in error.problems:
            yield fail("configuration", problem, fix="mend it; config.example.toml names every setting")
        return
    yield ok("configuration", f"{config or 'the environment'} can be used")
    yield from guarded("configuration", check_words(place.settings))
    yield from guarded("outgoing_proxy", check_outgoing(environ))
    # As the owner of the database: root would leave files there that the service could not open.
    # What reads no file of his is done before: Python loads modules late, and he may not be able to read them.
    database = _database(place, clock, patience=options.timeout)
    with acting_as_owner(place.owned):
        yield from guarded("disk", check_disk(place))
        yield from guarded("store", database)
        yield from guarded("rescue", check_rescue(place))
    yield from asyncio.run(_others(place, environ, clock=clock, patience=options.timeout))


def _database(place: Place, clock: Clock, *, patience: float) -> Iterable[Finding]:
    """Return what looks into the database once it is gone through, of whichever engine it is."""
    storage = place.settings.storage
    url, keys = storage.url.get_secret_value(), storage.encryption_keys.get_secret_value().split()

    def progress(total: int) -> Progress:
        return Progress("opening pairs", total=total, stream=sys.stderr, monotonic=clock.monotonic)

    if place.database is not None:
        return check_database(place.database, keys=keys, machine=place.machine, progress=progress)
    try:
        from amo_callback.cli.checks.postgres import check_postgres  # noqa: PLC0415 -- because it is an extra
    except ModuleNotFoundError:
        return [fail("store", "PostgreSQL takes another package", fix="pip install 'amo-callback[postgres]'")]

    def look() -> Iterator[Finding]:
        found = check_postgres(url, keys=keys, clock=clock, patience=patience, progress=progress)
        yield from asyncio.run(guarded_async("store", found))

    return look()


async def _others(place: Place, environ: Mapping[str, str], *, clock: Clock, patience: float) -> list[Finding]:
    """Ask all at the same moment, so that they take together as long as the slowest."""
    settings = place.settings
    cipher = Cipher(settings.storage.encryption_keys.get_secret_value().split())
    async with open_asker(clock=clock, patience=patience) as asker:
        found = await asyncio.gather(
            guarded_async("service", check_service(settings, patience=patience)),
            guarded_async("systemd", check_unit(environ, amo_timeout=settings.amo.timeout, patience=patience)),
            guarded_async("proxy", check_proxy(settings, asker, cipher=cipher, nonce=secrets.token_hex(16))),
            guarded_async("amo", check_amo(settings, asker)),
            guarded_async("jwks_url", check_key_set(settings, asker)),
            guarded_async("notify", check_receiver(settings, asker)),
        )
    return [finding for findings in found for finding in findings]


# --- telling -------------------------------------------------------------------------------------


def _show(findings: Iterator[Finding]) -> Counter[Verdict]:
    """Print each finding as it comes."""
    counted: Counter[Verdict] = Counter()
    for finding in findings:
        counted[finding.verdict] += 1
        print(f"{finding.verdict:<4}  {finding.check:<{_NAMES}}  {printable(finding.told)}", flush=True)
        if finding.fix is not None:
            print(f"{'':<4}  {'':<{_NAMES}}  > {printable(finding.fix)}", flush=True)
    print(", ".join(f"{counted[verdict]} {verdict}" for verdict in Verdict))
    return counted


def _collect(findings: Iterator[Finding]) -> Counter[Verdict]:
    """Print all of them as JSON, once they are there."""
    found = list(findings)
    counted = Counter(finding.verdict for finding in found)
    told = [{"check": one.check, "verdict": one.verdict, "told": one.told, "fix": one.fix} for one in found]
    worst = next((verdict for verdict in reversed(Verdict) if counted[verdict]), Verdict.OK)
    print(json.dumps({"verdict": worst, "findings": told}))
    return counted
