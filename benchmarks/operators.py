"""What a mutation check changes: for one node of the syntax tree, the nodes that could stand in its place.

Each function below takes a node and where it stands and yields (kind, replacement). Kinds are short and say what
was changed; replacements reuse the node's own parts, so they are only valid while they stand in its place.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Variants = Iterator[tuple[str, ast.expr | ast.stmt]]

SYMBOLS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.LShift: "<<", ast.RShift: ">>",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
# The neighbour (is the border included?) and the opposite direction.
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
PAIRS = [
    ("sum", "mean"), ("min", "max"), ("minimum", "maximum"), ("amin", "amax"), ("argmin", "argmax"),
    ("exp", "log"), ("any", "all"), ("floor", "ceil"), ("sqrt", "rsqrt"), ("zeros_like", "ones_like"),
    ("new_zeros", "new_ones"), ("zeros", "ones"), ("cummax", "cummin"), ("logical_and", "logical_or"),
    ("clamp_min", "clamp_max"), ("sin", "cos"),
]  # fmt: skip
RENAMES: dict[str, str] = {
    **dict(PAIRS), **{b: a for a, b in PAIRS},
    "expm1": "exp", "log1p": "log", "square": "abs", "no_grad": "enable_grad", "inference_mode": "enable_grad",
    "logsumexp": "sum", "log_softmax": "softmax", "softmax": "log_softmax", "logsigmoid": "sigmoid",
    "sigmoid": "logsigmoid", "cumprod": "cumsum", "prod": "sum",
}  # fmt: skip
BUILTINS = {"min", "max", "any", "all"}
MODULES = {"torch", "math", "F", "torch.nn.functional"}
DROPPED = {"detach", "flip", "abs", "masked_fill", "nan_to_num", "clamp_min", "clamp_max"}
WITH_DIMENSION = {
    "sum", "mean", "cumsum", "flip", "softmax", "log_softmax", "logsumexp", "gather", "squeeze", "unsqueeze", "cat",
    "stack", "index_add", "index_fill", "index_select", "scatter", "scatter_add", "scatter_reduce", "argmax",
    "argmin", "max", "min", "amax", "amin", "any", "all", "diff", "cummax", "prod", "var", "std", "size", "sort",
}  # fmt: skip
# Below this, a float stands for "almost nothing": doubling it tells nothing, leaving it out or enlarging it does.
TINY, LARGER = 1e-3, 1e-2


@dataclass(frozen=True)
class Place:
    """Where an expression stands: directly in which call, under which keyword, as a default, as a slice's bound."""

    call: ast.Call | None = None
    keyword: str | None = None
    default: bool = False
    bound: bool = False

    def is_dimension(self) -> bool:
        """Whether an integer here numbers a dimension: other dimensions are tried, not any other number."""
        if self.keyword is not None:
            return self.keyword in ("dim", "axis")
        return (
            isinstance(self.call, ast.Call) and called(self.call) in WITH_DIMENSION and is_method(self.call)
        )


