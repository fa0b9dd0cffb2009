"""`amo-callback init`, which writes a configuration file from options and prompts."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import SplitResult, urlsplit
from uuid import UUID

import click
from pydantic import TypeAdapter, ValidationError

from amo_callback.cli.init_files import (
    CALLBACK,
    CLIENT_SECRET,
    ENCRYPTION_KEYS,
    Callback,
    InstallPaths,
    preflight,
    write,
)
from amo_callback.cli.output import printable
from amo_callback.config.database_url import url_secrets, validate_url
from amo_callback.config.loader import CONFIG_VARIABLE, DEFAULT_PATHS
from amo_callback.config.settings import App, Server
from amo_callback.config.types import HttpsUrl
from amo_callback.deploy import units
from amo_callback.errors import CommandFailed
from amo_callback.files import MAX_TEXT, read_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from amo_callback.cli.main import Invocation

T = TypeVar("T")

_VISIBLE = re.compile(r"[!-~]+")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


# --- answers ---------------------------------------------------------------------------------------


def read_callback(text: str) -> Callback:
    """Parse a redirect URI or a base URL of the service; raises `ValueError`."""
    given = text if "://" in text else f"https://{text}"
    if not _VISIBLE.fullmatch(given):
        raise ValueError("must be a URL of printable ASCII characters, such as https://admin.example.com")
    parts = _parts(given)
    if "?" in given or "#" in given:
        raise ValueError("must not contain ? or #: AMO appends its own query")
    default = Server().base_path
    if parts.path in {"", "/"}:
        return Callback(redirect_uri=f"{given.removesuffix('/')}{default}{CALLBACK}", base_path=default)
    if not parts.path.endswith(CALLBACK):
        raise ValueError(f"must have no path, or a path that ends in {CALLBACK}")
    if parts.path.endswith(f"{default}{CALLBACK}"):
        return Callback(redirect_uri=given, base_path=default)
    base_path = parts.path.removesuffix(CALLBACK)
    try:
        Server(base_path=base_path)
    except ValidationError:
        raise ValueError(
            f"must have a path that consists of a valid server.base_path and {CALLBACK}, such as {default}{CALLBACK}"
        ) from None
    return Callback(redirect_uri=given, base_path=base_path)


def read_client_id(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise ValueError(f'must be the "Integration ID": 36 characters, such as {UUID(int=0)}')
    return text


def read_client_secret(text: str) -> str:
    """Check the integration's secret key; raises `ValueError`, whose message does not contain the value."""
    if not _VISIBLE.fullmatch(text):
        raise ValueError('must contain only the "Secret key": one line without spaces')
    return text


