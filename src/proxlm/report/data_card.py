"""The card of prepared data as Markdown and as an HTML page that needs no network and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from proxlm.evaluation.tables import Table, html_table
from proxlm.evaluation.tables import as_markdown as markdown_tables
from proxlm.report.page import STYLE, asset
from proxlm.text import in_html

Card = Mapping[str, Any]
_LONGEST_LIST = 12
_BAR_HEIGHT, _BAR_WIDTH, _NAME_WIDTH = 20, 420, 190


def counts_table(card: Card) -> Table:
    """A row a step: records in and out, how many were changed, and why the others were left out."""
    rows = []
    for step in card["steps"]:
        why = _counted(step["removed"]) or "–"
        found = _counted(step["labels"])
        rows.append(
            [
                step["step"],
                f"{step['records_in']:,}",
                f"{step['records_out']:,}",
                f"{step['changed']:,}",
                f"{step['characters_out']:,}",
                f"{why}; found: {found}" if found else why,
            ]
        )
    return Table(["step", "in", "out", "changed", "characters out", "left out, and what was found"], rows)


def as_markdown(card: Card) -> str:
    """The whole card as Markdown."""
    parts = ["# Data card", "", markdown_tables(_tables(card))]
    if examples := _examples(card):
        parts += ["## Examples", ""]
    parts += [markdown_tables([_example_table(*one)]) for one in examples]
    return "\n".join(parts)


def as_page(card: Card) -> str:
    """The whole card as HTML, with bars for counts, lengths and languages."""
    counts = {step["step"]: step["records_out"] for step in card["steps"]}
    names = [step["step"] for step in card["steps"]]
    numbered = {f"{i}. {name}": card["steps"][i]["records_out"] for i, name in enumerate(names)}
    lengths = card["lengths"]
    body = [
        "<header><h1>Data card</h1></header>",
        "<h2>Steps</h2>",
        bars(numbered if len(counts) < len(names) else counts, "records that stayed after each step"),
        *(f'<div class="wide">{html_table(table)}</div>' for table in _tables(card)),
        "<h2>Lengths</h2>",
        bars(_from_to(lengths["before"]["at least"]), "records by characters, as they were read"),
        bars(_from_to(lengths["after"]["at least"]), "records by characters, as they were written"),
        "<h2>Languages</h2>",
        bars(
            dict(list(card["languages"]["counts"].items())[:_LONGEST_LIST]), f"of {card['languages']['of']}"
        ),
        *(["<h2>Examples</h2>"] if _examples(card) else []),
        *(f'<div class="wide">{html_table(_example_table(*one))}</div>' for one in _examples(card)),
        f"<h2>Settings</h2><details><summary>config.toml</summary><pre>{in_html(card['plan']['settings'])}</pre></details>",
    ]
    # Nothing in the page runs; the style is ours and stands in it.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Data card · proxlm</title>\n'
        f"<style>{asset(STYLE)}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def bars(counts: Mapping[str, int], title: str) -> str:
    """Horizontal bars with their names and numbers, as a drawing."""
    if not counts:
        return f'<p class="note">{in_html(title)}: none</p>'
    largest, height = max(1, *counts.values()), _BAR_HEIGHT * len(counts)
    rows = []
    for i, (name, count) in enumerate(counts.items()):
        width, y = max(1 if count else 0, round(_BAR_WIDTH * count / largest)), i * _BAR_HEIGHT
        rows.append(
            f'<text x="{_NAME_WIDTH - 8}" y="{y + 14}" text-anchor="end" fill="currentColor">{in_html(name)}</text>'
            f'<rect x="{_NAME_WIDTH}" y="{y + 3}" width="{width}" height="{_BAR_HEIGHT - 6}" style="fill:var(--c0)"/>'
            f'<text x="{_NAME_WIDTH + width + 6}" y="{y + 14}" fill="currentColor">{count:,}</text>'
        )
    whole = _NAME_WIDTH + _BAR_WIDTH + 120
    return (
        f'<figure class="card"><figcaption class="note">{in_html(title)}</figcaption>'
        f'<svg viewBox="0 0 {whole} {height}" width="{whole}" height="{height}" font-size="12" role="img"'
        f' aria-label="{in_html(title)}">'
        f"{''.join(rows)}</svg></figure>"
    )


def _tables(card: Card) -> list[Table]:
    lengths, plan = card["lengths"], card["plan"]
    rows = [[name, f"{lengths[name]['records']:,}", f"{lengths[name]['characters']:,}"] for name in lengths]
    facts = [
        [step["step"], name, _fact(value)] for step in card["steps"] for name, value in step["facts"].items()
    ]
    return [
        counts_table(card),
        Table(["", "records", "characters"], rows, "Read and written"),
        *([Table(["step", "", ""], facts, "Numbers of the steps")] if facts else []),
        Table(
            ["language", "records"],
            [
                [name, f"{count:,}"]
                for name, count in list(card["languages"]["counts"].items())[:_LONGEST_LIST]
            ],
            "Languages",
            [f"(of {card['languages']['of']}; py3langid)"],
        ),
        Table(["input", "SHA-256 of its files"], list(plan["inputs"].items()), "Inputs"),
        Table(["", "version"], [*plan["versions"].items(), ["seed", str(card["seed"])]], "Made with"),
    ]


def _examples(card: Card) -> list[tuple[str, Sequence[Mapping[str, str]]]]:
    return [
        (f"{step['step']}: {reason}", examples)
        for step in card["steps"]
        for reason, examples in step["examples"].items()
        if examples
    ]


def _example_table(title: str, examples: Sequence[Mapping[str, str]]) -> Table:
    head = list(dict.fromkeys(name for example in examples for name in example))
    return Table(head, [[example.get(name, "") for name in head] for example in examples], title)


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return _counted(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _counted(counts: Mapping[str, Any]) -> str:
    found = sorted(counts.items(), key=lambda one: -one[1])
    more = f" and {len(found) - _LONGEST_LIST} more" if len(found) > _LONGEST_LIST else ""
    return ", ".join(f"{count:,} {name}" for name, count in found[:_LONGEST_LIST]) + more


def _from_to(by_length: Mapping[str, int]) -> dict[str, int]:
    return {
        f"{int(low):,} to {2 * int(low) - 1:,}" if low != "0" else "none": count
        for low, count in by_length.items()
    }
