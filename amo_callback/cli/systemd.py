"""`amo-callback systemd`."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amo_callback.cli.context import PATH, yes_option
from amo_callback.cli.init_files import CLIENT_SECRET, keep_secret, make_keys, make_private
from amo_callback.cli.output import EX_USAGE, confirm
from amo_callback.config.loader import beside, configured_keys, load_settings, load_unit_settings
from amo_callback.deploy import units
from amo_callback.errors import CommandFailed, ConfigurationError
from amo_callback.files import write_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_START = "systemctl enable --now amo-callback"
_RESTART = f"systemctl restart {' '.join(units.UNITS)}"
_UNIT_FOLDER = Path("etc/systemd/system")
_SYSUSERS_FILE = Path("etc/sysusers.d/amo-callback.conf")
_BOOTED = Path("/run/systemd/system")
"""A folder that exists only if systemd manages the machine; see sd_booted(3)."""


class Change(StrEnum):
    NEW = "written"
    REPLACED = "replaced"
    NONE = "unchanged"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitFile:
    path: Path
    content: str = field(repr=False)
    there: str | None = field(repr=False)

    @property
    def change(self) -> Change:
        if self.there is None:
            return Change.NEW
        return Change.NONE if self.there == self.content else Change.REPLACED

    def diff(self) -> str:
        before, after = ((text or "").splitlines(keepends=True) for text in (self.there, self.content))
        return "".join(difflib.unified_diff(before, after, fromfile=f"{self.path}", tofile=f"{self.path} (new)"))


def _planned(installation: units.Installation, *, root: Path) -> Sequence[UnitFile]:
    files = {root / _UNIT_FOLDER / name: name for name in units.UNITS} | {root / _SYSUSERS_FILE: units.SYSUSERS}
    return [
        UnitFile(
            path=path,
            content=units.render(name, installation),
            there=path.read_text(encoding="utf-8", errors="replace") if path.exists() else None,
        )
        for path, name in files.items()
    ]


def _write(files: Iterable[UnitFile]) -> None:
    """Write each changed file, atomically, because systemd may read it at any time."""
    for file in files:
        if file.change is Change.NONE:
            continue
        file.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(file.path, file.content, mode=0o644, replace=True)


# --- the commands -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The target of an installation: this machine or a folder."""

    root: Path
    real: bool

    def below(self, path: Path) -> Path:
        """Map a path of the machine into the target."""
        return self.root / path.relative_to("/") if path.is_absolute() else self.root / path

    def run(self, *command: str, check: bool = True) -> None:
        """Run a systemd command if the target is this machine; raises `CommandFailed`.

        Without `check`, the exit status is ignored, and stderr is discarded.
        """
        if not self.real:
            return
        try:
            quiet = None if check else subprocess.DEVNULL
            done = subprocess.run(command, check=False, stderr=quiet)  # noqa: S603 -- no argument comes from external input
        except OSError as error:
            raise CommandFailed(f"cannot run {command[0]}: {error.strerror}") from None
        if check and done.returncode:
            raise CommandFailed(f"`{' '.join(command)}` failed with exit status {done.returncode}")


_config_option = click.option(
    "--config", type=PATH, default=units.CONFIG, metavar="FILE", help="The configuration file."
)
_root_option = click.option(
    "--root", type=PATH, metavar="FOLDER", help="Use this folder instead of /, and run no systemd commands."
)


@click.group()
def systemd() -> None:
    """Install or uninstall the systemd service, or print its files."""


@systemd.command("print")
@_config_option
@click.argument("name", required=False)
def print_(*, config: Path, name: str | None) -> None:
    """Print the unit or example NAME with this installation's values; without NAME, list all names."""
    if name is None:
        click.echo("\n".join(units.names()))
        return
    found = units.find(name)
    if found is None:
        raise click.UsageError(f"unknown file {name}: choose one of {', '.join(units.names())}")
    config = config.absolute()
    there = config if config.is_file() else None
    click.echo(units.render(found, _installation(this_interpreter(), config=config, there=there)), nl=False)


@systemd.command("install")
@_config_option
@_root_option
@yes_option
def install_(*, config: Path, root: Path | None, yes: bool) -> int:
    """Write the systemd units and any missing secrets.

    Requires root, unless --root is given.
    """
    return install(
        _target(root),
        interpreter=this_interpreter(),
        config=config.absolute(),
        agreed=yes,
        terminal=sys.stdin.isatty(),
    )


