"""`amo-callback init`: a few questions, or options instead, and there is a configuration."""

from __future__ import annotations

import getpass
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from amo_callback.cli import answers
from amo_callback.cli.layout import CLIENT_SECRET, ENCRYPTION_KEYS, Layout, refuse, write
from amo_callback.cli.table import printable
from amo_callback.cli.terminal import EX_USAGE
from amo_callback.config import App
from amo_callback.config_load import CONFIG_VARIABLE, DEFAULT_PATHS
from amo_callback.deploy import units
from amo_callback.disk import MAX_TEXT, read_regular
from amo_callback.errors import CommandFailed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

_READ = TypeVar("_READ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What is known of the integration and the app; what is `None` is asked for."""

    callback: answers.Callback | None
    client_id: str | None
    client_secret: str | None = field(repr=False)
    deep_link: str | None


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("init", help="write a configuration: ask for what is needed, make the keys")
    parser.add_argument("--redirect-uri", metavar="URL", help="where AMO sends people, or https:// and the host alone")
    parser.add_argument("--client-id", metavar="ID", help='"Integration ID" on the integration\'s page in AMO')
    parser.add_argument("--client-secret-file", metavar="FILE", help='holds the "Secret key" there; -: standard input')
    parser.add_argument("--deep-link", metavar="URL", help=f"the app's address; default: {App().deep_link}")
    parser.add_argument("--database", metavar="URL", help="default: a file of SQLite")
    parser.add_argument("--no-input", action="store_true", help="ask nothing")
    parser.add_argument("--systemd", action="store_true", help="for `systemd install`: secrets get files of their own")
    parser.add_argument(
        "--config", metavar="FILE", help=f"default: ./{DEFAULT_PATHS[0]}; with --systemd: {units.CONFIG}"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask, write, and say what comes next; nothing is written before all is known."""
    layout = _layout(options, environ)
    asking = not options.no_input and sys.stdin.isatty() and sys.stdout.isatty()
    given, problems = _given(options, layout)
    if not asking:
        problems += _missing(options)
    if problems:
        for problem in problems:
            print(f"amo-callback: {printable(problem)}", file=sys.stderr)
        return EX_USAGE
    database = options.database or layout.database
    try:
        refuse(layout, database)
        known = _ask(given, layout) if asking else given
        written = _write(layout, known, database=database)
    except EOFError:
        print()
        raise CommandFailed("the answers have ended, and nothing was written") from None
    except OSError as error:
        raise CommandFailed(f"{error.filename or layout.config}: {error.strerror}") from None
    print("\n".join(printable(line) for line in ("", *written)))
    return 0


def _layout(options: argparse.Namespace, environ: Mapping[str, str]) -> Layout:
    """Return where to write: at the place of systemd's configuration it is always systemd's layout."""
    named = options.config or (None if options.systemd else environ.get(CONFIG_VARIABLE))
    config = Path(named) if named else units.CONFIG if options.systemd else DEFAULT_PATHS[0]
    return Layout(config=config, systemd=options.systemd or config.absolute() == units.CONFIG)


def _write(layout: Layout, known: Answers, *, database: str) -> list[str]:
    """Write what is known now, and return what is to be said of it."""
    if known.callback is None or known.client_id is None:
        raise AssertionError("asked for, or missing")
    decided = layout.decide(
        known.callback,
        client_id=known.client_id,
        deep_link=known.deep_link or App().deep_link,
        database=database,
    )
    written = write(layout, decided, known.client_secret)
    later = known.client_secret is None and not layout.has(CLIENT_SECRET)
    return [*written, "", *_after(layout, known.callback, later=later)]


# --- what is given -------------------------------------------------------------------------------


def _given(options: argparse.Namespace, layout: Layout) -> tuple[Answers, list[str]]:
    """Read the options, and return what is wrong with them, all at once."""
    problems: list[str] = []

    def read(option: str, text: str | None, take: Callable[[str], _READ]) -> _READ | None:
        try:
            return None if text is None else take(text)
        except OSError as error:
            problems.append(f"{option}: {text}: {error.strerror}")
        except ValueError as error:
            problems.append(f"{option}: {error}")
        return None

    read("--database", options.database, lambda text: answers.read_database(text, systemd=layout.systemd))
    given = Answers(
        callback=read("--redirect-uri", options.redirect_uri, answers.read_callback),
        client_id=read("--client-id", options.client_id, answers.read_client_id),
        client_secret=read("--client-secret-file", options.client_secret_file, _secret_of),
        deep_link=read("--deep-link", options.deep_link, answers.read_deep_link),
    )
    return given, problems


def _missing(options: argparse.Namespace) -> list[str]:
    needed = {"--redirect-uri": options.redirect_uri, "--client-id": options.client_id}
    return [f"{option}: is missing, and nobody is asked" for option, text in needed.items() if text is None]


def _secret_of(file: str) -> str:
    try:
        text = sys.stdin.read(MAX_TEXT) if file == "-" else read_regular(Path(file), limit=MAX_TEXT).decode()
    except UnicodeDecodeError:
        raise ValueError("cannot be read as text") from None
    return answers.read_client_secret(text.strip())


# --- what is asked -------------------------------------------------------------------------------


def _ask(given: Answers, layout: Layout) -> Answers:
    """Ask for what was not given, in the order in which a person comes to know it."""
    callback = given.callback
    if callback is None:
        print("Where do phones reach this service? Its public address, or the whole redirect URI.")
        callback = _until_good("Address", answers.read_callback, example="https://admin.example.com")
        print(f"The redirect URI is {callback.redirect_uri}")
    client_id, client_secret = given.client_id, given.client_secret
    if client_id is None:
        print("\nCreate the integration in amoCRM, or open it:")
        print("\n".join(_registration(callback)))
        print('Then "Keys and scopes" on its page has what is asked for now.')
        client_id = _until_good("Integration ID", answers.read_client_id)
    if client_secret is None and not layout.has(CLIENT_SECRET):
        client_secret = _until_good("Secret key (is not shown; Enter: later)", _secret_or_later, line=getpass.getpass)
    deep_link = given.deep_link
    if deep_link is None:
        print("\nWhich address opens your app? Its developers know: it is registered in the app, not in amoCRM.")
        default = App().deep_link
        deep_link = _until_good("Deep link", lambda text: answers.read_deep_link(text or default), default=default)
    return Answers(callback=callback, client_id=client_id, client_secret=client_secret, deep_link=deep_link)


def _until_good(
    question: str,
    read: Callable[[str], _READ],
    *,
    example: str = "",
    default: str = "",
    line: Callable[[str], str] = input,
) -> _READ:
    """Ask until there is an answer that can be taken."""
    hint = f" (like {example})" if example else f" [{default}]" if default else ""
    while True:
        try:
            return read(line(f"{question}{hint}: ").strip())
        except UnicodeDecodeError:
            print("  It is no text.")
        except ValueError as error:
            print(f"  It {error}.")


def _secret_or_later(text: str) -> str | None:
    return answers.read_client_secret(text) if text else None


# --- what is said --------------------------------------------------------------------------------


def _registration(callback: answers.Callback) -> list[str]:
    return [
        '  amoMarket > "..." > Create integration, an external one, with these addresses, byte for byte:',
        f"    redirect URI         {callback.redirect_uri}",
        f"    hook for disabling   {callback.hook}",
    ]


def _after(layout: Layout, callback: answers.Callback, *, later: bool) -> list[str]:
    """Return what is left for a person to do."""
    keys = layout.credentials / ENCRYPTION_KEYS if layout.systemd else layout.config
    lines = [
        f"Keep a copy of the encryption key (in {keys}), apart from the database's backups:",
        "without it nobody can read the tokens any more.",
        "",
        "In amoCRM:",
        *_registration(callback),
        "",
    ]
    if later and layout.systemd:
        lines.append(f"Later: the secret key goes into {layout.credentials / CLIENT_SECRET}; `systemd install` asks.")
    elif later:
        lines.append(f"Later: the secret key goes into {layout.config}, as client_secret below [amo].")
    found = DEFAULT_PATHS[1] if layout.systemd else DEFAULT_PATHS[0]
    option = "" if layout.config in {found, found.absolute()} else f" --config {shlex.quote(str(layout.config))}"
    steps = ("systemd install", "check") if layout.systemd else ("check", "serve")
    return [*lines, "Next:", *(f"  amo-callback {step}{option}" for step in steps)]
