"""`amo-callback systemd …`."""

from __future__ import annotations

import getpass
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from amo_callback.cipher import new_key
from amo_callback.cli.terminal import EX_USAGE, is_agreed
from amo_callback.config import DEFAULT_AMO_TIMEOUT, Server
from amo_callback.config_load import configured_secrets, given_keys, load_amo_timeout, load_server, load_settings
from amo_callback.deploy import plan, units
from amo_callback.deploy.plan import Change
from amo_callback.errors import CommandFailed, ConfigurationError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence

_START = "systemctl enable --now amo-callback"
_RESTART = f"systemctl restart {' '.join(units.UNITS)}"
_BOOTED = Path("/run/systemd/system")
"""There where systemd is the machine's manager: sd_booted(3)."""
_CLIENT_SECRET = "amo.client_secret"  # noqa: S105 -- because it is the setting's name


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where an installation goes: this machine, or a folder that stands for one."""

    root: Path
    real: bool

    def below(self, path: Path) -> Path:
        """Return where a path of the machine is."""
        return self.root / path.relative_to("/") if path.is_absolute() else self.root / path

    def run(self, *command: str, check: bool = True) -> None:
        """Run a command of systemd's where this is a machine; raises `CommandFailed`.

        What may fail unnoticed (no `check`) says nothing, either.
        """
        if not self.real:
            return
        try:
            quiet = None if check else subprocess.DEVNULL
            done = subprocess.run(command, check=False, stderr=quiet)  # noqa: S603 -- because every word of it is ours
        except OSError as error:
            raise CommandFailed(f"{command[0]} cannot be run: {error.strerror}") from None
        if check and done.returncode:
            raise CommandFailed(f"`{' '.join(command)}` failed ({done.returncode})")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser."""
    group = commands.add_parser("systemd", help="install as a service of systemd; print what an installation needs")
    actions = group.add_subparsers(required=True, metavar="COMMAND")
    show = actions.add_parser("print", help="print a unit or an example, filled in; without a name: the names")
    show.add_argument("name", metavar="NAME", nargs="?", help="a file's name, with or without its ending")
    show.set_defaults(run=_print)
    install = actions.add_parser("install", help="write units and missing secrets (as root)")
    install.add_argument("--yes", action="store_true", help="do not ask before changed units are replaced")
    install.set_defaults(run=_install)
    uninstall = actions.add_parser(
        "uninstall", help="stop the service and remove its units, and nothing else (as root)"
    )
    uninstall.set_defaults(run=_uninstall)
    for parser in (show, install):
        parser.add_argument(
            "--config", type=Path, default=units.CONFIG, metavar="FILE", help=f"default: {units.CONFIG}"
        )
    for parser in (install, uninstall):
        parser.add_argument(
            "--root", type=Path, metavar="FOLDER", help="write below this folder, as for a package; run nothing"
        )


def this_interpreter() -> units.Interpreter:
    """Return the Python that runs this."""
    return units.Interpreter(
        venv=Path(sys.prefix), base=Path(sys.base_prefix), executable=Path(sys.executable).resolve()
    )


def _print(options: argparse.Namespace, _environ: Mapping[str, str]) -> int:
    if options.name is None:
        print("\n".join(units.names()))
        return 0
    name = units.find(options.name)
    if name is None:
        print(f"amo-callback: {options.name}: one of {', '.join(units.names())}", file=sys.stderr)
        return EX_USAGE
    config = options.config.absolute()
    there = config if config.is_file() else None
    print(units.render(name, _installation(this_interpreter(), config=config, there=there)), end="")
    return 0


def _install(options: argparse.Namespace, _environ: Mapping[str, str]) -> int:
    return install(
        _target(options.root),
        interpreter=this_interpreter(),
        config=options.config.absolute(),
        agreed=options.yes,
        terminal=sys.stdin.isatty(),
    )


