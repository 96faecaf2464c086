"""The same records give the same messages, tools, text and tokens, whatever the file that they are written to."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from record_helpers import read_records

from proxlm.config import DataSettings, TextSettings
from proxlm.data.in_memory import InMemoryRecords
from proxlm.data.prompts import PromptSources, load_prompts
from proxlm.data.records import Source
from proxlm.data.skipped import Skipped
from proxlm.data.supervised import sft_examples
from proxlm.errors import BadRecordError, DataError

# Shows everything that it is given, and fails on a null where a field is only asked for.
TEMPLATE = (
    "{% if tools is defined and tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% if mood is defined %}[{{ mood }}]{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{% if m.name is defined %}{{ m.name + ':' }}{% endif %}"
    "{% if 'tool_calls' in m %}{% for call in m.tool_calls %}{{ call.function.name }}"
    "{% for key, value in call.function.arguments.items() %}({{ key }}={{ value | tojson }}){% endfor %}"
    "{% endfor %}{% endif %}{{ m.content }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


WORDS = ("", "a", "rain", "你好", "two words", "\n", '"', "0")


class Writer:
    """Random records as different programs write them: fields are absent, null or there.

    The first record has every field: a table has one order of fields for all its rows, the order in which they are
    first seen, and a template that writes an object as JSON shows it.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.first = True

    def object(self, **fields: Any) -> dict[str, Any]:
        """The fields, some left out, some null; a field is a function that makes its value."""
        made: dict[str, Any] = {}
        for name, make in fields.items():
            fate = 2 if self.first else self.chance.randrange(4)
            if fate > 1:
                made[name] = make()
            elif fate == 1:
                made[name] = None
        return made

    def text(self) -> str:
        return self.chance.choice(WORDS)

    def number(self) -> int:
        return self.chance.randrange(10)

    def place(self) -> dict[str, Any]:
        return {"x": self.number(), **self.object(y=self.text, z=self.number)}

    def arguments(self) -> dict[str, Any]:
        return {"always": self.text(), **self.object(town=self.text, days=self.number, place=self.place)}

    def kind(self) -> dict[str, Any]:
        return {"type": "string", **self.object(description=self.text, enum=lambda: [self.text(), None])}

    def parameters(self) -> dict[str, Any]:
        properties = {"always": self.kind(), **self.object(town=self.kind, days=self.kind)}
        return {"type": "object", "properties": properties}

    def tool(self) -> dict[str, Any]:
        more = self.object(description=self.text, parameters=self.parameters, strict=lambda: True)
        return {"type": "function", "function": {"name": f"f{self.number()}", **more}}

    def message(self, kind: int) -> dict[str, Any]:
        if kind == 0:
            calls = [
                {"type": "function", "function": {"name": "f", "arguments": self.arguments()}}
                for _ in range(self.chance.randrange(1, 3))
            ]
            return {"role": "assistant", **self.object(content=self.text), "tool_calls": calls}
        if kind == 1:
            return {"role": "assistant", "content": f"{self.number()}.", **self.object(weight=lambda: 1)}
        role = self.chance.choice(["user", "system", "tool"])
        return {"role": role, "content": self.text(), **self.object(name=self.text, tool_calls=list)}

    def record(self) -> dict[str, Any]:
        kinds = range(4) if self.first else [self.chance.randrange(4) for _ in range(4)]
        made = {
            "messages": [
                {"role": "user", "content": f"{self.text()}?"},
                *map(self.message, kinds),
                {"role": "assistant", "content": "done"},
            ],
            **self.object(
                tools=lambda: [self.tool() for _ in range(self.chance.randrange(1, 3))],
                chat_template_kwargs=lambda: {"mood": self.text()},
                answer=self.text,
            ),
        }
        self.first = False
        return made


