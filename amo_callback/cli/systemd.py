"""`amo-callback systemd …`."""

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
"""Exists if systemd manages the machine: sd_booted(3)."""


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
    """Write the files that have changed, each atomically, because systemd may read them at any moment."""
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
        """Map an absolute path of the machine into the target."""
        return self.root / path.relative_to("/") if path.is_absolute() else self.root / path

    def run(self, *command: str, check: bool = True) -> None:
        """Run a systemd command if the target is this machine; raises `CommandFailed`.

        Without `check`, failures are ignored and print nothing.
        """
        if not self.real:
            return
        try:
            quiet = None if check else subprocess.DEVNULL
            done = subprocess.run(command, check=False, stderr=quiet)  # noqa: S603 -- no argument comes from external input
        except OSError as error:
            raise CommandFailed(f"{command[0]} cannot be run: {error.strerror}") from None
        if check and done.returncode:
            raise CommandFailed(f"`{' '.join(command)}` failed ({done.returncode})")


_config_option = click.option("--config", type=PATH, default=units.CONFIG, metavar="FILE", help="The configuration.")
_root_option = click.option("--root", type=PATH, metavar="FOLDER", help="Write below this folder, and run no commands.")


@click.group()
def systemd() -> None:
    """Install as a systemd service; print its units and examples."""


@systemd.command("print")
@_config_option
@click.argument("name", required=False)
def print_(*, config: Path, name: str | None) -> None:
    """Print the unit or example NAME with this installation's values; without NAME, print all names."""
    if name is None:
        click.echo("\n".join(units.names()))
        return
    found = units.find(name)
    if found is None:
        raise click.UsageError(f"{name}: must be one of {', '.join(units.names())}")
    config = config.absolute()
    there = config if config.is_file() else None
    click.echo(units.render(found, _installation(this_interpreter(), config=config, there=there)), nl=False)


@systemd.command("install")
@_config_option
@_root_option
@yes_option
def install_(*, config: Path, root: Path | None, yes: bool) -> int:
    """Write the units and any missing secrets, as root."""
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
    """Stop the service and remove its units, as root; everything else stays."""
    target = _target(root)
    there = [path for name in units.UNITS if (path := target.root / _UNIT_FOLDER / name).is_file()]
    if there:
        target.run("systemctl", "disable", "--now", *(path.name for path in there))
        target.run("systemctl", "reset-failed", *(path.name for path in there), check=False)
    for path in there:
        path.unlink()
        click.echo(f"{path}: removed")
    target.run("systemctl", "daemon-reload")
    click.echo(
        "The configuration, the secrets, the user amo-callback and its database in /var/lib/amo-callback are kept."
    )


def this_interpreter() -> units.Interpreter:
    return units.Interpreter(
        venv=Path(sys.prefix), base=Path(sys.base_prefix), executable=Path(sys.executable).resolve()
    )


def install(target: Target, *, interpreter: units.Interpreter, config: Path, agreed: bool, terminal: bool) -> int:
    """Write what is missing, ask before replacing anything, and print the next step."""
    there = target.below(config)
    if not there.is_file():
        raise ConfigurationError(f"{there}: is missing: `amo-callback init --systemd --config {there}` writes it")
    installation = _installation(interpreter, config=config, there=there)
    units.check_places(installation)
    files = _planned(installation, root=target.root)
    replaced = [file for file in files if file.change is Change.REPLACED]
    if replaced and not agreed and not terminal:
        click.echo("amo-callback: existing units differ; confirm their replacement with --yes", err=True)
        return EX_USAGE
    for file in replaced:
        click.echo(file.diff(), nl=False)
    question = "Your own changes are better kept with `systemctl edit`. Replace them?"
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
    """Return the values for the units; the configuration will be at `config`, and is read from `there` if it exists."""
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
    """Generate missing secrets if possible, ask for the others, and return the names of those still missing."""
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
        click.echo(f'{folder}/{name}: is missing: write the integration\'s "Secret key" into it')
    try:
        settings = load_settings(config, {"CREDENTIALS_DIRECTORY": str(folder)})
    except ConfigurationError as error:
        for problem in error.problems:
            if not problem.startswith(tuple(missing)):
                click.echo(f"still to fix: {problem}")
    else:
        if settings.server.secrets is None:
            click.echo(f'{config}: [server] secrets = "{folder.name}" lets the command find the secrets, too')
    click.echo(f"next: {_RESTART if Change.REPLACED in changes else _START}")


def _target(root: Path | None) -> Target:
    """Return the target; raises `CommandFailed` if this machine cannot be the target."""
    if root is not None:
        return Target(root=root, real=False)
    if os.geteuid() != 0:
        raise CommandFailed("only root can write units (use --root FOLDER to write them elsewhere)")
    if not _BOOTED.is_dir():
        raise CommandFailed("systemd does not manage this machine (use --root FOLDER to write the units elsewhere)")
    return Target(root=Path("/"), real=True)
