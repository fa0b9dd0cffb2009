"""API keys."""

import pytest

from amo_callback.identity import ApiKeys, Scope, key_with, read_api_keys

KEY = "k" * 32


def test_api_keys_find_returns_name_and_scopes() -> None:
    """A line names the key and its scopes; without scopes they are read and token."""
    longest = "a" * 64
    text = f"# comment\n\n one:{KEY}1 \ntwo:admin:{KEY}2\n{longest}:read+token+admin:{KEY}3\n"
    keys = ApiKeys(read_api_keys(text))
    found = [keys.find(KEY + number) for number in "123"]
    assert [(key.name, key.scopes) for key in found if key] == [
        ("one", frozenset({Scope.READ, Scope.TOKEN})),
        ("two", frozenset({Scope.ADMIN})),
        (longest, frozenset({Scope.READ, Scope.TOKEN, Scope.ADMIN})),
    ]


@pytest.mark.parametrize("presented", ["", KEY, KEY + "12", "one", f"one:{KEY}1", "\udcff"])
def test_api_keys_find_of_other_value_is_none(presented: str) -> None:
    """Only the exact key is found."""
    assert ApiKeys(read_api_keys(f"one:{KEY}1")).find(presented) is None
    assert ApiKeys([]).find(presented) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (KEY, "line 1 is neither"),
        (f"a:{KEY}\nb:short", "the key in line 2 is shorter than 32"),
        (f"a:write:{KEY}", "line 1 contains an unknown scope; the scopes are read, token, admin"),
        (f"a:{KEY}\na:{KEY}2", "two lines have the same name"),
        (f"a:{KEY}\nb:read:{KEY}", "two lines have the same key"),
        (f"a:{KEY[1:]}", "the key in line 1 is shorter than 32"),
        (f"a b:{KEY}", "line 1 is neither"),
        (f"{'a' * 65}:{KEY}", "line 1 is neither"),
        (f":{KEY}", "line 1 is neither"),
        (f"a:read:token:{KEY}", "line 1 is neither"),
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
    assert [key and key.name for key in map(keys.find, (f"{KEY}1", f"{KEY}2"))] == [None, "two"]


def test_key_with_scope_returns_first_matching_key() -> None:
    """The first key with the scope is returned; invalid lines are skipped and not reported here."""
    text = f"# comment\nno line\n one:{KEY}1 \ntwo:admin:{KEY}2\nthree:read+admin:{KEY}3\n"
    found = {scope: key_with(text, scope) for scope in Scope}
    assert found == {Scope.READ: f"{KEY}1", Scope.TOKEN: f"{KEY}1", Scope.ADMIN: f"{KEY}2"}
    assert key_with(f"three:read+admin:{KEY}3", Scope.ADMIN) == f"{KEY}3"
    assert key_with(f"three:read+admin:{KEY}3", Scope.TOKEN) is None
    assert key_with(f"two:admin:{KEY}2 more", Scope.ADMIN) is None
