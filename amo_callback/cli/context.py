"""The environment of a command: configuration, file owner, event loop and store."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import pydantic

from amo_callback.clock import SystemClock
from amo_callback.config.loader import find_config, load_settings, rescue_folder, storage_folder
from amo_callback.crypto import Cipher
from amo_callback.errors import CommandFailed, ConfigurationError, DecryptionFailed
from amo_callback.files import location_id
from amo_callback.store import database_file, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping

    from amo_callback.cli.main import Invocation
    from amo_callback.clock import Clock
    from amo_callback.config.settings import Settings
    from amo_callback.store import Store

T = TypeVar("T")

config_option = click.option(
    "--config",
    metavar="FILE",
    help="The configuration file. Default: $AMO_CALLBACK_CONFIG; if that is not set, the first of ./config.toml and "
    "/etc/amo-callback/config.toml that exists.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
PATH = click.Path(path_type=Path)
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def one_or_all(what: str, *, help_of_all: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Add an optional NAME argument and an --all option to a command; `name` is `None` with --all."""

    def decorate(run: Callable[..., T]) -> Callable[..., T]:
        @click.argument("name", required=False)
        @click.option("--all", "every", is_flag=True, help=help_of_all)
        @wraps(run)
        def checked(*args: object, name: str | None, every: bool, **options: object) -> T:
            if (name is not None) == every:
                raise click.UsageError(f"specify either one {what} or --all")
            return run(*args, name=name, **options)

        return checked

    return decorate


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandContext:
    """A loaded configuration, and the paths derived from it."""

    settings: Settings = field(repr=False)
    folder: Path
    database: Path | None
    """The database file; `None` for PostgreSQL."""
    rescue: Path
    location: str
    """The id of the database's location, computed before root switches to a user who may be unable to compute it."""

    @property
    def owned(self) -> Path:
        """A path owned by the service's user: the database file, or the rescue folder for PostgreSQL."""
        return self.database or self.rescue

    @property
    def encryption_keys(self) -> list[str]:
        """The encryption keys, newest first."""
        return self.settings.storage.encryption_keys.get_secret_value().split()


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedStore:
    """An opened store, with its cipher and clock."""

    context: CommandContext
    store: Store
    cipher: Cipher
    clock: Clock


def with_context(run: Callable[..., T]) -> Callable[..., T]:
    """Add --config to a command, and pass the loaded context as its first argument."""

    @config_option
    @click.pass_obj
    @wraps(run)
    def loaded(invocation: Invocation, /, *, config: str | None, **options: object) -> T:
        return run(load_context(config, invocation.environ), **options)

    return loaded


def load_context(config: str | None, environ: Mapping[str, str]) -> CommandContext:
    path = find_config(config, environ)
    settings = load_settings(path, environ)
    folder = storage_folder(path, environ)
    database = database_file(settings.storage.url.get_secret_value(), folder=folder)
    return CommandContext(
        settings=settings,
        folder=folder,
        database=database,
        rescue=rescue_folder(settings, path, environ),
        location=location_id(database),
    )


def run_loop(work: Coroutine[object, object, T]) -> T:
    """Run a coroutine, on uvloop if it is installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        import uvloop  # noqa: PLC0415 -- uvloop is not available on every platform
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


# --- the database's owner ------------------------------------------------------------------------


def _user_variables(user: int) -> dict[str, str]:
    """Return a user's environment variables; the PostgreSQL client uses the user name and reads files in HOME."""
    try:
        known = pwd.getpwuid(user)
    except KeyError:
        return {"HOME": "/"}
    return {"HOME": known.pw_dir, "LOGNAME": known.pw_name, "USER": known.pw_name}


_PROGRAM = (__file__, pydantic.__file__, os.__file__)
"""One file each of this program, of a library, and of Python itself."""


@contextmanager
def _report_unreadable_program(owned: Path) -> Iterator[None]:
    """Raise `CommandFailed`, whose text suggests a fix, if the effective user cannot read this program.

    Modules are imported on demand, possibly after root has switched to another user.
    """
    try:
        yield
    except (ImportError, PermissionError) as error:
        folders = [str(Path(file).parent) for file in _PROGRAM]
        is_program = isinstance(error, ImportError) or str(error.filename).startswith(tuple(folders))
        file = next((file for file in _PROGRAM if not _is_readable(file)), None)
        if file is None or not is_program:
            raise
        name = _user_variables(os.geteuid()).get("USER", str(os.geteuid()))
        raise CommandFailed(
            f"when run by root, this command switches to {name}, the owner of {owned}. This user cannot read {file}: "
            "install amo-callback and its Python where all users can read them (/opt, not /root)"
        ) from None


def _is_readable(file: str) -> bool:
    try:
        open(file, "rb").close()  # noqa: PTH123 -- `os.access` would check the real user
    except PermissionError:
        return False
    return True


@contextmanager
def acting_as_owner(owned: Path) -> Iterator[None]:
    """If this process runs as root, execute the block as the owner of the service's files.

    As root, the block would follow any link that the owner has put into the folder of these files. The owner is
    determined by the path `owned` or, if the path does not exist or is a link, by its nearest existing parent folder.
    Raises `CommandFailed` if the owner cannot read this program.
    """
    if os.geteuid() != 0:
        yield
        return
    at = owned.parent.absolute() if owned.is_symlink() else owned.absolute()
    owner = next(path for path in (at, *at.parents) if path.exists()).stat()
    groups, environ = os.getgroups(), dict(os.environ)
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    os.environ.update(_user_variables(owner.st_uid))
    try:
        with _report_unreadable_program(owned):
            yield
    finally:
        os.environ.clear()
        os.environ.update(environ)
        os.seteuid(0)
        os.setegid(os.getgid())
        os.setgroups(groups)


# --- the store -----------------------------------------------------------------------------------


@asynccontextmanager
async def open_as_owner(context: CommandContext, *, create: bool = False) -> AsyncIterator[OpenedStore]:
    """Open the store as the owner of its files.

    Raises `ConfigurationError` if the database does not exist and `create` is false, or if no key decrypts it.
    """
    if not create:
        check_database_exists(context)
    with acting_as_owner(context.owned):
        clock = SystemClock()
        cipher = Cipher(context.encryption_keys)
        url = context.settings.storage.url.get_secret_value()
        process = f"{socket.gethostname()}:{os.getpid()} (command)"
        async with open_store(url, folder=context.folder, clock=clock, process=process) as store:
            store.stores_webhooks = context.settings.webhook.url is not None
            try:
                cipher.check_canary(await store.canary(cipher.seal_canary()))
            except DecryptionFailed:
                raise ConfigurationError(
                    "storage.encryption_keys: no configured key decrypts this database; configure the keys that "
                    "encrypted it"
                ) from None
            yield OpenedStore(context=context, store=store, cipher=cipher, clock=store.clock)


def check_database_exists(context: CommandContext) -> None:
    """Raise `ConfigurationError` if the SQLite file does not exist, because opening the store would create it."""
    if context.database is not None and not context.database.exists():
        raise ConfigurationError(
            f"storage.url: {context.database} does not exist; correct the path, or start the service to create the file"
        )
