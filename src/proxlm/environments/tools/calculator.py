"""Arithmetic without `eval`: a tree of numbers and operations, each with a bound on what it makes."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable

from proxlm.environments.tools.tool_error import ToolError

Number = int | float
# Characters of an expression, and the largest number that may come up in it.
LONGEST, LARGEST = 300, 10**60
_OPERATIONS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda base, exponent: _power(base, exponent),
}
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "round": lambda value, digits=0: _rounded(value, digits),
    **{
        function.__name__: function for function in (abs, min, max, math.sqrt, math.exp, math.log, math.log10)
    },
    **{function.__name__: function for function in (math.sin, math.cos, math.tan, math.floor, math.ceil)},
}
_CONSTANTS = {"pi": math.pi, "e": math.e}
# What no expression has, quotes for instance; and a name that begins in a number.
_FOREIGN = re.compile(r"[^\w\s.,+*/%()-]|\d(?![eE][+-]?\d)[^\W\d]")
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})


def calculator(expression: str) -> str:
    """Work out an arithmetic expression.

    Args:
        expression: Numbers, + - * / // % **, parentheses, sqrt, abs, round, min, max, exp, log, sin, cos, pi, e.
    """
    if len(expression) > LONGEST:
        raise ToolError(f"the expression has more than {LONGEST} characters")
    text = expression.translate(_SIGNS).replace("^", "**").strip()
    if _FOREIGN.search(text):
        raise ToolError("this is no arithmetic expression")
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except SyntaxError:
        raise ToolError("this is no arithmetic expression") from None
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except (ValueError, OverflowError, TypeError) as error:
        raise ToolError(str(error)) from None
    except (RecursionError, MemoryError):
        raise ToolError("the expression is nested too deeply") from None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            found: Number = value
        case ast.UnaryOp(ast.USub(), of):
            found = -_value(of)
        case ast.UnaryOp(ast.UAdd(), of):
            found = _value(of)
        case ast.BinOp(left, operation, right) if type(operation) in _OPERATIONS:
            found = _OPERATIONS[type(operation)](_value(left), _value(right))
        case ast.Call(ast.Name(name), arguments, []) if name in _FUNCTIONS:
            found = _FUNCTIONS[name](*map(_value, arguments))
        case ast.Name(name) if name in _CONSTANTS:
            found = _CONSTANTS[name]
        case _:
            raise ToolError(f"not part of an arithmetic expression: {ast.unparse(node)[:40]}")
    if isinstance(found, complex) or not math.isfinite(found) or abs(found) > LARGEST:
        raise ToolError("a number in it is too large, or is none")
    return found


def _power(base: Number, exponent: Number) -> Number:
    """base ** exponent, refused before it is computed where it would be too large."""
    if (
        base
        and abs(exponent) * abs(math.log10(abs(base))) > math.log10(LARGEST)
        and ((abs(base) > 1) == (exponent > 0))
    ):
        raise ToolError("a number in it is too large, or is none")
    return base**exponent


def _rounded(value: Number, digits: Number) -> Number:
    if abs(digits) > math.log10(LARGEST):
        raise ToolError("the number of digits is too large")
    return round(value, int(digits)) if digits else round(value)
