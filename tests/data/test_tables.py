"""Parquet files and data sets in folders and on the hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from record_helpers import read_records

from proxlm.config import DataSettings, TextSettings
from proxlm.data.prompts import load_prompts
from proxlm.data.records import iter_records
from proxlm.data.skipped import Record, Skipped
from proxlm.data.supervised import sft_examples
from proxlm.data.text import read_texts
from proxlm.errors import DataError

Write = Callable[..., str]
ROWS: list[dict[str, Any]] = [
    {"prompt": "你好", "n": 1, "tags": ["a", None], "messages": [{"role": "user", "content": "x"}]},
    {"prompt": None, "n": None, "tags": [], "messages": None},
    {"prompt": " \n", "n": -3, "tags": None, "messages": []},
]
# A null is no field; in a list it stays.
FIELDS = [{name: value for name, value in row.items() if value is not None} for row in ROWS]


def parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return str(path)


def saved(folder: Path, shards: list[list[dict[str, Any]]], names: list[str] | None = None) -> Path:
    """A folder as `datasets` writes it with save_to_disk."""
    folder.mkdir(parents=True)
    files = [f"data-{i:05}-of-{len(shards):05}.arrow" for i in range(len(shards))]
    for name, rows in zip(files, shards, strict=True):
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names or files], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_parquet_gives_back_what_was_written(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", ROWS)
    assert read_records(path) == [Record(row, i) for i, row in enumerate(FIELDS, 1)]
    many = [{"n": i, "text": "x" * (i % 7)} for i in range(1000)]
    path = parquet(tmp_path / "A.PARQUET", many, row_group_size=300)
    assert [r.fields for r in read_records(path)] == many
    assert [r.line for r in read_records(path)] == list(range(1, 1001))


def test_bad_rows_are_named_by_row_and_field(tmp_path: Path, tokenizer: Any) -> None:
    path = parquet(tmp_path / "a.parquet", ROWS)

    def load(skipped: Skipped | None = None, field: str = "prompt") -> Any:
        data = DataSettings(prompts=path, prompt_field=field, eval_count=0)
        return load_prompts(data, tokenizer, 100, "train", 0, skipped=skipped)

    with pytest.raises(DataError, match=r'a\.parquet:2: no field "prompt"; .*fields here'):
        load()
    skipped = Skipped(skip=True)
    assert [p.text for p in load(skipped).prompts] == ["你好"]
    assert skipped.counts == {"field missing": 1, "empty": 1}
    with pytest.raises(
        DataError, match=r'a\.parquet:1: no field "promt"; did you mean prompt\? fields here: prompt, n'
    ):
        load(field="promt")
    with pytest.raises(
        DataError, match=r"no record can be used; the first bad one: .*a\.parquet:1: no field"
    ):
        load(Skipped(skip=True), field="promt")


def test_parquet_in_the_other_jobs(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "2 + 3 =", "response": " 5", "text": f"text {i}"} for i in range(3)]
    path = parquet(tmp_path / "a.parquet", [*rows, {"prompt": "x", "response": None, "text": None}])
    skipped = Skipped(skip=True)
    assert len(list(sft_examples(TextSettings(), [path], tokenizer, 100, skipped=skipped))) == 3
    assert skipped.counts == {"field missing": 1}
    with pytest.raises(DataError, match=r'a\.parquet:4: no field "text"'):
        read_texts([path], [".txt"])
    assert list(read_texts([path], [".txt"], Skipped(skip=True))) == ["text 0", "text 1", "text 2"]


def test_texts_that_are_not_utf_8_cost_their_row_alone(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    skipped = Skipped(skip=True)
    assert [r.line for r in iter_records(tmp_path / "a.parquet", skipped)] == [1, 3]
    assert skipped.counts == {"not UTF-8": 1}
    with pytest.raises(DataError, match=r"a\.parquet:2: not UTF-8"):
        read_records(tmp_path / "a.parquet")


def test_damaged_and_odd_files(tmp_path: Path, write: Write) -> None:
    whole = Path(parquet(tmp_path / "a.parquet", ROWS)).read_bytes()
    for content in (b"", b"PAR1", whole[:-9], whole[:40] + whole[60:], b"x" * 500):
        with pytest.raises(DataError, match=r"b\.parquet: not a Parquet file, or damaged: ") as caught:
            read_records(write("b.parquet", content))
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"none\.parquet: no such file"):
        read_records(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="holds no records"):
        read_records(parquet(tmp_path / "empty.parquet", [{"a": 1}][:0]))
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="two columns have the same name"):
        read_records(tmp_path / "twice.parquet")


def test_a_saved_data_set_is_read_shard_by_shard(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", [ROWS[:2], [{**ROWS[0], "n": 7}]])
    found = read_records(folder)
    assert [r.fields.get("n") for r in found] == [1, None, 7]
    assert [(Path(r.file).name, r.line) for r in found] == [
        ("data-00000-of-00002.arrow", 1),
        ("data-00000-of-00002.arrow", 2),
        ("data-00001-of-00002.arrow", 1),
    ]
    file = folder / "data-00001-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:-40])
    records = iter_records(folder)
    assert next(records).fields == FIELDS[0]
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: not an Arrow file, or damaged"):
        list(records)
    file.unlink()
    with pytest.raises(DataError, match="no such file, but the data set's state"):
        read_records(folder)


@pytest.mark.parametrize(
    "name", ["../secret.arrow", "/etc/passwd", "sub/x.arrow", "..", "", 3, "a\0b", "\ud800"]
)
def test_a_saved_data_set_cannot_name_files_outside_its_folder(tmp_path: Path, name: Any) -> None:
    folder = saved(tmp_path / "set", [ROWS], [name])
    with pytest.raises(DataError, match=r"state\.json: names the file .*, which is not in the folder"):
        read_records(folder)


@pytest.mark.parametrize(
    "state", ["", "[]", "{}", '{"_data_files": 3}', '{"_data_files": [{}]}', "[" * 10**5]
)
def test_a_damaged_state_is_named(tmp_path: Path, state: str) -> None:
    folder = saved(tmp_path / "set", [ROWS])
    (folder / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"state\.json: damaged"):
        read_records(folder)


def test_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    saved(tmp_path / "set" / "train", [ROWS])
    saved(tmp_path / "set" / "test", [ROWS[:1]])
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(read_records(f"{tmp_path}/set:train")) == len(read_records(f"{tmp_path}/set/train")) == 3
    assert len(read_records(f"{tmp_path}/set:test")) == 1
    for name in ("set", "set:dev"):
        with pytest.raises(DataError, match=r"has the splits test, train; write .*set:SPLIT"):
            read_records(tmp_path / name)
    with pytest.raises(DataError, match="this data set has no splits; leave out :train"):
        read_records(f"{tmp_path}/set/test:train")


def test_folders_of_parquet_files_as_on_the_hub(tmp_path: Path) -> None:
    data = tmp_path / "set" / "data"
    parquet(data / "train-00000-of-00002.parquet", ROWS[:1])
    parquet(data / "train-00001-of-00002.parquet", ROWS[1:])
    assert [r.fields for r in read_records(tmp_path / "set")] == FIELDS
    parquet(data / "test-00000-of-00001-0a1b2c.parquet", ROWS[:1])
    with pytest.raises(DataError, match="has the splits test, train; write"):
        read_records(tmp_path / "set")
    assert [r.fields for r in read_records(f"{tmp_path}/set:train")] == FIELDS
    assert len(read_records(f"{tmp_path}/set:test")) == 1
    parquet(tmp_path / "set" / "other" / "test.parquet", ROWS)
    with pytest.raises(DataError, match="holds Parquet files in several folders; name one of"):
        read_records(f"{tmp_path}/set:test")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="is a folder, but a file is needed, or a data set"):
        read_records(tmp_path / "none")


def test_data_sets_as_text(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": "two\r\n"}]
    hub = tmp_path / "hub"
    parquet(hub / "data" / "train-00000-of-00001.parquet", rows)
    (hub / "README.md").write_text("# The data set")
    folder = saved(tmp_path / "saved", [rows])
    for name in (str(hub), f"{hub}:train", str(folder)):
        assert list(read_texts([name], [".txt", ".md"])) == ["one", "two\n"]
    (hub / "more.md").write_text("a text")  # now a folder of texts, with a Parquet file by the way
    assert list(read_texts([str(hub)], [".md"])) == ["# The data set", "a text"]


def test_the_hub_is_asked_for_a_stream_without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package: the hub cannot be reached from a test."""
    asked: list[Any] = []

    def load_dataset(*names: Any, **options: Any) -> Any:
        asked.append((*names, options))
        if names[0] == "a/broken":
            return iter([{"text": "x"}, 1])
        if names[0] == "a/none":
            raise FileNotFoundError("Dataset 'a/none'\ndoesn't exist on the Hub")
        return [{"text": "x"}, {"text": "y"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert [r.fields["text"] for r in read_records("hf:a/b:test")] == ["x", "y"]
    assert list(read_texts(["hf:a/b/main"], [])) == ["x", "y"]
    assert asked == [
        ("a/b", None, {"split": "test", "streaming": True}),
        ("a/b", "main", {"split": "train", "streaming": True}),
    ]
    assert read_records("hf:a/b:test")[1].where == "hf:a/b:test:2"
    with pytest.raises(
        DataError, match="hf:a/none: cannot be read from the hub: Dataset 'a/none' doesn't exist"
    ):
        read_records("hf:a/none")
    with pytest.raises(DataError, match="hf:a/broken: cannot be read from the hub"):
        read_records("hf:a/broken")
    for name in ("hf:", "hf:../x", "hf:/etc", "hf:a/b/c/d", "hf:./a", "hf::train", "hf:a b"):
        with pytest.raises(DataError, match="not the name of a data set"):
            read_records(name)
    assert len(asked) == 5


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        ("pyarrow", "a.parquet", r'pip install "proxlm\[parquet\]"'),
        ("datasets", "hf:a/b", r'hf:a/b: .* pip install "proxlm\[datasets\]"'),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=said):
        read_records(name)


def json_column(values: list[str | None]) -> Any:
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(values))


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_columns_of_json_are_objects(tmp_path: Path, kind: str) -> None:
    """As `datasets` keeps messages and tools whose fields have different types in different rows."""
    messages = [
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": {"a": 3}}}],
        },
    ]
    texts = json_column([json.dumps(message) for message in messages])
    table = pa.table(
        {
            "messages": pa.ListArray.from_arrays([0, 2, 2, 2], texts),
            "more": pa.StructArray.from_arrays(
                [json_column(['"x"', None, '{"a": 1, "a": 2}']), pa.array([1, 2, 3])], ["json", "n"]
            ),
        }
    )
    if kind == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
        path = tmp_path / "a.parquet"
    else:
        path = saved(tmp_path / "set", [ROWS], ["d.arrow"])
        with pa.OSFile(str(path / "d.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    skipped = Skipped(skip=True)
    first, second = iter_records(path, skipped)
    assert first.fields == {
        "messages": [messages[0], {key: messages[1][key] for key in ("role", "tool_calls")}],
        "more": {"json": "x", "n": 1},
    }
    assert second.fields == {"messages": [], "more": {"n": 2}}
    assert skipped.counts == {"not valid JSON": 1}
    assert 'duplicate key "a"' in skipped.first
