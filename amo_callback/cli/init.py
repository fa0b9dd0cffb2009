"""`amo-callback init`: a few questions, or options instead, and there is a configuration."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from amo_callback.cli.init_files import CLIENT_SECRET, ENCRYPTION_KEYS, InstallPaths, preflight, write
from amo_callback.cli.init_validation import (
    Callback,
    read_callback,
    read_client_id,
    read_client_secret,
    read_database,
    read_deep_link,
)
from amo_callback.cli.output import printable
from amo_callback.config.loader import CONFIG_VARIABLE, DEFAULT_PATHS
from amo_callback.config.settings import App
from amo_callback.deploy import units
from amo_callback.errors import CommandFailed
from amo_callback.files import MAX_TEXT, read_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from amo_callback.cli.main import Invocation

T = TypeVar("T")


def _checked(read: Callable[[str], T]) -> Callable[[str], T]:
    """Make the type of an option or an answer of a function whose `ValueError` says what is wrong."""

    def convert(text: str) -> T:
        try:
            return read(text.strip())
        except OSError as error:
            raise click.BadParameter(f"{printable(text)}: {error.strerror}") from None
        except ValueError as error:
            raise click.BadParameter(f"it {error}") from None

    return convert


def _read_secret_file(file: str) -> str:
    try:
        text = sys.stdin.read(MAX_TEXT) if file == "-" else read_regular(Path(file), limit=MAX_TEXT).decode()
    except UnicodeDecodeError:
        raise ValueError("cannot be read as text") from None
    return read_client_secret(text.strip())


@click.command()
@click.option(
    "--redirect-uri",
    "callback",
    type=_checked(read_callback),
    metavar="URL",
    help="Where AMO sends users: the whole address, or https:// and the host.",
)
@click.option(
    "--client-id",
    type=_checked(read_client_id),
    metavar="ID",
    help='"Integration ID" on the integration\'s page in AMO.',
)
@click.option(
    "--client-secret-file",
    "client_secret",
    type=_checked(_read_secret_file),
    metavar="FILE",
    help='Holds the "Secret key" of that page; -: standard input.',
)
@click.option(
    "--deep-link",
    type=_checked(read_deep_link),
    metavar="URL",
    help=f"The app's address. Default: {App().deep_link}",
)
@click.option("--database", type=_checked(read_database), metavar="URL", help="Default: an SQLite file.")
@click.option("--no-input", is_flag=True, help="Ask nothing.")
@click.option("--systemd", is_flag=True, help="For `systemd install`: each secret has a file.")
@click.option("--config", metavar="FILE", help=f"Default: ./{DEFAULT_PATHS[0]}; with --systemd: {units.CONFIG}")
@click.pass_obj
def init(
    invocation: Invocation,
    *,
    config: str | None,
    systemd: bool,
    no_input: bool,
    callback: Callback | None,
    client_id: str | None,
    client_secret: str | None,
    deep_link: str | None,
    database: str | None,
) -> None:
    """Write a configuration: ask for what is needed, make the keys. Nothing is written before all is known."""
    paths = _paths(config, invocation.environ, systemd=systemd)
    database = database or paths.database
    paths.check_database(database)
    asking = not no_input and sys.stdin.isatty() and sys.stdout.isatty()
    if not asking:
        for option, value in (("--redirect-uri", callback), ("--client-id", client_id)):
            if value is None:
                raise click.UsageError(f"{option} is required with --no-input, or where there is no terminal")
    try:
        preflight(paths, database)
        callback = callback or _ask_callback()
        client_id = client_id or _ask_client_id(callback)
        if asking and client_secret is None and not paths.has(CLIENT_SECRET):
            question = "Secret key (one line without spaces, is not shown; Enter: later)"
            secret_or_later = _checked(lambda text: read_client_secret(text) if text else None)
            client_secret = click.prompt(
                question, value_proc=secret_or_later, default="", show_default=False, hide_input=True
            )
        if asking and deep_link is None:
            click.echo("\nWhich address opens your app? Its developers know: it is registered there, not in amoCRM.")
            deep_link = click.prompt("Deep link", value_proc=_checked(read_deep_link), default=App().deep_link)
        decided = paths.decide(callback, client_id=client_id, deep_link=deep_link or App().deep_link, database=database)
        lines = write(paths, decided, client_secret)
    except click.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        click.echo()
        raise CommandFailed("the answers have ended, and nothing was written") from None
    except OSError as error:
        raise CommandFailed(f"{error.filename or paths.config}: {error.strerror}") from None
    later = client_secret is None and not paths.has(CLIENT_SECRET)
    for line in ("", *lines, "", *_next_steps(paths, callback, later=later)):
        click.echo(printable(line))


def _ask_callback() -> Callback:
    click.echo("Where do phones reach this service? Its public address, or the whole redirect URI.")
    callback: Callback = click.prompt("Address (like https://admin.example.com)", value_proc=_checked(read_callback))
    click.echo(f"The redirect URI is {callback.redirect_uri}")
    return callback


def _ask_client_id(callback: Callback) -> str:
    """Ask for the integration's id, beside what is registered to get it."""
    click.echo("\nCreate the integration in amoCRM, or open it:")
    click.echo("\n".join(_registration(callback)))
    click.echo('Then "Keys and scopes" on its page has what is asked for now.')
    return str(click.prompt("Integration ID", value_proc=_checked(read_client_id)))


def _paths(config: str | None, environ: Mapping[str, str], *, systemd: bool) -> InstallPaths:
    """Return where to write; a configuration at systemd's place has systemd's paths."""
    named = config or (None if systemd else environ.get(CONFIG_VARIABLE))
    path = Path(named) if named else units.CONFIG if systemd else DEFAULT_PATHS[0]
    return InstallPaths(config=path, systemd=systemd or path.absolute() == units.CONFIG)


def _registration(callback: Callback) -> list[str]:
    return [
        '  amoMarket > "..." > Create integration, an external one, with these addresses, byte for byte:',
        f"    redirect URI         {callback.redirect_uri}",
        f"    hook for disabling   {callback.hook}",
    ]


def _next_steps(paths: InstallPaths, callback: Callback, *, later: bool) -> list[str]:
    keys = paths.credentials / ENCRYPTION_KEYS if paths.systemd else paths.config
    lines = [
        f"Keep a copy of the encryption key (in {keys}), apart from the database's backups:",
        "without it the tokens cannot be decrypted.",
        "",
        "In amoCRM:",
        *_registration(callback),
        "",
    ]
    if later and paths.systemd:
        lines.append(f"Later: the secret key goes into {paths.credentials / CLIENT_SECRET}; `systemd install` asks.")
    elif later:
        lines.append(f"Later: the secret key goes into {paths.config}, as client_secret below [amo].")
    found = DEFAULT_PATHS[1] if paths.systemd else DEFAULT_PATHS[0]
    option = "" if paths.config in {found, found.absolute()} else f" --config {shlex.quote(str(paths.config))}"
    steps = ("systemd install", "check") if paths.systemd else ("check", "serve")
    return [*lines, "Next:", *(f"  amo-callback {step}{option}" for step in steps)]
