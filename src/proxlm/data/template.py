"""A chat template rendered within bounds: it is somebody's program, and must not run without end or fill memory.

transformers renders with Jinja's sandbox, which bounds what a template may reach, not how much it may do. Here the
same template runs with a budget: each turn of a loop, each call and the characters of each intermediate text take a
part of it. What one operation could make huge is computed before it is done. The budget counts work, not time, so the
same conversation is rendered, or refused, on every machine.
"""

from __future__ import annotations

import re
import threading
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    Sized,
    ValuesView,
)
from functools import lru_cache, wraps
from typing import Any, NamedTuple, cast

from jinja2 import Template, nodes, pass_eval_context
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

# Turns of loops, calls, and pieces of _PIECE characters made, of one rendering: a second or two.
MOST_WORK = 2**20
_PIECE = 1024
# Characters of one text, items of one list: four million tokens do not need more.
LARGEST = 2**24
# Characters of a template; those in use have up to some 60,000.
LONGEST_SOURCE = 2**18
_MOST_BITS = 2**14  # of a whole number
_LONGEST_PART = 64  # characters or columns of what `tojson` writes between two values
_LONGEST_INPUT = 2**16  # of filters that take more than linear time
_LONGEST_DATE = 2**10

_COUNTED, _WEIGHED = "proxlm counted", "proxlm weighed"  # no template can write these names
_SLOW = frozenset(("striptags", "urlize", "wordwrap", "xmlattr"))
# Filters that look at the outside of a value alone; every other one may write or compare all that is in it.
_SHALLOW = frozenset(
    ("attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "random", "reject",
     "rejectattr", "reverse", "select", "selectattr", "slice")
)  # fmt: skip
# Widths and precisions of five digits, in `%` and in `{}`; names are short, so that the search stays linear.
_WIDTH = re.compile(r"%(\([^)]{0,200}\))?[-+ #0]*[\d*]*\.?\d{5}|%\([^)]{201}|\{[^{}]*:[^{}]*\d{5}")
_NESTED = re.compile(r"\{[^{}]*\{")
_ITEM = 16  # an item of a list counts as so many characters


class TemplateLimitError(Exception):
    """A template does more than any conversation needs."""


class Rendered(NamedTuple):
    """A text, and the first character and end of each of its parts that `{% generation %}` marks."""

    text: str
    spans: list[tuple[int, int]]


class _Budget(threading.local):
    """What is left of the rendering that the thread is at, and what it has written so far."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.left = MOST_WORK
        self.written = 0
        self.spans: list[tuple[int, int]] = []

    def take(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise TemplateLimitError(
                "it does not come to an end: too many turns of loops, calls or characters"
            )

    def make(self, size: int) -> None:
        """Before a text or list of `size` characters or items is made."""
        if size > LARGEST:
            raise TemplateLimitError(f"it makes a text or list of {size:,} characters or items")
        self.take(size // _PIECE)


_budget = _Budget()


def render(source: str, **variables: Any) -> Rendered:
    """The template's text for these variables, as transformers' `render_jinja_template` would give it.

    Args:
        source: The Jinja template.
        variables: `messages`, `tools` and whatever else the template reads.

    Raises:
        TemplateLimitError: It would take too long, or write too much.
        Exception: Whatever the template raises.
    """
    if len(source) > LONGEST_SOURCE:
        raise TemplateLimitError(f"it has {len(source):,} characters; at most {LONGEST_SOURCE:,} are read")
    _budget.begin()  # constants are computed when a template is compiled
    template = _compiled(source)
    _budget.begin()
    pieces = []
    for piece in template.generate(**_as_transformers_does(variables)):
        pieces.append(piece)
        _budget.written += len(piece)
        if _budget.written > LARGEST:
            raise TemplateLimitError(f"it writes more than {LARGEST:,} characters")
    return Rendered("".join(pieces), _budget.spans)


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    environment = _Environment()
    tree = environment.parse(source)
    return environment.from_string(_Counting().visit(tree))


def _as_transformers_does(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables as transformers hands them to a template.

    Keys without a value are left out, and newer versions give a message's reasoning all the names that it is read by.
    """
    from transformers.utils import chat_template_utils

    plain = getattr(chat_template_utils, "_plain_template_data", lambda value: value)
    aliased = getattr(chat_template_utils, "_alias_reasoning_fields", lambda messages: messages)
    found = {name: plain(value) for name, value in variables.items()}
    messages = [{key: v for key, v in message.items() if v is not None} for message in found["messages"]]
    if not messages:
        raise ValueError("there are no messages")
    return {"documents": None, **found, "messages": aliased(messages)}


