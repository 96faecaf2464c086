"""Tables as plain text, Markdown and HTML; those of evaluations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.results import Confusion, Evaluation
from proxlm.text import counted, in_html, on_screen, one_line

_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)")
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem}table{border-collapse:collapse;margin:1rem 0}"
    "caption{text-align:left;font-weight:600;padding:.3rem 0}th,td{padding:.25rem .8rem;border-bottom:1px solid #ccc;"
    "text-align:left;font-variant-numeric:tabular-nums}"
)


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; cells may hold foreign text, and stand on one line each.

    Attributes:
        head: The names of the columns.
        rows: Of as many cells each; the first one names the row.
        title: What it shows; "": nothing above it.
        notes: Lines below it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()


def as_text(tables: Sequence[Table]) -> str:
    """For a terminal, with columns of one width."""
    return "\n\n".join(map(_text, tables))


def as_markdown(tables: Sequence[Table]) -> str:
    """Markdown's tables, in which no cell is markup."""
    return "\n\n".join(map(_markdown, tables)) + "\n"


def as_html(tables: Sequence[Table], title: str) -> str:
    """A page that needs no network and runs nothing."""
    body = "\n".join(map(html_table, tables))
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{in_html(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


# How tables are written under a title, by the end of a file's name; results.as_json writes .json.
FORMATS: dict[str, Callable[[Sequence[Table], str], str]] = {
    ".txt": lambda tables, title: f"{on_screen(one_line(title))}\n\n{as_text(tables)}\n",
    ".md": lambda tables, title: f"# {_cell_of_markdown(title)}\n\n{as_markdown(tables)}",
    ".html": as_html,
}


def evaluation_tables(evaluations: Sequence[Evaluation], unit: str = "held-out prompt") -> list[Table]:
    """A row a metric and a column a model, with intervals; and which answers were given for which.

    Args:
        evaluations: Of each model.
        unit: One of what the evaluations count.
    """
    found = list(dict.fromkeys(key for e in evaluations for key in e.metrics))
    rows = [[name, *(_cell(e.metrics.get(name)) for e in evaluations)] for name in found]
    first = evaluations[0]
    each = f", {first.samples_per_prompt} responses to each" if first.samples_per_prompt > 1 else ""
    failed = "".join(f"; {counted(e.failed, 'reward')} of {e.name} failed" for e in evaluations if e.failed)
    failed += "".join(
        f"; {counted(e.without_reward, 'response')} of {e.name} without a reward"
        for e in evaluations
        if e.without_reward
    )
    notes = [f"({counted(first.prompts, unit)}{each}; ± and (… to …): the 95% interval{failed})"]
    notes += dict.fromkeys(f"{name}: {note}" for e in evaluations for name, note in e.notes.items())
    head = ["metric", *(e.name for e in evaluations)]
    confusions = [table for e in evaluations for table in confusion_tables(e.name, e.confusion)]
    return [Table(head, rows, notes=notes), *confusions]


def confusion_tables(model: str, found: Mapping[str, Confusion]) -> list[Table]:
    """Right classes by row and given ones by column, of a model's sampled and greedy responses."""
    return [_confusion(model, which, confusion) for which, confusion in found.items()]


def as_table(evaluations: Sequence[Evaluation], unit: str = "held-out prompt") -> str:
    """The tables of evaluations as plain text."""
    return as_text(evaluation_tables(evaluations, unit))


def _confusion(model: str, which: str, confusion: Confusion) -> Table:
    """Right answers by row, given ones by column; the last column is shown where something stands in it."""
    others = any(row[-1] for row in confusion.counts)
    columns = [*confusion.labels, *(["no label"] if others else [])]
    rows = [
        [label, *(str(count) for count in (row if others else row[:-1])), str(sum(row))]
        for label, row in zip(confusion.labels, confusion.counts, strict=True)
    ]
    title = f"{model}, {which}: right answers by row, given ones by column"
    return Table(["", *columns, "all"], rows, title)


def _cell(estimate: Estimate | None) -> str:
    return "–" if estimate is None else str(estimate)


def _text(table: Table) -> str:
    rows = [[on_screen(one_line(cell)) for cell in row] for row in (table.head, *table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    rule = "  ".join("─" * width for width in widths)
    title = [on_screen(one_line(table.title))] if table.title else []
    return "\n".join([*title, lines[0], rule, *lines[1:], *map(on_screen, table.notes)])


def _markdown(table: Table) -> str:
    rows = [[_cell_of_markdown(text) for text in row] for row in (table.head, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    rule = f"|{' --- |' * len(table.head)}"
    title = [f"**{_cell_of_markdown(table.title)}**", ""] if table.title else []
    notes = [line for note in table.notes for line in ("", _cell_of_markdown(note))]
    return "\n".join([*title, lines[0], rule, *lines[1:], *notes])


def _cell_of_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", on_screen(one_line(text)))


def html_table(table: Table) -> str:
    """A table of a page, without the page."""
    head = "".join(f'<th scope="col">{in_html(cell)}</th>' for cell in table.head)
    rows = "".join(
        f'<tr><th scope="row">{in_html(row[0])}</th>'
        + "".join(f"<td>{in_html(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in table.rows
    )
    title = f"<caption>{in_html(table.title)}</caption>" if table.title else ""
    notes = "".join(f"<p>{in_html(note)}</p>\n" for note in table.notes)
    return f"<table>{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>\n{notes}"
