"""Tables as text, Markdown and HTML; foreign text in them is no markup and obeys no terminal."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.results import Confusion, Evaluation, as_json, evaluation_from_json
from proxlm.evaluation.tables import FORMATS, Table, as_html, as_markdown, as_text, evaluation_tables

HOSTILE = [
    "<script>alert(1)</script>", "a | b", "*x* _y_ `z`", "![i](http://x)", "[l](javascript:1)", "\x1b[31m\u202e",
    "line\nend", "&amp;", "<img src=x onerror=1>", "| --- |", "\\", "$x$ ~~y~~", "#", "",
]  # fmt: skip


class Seen(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.tags.append(tag)
        if tag in ("td", "th", "caption"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def shown(text: str) -> str:
    return " ".join(text.split()).replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")


@pytest.mark.parametrize("form", [".md", ".html"])
def test_foreign_text_is_shown_as_it_is(form: str) -> None:
    table = Table(["name", *HOSTILE], [[text, *reversed(HOSTILE)] for text in HOSTILE], title=HOSTILE[0])
    page = FORMATS[form]([table], HOSTILE[0])
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    html = reader.render(page) if form == ".md" else page
    seen = Seen()
    seen.feed(html)
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
    }
    assert set(seen.tags) <= allowed | {"td", "p", "strong", "h1"}
    cells = [" ".join(cell.split()) for cell in seen.cells]
    expected = [shown(text) for row in (table.head, *table.rows) for text in row]
    assert cells[-len(expected) + 1 :] == expected[1:]


def test_text_stays_in_its_columns() -> None:
    table = as_text([Table(["a", "b"], [["x\ny", "\x1b[2J"], ["long name", "1"]], notes=["note"])])
    assert table.splitlines() == [
        "a          b",
        "─────────  ───────",
        "x y        \\x1b[2J",
        "long name  1",
        "note",
    ]


def evaluation(name: str = "m") -> Evaluation:
    return Evaluation(
        name,
        "where",
        {"task/accuracy": Estimate(0.5, 0.3, 0.7), "greedy/task/accuracy": Estimate(0.9, 0.7, 0.98)},
        [],
        prompts=9,
        failed=0,
        samples_per_prompt=2,
        notes={"task/bleu": "tok:13a"},
        confusion={
            "sampled": Confusion(["no", "yes"], [[3, 1, 0], [2, 3, 0]]),
            "greedy": Confusion(["no", "yes"], [[4, 0, 1], [0, 4, 0]]),
        },
    )


def test_an_evaluation_as_tables() -> None:
    numbers, sampled, greedy = evaluation_tables([evaluation(), evaluation("n")])[:3]
    assert numbers.head == ["metric", "m", "n"]
    assert numbers.rows[0] == ["task/accuracy", "0.500 ± 0.200", "0.500 ± 0.200"]
    assert "9 held-out prompts, 2 responses to each" in numbers.notes[0]
    assert numbers.notes[1:] == ["task/bleu: tok:13a"]
    assert sampled.head == ["", "no", "yes", "all"]  # no response is without a label
    assert sampled.rows == [["no", "3", "1", "4"], ["yes", "2", "3", "5"]]
    assert greedy.head == ["", "no", "yes", "no label", "all"]
    assert greedy.rows == [["no", "4", "0", "1", "5"], ["yes", "0", "4", "0", "4"]]
    assert as_html([sampled], "a").count("<tr>") == 3
    assert as_markdown([sampled]).splitlines()[2:4] == ["|  | no | yes | all |", "| --- | --- | --- | --- |"]


def test_json_comes_back_equal() -> None:
    assert evaluation_from_json(as_json([evaluation()], 0)) == [evaluation()]


def test_an_interval_is_shown_within_0_and_1() -> None:
    assert str(Estimate(0.033, 0.0, 0.073)) == "0.033 (0.000 to 0.073)"
    assert str(Estimate(0.97, 0.935, 1.0)) == "0.970 (0.935 to 1.000)"
    assert str(Estimate(0.1, -0.1, 0.3)) == "0.100 ± 0.200"
    assert str(Estimate(3.0, 2.0, 4.0)) == "3.000 ± 1.000"
