"""Every mutant of one source file: where it is, what it changes, and how to put it into the syntax tree.

Left out: docstrings, annotations, messages, imports, `assert`, and conditions of guards (`if …: raise …`), whose
mutants are only counted. A mutant is applied in place and taken back, so that a thousand of them need one tree.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from operators import OPERATORS, Place, negated

SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "bases", "type_params"}
SKIPPED = (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)
# Keywords that choose a place, a format or a check, but no number of a result.
SKIPPED_KEYWORDS = {"device", "dtype", "strict", "use_reentrant", "preserve_rng_state"}
COMPOUND = (ast.If, ast.For, ast.While, ast.With, ast.FunctionDef, ast.ClassDef, ast.Try, ast.Match)


@dataclass
class Slot:
    """A place in the tree that can be filled again."""

    parent: ast.AST
    field: str
    index: int | None = None

    def get(self) -> Any:
        value = getattr(self.parent, self.field)
        return value if self.index is None else value[self.index]

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


@dataclass
class Mutant:
    """One change. `original` and `mutated` are the whole statement (or condition, or default) around it."""

    file: str
    function: str
    line: int
    column: int
    kind: str
    slot: Slot
    replacement: ast.AST
    original: str = ""
    mutated: str = ""
    id: str = ""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put into the tree for as long as the block runs."""
        before = self.slot.get()
        if not hasattr(self.replacement, "lineno"):  # a part of the tree keeps its own position
            ast.copy_location(self.replacement, before)
        self.slot.put(ast.fix_missing_locations(self.replacement))
        try:
            yield
        finally:
            self.slot.put(before)


@dataclass
class Statement:
    """The smallest readable thing around an expression, and what stands before and after it in the report."""

    slot: Slot | None = None
    label: str = ""
    after: str = ""

    def text(self) -> str:
        assert self.slot is not None
        return self.label + ast.unparse(self.slot.get()) + self.after


@dataclass
class Mutants:
    """The mutants of one file."""

    file: str
    tree: ast.Module
    mutants: list[Mutant] = field(default_factory=list)
    functions: set[str] = field(default_factory=set)  # what runs when called; the rest runs on import
    guards: int = 0
    guard_mutants: int = 0

    def compiled(self, mutant: Mutant, path: str) -> Any:
        """The module's code with the mutant in it."""
        with mutant.applied():
            return compile(self.tree, path, "exec", dont_inherit=True)


def find_mutants(source: str, file: str) -> Mutants:
    """All mutants of a module's source, none twice and none that leaves the module as it was."""
    found = Mutants(file, ast.parse(source))
    _visit(found.tree, Slot(found.tree, "body"), found, "<module>", Statement(), Place())
    seen, kept = {ast.dump(found.tree)}, []
    for mutant in found.mutants:
        with mutant.applied():
            dump = ast.dump(found.tree)
        if dump not in seen:
            seen.add(dump)
            kept.append(mutant)
    _name(kept)
    found.mutants = kept
    return found


def _name(mutants: list[Mutant]) -> None:
    taken: dict[str, int] = {}
    for mutant in mutants:
        name = f"{mutant.file}:{mutant.line}:{mutant.column} {mutant.kind}"
        taken[name] = taken.get(name, 0) + 1
        mutant.id = name if taken[name] == 1 else f"{name} #{taken[name]}"