def called(call: ast.Call) -> str:
    """The last part of the called name: "sum" of `x.sum()` and of `torch.sum(x)`."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def is_method(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute)


def subject(call: ast.Call) -> ast.expr | None:
    """x of `x.f(...)` and of `torch.f(x, ...)`."""
    if not isinstance(call.func, ast.Attribute):
        return None
    owner = call.func.value
    if ast.unparse(owner) in MODULES:
        return call.args[0] if call.args else None
    return owner


def binary(node: ast.BinOp, _place: Place) -> Variants:
    if new := BINARY.get(type(node.op)):
        yield f"{SYMBOLS[type(node.op)]} to {SYMBOLS[new]}", ast.BinOp(node.left, new(), node.right)
    if isinstance(node.op, ast.Mult):
        for factor, rest in ((node.left, node.right), (node.right, node.left)):
            if names_mask(factor):
                yield "mask dropped", rest


def names_mask(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute) and "mask" in ast.unparse(node).lower()


def augmented(node: ast.AugAssign, _place: Place) -> Variants:
    if new := BINARY.get(type(node.op)):
        kind = f"{SYMBOLS[type(node.op)]}= to {SYMBOLS[new]}="
        yield kind, ast.AugAssign(node.target, new(), node.value)


def unary(node: ast.UnaryOp, place: Place) -> Variants:
    value = node.operand
    if isinstance(node.op, ast.USub) and isinstance(value, ast.Constant):
        yield from negative(value, place)
    elif isinstance(node.op, ast.USub):
        yield "- dropped", value
    elif isinstance(node.op, ast.Not | ast.Invert):
        yield "not dropped" if isinstance(node.op, ast.Not) else "~ dropped", value


def negative(value: ast.Constant, place: Place) -> Variants:
    """Variants of −c: as a dimension 0; as a slice's bound one further; else without its sign, and as −c'."""
    if place.is_dimension():
        yield f"dimension -{value.value!r} to 0", ast.Constant(0)
        return
    if not place.bound:
        yield "- dropped", value
    for kind, other in constant(value, place):
        if isinstance(other, ast.Constant):
            new: ast.expr = ast.UnaryOp(ast.USub(), other) if other.value else other
            yield "-" + kind.replace(" to ", " to -" if other.value else " to "), new


def comparison(node: ast.Compare, _place: Place) -> Variants:
    for i, op in enumerate(node.ops):
        for new in COMPARISONS[type(op)]:
            ops = [*node.ops[:i], new(), *node.ops[i + 1 :]]
            yield f"{SYMBOLS[type(op)]} to {SYMBOLS[new]}", ast.Compare(node.left, ops, node.comparators)


def boolean(node: ast.BoolOp, _place: Place) -> Variants:
    if isinstance(node.op, ast.And):
        yield "and to or", ast.BoolOp(ast.Or(), node.values)
    else:
        yield "or to and", ast.BoolOp(ast.And(), node.values)


def constant(node: ast.Constant, place: Place) -> Variants:
    value = node.value
    others: list[bool | int | float | str] = []
    if isinstance(value, bool):
        others = [not value]
    elif isinstance(value, int):
        if place.is_dimension():
            others = [0] if value else []
        else:
            others = [value + 1, 0] if value == 1 and not place.bound else [value + 1]
    elif isinstance(value, float):
        larger = 1.0 - value if value in (0.0, 1.0) else 2 * value
        others = [0.0, LARGER] if 0.0 < abs(value) < TINY else [larger]
    elif isinstance(value, str) and value in ("amax", "amin"):
        others = ["amin" if value == "amax" else "amax"]
    elif isinstance(value, str) and place.default:
        others = [value + "?"]
    for other in others:
        yield f"{value!r} to {other!r}", ast.Constant(other)


def subscript(node: ast.Subscript, _place: Place) -> Variants:
    if isinstance(node.ctx, ast.Load) and names_mask(node.slice):
        yield "mask dropped", node.value
    if not isinstance(node.slice, ast.Slice):
        return
    lower, upper, step = node.slice.lower, node.slice.upper, node.slice.step
    for name, bound in (("lower", lower), ("upper", upper)):
        if bound is None or isinstance(bound, ast.Constant | ast.UnaryOp):
            continue  # constants are mutated by themselves
        moved = ast.BinOp(bound, ast.Add(), ast.Constant(1))
        new = ast.Slice(moved, upper, step) if bound is lower else ast.Slice(lower, moved, step)
        yield f"{name} bound + 1", ast.Subscript(node.value, new, node.ctx)


def call(node: ast.Call, _place: Place) -> Variants:
    name, of = called(node), subject(node)
    new = RENAMES.get(name, "")
    if (
        isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "math"
        and not hasattr(math, new)
    ):
        new = ""  # it would only fail
    if new and isinstance(node.func, ast.Attribute):
        function = ast.Attribute(node.func.value, new, ast.Load())
        yield f"{name} to {new}", ast.Call(function, node.args, node.keywords)
    elif new and name in BUILTINS:
        yield f"{name} to {new}", ast.Call(ast.Name(new, ast.Load()), node.args, node.keywords)
    if name in DROPPED and of is not None:
        yield f"{name} dropped", of
    if name == "clamp" and of is not None:
        yield from clamp(node, of)
    if name == "where":
        yield from where(node)
    if name == "cumsum" and of is not None:
        rest = [a for a in (*node.args, *(k.value for k in node.keywords if k.arg == "dim")) if a is not of]
        backwards = method(method(method(of, "flip", rest[:1]), "cumsum", rest[:1]), "flip", rest[:1])
        yield "cumsum from the end", backwards
    if name == "range" and node.args:
        stop = node.args[0] if len(node.args) == 1 else node.args[1]
        if not isinstance(stop, ast.Constant | ast.UnaryOp | ast.BinOp):
            shorter = ast.BinOp(stop, ast.Sub(), ast.Constant(1))
            args: list[ast.expr] = (
                [shorter] if len(node.args) == 1 else [node.args[0], shorter, *node.args[2:]]
            )
            yield "range - 1", ast.Call(node.func, args, [])


def method(of: ast.expr, name: str, args: list[ast.expr]) -> ast.Call:
    return ast.Call(ast.Attribute(of, name, ast.Load()), args, [])


def where(node: ast.Call) -> Variants:
    """The two sides swapped; and, where one side is a constant, the other one everywhere."""
    if len(node.args) != 3:
        return
    condition, yes, no = node.args
    yield "where swapped", ast.Call(node.func, [condition, no, yes], node.keywords)
    for side, other in ((no, yes), (yes, no)):
        plain = side.operand if isinstance(side, ast.UnaryOp) else side
        if isinstance(plain, ast.Constant):
            yield "mask dropped", other


def clamp(node: ast.Call, of: ast.expr) -> Variants:
    """Sides dropped, taken for each other, and settings called low and high exchanged."""
    at = 0 if of is getattr(node.func, "value", None) else 1
    first, positional = node.args[:at], dict(zip(("min", "max"), node.args[at:], strict=False))
    bounds = {**positional, **{k.arg: k.value for k in node.keywords if k.arg is not None}}

    def with_bounds(**new: ast.expr) -> ast.Call:
        return ast.Call(node.func, first, [ast.keyword(name, value) for name, value in new.items()])

    if len(bounds) == 1:
        (side, value), other = next(iter(bounds.items())), {"min": "max", "max": "min"}
        yield "clamp dropped", of
        yield f"clamp {side} to {other[side]}", with_bounds(**{other[side]: value})
    elif len(bounds) == 2:
        low, high = bounds["min"], bounds["max"]
        yield "clamp min dropped", with_bounds(max=high)
        yield "clamp max dropped", with_bounds(min=low)
        names = {n.id for bound in (low, high) for n in ast.walk(bound) if isinstance(n, ast.Name)}
        pairs = {n: exchanged(n) for n in names if exchanged(n) in names}
        if pairs:
            yield (
                "clamp low and high exchanged",
                with_bounds(min=renamed(low, pairs), max=renamed(high, pairs)),
            )
        else:
            yield "clamp sides swapped", with_bounds(min=high, max=low)


def exchanged(name: str) -> str:
    if "low" in name:
        return name.replace("low", "high")
    return name.replace("high", "low") if "high" in name else ""


def renamed(node: ast.expr, names: dict[str, str]) -> ast.expr:
    """A copy with variables renamed."""
    copy = ast.parse(ast.unparse(node), mode="eval").body
    for part in ast.walk(copy):
        if isinstance(part, ast.Name):
            part.id = names.get(part.id, part.id)
    return copy


def negated(test: ast.expr) -> Variants:
    """A condition that no other operator can turn round."""
    if isinstance(test, ast.Name | ast.Call | ast.Attribute | ast.Subscript):
        yield "condition negated", ast.UnaryOp(ast.Not(), test)


OPERATORS: dict[type[ast.AST], Callable[..., Variants]] = {
    ast.BinOp: binary, ast.AugAssign: augmented, ast.UnaryOp: unary, ast.Compare: comparison,
    ast.BoolOp: boolean, ast.Constant: constant, ast.Subscript: subscript, ast.Call: call,
}  # fmt: skip