def install(target: Target, *, interpreter: units.Interpreter, config: Path, agreed: bool, terminal: bool) -> int:
    """Write what is missing, ask before anything is replaced, and say what comes next."""
    there = target.below(config)
    if not there.is_file():
        raise ConfigurationError(f"{there}: is missing: `amo-callback init --systemd --config {there}` writes it")
    installation = _installation(interpreter, config=config, there=there)
    units.check_places(installation)
    files = plan.planned(installation, root=target.root)
    replaced = [file for file in files if file.change is Change.REPLACED]
    if replaced and not agreed and not terminal:
        print(
            "amo-callback: units were changed since; install asks before it replaces them: say --yes", file=sys.stderr
        )
        return EX_USAGE
    if replaced and not _confirmed(replaced, agreed=agreed):
        print("nothing was changed")
        return 1
    folder = target.below(installation.credentials)
    plan.make_private(folder)
    missing = _make_secrets(folder, given=given_keys(there, folder), terminal=terminal)
    plan.write(files)
    for file in files:
        print(f"{file.path}: {file.change}")
    target.run("systemd-sysusers", str(target.root / plan.SYSUSERS_FILE))
    target.run("systemctl", "daemon-reload")
    _say_next(there, folder=folder, missing=missing, changes={file.change for file in files})
    return 0


def _installation(interpreter: units.Interpreter, *, config: Path, there: Path | None) -> units.Installation:
    """Return what the units say: for the configuration at `config`, which can be read `there`, if at all."""
    server = load_server(there) if there else Server()
    return units.Installation(
        interpreter=interpreter,
        config=config,
        credentials=configured_secrets(config, server) or config.parent / "credentials",
        public=server.public,
        private=server.private,
        socket_mode=server.socket_mode,
        amo_timeout=load_amo_timeout(there) if there else DEFAULT_AMO_TIMEOUT,
    )


def _confirmed(replaced: Iterable[plan.File], *, agreed: bool) -> bool:
    for file in replaced:
        print(file.diff(), end="")
    if agreed:
        return True
    return is_agreed("Your own changes are better kept with `systemctl edit`. Replace them?")


def _make_secrets(folder: Path, *, given: frozenset[str], terminal: bool) -> Sequence[str]:
    """Make what can be made of the secrets that are missing, ask for what cannot, and return what is missing still."""
    if "storage.encryption_keys" not in given:
        plan.keep_secret(folder, "storage.encryption_keys", new_key())
        print(f"{folder}/storage.encryption_keys: made; keep a copy, apart from the database's backups")
    if "api.keys" not in given:
        plan.keep_secret(folder, "api.keys", f"backend:{secrets.token_hex(32)}")
        print(f"{folder}/api.keys: made, with one key, named backend")
    if _CLIENT_SECRET in given:
        return ()
    secret = getpass.getpass('The integration\'s "Secret key" (Enter: later): ').strip() if terminal else ""
    if not secret:
        return (_CLIENT_SECRET,)
    plan.keep_secret(folder, _CLIENT_SECRET, secret)
    print(f"{folder}/{_CLIENT_SECRET}: written")
    return ()


def _say_next(config: Path, *, folder: Path, missing: Sequence[str], changes: set[Change]) -> None:
    for name in missing:
        print(f'{folder}/{name}: is missing: write the integration\'s "Secret key" into it')
    try:
        settings = load_settings(config, {"CREDENTIALS_DIRECTORY": str(folder)})
    except ConfigurationError as error:
        for problem in error.problems:
            if not problem.startswith(tuple(missing) or ("\0",)):
                print(f"still to mend: {problem}")
    else:
        if settings.server.secrets is None:
            print(f'{config}: [server] secrets = "{folder.name}" lets the command find the secrets, too')
    print(f"next: {_RESTART if Change.REPLACED in changes else _START}")


def _uninstall(options: argparse.Namespace, _environ: Mapping[str, str]) -> int:
    target = _target(options.root)
    there = plan.installed_units(target.root)
    if there:
        target.run("systemctl", "disable", "--now", *(path.name for path in there))
        target.run("systemctl", "reset-failed", *(path.name for path in there), check=False)
    for path in there:
        path.unlink()
        print(f"{path}: removed")
    target.run("systemctl", "daemon-reload")
    print("The configuration, the secrets, the user amo-callback and its database in /var/lib/amo-callback are kept.")
    return 0


def _target(root: Path | None) -> Target:
    """Return where to write; raises `CommandFailed` where that cannot be this machine."""
    if root is not None:
        return Target(root=root, real=False)
    if os.geteuid() != 0:
        raise CommandFailed("only root writes units (or --root FOLDER writes them elsewhere)")
    if not _BOOTED.is_dir():
        raise CommandFailed("systemd does not manage this machine (--root FOLDER writes the units elsewhere)")
    return Target(root=Path("/"), real=True)
