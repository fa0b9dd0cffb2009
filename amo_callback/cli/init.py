"""`amo-callback init`: a few questions, or options instead, and there is a configuration."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from amo_callback.cli import init_validation
from amo_callback.cli.init_files import CLIENT_SECRET, ENCRYPTION_KEYS, InstallPaths, preflight, write
from amo_callback.cli.output import EX_USAGE, printable
from amo_callback.config.loader import CONFIG_VARIABLE, DEFAULT_PATHS
from amo_callback.config.settings import App
from amo_callback.deploy import units
from amo_callback.errors import CommandFailed
from amo_callback.files import MAX_TEXT, read_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from amo_callback.cli.main import Invocation

_READ = TypeVar("_READ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Facts about the integration and the app; `None` is asked for."""

    callback: init_validation.Callback | None
    client_id: str | None
    client_secret: str | None = field(repr=False)
    deep_link: str | None


@click.command()
@click.option(
    "--redirect-uri", metavar="URL", help="Where AMO sends users: the whole address, or https:// and the host."
)
@click.option("--client-id", metavar="ID", help='"Integration ID" on the integration\'s page in AMO.')
@click.option("--client-secret-file", metavar="FILE", help='Holds the "Secret key" of that page; -: standard input.')
@click.option("--deep-link", metavar="URL", help=f"The app's address. Default: {App().deep_link}")
@click.option("--database", metavar="URL", help="Default: an SQLite file.")
@click.option("--no-input", is_flag=True, help="Ask nothing.")
@click.option("--systemd", is_flag=True, help="For `systemd install`: each secret has a file.")
@click.option("--config", metavar="FILE", help=f"Default: ./{DEFAULT_PATHS[0]}; with --systemd: {units.CONFIG}")
@click.pass_obj
def init(
    invocation: Invocation,
    /,
    *,
    config: str | None,
    systemd: bool,
    no_input: bool,
    database: str | None,
    **given: str | None,
) -> int:
    """Write a configuration: ask for what is needed, make the keys. Nothing is written before all is known."""
    paths = _paths(config, invocation.environ, systemd=systemd)
    asking = not no_input and sys.stdin.isatty() and sys.stdout.isatty()
    known, problems = _read_options(given, database, paths)
    if not asking:
        problems += [
            f"--{name.replace('_', '-')} is required with --no-input, or where there is no terminal"
            for name in ("redirect_uri", "client_id")
            if given[name] is None
        ]
    if problems:
        for problem in problems:
            click.echo(f"amo-callback: {printable(problem)}", err=True)
        return EX_USAGE
    database = database or paths.database
    try:
        preflight(paths, database)
        answers = _ask(known, paths) if asking else known
        written = _write(paths, answers, database=database)
    except click.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        click.echo()
        raise CommandFailed("the answers have ended, and nothing was written") from None
    except OSError as error:
        raise CommandFailed(f"{error.filename or paths.config}: {error.strerror}") from None
    click.echo("\n".join(printable(line) for line in ("", *written)))
    return 0


def _paths(config: str | None, environ: Mapping[str, str], *, systemd: bool) -> InstallPaths:
    """Return where to write; a configuration at systemd's place has systemd's paths."""
    named = config or (None if systemd else environ.get(CONFIG_VARIABLE))
    path = Path(named) if named else units.CONFIG if systemd else DEFAULT_PATHS[0]
    return InstallPaths(config=path, systemd=systemd or path.absolute() == units.CONFIG)


def _write(paths: InstallPaths, known: Answers, *, database: str) -> list[str]:
    """Write the files, and return the lines to print."""
    if known.callback is None or known.client_id is None:
        raise AssertionError("asked for, or missing")
    decided = paths.decide(
        known.callback,
        client_id=known.client_id,
        deep_link=known.deep_link or App().deep_link,
        database=database,
    )
    written = write(paths, decided, known.client_secret)
    later = known.client_secret is None and not paths.has(CLIENT_SECRET)
    return [*written, "", *_after(paths, known.callback, later=later)]


# --- what is given -------------------------------------------------------------------------------


def _read_options(
    given: Mapping[str, str | None], database: str | None, paths: InstallPaths
) -> tuple[Answers, list[str]]:
    """Read the options, and return all that is wrong with them."""
    problems: list[str] = []

    def read(option: str, text: str | None, take: Callable[[str], _READ]) -> _READ | None:
        try:
            return None if text is None else take(text)
        except OSError as error:
            problems.append(f"{option}: {text}: {error.strerror}")
        except ValueError as error:
            problems.append(f"{option}: {error}")
        return None

    read("--database", database, lambda text: init_validation.read_database(text, systemd=paths.systemd))
    answers = Answers(
        callback=read("--redirect-uri", given["redirect_uri"], init_validation.read_callback),
        client_id=read("--client-id", given["client_id"], init_validation.read_client_id),
        client_secret=read("--client-secret-file", given["client_secret_file"], _read_secret_file),
        deep_link=read("--deep-link", given["deep_link"], init_validation.read_deep_link),
    )
    return answers, problems


def _read_secret_file(file: str) -> str:
    try:
        text = sys.stdin.read(MAX_TEXT) if file == "-" else read_regular(Path(file), limit=MAX_TEXT).decode()
    except UnicodeDecodeError:
        raise ValueError("cannot be read as text") from None
    return init_validation.read_client_secret(text.strip())


# --- questions -----------------------------------------------------------------------------------


def _ask(given: Answers, paths: InstallPaths) -> Answers:
    """Ask for what was not given, in the order in which a person comes to know it."""
    callback = given.callback
    if callback is None:
        click.echo("Where do phones reach this service? Its public address, or the whole redirect URI.")
        callback = _prompt("Address (like https://admin.example.com)", init_validation.read_callback)
        click.echo(f"The redirect URI is {callback.redirect_uri}")
    client_id, client_secret = given.client_id, given.client_secret
    if client_id is None:
        click.echo("\nCreate the integration in amoCRM, or open it:")
        click.echo("\n".join(_registration(callback)))
        click.echo('Then "Keys and scopes" on its page has what is asked for now.')
        client_id = _prompt("Integration ID", init_validation.read_client_id)
    if client_secret is None and not paths.has(CLIENT_SECRET):
        question = "Secret key (is not shown; Enter: later)"
        client_secret = _prompt(question, _read_secret_or_later, hidden=True)
    deep_link = given.deep_link
    if deep_link is None:
        click.echo("\nWhich address opens your app? Its developers know: it is registered in the app, not in amoCRM.")
        deep_link = _prompt("Deep link", init_validation.read_deep_link, default=App().deep_link)
    return Answers(callback=callback, client_id=client_id, client_secret=client_secret, deep_link=deep_link)


def _prompt(question: str, read: Callable[[str], _READ], *, default: str | None = None, hidden: bool = False) -> _READ:
    """Ask until there is an answer that can be taken."""
    while True:
        text = click.prompt(question, default="" if hidden else default, show_default=not hidden, hide_input=hidden)
        try:
            return read(text.strip())
        except ValueError as error:
            click.echo(f"  It {error}.")


def _read_secret_or_later(text: str) -> str | None:
    return init_validation.read_client_secret(text) if text else None


# --- what is said --------------------------------------------------------------------------------


def _registration(callback: init_validation.Callback) -> list[str]:
    return [
        '  amoMarket > "..." > Create integration, an external one, with these addresses, byte for byte:',
        f"    redirect URI         {callback.redirect_uri}",
        f"    hook for disabling   {callback.hook}",
    ]


def _after(paths: InstallPaths, callback: init_validation.Callback, *, later: bool) -> list[str]:
    """Return the next steps."""
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
