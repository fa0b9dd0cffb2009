"""What a module could say instead: one small change at a time, made in its syntax tree.

Left alone is what nothing reads while the program runs: docstrings, annotations, bodies of protocols, imports, and what
a `dataclass` is told of its making (whose fields are changed: a `repr` may be what hides a secret).
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OTHER_OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
}
_OTHER_NAMES = {
    "all": "any",
    "any": "all",
    "fullmatch": "match",
    "match": "fullmatch",
    "max": "min",
    "min": "max",
    "partition": "rpartition",
    "rpartition": "partition",
    "startswith": "endswith",
    "endswith": "startswith",
}
_NEEDLESS = {"lower", "upper", "strip", "rstrip", "removesuffix"}
"""Methods without which a text is one still."""
_BOUND = re.compile(r"(?<=[{,])[0-9]+(?=[,}])")
_NOT_RUN = {"annotation", "returns"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """A module with one change."""

    line: int
    before: str
    after: str
    source: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.line}: {self.before}  ->  {self.after}"


def mutants_of(source: str) -> Iterator[Mutant]:
    """Yield a module's mutants, from its top to its end."""
    tree = ast.parse(source)
    for node, put in _places(tree):
        for other in _others(node):
            put(other)
            mutated = ast.unparse(ast.fix_missing_locations(tree))
            put(node)
            yield Mutant(line=node.lineno, before=_short(node), after=_short(other), source=mutated)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 160 else f"{text[:160]}…"


# --- what runs -----------------------------------------------------------------------------------


def _places(node: ast.AST) -> Iterator[tuple[Any, Callable[[ast.AST], None]]]:
    """Yield what runs below a node, each with what puts another in its place."""
    for name, value in ast.iter_fields(node):
        if name in _NOT_RUN:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if isinstance(child, ast.AST) and not _is_not_run(child):
                if isinstance(child, ast.expr | ast.stmt | ast.ExceptHandler):
                    yield child, _putter(node, name, index)
                yield from _places(child)


def _putter(parent: ast.AST, name: str, index: int | None) -> Callable[[ast.AST], None]:
    def put(child: ast.AST) -> None:
        if index is None:
            setattr(parent, name, child)
        else:
            getattr(parent, name)[index] = child

    return put


