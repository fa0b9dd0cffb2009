"""AMO's redirect, read from raw bytes; the callback's tests cover it over HTTP."""

import pytest

from amo_callback.amo.redirect import read_redirect
from amo_callback.grant import CallbackParams
from amo_callback.hosts import loggable_host, parse_account_host

JUNK_HOSTS = [
    "evil.com", "a.amocrm.ru.evil.com", "amocrm.ru@evil.com", "evil.com/.amocrm.ru", "a.amocrm.ru:8443", "127.0.0.1",
    "[::1]",
    "\N{CYRILLIC CAPITAL LETTER A}.amocrm.ru", "A.AMOCRM.RU.", "a.amocrm.ru%00.evil", "a.amocrm.ru\0", "a.amocrm.ru\n",
    "amocrm.ru",
    ".amocrm.ru", "a.b.amocrm.ru", "-a.amocrm.ru", "a-.amocrm.ru", "a_b.amocrm.ru", "a" * 64 + ".amocrm.ru",
    "aamocrm.ru", "a.amocrm.ru/path", "a.amocrm.ru?x", "a.amocrm.ru#x", "ftp://a.amocrm.ru", "https://x@a.amocrm.ru",
    "https://a.amocrm.ru//", "//a.amocrm.ru", "a.amocrm.ru\\.evil.com", " a.amocrm.ru", "a.kommo.co",
    "\N{KELVIN SIGN}.kommo.com",
    "a.\N{KELVIN SIGN}ommo.com", "a.amocrm。ru", "", "https://", "a..amocrm.ru",
]  # fmt: skip


@pytest.mark.parametrize("host", JUNK_HOSTS)
def test_account_host_invalid_host_is_rejected(host: str) -> None:
    """A host that is not one label before one of AMO's suffixes is rejected before any request."""
    assert parse_account_host(host.encode()) is None
    assert parse_account_host(host.encode(), allowed=("crm.example.com", ".test.example")) is None


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("reforyou.amocrm.ru", "reforyou.amocrm.ru"),
        ("ReForYou.AmoCRM.ru", "reforyou.amocrm.ru"),
        ("https://a-1.amocrm.com", "a-1.amocrm.com"),
        ("https://a.kommo.com/", "a.kommo.com"),
        ("1.kommo.com", "1.kommo.com"),
        ("a" * 63 + ".amocrm.ru", "a" * 63 + ".amocrm.ru"),
        ("crm.example.com", "crm.example.com"),
        ("x.test.example", "x.test.example"),
    ],
)
def test_account_host_valid_host_is_lowercased(given: str, host: str) -> None:
    """AMO's hosts, with or without a scheme, and the operator's hosts are accepted in lower case."""
    assert parse_account_host(given.encode(), allowed=("crm.example.com", ".test.example")) == host


@pytest.mark.parametrize("host", ["example.com", "x.crm.example.com", "a.b.test.example", "test.example"])
def test_account_host_allowed_host_is_exact(host: str) -> None:
    """A listed host matches exactly, and a listed suffix matches one label."""
    assert parse_account_host(host.encode(), allowed=("crm.example.com", ".test.example")) is None


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("evil.com", "evil.com"),
        ("https://Evil.example.com/path?x", "evil.example.com"),
        ("a.amocrm.ru.evil.com", "a.amocrm.ru.evil.com"),
        ("evil.com:8443", "evil.com"),
        ("127.0.0.1", "127.0.0.1"),
        ("xn--80ak6aa92e.xn--p1ai", "xn--80ak6aa92e.xn--p1ai"),
        ("localhost", "localhost"),
        ("x@evil.com", None),
        ("evil.com\n", None),
        ("a" * 61 + ".com", None),
        ("ac1.abcdefghijklmnopqrstuv", None),
        ("def50200" + "ab" * 20, None),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P", None),
        ("", None),
    ],
)
def test_loggable_host_is_none_for_possible_secret(given: str, host: str | None) -> None:
    """A rejected host is logged only if it is short, uses a host's alphabet and cannot be a secret."""
    assert loggable_host(given.encode()) == host


@pytest.mark.parametrize("value", ["code", "state"])
def test_redirect_host_equal_to_code_or_state_is_not_logged(value: str) -> None:
    """A host that equals the code or the state is not logged."""
    redirect = _read(
        b"code=short-code.abc&state=my.state&referer=" + {"code": b"short-code.abc", "state": b"my.state"}[value]
    )
    assert (redirect.error, redirect.refused, redirect.refused_host) == ("account_not_allowed", "host", None)


def _read(query: bytes) -> CallbackParams:
    return read_redirect(query, default_domain=None, allowed_domains=())


def test_redirect_of_amo_is_read() -> None:
    """AMO's query is read, and its unused parameters are ignored."""
    query = b"code=def502ab&state=18a2&referer=gingersnaps.amocrm.ru&platform=1&client_id=c619&from_widget=1"
    expected = CallbackParams(code=b"def502ab", state=b"18a2", domain="gingersnaps.amocrm.ru", from_widget=True)
    assert _read(query) == expected


@pytest.mark.parametrize("size", [4096, 4097])
def test_redirect_code_limit_counts_decoded_bytes(size: int) -> None:
    """A code of 4096 decoded bytes is accepted, and a longer one is rejected."""
    for letter in (b"c", b"%63"):
        error = _read(b"code=" + letter * size + b"&referer=a.amocrm.ru").error
        assert error == (None if size == 4096 else "invalid_request")


@pytest.mark.parametrize("count", [100, 101])
def test_redirect_parameter_limit_is_one_hundred(count: int) -> None:
    """A query with more than one hundred parameters is rejected without being parsed."""
    query = b"&".join([b"code=c", b"referer=a.amocrm.ru", *[b"p=1"] * (count - 2)])
    assert _read(query).error == (None if count == 100 else "invalid_request")


def test_redirect_repr_contains_no_code_or_state() -> None:
    """The repr, which may be logged, contains neither code nor state."""
    shown = repr(_read(b"code=the-code&state=the-state&referer=a.amocrm.ru"))
    assert "the-" not in shown