def read_deep_link(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must consist of printable characters")
    try:
        return App(deep_link=(text,)).default_deep_link
    except ValidationError as error:
        raise ValueError(_reason(error)) from None


def read_database(text: str) -> str:
    """Check the database URL, which must not contain a password.

    Raises `ValueError`, whose message does not contain the value.
    """
    if not text.isprintable():
        raise ValueError("must consist of printable characters")
    validate_url(text)
    if url_secrets(text):
        raise ValueError(
            "contains a password, and other users of this machine can see the command line: omit the password, and add "
            "it to the URL in the configuration file afterwards"
        )
    return text


def _parts(address: str) -> SplitResult:
    """Split a URL; raises `ValueError` if the configuration would not accept it."""
    try:
        parts = urlsplit(address)
        if not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:
        raise ValueError("must be a URL such as https://admin.example.com; a port must be a number") from None
    try:
        TypeAdapter[str](HttpsUrl).validate_python(address)
    except ValidationError as error:
        raise ValueError(_reason(error)) from None
    return parts


def _reason(error: ValidationError) -> str:
    return str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")


def _checked(read: Callable[[str], T]) -> Callable[[str], T]:
    """Convert a function that raises `ValueError` or `OSError` into a click parameter type."""

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
        raise ValueError("is not valid UTF-8") from None
    return read_client_secret(text.strip())


# --- the command -----------------------------------------------------------------------------------


@click.command()
@click.option(
    "--redirect-uri",
    "callback",
    type=_checked(read_callback),
    metavar="URL",
    help="The complete redirect URI, or only https:// and the host.",
)
@click.option(
    "--client-id",
    type=_checked(read_client_id),
    metavar="ID",
    help='The "Integration ID" from the integration\'s page in AMO.',
)
@click.option(
    "--client-secret-file",
    "client_secret",
    type=_checked(_read_secret_file),
    metavar="FILE",
    help='A file with the "Secret key" from the integration\'s page in AMO, or - for standard input.',
)
@click.option(
    "--deep-link",
    type=_checked(read_deep_link),
    metavar="URL",
    help=f"The URL that opens the app. Default: {App().default_deep_link}",
)
@click.option(
    "--database", type=_checked(read_database), metavar="URL", help="The database URL. Default: a SQLite file."
)
@click.option("--no-input", is_flag=True, help="Do not prompt.")
@click.option("--systemd", is_flag=True, help="Write each secret to its own file, as `systemd install` expects.")
@click.option(
    "--config",
    metavar="FILE",
    help=f"The configuration file to write. Default: ./{DEFAULT_PATHS[0]}, or {units.CONFIG} with --systemd.",
)
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
    """Write a configuration file: ask for the required values and generate keys.

    Nothing is written until all values are known.
    """
    paths = _paths(config, invocation.environ, systemd=systemd)
    database = database or paths.database
    asking = not no_input and sys.stdin.isatty() and sys.stdout.isatty()
    if not asking:
        for option, value in (("--redirect-uri", callback), ("--client-id", client_id)):
            if value is None:
                raise click.UsageError(f"{option} is required with --no-input or without a terminal")
    try:
        preflight(paths, database)
        callback = callback or _ask_callback()
        client_id = client_id or _ask_client_id(callback)
        if asking and client_secret is None and not paths.has(CLIENT_SECRET):
            question = "Secret key (one line without spaces, not shown; press Enter to skip)"
            secret_or_later = _checked(lambda text: read_client_secret(text) if text else None)
            client_secret = click.prompt(
                question, value_proc=secret_or_later, default="", show_default=False, hide_input=True
            )
        if asking and deep_link is None:
            click.echo("\nWhich URL opens your app? It is defined in the app, not in amoCRM: ask the app's developers.")
            deep_link = click.prompt("Deep link", value_proc=_checked(read_deep_link), default=App().default_deep_link)
        decided = paths.decide(
            callback, client_id=client_id, deep_link=deep_link or App().default_deep_link, database=database
        )
        lines = write(paths, decided, client_secret)
    except click.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        click.echo()
        raise CommandFailed("the input ended before all values were known: nothing was written") from None
    except OSError as error:
        raise CommandFailed(f"{error.filename or paths.config}: {error.strerror}") from None
    later = client_secret is None and not paths.has(CLIENT_SECRET)
    for line in ("", *lines, "", *_next_steps(paths, callback, later=later)):
        click.echo(printable(line))


def _ask_callback() -> Callback:
    click.echo("At which public URL do phones reach this service? Enter its base URL, or the complete redirect URI.")
    callback: Callback = click.prompt("URL (such as https://admin.example.com)", value_proc=_checked(read_callback))
    click.echo(f"The redirect URI is {callback.redirect_uri}")
    return callback


def _ask_client_id(callback: Callback) -> str:
    """Print the values to register in AMO, and ask for the integration's id."""
    click.echo("\nCreate the integration in amoCRM, or open the existing integration:")
    click.echo("\n".join(_registration(callback)))
    click.echo('The integration\'s page then shows the following values under "Keys and scopes".')
    return str(click.prompt("Integration ID", value_proc=_checked(read_client_id)))


def _paths(config: str | None, environ: Mapping[str, str], *, systemd: bool) -> InstallPaths:
    """Return the paths to write; the configuration file `units.CONFIG` implies --systemd."""
    named = config or (None if systemd else environ.get(CONFIG_VARIABLE))
    path = Path(named) if named else units.CONFIG if systemd else DEFAULT_PATHS[0]
    return InstallPaths(config=path, systemd=systemd or path.absolute() == units.CONFIG)


def _registration(callback: Callback) -> list[str]:
    return [
        '  amoMarket > "..." > Create integration (external), with exactly these URLs:',
        f"    redirect URI         {callback.redirect_uri}",
        f"    disable hook         {callback.hook}",
    ]


def _next_steps(paths: InstallPaths, callback: Callback, *, later: bool) -> list[str]:
    keys = paths.credentials / ENCRYPTION_KEYS if paths.systemd else paths.config
    lines = [
        f"The encryption key is in {keys}. Keep a copy of the key, separate from the database's backups.",
        "Without the key, the tokens cannot be decrypted.",
        "",
        "In amoCRM:",
        *_registration(callback),
        "",
    ]
    if later and paths.systemd:
        lines.append(f"Write the secret key to {paths.credentials / CLIENT_SECRET} later, or enter it when")
        lines.append("`amo-callback systemd install` asks for it.")
    elif later:
        lines.append(f"Later, add the secret key to {paths.config} as client_secret under [amo].")
    found = DEFAULT_PATHS[1] if paths.systemd else DEFAULT_PATHS[0]
    option = "" if paths.config in {found, found.absolute()} else f" --config {shlex.quote(str(paths.config))}"
    steps = ("systemd install", "check") if paths.systemd else ("check", "serve")
    return [*lines, "Next:", *(f"  amo-callback {step}{option}" for step in steps)]
