"""`amo-callback check` and `amo-callback config`."""

from __future__ import annotations

import asyncio
import json
import secrets
from functools import partial
from typing import TYPE_CHECKING

import click

from amo_callback.cli.checks.app_links import check_app_links
from amo_callback.cli.checks.configuration import check_outgoing, check_secrets, check_settings
from amo_callback.cli.checks.database import check_disk, check_rescue, check_sqlite
from amo_callback.cli.checks.finding import fail, ok, report, run_check, run_check_async
from amo_callback.cli.checks.network import check_amo, check_key_set, check_proxy, check_receiver, open_probe
from amo_callback.cli.checks.service import check_service, check_unit
from amo_callback.cli.context import acting_as_owner, config_option, json_option, load_context, with_context
from amo_callback.cli.info import packaged_text
from amo_callback.clock import SystemClock
from amo_callback.config.loader import find_config
from amo_callback.config.settings import Settings
from amo_callback.crypto import Cipher
from amo_callback.errors import ConfigurationError
from amo_callback.store import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from amo_callback.cli.checks.finding import Finding
    from amo_callback.cli.context import CommandContext
    from amo_callback.cli.main import Invocation
    from amo_callback.clock import Clock

_SECONDS = click.FloatRange(min=0, min_open=True, max=86400)


@click.command()
@config_option
@json_option
@click.option("--timeout", type=_SECONDS, default=10.0, metavar="SECONDS", help="The time limit for each response.")
@click.pass_obj
def check(invocation: Invocation, *, config: str | None, as_json: bool, timeout: float) -> int:
    """Check the installation; print each finding, and a fix for each problem."""
    findings = _findings(config, invocation.environ, SystemClock(), wait_limit=timeout)
    return report(findings, as_json=as_json)


def _findings(config: str | None, environ: Mapping[str, str], clock: Clock, *, wait_limit: float) -> Iterator[Finding]:
    """Run the checks in order; without a valid configuration, run only the checks that do not require one."""
    path = find_config(config, environ)
    yield from run_check("secrets", check_secrets(path, environ))
    try:
        context = load_context(config, environ)
    except ConfigurationError as error:
        for problem in error.problems:
            yield fail(
                "configuration",
                problem,
                fix="correct the configuration; `amo-callback config example` lists all settings",
            )
        return
    yield ok("configuration", f"the configuration is valid ({path or 'environment variables'})")
    yield from run_check("configuration", check_settings(context.settings))
    yield from run_check("outgoing_proxy", check_outgoing(environ))
    # These checks run as the Unix user that owns the database file, because the service could not open files created by
    # root. The modules of the checks are imported first, because that user may not be able to read them.
    database = _check_database(context, clock, wait_limit=wait_limit)
    with acting_as_owner(context.owned):
        yield from run_check("disk", check_disk(context))
        yield from asyncio.run(run_check_async("store", database))
        yield from run_check("rescue", check_rescue(context))
    yield from asyncio.run(_check_others(context, environ, clock=clock, wait_limit=wait_limit))


def _check_database(context: CommandContext, clock: Clock, *, wait_limit: float) -> AsyncIterator[Finding]:
    url = context.settings.storage.url.get_secret_value()
    opening = partial(open_store, url, folder=context.folder, clock=clock, read_only=True)
    if context.database is not None:
        return check_sqlite(context, context.database, opening())
    try:
        from amo_callback.cli.checks.postgres import check_postgres  # noqa: PLC0415 -- asyncpg is an optional dependency
    except ModuleNotFoundError:
        return _miss_postgres()
    return check_postgres(context, opening(), clock=clock, wait_limit=wait_limit)


async def _miss_postgres() -> AsyncIterator[Finding]:
    yield fail("store", "the PostgreSQL driver is not installed", fix="run: pip install 'amo-callback[postgres]'")


async def _check_others(
    context: CommandContext, environ: Mapping[str, str], *, clock: Clock, wait_limit: float
) -> list[Finding]:
    """Run the checks of the running service and of other servers concurrently."""
    settings, cipher = context.settings, Cipher(context.encryption_keys)
    async with open_probe(clock=clock, wait_limit=wait_limit) as http:
        found = await asyncio.gather(
            run_check_async("service", check_service(settings, wait_limit=wait_limit)),
            run_check_async("systemd", check_unit(environ, amo_timeout=settings.amo.timeout, wait_limit=wait_limit)),
            run_check_async("proxy", check_proxy(settings, http, cipher=cipher, nonce=secrets.token_hex(16))),
            run_check_async("app_links", check_app_links(settings, http)),
            run_check_async("amo", check_amo(settings, http)),
            run_check_async("jwks_url", check_key_set(settings, http)),
            run_check_async("webhook", check_receiver(settings, http)),
        )
    return [finding for findings in found for finding in findings]


# --- config --------------------------------------------------------------------------------------


@click.group()
def config() -> None:
    """Check the configuration, or print its reference or JSON Schema."""


@config.command("check")
@with_context
@json_option
def check_file(context: CommandContext, *, as_json: bool) -> int:
    """Check only the configuration and its secret files; open no database and send no request."""
    return report(check_settings(context.settings), as_json=as_json)


@config.command("example")
def example() -> None:
    """Print the configuration reference: every setting, with its default and effect."""
    click.echo(packaged_text("config.example.toml"), nl=False)


@config.command("schema")
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    click.echo(json.dumps(Settings.model_json_schema(), indent=2, ensure_ascii=False))