class _Counting(NodeTransformer):
    """Puts what counts into a template: around what loops run over, what is joined, and what is compared."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _filtered(node.iter, _COUNTED, nodes.Const(1 + written // _PIECE))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:  # noqa: N802
        return self._counted_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:  # noqa: N802
        return self._counted_body(node)

    def _counted_body(self, node: Any) -> Any:
        """The body, which first takes what its own text costs each time it is called."""
        self.generic_visit(node)
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        cost = _filtered(nodes.Const(""), _COUNTED, nodes.Const(1 + written // _PIECE))
        node.body.insert(0, nodes.ExprStmt(cost).set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filtered(child, _WEIGHED) for child in node.nodes]
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [n if isinstance(n, nodes.TemplateData) else _filtered(n, _WEIGHED) for n in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        if not any(
            isinstance(side, nodes.Const) for side in sides
        ):  # to compare with one number or text is quick
            node.expr = _filtered(node.expr, _WEIGHED)
            for operand in node.ops:
                operand.expr = _filtered(operand.expr, _WEIGHED)
        return node


def _filtered(node: Any, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    made = nodes.Filter(node, name, list(arguments), [], None, None)
    made.set_lineno(getattr(node, "lineno", None) or 1)
    return made


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with transformers' filters and functions, each of which takes from the budget."""

    intercepted_binops = frozenset(("*", "**", "%", "+"))

    def __init__(self) -> None:
        from transformers.utils import chat_template_utils

        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Marks, "jinja2.ext.loopcontrols"])
        theirs = chat_template_utils._compile_jinja_template("").environment
        self.globals.update(theirs.globals)
        self.globals.pop("lipsum", None)  # random text
        if "strftime_now" in self.globals:
            self.globals["strftime_now"] = _short_date(
                cast("Callable[[str], str]", self.globals["strftime_now"])
            )
        for mine, all_of_them in ((self.filters, theirs.filters), (self.tests, theirs.tests)):
            mine.update({name: _bounded(name, function) for name, function in all_of_them.items()})
        self.filters |= {_COUNTED: _Turns, _WEIGHED: _weighed}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _budget.take(1)
        if operator == "%" and isinstance(left, str | bytes):
            _check_format(str(left), (right,))
        elif operator == "+" and _sized(left) and _sized(right):
            _budget.make(_size(left) + _size(right))
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * max(0, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _budget.take(1)
        owner = getattr(__obj, "__self__", None)
        if not isinstance(__obj, Macro) and not isinstance(__obj, type):
            given = [*args, *kwargs.values()]
            if isinstance(owner, str | bytes):
                _check_method(getattr(__obj, "__name__", ""), owner, given)
            elif getattr(__obj, "__name__", "") in ("format", "format_map"):  # the sandbox's own
                _check_format(getattr(__obj, "__wrapped__", __obj).__self__, given)
            elif owner is not None:
                _check_numbers(given)
        result = super().call(__context, __obj, *args, **kwargs)
        if _sized(result):
            _budget.make(_size(result))
        return result


class _Marks(Extension):
    """`{% generation %}`: notes where what it holds begins and ends in the text."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    @pass_eval_context
    def _marked(self, _context: nodes.EvalContext, caller: Macro) -> str:
        text: str = caller()
        _budget.spans.append((_budget.written, _budget.written + len(text)))
        return text


class _Turns:
    """What a loop runs over; each turn takes from the budget."""

    def __init__(self, values: Iterable[Any], cost: int) -> None:
        _budget.take(cost)
        self._values, self._cost = values, cost

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            _budget.take(self._cost)
            yield value

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]  # a TypeError where there is no length, as without us


def _weighed(value: Any) -> Any:
    """The value, once the budget has had what it takes to write or compare all of it."""
    _budget.make(_weight(value))
    return value


def _weight(value: Any) -> int:
    """Characters and items in a value, counted no further than LARGEST.

    The same list in two places counts twice: so it is written.
    """
    if isinstance(value, str | bytes):
        return len(value)
    weight, waiting = 0, [value]
    while waiting and weight <= LARGEST >= len(waiting):
        one = waiting.pop()
        weight += len(one) if isinstance(one, str | bytes) else 1
        waiting += _inside(one)
        _budget.take(1)
    return weight + len(waiting)


def _inside(value: Any) -> Iterable[Any]:
    """What is written where the value is."""
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
        return value
    return ()


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that first takes from the budget what it will cost, and then what its result is."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0  # a context, an environment

    @wraps(function)
    def bounded(*arguments: Any, **named: Any) -> Any:
        _budget.take(1)
        if len(arguments) > skipped:
            before, (value, *given) = arguments[:skipped], arguments[skipped:]
            value = _check_filter(name, value, [*given, *named.values()], before, named)
            arguments = (*before, value, *given)
        result = function(*arguments, **named)
        if _sized(result):
            _budget.make(_size(result))
        return result

    return bounded


def _check_filter(
    name: str, value: Any, given: Sequence[Any], before: Sequence[Any], named: Mapping[str, Any]
) -> Any:
    """Raise TemplateLimitError for a filter that would do too much; returns its value, read if it was a generator."""
    if name in ("join", "sum"):
        value = list(value)
        attribute = named.get("attribute", given[1] if name == "join" and len(given) > 1 else None)
        attribute = given[0] if name == "sum" and given and "attribute" not in named else attribute
        parts = value
        if attribute is not None and before:
            environment = getattr(before[0], "environment", before[0])
            parts = list(map(make_attrgetter(environment, attribute), value))
        copies = (
            len(parts) // 2 + 1 if name == "sum" and not all(isinstance(p, int | float) for p in parts) else 1
        )
        between = max((len(one) for one in given if isinstance(one, str)), default=0) * len(parts)
        _budget.make(sum(map(_weight, parts)) * copies + between)
        return value
    if name not in _SHALLOW:
        _budget.take(_weight(value) // _PIECE)
    if name in _SLOW and _weight(value) > _LONGEST_INPUT:
        raise TemplateLimitError(f"it has a text of more than {_LONGEST_INPUT:,} characters for {name}")
    if name == "tojson":
        parts = [part for one in given for part in (one if isinstance(one, list | tuple) else [one])]
        if any((len(one) if isinstance(one, str) else one or 0) > _LONGEST_PART for one in parts):
            raise TemplateLimitError(
                f"tojson is to write more than {_LONGEST_PART} characters between two values"
            )
    elif name == "format":
        _check_format(str(value), given)
    elif name in ("indent", "replace", "center", "wordwrap", "truncate", "batch", "slice", "round"):
        if isinstance(value, str):
            _check_method(name, value, given)
        _check_numbers(given)
    return value


def _check_method(name: str, text: Any, given: Sequence[Any]) -> None:
    """Before a method of a text, or the filter of its name, is called."""
    size, sizes = len(text), [len(one) if isinstance(one, str | bytes) else one for one in given]
    numbers = [abs(one) for one in sizes if isinstance(one, int)]
    if name == "replace" and len(given) > 1 and _sized(given[0]) and _sized(given[1]):
        size += text.count(given[0]) * len(given[1])
    elif name in ("indent", "expandtabs", "wordwrap"):
        size += (text.count("\n" if name == "indent" else "\t") + 1) * max(numbers, default=8)
    elif name == "join" and given:
        size = size * (len(given[0]) if isinstance(given[0], Sized) else 1) + _weight(given[0])
    elif name == "translate" and given and isinstance(given[0], Mapping):
        size *= max(map(_weight, given[0].values()), default=1)
    elif name in ("center", "ljust", "rjust", "zfill"):
        size = max(size, *numbers)
    _budget.make(size)


def _check_numbers(given: Iterable[Any]) -> None:
    if any(isinstance(one, int) and abs(one) > LARGEST for one in given):
        raise TemplateLimitError(f"a number over {LARGEST:,} is to be a size")


def _check_format(text: str, given: Sequence[Any]) -> None:
    """Before values are put into a text with `%` or `{}`: widths, and how often a value may be written."""
    if _WIDTH.search(text):
        raise TemplateLimitError("it writes a value wider than 9,999 characters")
    if "*" in text or _NESTED.search(text):  # widths among the values
        for one in _flat(given):
            if (isinstance(one, int) and abs(one) > 9_999) or (
                isinstance(one, str) and re.search(r"\d{5}", one)
            ):
                raise TemplateLimitError("it writes a value wider than 9,999 characters")
    _budget.make(len(text) + (text.count("%") + text.count("{")) * max(map(_weight, given), default=0))


def _flat(given: Sequence[Any]) -> Iterator[Any]:
    for one in given:
        if isinstance(one, tuple | list):
            yield from one
        elif isinstance(one, Mapping):
            yield from one.values()
        else:
            yield one


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for one, count in ((left, right), (right, left)):
        if _sized(one) and isinstance(count, int):
            _budget.make(_size(one) * max(0, count))


def _check_bits(bits: int) -> None:
    if bits > _MOST_BITS:
        raise TemplateLimitError(f"it makes a whole number of {bits:,} bits")


def _sized(value: Any) -> bool:
    return isinstance(value, str | bytes | list | tuple)


def _size(value: Any) -> int:
    """What a text or list counts as when another is made of it."""
    return len(value) * (1 if isinstance(value, str | bytes) else _ITEM)


def _short_date(function: Callable[[str], str]) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:
        if len(format) > _LONGEST_DATE:
            raise TemplateLimitError(f"a date's format has more than {_LONGEST_DATE:,} characters")
        return function(format)

    return strftime_now
