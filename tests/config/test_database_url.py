"""The database URL: its parts and its secrets."""

from __future__ import annotations

import pytest

from amo_callback.config.database_url import read_postgres, url_secrets, validate_url

SECRET = "sekret"


@pytest.mark.parametrize(
    ("url", "shown", "local"),
    [
        ("postgresql://db.example.com/amo", "PostgreSQL database amo at db.example.com", False),
        ("postgres://u:p@10.0.0.1:5433/amo?sslmode=verify-full", "PostgreSQL database amo at 10.0.0.1", False),
        ("postgresql://u@a:1,b:2/amo?target_session_attrs=read-write", "PostgreSQL database amo at a, b", False),
        ("postgresql://u@localhost,b/amo", "PostgreSQL database amo at localhost, b", False),
        ("postgresql:///amo?host=/run/postgresql", "PostgreSQL database amo at /run/postgresql", True),
        ("postgresql://u@%2Frun%2Fpostgresql/a%20b", "PostgreSQL database a b at /run/postgresql", True),
        ("postgresql://u@[::1]:5432/amo", "PostgreSQL database amo at ::1", True),
        ("postgresql://127.0.0.1?dbname=amo", "PostgreSQL database amo at 127.0.0.1", True),
        ("postgresql://?host=a:1,b&database=amo", "PostgreSQL database amo at a, b", False),
    ],
)
def test_postgres_url_is_shown_as_hosts_and_database(url: str, shown: str, *, local: bool) -> None:
    """The URL is read as asyncpg reads it; the text shows neither user nor password."""
    validate_url(url)
    address = read_postgres(url)
    assert (str(address), address.is_local) == (shown, local)
    assert address.is_verified == ("verify-full" in url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:sekret@/amo", "must name a host"),
        ("postgresql://u:sekret@h", "must name a database"),
        ("postgresql://u:sekret@h/", "must name a database"),
        ("postgresql://u:sek@ret@h/amo", 'must not contain more than one "@"'),
        ("postgresql://u:sek/ret@h/amo", "a port must be a number"),
        ("postgresql://u:sek?ret@h/amo", "must be a URL whose query"),
        ("postgresql://u:sek#ret@h/amo", 'must not contain "#"'),
        ("postgresql://u:sekret@[h/amo", "must be a URL"),
        ("postgresql://u:sekret@h/amo?sslmode", "must be a URL whose query"),
        (
            "postgresql://u:sekret@h/amo?sslmode=full",
            "must use one of these values for sslmode: disable, allow, prefer, require",
        ),
        ("mysql://u:sekret@h/amo", "must begin with sqlite:/// and name a file"),
        ("sqlite:///", "must begin with sqlite:/// and name a file"),
    ],
)
def test_validate_url_error_does_not_show_url(url: str, expected: str) -> None:
    """In a URL that cannot be parsed, the end of the password is unknown."""
    with pytest.raises(ValueError, match=f"^{expected.replace('?', '[?]')}") as raised:
        validate_url(url)
    assert "sek" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("sqlite:///a.db", []),
        ("postgresql://u@h/amo", []),
        ("postgresql://u:sekret@h/amo", ["sekret"]),
        ("postgresql://u:sek%40ret@h/amo", ["sek%40ret", "sek@ret"]),
        ("postgresql://h/amo?password=sek+ret&sslpassword=other", ["sek+ret", "sek ret", "other"]),
        ("postgresql://u:sek@ret@h/amo", ["postgresql://u:sek@ret@h/amo"]),
    ],
)
def test_url_secrets_returns_passwords_encoded_and_decoded(url: str, secrets: list[str]) -> None:
    """Passwords are returned as written and as decoded; a URL that cannot be parsed is returned whole."""
    assert list(url_secrets(url)) == secrets


def test_postgres_url_repr_shows_no_password() -> None:
    """A repr may be logged by accident."""
    assert SECRET not in repr(read_postgres(f"postgresql://u:{SECRET}@h/amo"))