def _is_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and not node.orelse and all(isinstance(s, ast.Raise) for s in node.body)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _visit(
    node: ast.AST, slot: Slot, found: Mutants, function: str, statement: Statement, place: Place
) -> None:
    """Collect the mutants of a node and of everything below it."""
    if isinstance(node, SKIPPED) or _is_text(node):
        return
    if isinstance(node, ast.If) and _is_guard(node):
        inside = Mutants(found.file, found.tree)
        _visit(node.test, Slot(node, "test"), inside, function, Statement(), Place())
        found.guards += 1
        found.guard_mutants += len(inside.mutants)
        return
    if isinstance(node, ast.stmt):
        statement = Statement() if isinstance(node, COMPOUND) else Statement(slot)
        if isinstance(node, ast.With):  # else one `with torch.no_grad()` looks like any other
            statement.after = f": {ast.unparse(node.body[0])}"
    elif isinstance(node, ast.expr) and statement.slot is None:
        statement = Statement(slot, statement.label, statement.after)
    if operator := OPERATORS.get(type(node)):
        for kind, replacement in operator(node, place):
            _add(found, node, slot, function, statement, kind, replacement)
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        return  # "-1" is mutated as one number
    for name, value in ast.iter_fields(node):
        if name in SKIPPED_FIELDS:
            continue
        children = value if isinstance(value, list) else [value]
        for index, child in enumerate(children):
            if not isinstance(child, ast.AST):
                continue
            below = Slot(node, name, index if isinstance(value, list) else None)
            if name == "test":
                for kind, replacement in negated(child) if isinstance(child, ast.expr) else ():
                    around = statement if statement.slot else Statement(below, _label(node, name, index))
                    _add(found, child, below, function, around, kind, replacement)
            _descend(child, below, found, function, statement, index)


def _descend(child: ast.AST, slot: Slot, found: Mutants, function: str, statement: Statement, i: int) -> None:
    """Visit a child, knowing what it is to its parent."""
    parent, name = slot.parent, slot.field
    if isinstance(child, ast.keyword) and child.arg in SKIPPED_KEYWORDS:
        return
    place = Place()
    if isinstance(parent, ast.keyword):
        place = Place(keyword=parent.arg)
    elif isinstance(parent, ast.Call) and name == "args":
        place = Place(call=parent)
    elif name in ("defaults", "kw_defaults"):
        place = Place(default=True)
    elif isinstance(parent, ast.Slice) and name in ("lower", "upper"):
        place = Place(bound=True)
    if isinstance(child, ast.FunctionDef | ast.ClassDef):
        # A function within a function counts as the outer one, a method as Class.method.
        if function == "<module>":
            function = child.name
        elif isinstance(parent, ast.ClassDef):
            function = f"{function}.{child.name}"
        if isinstance(child, ast.FunctionDef):
            found.functions.add(function)
    if statement.slot is None:
        statement = Statement(None, _label(parent, name, i) or statement.label, statement.after)
    _visit(child, slot, found, function, statement, place)


def _label(parent: ast.AST, name: str, index: int) -> str:
    """What stands before a condition, an iterable or a default in its line."""
    if isinstance(parent, ast.If | ast.While) and name == "test":
        return "if " if isinstance(parent, ast.If) else "while "
    if isinstance(parent, ast.For) and name == "iter":
        return f"for {ast.unparse(parent.target)} in "
    if isinstance(parent, ast.withitem):
        return "with "
    if isinstance(parent, ast.arguments) and name == "defaults":
        arguments = [*parent.posonlyargs, *parent.args]
        return f"{arguments[len(arguments) - len(parent.defaults) + index].arg}="
    if isinstance(parent, ast.arguments) and name == "kw_defaults":
        return f"{parent.kwonlyargs[index].arg}="
    return ""


def _position(node: ast.AST) -> tuple[int, int]:
    """Line and column (from 1) of what changes: nested operations and calls all begin at the same place."""
    if isinstance(node, ast.BinOp | ast.Compare):
        node = node.left
    elif isinstance(node, ast.BoolOp):
        node = node.values[0]
    elif isinstance(node, ast.Subscript):
        node = node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        return node.func.end_lineno or 0, (node.func.end_col_offset or 0) - len(name) + 1
    else:
        return getattr(node, "lineno", 0), getattr(node, "col_offset", -1) + 1
    return getattr(node, "end_lineno", 0), getattr(node, "end_col_offset", -1) + 1


def _add(
    found: Mutants,
    node: ast.AST,
    slot: Slot,
    function: str,
    statement: Statement,
    kind: str,
    replacement: ast.AST,
) -> None:
    line, column = _position(node)
    mutant = Mutant(found.file, function, line, column, kind, slot, replacement)
    shown = statement if statement.slot is not None else Statement(slot)
    mutant.original = shown.text()
    with mutant.applied():
        mutant.mutated = shown.text()
    found.mutants.append(mutant)