def written(folder: Path, rows: list[dict[str, Any]]) -> Iterator[Source]:
    """The rows as files of every kind that holds objects, and in memory."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name, data in [
        ("a.jsonl", lines.encode()),
        ("a.ndjson", lines.encode()),
        ("a.jsonl.gz", gzip.compress(lines.encode())),
        ("a.json", json.dumps(rows, indent=1).encode()),
    ]:
        (folder / name).write_bytes(data)
        yield folder / name
    table = pa.Table.from_batches([pa.RecordBatch.from_struct_array(pa.array(rows))])
    pq.write_table(table, folder / "a.parquet", row_group_size=2)
    yield folder / "a.parquet"
    saved = folder / "saved"
    saved.mkdir()
    with pa.OSFile(str(saved / "d.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    (saved / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}')
    yield saved
    yield InMemoryRecords(rows, "rows", "messages")
    yield InMemoryRecords(table.to_pylist(), "table", "messages")


@pytest.mark.parametrize("seed", range(12))
def test_every_form_gives_equal_records_text_and_tokens(tokenizer: Any, tmp_path: Path, seed: int) -> None:
    writer = Writer(seed)
    rows = [writer.record() for _ in range(6)]
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    outcomes = {str(source): outcome(source, tokenizer, str(template)) for source in written(tmp_path, rows)}
    first = next(iter(outcomes.values()))
    assert len(outcomes) == 8
    for name, made in outcomes.items():
        for part, expected in zip(made, first, strict=True):
            assert part == expected, name


def outcome(source: Source, tokenizer: Any, template: str) -> Any:
    """The records, the training examples, and the prompts before the last message."""
    fields = [made.fields for made in read_records(source)]
    examples = list(sft_examples(TextSettings(chat_template=template), [source], tokenizer, 10_000))
    shorter = [
        {**row, "messages": [*row["messages"][:-1], {"role": "user", "content": "?"}]} for row in fields
    ]
    data = DataSettings(chat_template=template, prompt_field="messages", eval_count=0)
    asked = PromptSources(InMemoryRecords(shorter, "rows", "messages"))
    prompts = load_prompts(data, tokenizer, 10_000, "train", 0, sources=asked).prompts
    return fields, examples, [(prompt.text, prompt.input_ids) for prompt in prompts]


def test_tools_reach_the_template_and_calls_need_no_content(tokenizer: Any, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}]
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "dry"},
        {"role": "assistant", "content": "No."},
    ]
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    rows = [{"messages": messages, "tools": tools}, {"messages": plain}]
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    for source in written(tmp_path, rows):
        first, second = sft_examples(
            TextSettings(chat_template=str(tmp_path / "t.jinja")), [source], tokenizer, 1000
        )
        assert first is not None
        assert second is not None
        assert tokenizer.decode(first.prompt_ids).startswith(f"<tools>{json.dumps(tools)}</tools>")
        learnt = [t for t, own in zip(first.response_ids, first.loss_mask, strict=True) if own]
        assert tokenizer.decode(learnt) == 'weather(town="Ulm")<|eos|>No.<|eos|>'
        assert tokenizer.decode(second.prompt_ids) == "<|user|>Hi<|eos|><|assistant|>"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tools": [{"name": "f"}]}, "has tools, but the chat template does not show any"),
        (
            {"chat_template_kwargs": {"mood": "x"}},
            "chat_template_kwargs sets mood, which the chat template does not use",
        ),
        ({"chat_template_kwargs": {"tools": []}}, 'field "chat_template_kwargs": "tools" is not a variable'),
        ({"chat_template_kwargs": {"tokenize": True}}, 'field "chat_template_kwargs": "tokenize" is not a'),
    ],
)
def test_what_the_template_would_leave_out_is_refused(chatml: Any, more: dict[str, Any], said: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    source = InMemoryRecords([{"messages": messages, **more}], "rows", "messages")
    with pytest.raises(BadRecordError, match=f"rows:1: {said}"):
        list(sft_examples(TextSettings(), [source], chatml, 1000))


def test_calls_that_the_template_does_not_show_are_refused(chatml: Any) -> None:
    calls = [{"function": {"name": "f", "arguments": {}}}]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
    source = InMemoryRecords([{"messages": messages}], "rows", "messages")
    with pytest.raises(
        BadRecordError, match="rows:1: has tool_calls, but the chat template does not show any"
    ):
        list(sft_examples(TextSettings(), [source], chatml, 1000))


def test_a_template_that_joins_arguments_as_text_gets_text(tokenizer: Any, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}:{% if m.tool_calls %}"
        "{{ m.tool_calls[0].function.name + m.tool_calls[0].function.arguments }}{% endif %}{{ m.content }}<|eos|>"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    calls = [{"function": {"name": "f", "arguments": '{"town": "Zürich"}'}}]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
    source = InMemoryRecords([{"messages": messages}], "rows", "messages")
    (made,) = sft_examples(TextSettings(chat_template=str(template)), [source], tokenizer, 1000)
    assert made is not None
    assert tokenizer.decode(made.response_ids) == 'f{"town": "Zürich"}<|eos|>'


@pytest.mark.parametrize(
    ("row", "learnt"),
    [
        (
            {"messages": [("user", "a"), ("assistant", "b", 0), ("user", "c"), ("assistant", "d")]},
            ["d<|eos|>"],
        ),
        (
            {"messages": [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d", 0)]},
            ["b<|eos|>"],
        ),
        (
            {"messages": [("user", "a", 0), ("assistant", "b", 1), ("user", "c"), ("assistant", "d")]},
            ["b<|eos|>", "d<|eos|>"],
        ),
        (
            {
                "prompt": [("user", "a"), ("assistant", "b"), ("user", "c")],
                "completion": [("assistant", "d")],
            },
            ["d<|eos|>"],
        ),
    ],
)
def test_what_has_weight_0_is_seen_but_not_learnt(
    tokenizer: Any, tmp_path: Path, row: dict[str, Any], learnt: list[str]
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    record = {
        name: [dict(zip(("role", "content", "weight"), message, strict=False)) for message in messages]
        for name, messages in row.items()
    }
    source = InMemoryRecords([record], "rows", "messages")
    (made,) = sft_examples(TextSettings(chat_template=str(template)), [source], tokenizer, 1000)
    assert made is not None
    runs: list[list[int]] = [[]]
    for token, own in zip(made.response_ids, made.loss_mask, strict=True):
        if own:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    assert [tokenizer.decode(run) for run in runs if run] == learnt
    assert tokenizer.decode(made.prompt_ids) == "<|user|>a<|eos|><|assistant|>"


def test_records_of_weight_0_are_left_out_and_counted(tokenizer: Any) -> None:
    rows = [{"prompt": "a", "response": "b", "weight": weight} for weight in (1, 0, 1.0, 0.0)]
    skipped = Skipped()
    source = InMemoryRecords(rows, "rows", "messages")
    assert len(list(sft_examples(TextSettings(), [source], tokenizer, 1000, skipped=skipped))) == 2
    assert skipped.counts == {"weight 0": 2}


def test_a_data_frame_is_named_and_its_rows_are_read(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rows = [{"messages": [{"role": "user", "content": "a", "name": None}], "n": 1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    frame = pandas.read_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r'rows: a DataFrame; pass its rows: frame\.to_dict\("records"\)'):
        InMemoryRecords(frame, "rows", "messages")
    (record,) = read_records(InMemoryRecords(frame.to_dict("records"), "rows", "messages"))
    assert record.fields == {"messages": [{"role": "user", "content": "a"}], "n": 1}