@systemd.command("uninstall")
@_root_option
def uninstall(*, root: Path | None) -> None:
    """Stop the service and remove its systemd units; keep all other files.

    Requires root, unless --root is given.
    """
    target = _target(root)
    there = [path for name in units.UNITS if (path := target.root / _UNIT_FOLDER / name).is_file()]
    if there:
        target.run("systemctl", "disable", "--now", *(path.name for path in there))
        target.run("systemctl", "reset-failed", *(path.name for path in there), check=False)
    for path in there:
        path.unlink()
        click.echo(f"{path}: removed")
    target.run("systemctl", "daemon-reload")
    click.echo("The configuration, the secrets, the user amo-callback and the data in /var/lib/amo-callback are kept.")


def this_interpreter() -> units.Interpreter:
    return units.Interpreter(
        venv=Path(sys.prefix), base=Path(sys.base_prefix), executable=Path(sys.executable).resolve()
    )


def install(target: Target, *, interpreter: units.Interpreter, config: Path, agreed: bool, terminal: bool) -> int:
    """Write missing secrets and units, replace changed units after confirmation, and print the next step."""
    there = target.below(config)
    if not there.is_file():
        raise ConfigurationError(f"{there} is missing: run `amo-callback init --systemd --config {there}`")
    installation = _installation(interpreter, config=config, there=there)
    units.check_places(installation)
    files = _planned(installation, root=target.root)
    replaced = [file for file in files if file.change is Change.REPLACED]
    if replaced and not agreed and not terminal:
        click.echo("amo-callback: existing units differ from the new ones: use --yes to replace them", err=True)
        return EX_USAGE
    for file in replaced:
        click.echo(file.diff(), nl=False)
    question = "To keep your own changes, answer no and move them to a drop-in (`systemctl edit`). Replace these files?"
    if replaced and not confirm(question, yes=agreed):
        click.echo("nothing was changed")
        return 1
    folder = target.below(installation.credentials)
    make_private(folder)
    missing = _make_secrets(folder, given=configured_keys(there, folder), terminal=terminal)
    _write(files)
    for file in files:
        click.echo(f"{file.path}: {file.change}")
    target.run("systemd-sysusers", str(target.root / _SYSUSERS_FILE))
    target.run("systemctl", "daemon-reload")
    _say_next(there, folder=folder, missing=missing, changes={file.change for file in files})
    return 0


def _installation(interpreter: units.Interpreter, *, config: Path, there: Path | None) -> units.Installation:
    """Return the values for the units.

    `config` is the configuration's path in the units. The configuration is read from `there`; if `there` is `None`, the
    defaults are used.
    """
    server, amo_timeout = load_unit_settings(there)
    return units.Installation(
        interpreter=interpreter,
        config=config,
        credentials=beside(config, server.secrets or Path("credentials")),
        public=server.public,
        private=server.private,
        socket_mode=server.socket_mode,
        amo_timeout=amo_timeout,
    )


def _make_secrets(folder: Path, *, given: frozenset[str], terminal: bool) -> Sequence[str]:
    """Generate missing keys, ask for a missing client secret, and return the names of secrets still missing."""
    for line in make_keys(folder, given=given):
        click.echo(line)
    if CLIENT_SECRET in given:
        return ()
    question = 'The integration\'s "Secret key" (press Enter to skip)'
    secret = click.prompt(question, hide_input=True, default="", show_default=False).strip() if terminal else ""
    if not secret:
        return (CLIENT_SECRET,)
    keep_secret(folder, CLIENT_SECRET, secret)
    click.echo(f"{folder}/{CLIENT_SECRET}: written")
    return ()


def _say_next(config: Path, *, folder: Path, missing: Sequence[str], changes: set[Change]) -> None:
    for name in missing:
        click.echo(f'{folder}/{name} is missing: create it, with the integration\'s "Secret key" as its content')
    try:
        settings = load_settings(config, {"CREDENTIALS_DIRECTORY": str(folder)})
    except ConfigurationError as error:
        for problem in error.problems:
            if not problem.startswith(tuple(missing)):
                click.echo(f"before you start the service, fix this problem: {problem}")
    else:
        if settings.server.secrets is None:
            click.echo(
                f'{config}: set secrets = "{folder.name}" under [server], so that `amo-callback` commands can read the '
                "secrets, too"
            )
    click.echo(f"next: {_RESTART if Change.REPLACED in changes else _START}")


def _target(root: Path | None) -> Target:
    """Return the target; raises `CommandFailed` if this machine cannot be the target."""
    if root is not None:
        return Target(root=root, real=False)
    if os.geteuid() != 0:
        raise CommandFailed("only root can change systemd units: run the command as root, or use --root FOLDER")
    if not _BOOTED.is_dir():
        raise CommandFailed("systemd does not manage this machine: use --root FOLDER to select another root folder")
    return Target(root=Path("/"), real=True)
