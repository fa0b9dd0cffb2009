"""Parsing and validation of the database URL, and extraction of its passwords."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgres://")
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_ESCAPED = 'in a user name or password, write "@" as %40, "/" as %2F, "?" as %3F, "#" as %23'


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresUrl:
    """A parsed PostgreSQL URL; only `secrets` contains passwords."""

    hosts: Sequence[str]
    """Host names, IP addresses, or folders of Unix sockets."""
    database: str
    is_verified: bool
    """Whether the server's certificate and host name are verified."""
    secrets: Sequence[str] = field(repr=False)
    """The passwords, each in two forms: as written in the URL, and decoded."""

    def __str__(self) -> str:
        return f"PostgreSQL database {self.database} at {', '.join(self.hosts)}"

    @property
    def is_local(self) -> bool:
        return all(host.startswith("/") or host in LOOPBACK for host in self.hosts)


def is_postgres(url: str) -> bool:
    return url.startswith(_POSTGRES)


def validate_url(url: str) -> None:
    """Raise `ValueError` if `url` is not a valid database URL; the message does not contain the URL."""
    if is_postgres(url):
        read_postgres(url)
    elif not url.startswith(SQLITE) or url == SQLITE:
        raise ValueError(
            f"must begin with {SQLITE} and name a file (with four slashes for an absolute path), or be "
            "postgresql://USER:PASSWORD@HOST/DATABASE"
        )


def url_secrets(url: str) -> Sequence[str]:
    """Return the passwords in `url`, both as written and decoded; return the whole URL if it is invalid."""
    try:
        return read_postgres(url).secrets if is_postgres(url) else ()
    except ValueError:  # an invalid URL may contain the password anywhere
        return (url,)


def read_postgres(url: str) -> PostgresUrl:
    """Parse a PostgreSQL URL as asyncpg does; raises `ValueError`, whose message does not contain the URL."""
    if "#" in url:
        raise ValueError(f'must not contain "#"; {_ESCAPED}')
    try:
        parts = urlsplit(url)
        found = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
    except ValueError:  # its message may quote the URL
        raise ValueError(
            f'must be a URL whose query, if any, consists of name=value pairs joined by "&"; {_ESCAPED}'
        ) from None
    query = {name: values[-1] for name, values in found.items()}
    user, _, place = parts.netloc.rpartition("@")
    if "@" in user:  # asyncpg would use the part after the first @ as the host
        raise ValueError(f'must not contain more than one "@"; {_ESCAPED}')
    hosts = list(_hosts(place)) or list(_hosts(query.get("host", "")))
    if not hosts:
        raise ValueError(
            "must name a host or the folder of a Unix socket, as in postgresql://USER@/DATABASE?host=/run/postgresql"
        )
    database = unquote(parts.path.removeprefix("/")) or query.get("dbname") or query.get("database")
    if not database:
        raise ValueError("must name a database, as in postgresql://USER:PASSWORD@HOST/DATABASE")
    mode = query.get("sslmode", "prefer")
    if mode not in _MODES:
        raise ValueError(f"must use one of these values for sslmode: {', '.join(_MODES)}")
    return PostgresUrl(
        hosts=tuple(hosts),
        database=database,
        is_verified=mode == "verify-full",
        secrets=tuple(_secrets(user, parts.query, query)),
    )


def _hosts(text: str) -> Iterator[str]:
    """Yield the hosts in a comma-separated list, without ports; raises `ValueError` for an invalid port."""
    for one in text.split(",") if text else ():
        if one.startswith("/"):
            yield one
            continue
        bracketed, closed, rest = one.partition("]")
        host, _, port = (bracketed[1:], "", rest.removeprefix(":")) if closed else one.partition(":")
        if port and not port.isdecimal():
            raise ValueError(f"a port must be a number; {_ESCAPED}")
        if host:
            yield unquote(host)


def _secrets(user: str, query: str, meant: Mapping[str, str]) -> Iterator[str]:
    if password := user.partition(":")[2]:
        yield from dict.fromkeys((password, unquote(password)))
    for pair in query.split("&"):
        name, _, written = pair.partition("=")
        if name in {"password", "sslpassword"} and written:
            yield from dict.fromkeys((written, meant[name]))
