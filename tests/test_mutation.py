"""The mutants that the tests are tested with."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutation.mutants import mutants_of

MODULE = '''
"""A docstring."""
import re
from dataclasses import dataclass, field

if TYPE_CHECKING:
    LIMIT = 1

@dataclass(frozen=True)
class Value:
    secret: str | None = field(repr=False)

class Port(Protocol):
    size = 1
'''


@pytest.mark.parametrize(
    ("said", "others"),
    [
        ("a < 5", {"a <= 5", "a >= 5", "a < 6", "a < 4"}),
        ("a and not b", {"a or not b", "not b", "a", "a and b"}),
        ("f(a, k=1)", {"f(a)", "f(None, k=1)", "f(a, k=2)", "f(a, k=0)", "pass"}),
        ("max('a', b'1')", {"max('A', b'1')", "max('a', b'1X')", "min('a', b'1')", "pass"}),
        ("[n for n in a if n]", {"[n for n in a]", "pass"}),
        ("f('[a]{1,9}')", {"f('[A]{1,9}')", "f('[a]{2,9}')", "f('[a]{0,9}')", "f('[a]{1,10}')", "f('[a]{1,8}')"}),
        ("return True", {"return None", "return False"}),
        ("with a:\n    b()", {"if True:\n    b()", "with a:\n    pass"}),
        (
            "try:\n    a()\nexcept (B, C):\n    raise",
            {
                "try:\n    pass\nexcept (B, C):\n    raise",
                "try:\n    a()\nexcept (B,):\n    raise",
                "try:\n    a()\nexcept (C,):\n    raise",
                "try:\n    a()\nexcept (B, C):\n    pass",
                "try:\n    a()\nfinally:\n    pass",
            },
        ),
    ],
)
def test_each_mutant_says_one_thing_else(said: str, others: set[str]) -> None:
    """Operators, limits, arguments, conditions, statements and handlers are changed, one at a time."""
    assert others <= {mutant.source for mutant in mutants_of(said)}


def test_what_is_not_run_is_left_alone() -> None:
    """A mutant that no test can notice is nobody's: of this module, only the field that is not shown is one."""
    assert {mutant.after for mutant in mutants_of(MODULE)} == {
        "field()",
        "True",
        "class Value: secret: str | None = field(repr=False)",
    }


def test_every_mutant_of_a_module_is_python_and_not_the_module() -> None:
    """One that cannot even be read would tell nothing of the tests."""
    source = Path(__file__).read_text(encoding="utf-8")
    same = ast.unparse(ast.parse(source))
    for mutant in mutants_of(source):
        assert ast.unparse(ast.parse(mutant.source)) != same
