"""The files that an installation writes, compared with those that exist."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from amo_callback.deploy.units import SYSUSERS, UNITS, Installation, render
from amo_callback.files import write_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

UNIT_FOLDER = Path("etc/systemd/system")
SYSUSERS_FILE = Path("etc/sysusers.d/amo-callback.conf")


class Change(StrEnum):
    """The effect of writing a file."""

    NEW = "written"
    REPLACED = "replaced"
    NONE = "unchanged"


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file to write, and its present content."""

    path: Path
    content: str = field(repr=False)
    there: str | None = field(repr=False)

    @property
    def change(self) -> Change:
        """The effect of writing it."""
        if self.there is None:
            return Change.NEW
        return Change.NONE if self.there == self.content else Change.REPLACED

    def diff(self) -> str:
        """Return the changes as a unified diff."""
        before, after = ((text or "").splitlines(keepends=True) for text in (self.there, self.content))
        return "".join(difflib.unified_diff(before, after, fromfile=f"{self.path}", tofile=f"{self.path} (new)"))


def planned(installation: Installation, *, root: Path) -> Sequence[File]:
    """Return the files of an installation below `root`."""
    files = [(root / UNIT_FOLDER / name, name) for name in UNITS] + [(root / SYSUSERS_FILE, SYSUSERS)]
    return [File(path=path, content=render(name, installation), there=_there(path)) for path, name in files]


def installed_units(root: Path) -> Sequence[Path]:
    """Return the units that exist."""
    return [path for name in UNITS if (path := root / UNIT_FOLDER / name).is_file()]


def write(files: Iterable[File]) -> None:
    """Write the files that differ, each atomically: systemd may read one at any moment."""
    for file in files:
        if file.change is Change.NONE:
            continue
        file.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(file.path, file.content, mode=0o644, replace=True)


def _there(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


# --- secrets -------------------------------------------------------------------------------------


def keep_secret(folder: Path, name: str, value: str) -> None:
    """Write a secret into a file of its own that root alone may read."""
    write_file(folder / name, f"{value}\n", mode=0o600, replace=True)


def make_private(folder: Path) -> None:
    """Make a folder that only this process's user can read, and its files, too."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, mode in [(folder, 0o700), *((file, 0o600) for file in folder.iterdir() if file.is_file())]:
        if not path.is_symlink():
            os.chown(path, os.geteuid(), os.getegid())
            path.chmod(mode)
