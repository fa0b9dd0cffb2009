"""PostgreSQL's errors, in words: an error in the configuration, or one that another start may not have."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import asyncpg

from amo_callback.errors import ConfigurationError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError)
"""All that the library raises; a timeout is an `OSError`."""
_MISCONFIGURED: Sequence[tuple[type[Exception], str]] = (
    (asyncpg.InvalidPasswordError, "the server does not accept this user and password"),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        "the server does not accept this user from here: check pg_hba.conf, the user's name, and sslmode",
    ),
    (asyncpg.InvalidCatalogNameError, "the server has no database of that name: CREATE DATABASE"),
    (asyncpg.InvalidSchemaNameError, "the user has no schema for tables: set search_path"),
    (asyncpg.InsufficientPrivilegeError, "the user may not create or use tables: make it the database's owner"),
    (asyncpg.ClientConfigurationError, "options of the URL contradict each other, or a certificate is missing"),
    (asyncpg.UndefinedObjectError, "the URL names a parameter that the server does not know"),
    (asyncpg.CantChangeRuntimeParamError, "the URL names a parameter that cannot be set for a session"),
    (asyncpg.InvalidParameterValueError, "the URL gives a parameter a value that the server does not accept"),
    (ssl.SSLCertVerificationError, "its certificate is not valid for it: check sslrootcert and the host's name"),
    (ValueError, "the URL cannot be parsed"),
)
"""Errors that a restart does not remove; the first that fits is reported."""
_TRANSIENT: Sequence[tuple[type[Exception], str]] = (
    (asyncpg.TooManyConnectionsError, "no connection is free: raise max_connections, or the user's limit"),
    (asyncpg.CannotConnectNowError, "the server is starting or stopping"),
    (asyncpg.ReadOnlySQLTransactionError, "the server is read-only, as a standby is"),
    (asyncpg.TargetServerAttributeNotMatched, "no host is of the kind that target_session_attrs requires"),
    (socket.gaierror, "the host's name cannot be resolved"),
    (TimeoutError, "no answer in time"),
    (ConnectionRefusedError, "connection refused"),
    (FileNotFoundError, "the socket, or a certificate, does not exist"),
    (PermissionError, "no permission to open the socket or a certificate"),
    (ssl.SSLError, "the TLS handshake failed"),
    (OSError, "the server cannot be reached"),
)
MISTAKEN = "storage.url: PostgreSQL cannot be used: "
"""The beginning of the text of a mistake."""
_PARAMETERS = "unsupported startup parameter"
_NO_TLS = "the server does not offer TLS, which sslmode requires"


def explain(error: Exception) -> ConfigurationError | StoreUnavailable:
    """Return why the service cannot start: an error in the configuration, or one that may pass.

    The library's texts may quote values: only its types are used.
    """
    if isinstance(error, ConnectionError) and "rejected SSL" in str(error):  # has no type of its own
        return _mistake(_NO_TLS, error)
    if isinstance(error, asyncpg.ProtocolViolationError) and _PARAMETERS in str(error):  # PgBouncer's own
        return _mistake("PgBouncer rejects a parameter that the URL names: ignore_startup_parameters", error)
    for kind, why in _MISCONFIGURED:
        if isinstance(error, kind):
            return _mistake(why, error)
    name = type(error).__name__
    return StoreUnavailable(next((f"{why} ({name})" for kind, why in _TRANSIENT if isinstance(error, kind)), name))


def _mistake(why: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"{MISTAKEN}{why} ({type(error).__name__})")