def _is_not_run(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.ClassDef(bases=[ast.Name(id="Protocol")]):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.Assign(value=ast.Subscript(value=ast.Name("Literal"))):
            return True
        case ast.Call(func=ast.Name(id="dataclass") | ast.Attribute(attr="dataclass")):
            return True
    return False


# --- what it could say instead -------------------------------------------------------------------


def _others(node: ast.AST) -> Iterator[ast.AST]:
    for kind, others in _OTHERS.items():
        if isinstance(node, kind):
            yield from others(node)


def _constant(node: ast.Constant) -> Iterator[ast.AST]:
    match node.value:
        case bool():
            yield ast.Constant(not node.value)
        case int() | float():
            yield ast.Constant(node.value + 1)
            yield ast.Constant(node.value - 1)
        case str() | bytes():
            yield ast.Constant(_other_text(node.value))
            if isinstance(node.value, str):
                yield from map(ast.Constant, _other_counts(node.value))


def _other_text(text: Any) -> Any:
    swapped = text.swapcase()
    return swapped if swapped != text else text + (b"X" if isinstance(text, bytes) else "X")


def _other_counts(pattern: str) -> Iterator[str]:
    """Yield a pattern with each bound of its repetitions one more, and one less."""
    for bound in _BOUND.finditer(pattern):
        for other in (int(bound[0]) + 1, int(bound[0]) - 1):
            if other >= 0:
                yield f"{pattern[: bound.start()]}{other}{pattern[bound.end() :]}"


def _comparison(node: ast.Compare) -> Iterator[ast.AST]:
    for index, operator in enumerate(node.ops):
        for other in _OTHER_OPERATORS[type(operator)]:
            yield _but(node, ops=_with(node.ops, index, other()))


def _junction(node: ast.BoolOp) -> Iterator[ast.AST]:
    yield _but(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    for index in range(len(node.values)):
        kept = _without(node.values, index)
        yield kept[0] if len(kept) == 1 else _but(node, values=kept)


def _operand(node: ast.UnaryOp) -> Iterator[ast.AST]:
    yield node.operand


def _calculation(node: ast.BinOp) -> Iterator[ast.AST]:
    others = _OTHER_OPERATORS.get(type(node.op))
    if others is None:  # `|` and `&`, of sets and of types
        yield node.left
        yield node.right
    else:
        yield from (_but(node, op=other()) for other in others)


def _condition(node: Any) -> Iterator[ast.AST]:
    yield from (_but(node, test=ast.Constant(value)) for value in (True, False))


def _call(node: ast.Call) -> Iterator[ast.AST]:
    yield from (_but(node, keywords=_without(node.keywords, index)) for index in range(len(node.keywords)))
    for index, argument in enumerate(node.args):
        if not isinstance(argument, ast.Constant | ast.Starred):
            yield _but(node, args=_with(node.args, index, ast.Constant(None)))
    match node.func:
        case ast.Name(id=name) if name in _OTHER_NAMES:
            yield _but(node, func=ast.Name(_OTHER_NAMES[name]))
        case ast.Attribute(attr=name, value=value) if name in _OTHER_NAMES:
            yield _but(node, func=ast.Attribute(value, _OTHER_NAMES[name]))
        case ast.Attribute(attr=name, value=value) if name in _NEEDLESS:
            yield value


def _comprehension(node: Any) -> Iterator[ast.AST]:
    for number, generator in enumerate(node.generators):
        for index in range(len(generator.ifs)):
            freed = ast.comprehension(**{**dict(ast.iter_fields(generator)), "ifs": _without(generator.ifs, index)})
            yield _but(node, generators=_with(node.generators, number, freed))


def _display(node: Any) -> Iterator[ast.AST]:
    if len(node.elts) > 1 and not isinstance(getattr(node, "ctx", None), ast.Store):
        yield from (_but(node, elts=_without(node.elts, index)) for index in range(len(node.elts)))


def _dictionary(node: ast.Dict) -> Iterator[ast.AST]:
    for index in range(len(node.keys)):
        yield _but(node, keys=_without(node.keys, index), values=_without(node.values, index))


def _decorated(node: Any) -> Iterator[ast.AST]:
    for index in range(len(node.decorator_list)):
        yield _but(node, decorator_list=_without(node.decorator_list, index))


def _nothing(_node: ast.AST) -> Iterator[ast.AST]:
    yield ast.Pass()


def _return(node: ast.Return) -> Iterator[ast.AST]:
    is_empty = node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None)
    yield ast.Pass() if is_empty else ast.Return(ast.Constant(None))


def _attribute(node: ast.AnnAssign) -> Iterator[ast.AST]:
    if isinstance(node.target, ast.Attribute):
        yield ast.Pass()


def _jump(node: ast.stmt) -> Iterator[ast.AST]:
    yield ast.Break() if isinstance(node, ast.Continue) else ast.Continue()
    yield ast.Pass()


def _body(node: Any) -> Iterator[ast.AST]:
    yield ast.If(ast.Constant(value=True), node.body, [])


def _try(node: ast.Try) -> Iterator[ast.AST]:
    for index in range(len(node.handlers)):
        kept = _without(node.handlers, index)
        if kept:
            yield _but(node, handlers=kept)
        else:
            yield _but(node, handlers=[], body=[*node.body, *node.orelse], orelse=[], finalbody=node.finalbody or _PASS)
    if node.finalbody:
        yield _but(node, finalbody=[] if node.handlers else _PASS)


def _handler(node: ast.ExceptHandler) -> Iterator[ast.AST]:
    yield _but(node, body=_PASS)


_PASS: list[ast.stmt] = [ast.Pass()]
_OTHERS: dict[Any, Callable[[Any], Iterator[ast.AST]]] = {
    ast.Constant: _constant,
    ast.Compare: _comparison,
    ast.BoolOp: _junction,
    ast.UnaryOp: _operand,
    ast.BinOp: _calculation,
    ast.If | ast.IfExp: _condition,
    ast.Call: _call,
    ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp: _comprehension,
    ast.Set | ast.Tuple | ast.List: _display,
    ast.Dict: _dictionary,
    ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef: _decorated,
    ast.Expr | ast.Assign | ast.AugAssign | ast.Raise | ast.Delete | ast.For | ast.AsyncFor: _nothing,
    ast.AnnAssign: _attribute,
    ast.Return: _return,
    ast.Continue | ast.Break: _jump,
    ast.With | ast.AsyncWith: _body,
    ast.Try: _try,
    ast.ExceptHandler: _handler,
}


def _but(node: Any, **changes: Any) -> Any:
    return ast.copy_location(type(node)(**{**dict(ast.iter_fields(node)), **changes}), node)


def _with(items: list[Any], index: int, item: Any) -> list[Any]:
    return [*items[:index], item, *items[index + 1 :]]


def _without(items: list[Any], index: int) -> list[Any]:
    return [*items[:index], *items[index + 1 :]]
