"""Why PostgreSQL cannot be used, in words of ours: the library's texts may quote values."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import asyncpg

from amo_callback.errors import ConfigurationError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

_MUST_MEND: Sequence[tuple[type[Exception], str]] = (
    (asyncpg.InvalidPasswordError, "it does not take this user and password"),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        "it does not let this user in from here: pg_hba.conf, or the user's name, or TLS is asked for",
    ),
    (asyncpg.InvalidCatalogNameError, "it has no database of that name: CREATE DATABASE"),
    (asyncpg.InvalidSchemaNameError, "the user has no schema to make tables in: search_path"),
    (asyncpg.InsufficientPrivilegeError, "the user may not make or use tables there: make it the database's owner"),
    (asyncpg.ClientConfigurationError, "what the URL says does not fit together, or a certificate is not there"),
    (asyncpg.UndefinedObjectError, "the URL names a parameter that the server does not know"),
    (asyncpg.CantChangeRuntimeParamError, "the URL names a parameter that cannot be set for a session"),
    (asyncpg.InvalidParameterValueError, "the URL gives a parameter a value that the server does not take"),
    (ssl.SSLCertVerificationError, "its certificate is not valid for it: sslrootcert, or the host's name"),
    (ValueError, "the URL cannot be read"),
)
"""What no second start mends. The first that fits is told."""
_MAY_PASS: Sequence[tuple[type[Exception], str]] = (
    (asyncpg.TooManyConnectionsError, "it takes no more connections: max_connections, or a limit of the user's"),
    (asyncpg.CannotConnectNowError, "it is starting, or stopping"),
    (asyncpg.ReadOnlySQLTransactionError, "it is only for reading, as a standby is"),
    (asyncpg.TargetServerAttributeNotMatched, "no host is of the kind that target_session_attrs asks for"),
    (socket.gaierror, "its host's name is not known here"),
    (TimeoutError, "it does not answer in time"),
    (ConnectionRefusedError, "nobody listens there"),
    (FileNotFoundError, "there is no such socket, or no such certificate"),
    (PermissionError, "its socket, or a certificate, may not be opened"),
    (ssl.SSLError, "TLS does not come about"),
    (OSError, "it cannot be reached"),
)
MISTAKEN = "storage.url: PostgreSQL cannot be used: "
"""What the text of a mistake begins with."""
_PARAMETERS = "unsupported startup parameter"
_NO_TLS = "it does not offer TLS, which sslmode asks for"


def refusal(error: Exception) -> ConfigurationError | StoreUnavailable:
    """Return what keeps the service from starting: a mistake in the configuration, or what may pass."""
    if isinstance(error, ConnectionError) and "rejected SSL" in str(error):  # has no type of its own
        return _mistake(_NO_TLS, error)
    if isinstance(error, asyncpg.ProtocolViolationError) and _PARAMETERS in str(error):  # PgBouncer's own
        return _mistake("PgBouncer does not take a parameter that the URL names: ignore_startup_parameters", error)
    for kind, why in _MUST_MEND:
        if isinstance(error, kind):
            return _mistake(why, error)
    name = type(error).__name__
    return StoreUnavailable(next((f"{why} ({name})" for kind, why in _MAY_PASS if isinstance(error, kind)), name))


def _mistake(why: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"{MISTAKEN}{why} ({type(error).__name__})")
