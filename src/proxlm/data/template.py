"""A chat template rendered within bounds: it is somebody's program, and must not run without end or fill memory.

transformers renders with Jinja's sandbox, which bounds what a template may reach, not how much it may do. Here the
same template runs with a budget (templateBUDGET.py): each turn of a loop, each call and the characters of each
intermediate text take a part of it. What one operation could make huge is computed before it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, wraps
from typing import Any, NamedTuple, cast

from jinja2 import Template, nodes, pass_eval_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from proxlm.data.template_budget import (
    BUDGET,
    check_call,
    check_date_format,
    check_filter,
    check_operator,
    check_source,
    made,
    turns_of,
    weighed,
)

_COUNTED, _WEIGHED = "proxlm counted", "proxlm weighed"  # no template can write these names


class Rendered(NamedTuple):
    """A text, and the first character and end of each of its parts that `{% generation %}` marks."""

    text: str
    spans: list[tuple[int, int]]


def render(source: str, **variables: Any) -> Rendered:
    """The template's text for these variables, as transformers' `render_jinja_template` would give it.

    Args:
        source: The Jinja template.
        variables: `messages`, `tools` and whatever else the template reads.

    Raises:
        TemplateLimitError: It would take too long, or write too much.
        Exception: Whatever the template raises.
    """
    check_source(source)
    BUDGET.begin()  # constants are computed when a template is compiled
    template = _compiled(source)
    BUDGET.begin()
    pieces = []
    for piece in template.generate(**_as_transformers_does(variables)):
        pieces.append(piece)
        BUDGET.write(len(piece))
    return Rendered("".join(pieces), BUDGET.spans)


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
        node.iter = _filtered(node.iter, _COUNTED, _own_text(node))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:  # noqa: N802
        return self._counted_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:  # noqa: N802
        return self._counted_body(node)

    def _counted_body(self, node: Any) -> Any:
        """The body, which first takes what its own text costs each time it is called."""
        self.generic_visit(node)
        cost = _filtered(nodes.Const(""), _COUNTED, _own_text(node))
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


def _own_text(node: Any) -> nodes.Const:
    """What the text that stands in a node takes from the budget, each time that it is written."""
    return nodes.Const(turns_of(sum(len(data.data) for data in node.find_all(nodes.TemplateData))))


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
        self.filters |= {_COUNTED: _Turns, _WEIGHED: weighed}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        BUDGET.take(1)
        if not isinstance(__obj, Macro):
            check_call(__obj, [*args, *kwargs.values()])
        return made(super().call(__context, __obj, *args, **kwargs))


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
        BUDGET.spans.append((BUDGET.written, BUDGET.written + len(text)))
        return text


class _Turns:
    """What a loop runs over; each turn takes from the budget."""

    def __init__(self, values: Iterable[Any], cost: int) -> None:
        BUDGET.take(cost)
        self._values, self._cost = values, cost

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            BUDGET.take(self._cost)
            yield value

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]  # a TypeError where there is no length, as without us


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that first takes from the budget what it will cost, and then what its result is."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0  # a context, an environment

    @wraps(function)
    def bounded(*arguments: Any, **named: Any) -> Any:
        BUDGET.take(1)
        if len(arguments) > skipped:
            before, (value, *given) = arguments[:skipped], arguments[skipped:]
            value = check_filter(name, value, [*given, *named.values()], before, named)
            arguments = (*before, value, *given)
        return made(function(*arguments, **named))

    return bounded


def _short_date(function: Callable[[str], str]) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:
        check_date_format(format)
        return function(format)

    return strftime_now
