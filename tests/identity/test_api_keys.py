"""API keys."""

import pytest

from amo_callback.errors import UnknownApiKey
from amo_callback.identity import ApiKeys, Scope, key_with, read_api_keys
from amo_callback.model import ConnectionLimits

KEY = "k" * 32


def test_api_keys_find_returns_name_and_scopes() -> None:
    """A line names the key and its scopes; without scopes they are read and token."""
    longest = "a" * 64
    text = f"# comment\n\n one:{KEY}1 \ntwo:admin:{KEY}2\n{longest}:read+token+admin:{KEY}3\n"
    keys = ApiKeys(read_api_keys(text))
    found = [keys.find(KEY + number) for number in "123"]
    assert [(key.name, key.scopes, key.limits) for key in found] == [
        ("one", frozenset({Scope.READ, Scope.TOKEN}), None),
        ("two", frozenset({Scope.ADMIN}), None),
        (longest, frozenset({Scope.READ, Scope.TOKEN, Scope.ADMIN}), None),
    ]


@pytest.mark.parametrize("presented", [None, "", KEY, KEY + "12", "one", f"one:{KEY}1", "\udcff"])
def test_api_keys_find_of_other_value_is_refused_and_reported(presented: str | None) -> None:
    """Only the exact key is found; every other value is reported."""
    refused: list[None] = []
    for known in (read_api_keys(f"one:{KEY}1"), []):
        with pytest.raises(UnknownApiKey) as raised:
            ApiKeys(known, on_refused=lambda: refused.append(None)).find(presented)
        assert raised.value.presented is bool(presented)
    assert len(refused) == 2


@pytest.mark.parametrize(
    ("line", "scopes", "accounts", "owners"),
    [
        (f"a:token:account=31920194+owner=42:{KEY}", {Scope.TOKEN}, {"31920194"}, {"42"}),
        (f"a:account=1+account=2:{KEY}", {Scope.READ, Scope.TOKEN}, {"1", "2"}, set()),
        (f"a:read:owner=a%2Bb%3A%25=%D0%B6:{KEY}", {Scope.READ}, set(), {"a+b:%=ж"}),
        (f"a:read:account=1:account={KEY}", {Scope.READ}, {"1"}, set()),
    ],
)
def test_api_key_limits_are_percent_decoded_alternatives(
    line: str, scopes: set[Scope], accounts: set[str], owners: set[str]
) -> None:
    """A line can limit its key to accounts and owners."""
    [key] = read_api_keys(line)
    assert key.scopes == scopes
    assert key.limits == ConnectionLimits(accounts=frozenset(accounts), owners=frozenset(owners))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (KEY, "line 1 is none of"),
        (f"a:{KEY}\nb:short", "the key in line 2 is shorter than 32"),
        (f"a:write:{KEY}", "line 1 contains an unknown scope; the scopes are read, token, admin"),
        (f"a:{KEY}\na:{KEY}2", "two lines have the same name"),
        (f"a:{KEY}\nb:read:{KEY}", "two lines have the same key"),
        (f"a:{KEY[1:]}", "the key in line 1 is shorter than 32"),
        (f"a b:{KEY}", "line 1 is none of"),
        (f"{'a' * 65}:{KEY}", "line 1 is none of"),
        (f":{KEY}", "line 1 is none of"),
        (f"a:read:token:{KEY}", "line 1 is none of"),
        (f"a:account=1:read:{KEY}", "line 1 is none of"),
        (f"a:read:account=:{KEY}", "line 1 is none of"),
        (f"a:read:account=1+:{KEY}", "line 1 is none of"),
        (f"a:read:account=1+2:{KEY}", "line 1 is none of"),
        (f"a:read:user=1:{KEY}", "line 1 contains an unknown limit; the limits are account=ID and owner=ID"),
        (f"a:read:account=%zz:{KEY}", "line 1 contains an invalid id; percent-encode"),
        (f"a:read:account=1%:{KEY}", "line 1 contains an invalid id"),
        (f"a:read:account=%ff:{KEY}", "line 1 contains an invalid id"),
        (f"a:read:owner=%00:{KEY}", "line 1 contains an invalid id"),
        (f"a:read:owner={'a' * 256}:{KEY}", "line 1 contains an invalid id"),
        (f"a:admin:account=1:{KEY}", "line 1 limits a key with the scope admin, which is for all connections"),
    ],
)
def test_read_api_keys_invalid_line_is_named_without_key(text: str, wanted: str) -> None:
    """The error names the line and the expected form, and quotes no key."""
    with pytest.raises(ValueError, match=wanted) as raised:
        read_api_keys(text)
    assert KEY not in str(raised.value)


def test_api_key_is_stored_as_digest() -> None:
    """Neither memory nor repr holds the key."""
    [key] = read_api_keys(f"one:{KEY}1")
    assert KEY not in repr(key)
    assert KEY.encode() not in key.digest
    assert repr(key.digest) not in repr(key)


def test_api_keys_replace_removes_earlier_keys() -> None:
    """A key that is not among the new ones is rejected."""
    keys = ApiKeys(read_api_keys(f"one:{KEY}1"))
    keys.replace(read_api_keys(f"two:{KEY}2"))
    assert keys.find(f"{KEY}2").name == "two"
    with pytest.raises(UnknownApiKey):
        keys.find(f"{KEY}1")


def test_key_with_scope_returns_first_matching_key() -> None:
    """The first key with the scope for all connections is returned; invalid lines are skipped and not reported here."""
    text = f"# comment\nzero:read:account=1:{KEY}0\nno line\n one:{KEY}1 \ntwo:admin:{KEY}2\nthree:read+admin:{KEY}3\n"
    found = {scope: key_with(text, scope) for scope in Scope}
    assert found == {Scope.READ: f"{KEY}1", Scope.TOKEN: f"{KEY}1", Scope.ADMIN: f"{KEY}2"}
    assert key_with(f"three:read+admin:{KEY}3", Scope.ADMIN) == f"{KEY}3"
    assert key_with(f"three:read+admin:{KEY}3", Scope.TOKEN) is None
    assert key_with(f"two:admin:{KEY}2 more", Scope.ADMIN) is None
