"""Feeds generated input to what reads from outside; nothing but a UserError of one line may come of it.

    python benchmarks/fuzz.py [--examples 100000] [--seed 0] [--targets jsonl,csv,...]

The examples are shared out among the targets. An input that raises anything else is made as small as possible and
printed; it then belongs into tests/data/test_fuzz.py. A new target is one line in TARGETS: a Hypothesis strategy, and
a function that reads a value of it, with a folder to write to.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from proxlm.checkpoint import load_checkpoint, read_state
from proxlm.checkpoint.manifest import damage, read_manifest, write_manifest
from proxlm.config import JOBS, DataSettings, TextSettings, load_config, to_toml
from proxlm.config.tree import known_keys
from proxlm.config.values import dotted
from proxlm.data.prompts import load_prompts
from proxlm.data.records import iter_records
from proxlm.data.skipped import Skipped
from proxlm.data.supervised import sft_examples
from proxlm.data.text import read_texts
from proxlm.data.tokenizer import train_tokenizer
from proxlm.errors import UserError
from proxlm.train.ppo.state import PPOState

Feed = Callable[[Any, Path], None]
VALID = {
    "jsonl": '{"prompt": "2 + 2?", "n": [1.5, null]}\n\n{"prompt": "你好", "b": {"c": "\\u00e9"}}\r\n'.encode(),
    "json": '\ufeff[{"prompt": "2 + 2?", "n": 12},\n {"prompt": "你好"}]\n'.encode(),
    "csv": 'prompt,n\n"2 +\n2?",1\n你好,"a ""b"""\n'.encode(),
    "tsv": b"prompt\tn\n2 + 2?\t1\n",
    "txt": "one\r\n 你好\n".encode(),
}
MANIFEST = b'{"format": 1, "files": {"state.json": {"size": 12, "sha256": "%s"}}}' % (b"0f" * 32)
SPECIAL = [
    b"\n",
    b"\r",
    b'"',
    b",",
    b"\0",
    b"\xff",
    b"\\",
    b"[",
    b"{",
    b"}",
    b"]",
    b":",
    b"\\ud800",
    b"1e999",
    b"\t",
]


@dataclass(frozen=True)
class Target:
    """What is generated, and what reads it."""

    inputs: st.SearchStrategy[Any]
    feed: Feed


def edited(valid: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with a few places replaced by others; or any bytes at all."""
    edit = st.tuples(
        st.integers(0, len(valid)), st.integers(0, 4), st.sampled_from(SPECIAL) | st.binary(max_size=3)
    )

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = valid
        for at, removed, put in edits:
            data = data[:at] + put + data[at + removed :]
        return data

    return st.lists(edit, max_size=6).map(apply) | st.binary(max_size=60)


def feed_records(ending: str, packed: bool = False) -> Feed:
    """Reads a file twice: up to the first bad record, and leaving bad ones out, which must begin alike."""

    def feed(data: bytes, folder: Path) -> None:
        path = folder / f"data.{ending}"
        path.write_bytes(gzip.compress(data, 1) if packed else data)
        found, refused = [], None
        try:
            found.extend(iter_records(path))
        except UserError as error:
            refused = error
        kept = list(islice(iter_records(path, Skipped(skip=True)), len(found)))
        assert [(r.line, r.fields) for r in kept] == [(r.line, r.fields) for r in found]
        for _ in iter_records(path, Skipped(skip=True)):
            pass
        if refused is not None:
            raise refused

    return feed


@cache
def _tokenizer() -> Any:
    made = train_tokenizer(["user assistant 2 + 2 = 4"], 270, 64)
    made.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    return made


def feed_values(record: dict[str, Any], folder: Path) -> None:
    """A record of any values as a prompt, as a training example and as text; left out, it is listed as JSON."""
    path = folder / "data.jsonl"
    path.write_text(
        json.dumps(record) + '\n{"prompt": "a", "response": "b", "text": "c"}\n', encoding="utf-8"
    )
    skipped = Skipped(skip=True)
    data = DataSettings(prompts=str(path), eval_count=0)
    assert load_prompts(data, _tokenizer(), 40, "train", 0, skipped=skipped).prompts
    assert list(sft_examples(TextSettings(), [str(path)], _tokenizer(), 40, skipped=skipped))
    assert list(read_texts([str(path)], [], skipped))
    skipped.save(folder)
    for row in (folder / "skipped.jsonl").read_bytes().splitlines() if len(skipped) else []:
        assert json.loads(row)["line"] == 1
    load_prompts(data, _tokenizer(), 40, "train", 0)


@cache
def parquet_bytes() -> bytes:
    """A small Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"prompt": "2 + 2?", "n": 1}, {"prompt": None, "n": 2}]), sink)
    return sink.getvalue()


def feed_state(state: bytes, folder: Path) -> None:
    """The list of files of a saved data set."""
    (folder / "set").mkdir(exist_ok=True)
    (folder / "set" / "state.json").write_bytes(state)
    list(iter_records(folder / "set"))


def feed_manifest(data: bytes, folder: Path) -> None:
    """The list of a checkpoint's files; what is taken is compared with the files."""
    (folder / "manifest.json").write_bytes(data)
    read_manifest(folder)
    damage(folder)


def feed_checkpoint(state: bytes, folder: Path) -> None:
    """A checkpoint's counters, and what a PPO run takes from them."""
    checkpoint = folder / "step-00000003"
    checkpoint.mkdir(exist_ok=True)
    save_file({"policy.w": torch.zeros(1)}, checkpoint / "state.safetensors")
    (checkpoint / "state.json").write_bytes(state)
    write_manifest(checkpoint)
    _, found = load_checkpoint(checkpoint)
    read_state(PPOState, checkpoint, found)


def feed_toml(value: tuple[str, bytes], folder: Path) -> None:
    """A recipe of a job."""
    job, text = value
    recipe = folder / "recipe.toml"
    recipe.write_bytes(text)
    load_config(job, recipe, NEEDED.get(job))


def feed_arguments(value: tuple[str, list[str]], _: Path) -> None:
    """A command line of a job, without the name of a file that is there."""
    job, arguments = value
    load_config(job, overrides=NEEDED.get(job), arguments=arguments)


def feed_settings(value: tuple[str, dict[str, Any]], folder: Path) -> None:
    """Settings as Python gives them; what is taken comes back from TOML, or is refused there."""
    job, chosen = value
    config = load_config(job, overrides={**NEEDED.get(job, {}), **chosen})
    recipe = folder / "recipe.toml"
    recipe.write_text(to_toml(config), encoding="utf-8")
    from_recipe = load_config(job, recipe)  # the same, but relative paths are relative to the recipe
    recipe.write_text(to_toml(from_recipe), encoding="utf-8")
    assert load_config(job, recipe) == from_recipe


# What the jobs do not do without.
NEEDED: dict[str, dict[str, Any]] = {
    "ppo": {"model.policy": "m", "data.prompts": "p.txt", "reward.use": "length"},
    "pretrain": {"text.train": ["t.txt"]},
    "sft": {"model.policy": "m", "text.train": ["t.jsonl"]},
    "generate": {"model.policy": "m"},
    "evaluate": {"model.policy": "m", "data.prompts": "p.txt"},
    "control": {"environment.id": "CartPole-v1"},
    "report": {"folder": "runs/x"},
    "doctor": {"folder": "runs/x"},
}
JOB = st.sampled_from(sorted(JOBS))
KEYS_OF = {name: sorted(map(dotted, known_keys(job))) for name, job in JOBS.items()}
KEYS = sorted({key for keys in KEYS_OF.values() for key in keys})
WORD = st.text(max_size=8) | st.sampled_from(
    ["1", "-1", "true", "nan", "[]", "{a = 1}", "skip", '"', "1e999", "--", "x" * 300]
)
OPTION = st.tuples(st.sampled_from(KEYS) | st.text(max_size=12), st.sampled_from(["=", " "]), WORD)
NUMBER = st.sampled_from([0, 1, 2, 8, 0.5, 1.0, True, "", "auto", "linear", [], ["a"], {}])
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
VALUE = st.recursive(
    SCALAR | st.sampled_from(["user", "assistant", "content", "role"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "x\ny"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=9)}
    ),
    max_size=4,
)
RECORD = st.dictionaries(
    st.sampled_from(["prompt", "response", "messages", "text"]) | st.text(max_size=4),
    VALUE | MESSAGES,
    max_size=4,
)


def _arguments(options: list[tuple[str, str, str]]) -> list[str]:
    return [part for key, glue, word in options for part in f"--{key}{glue}{word}".split(" ", 1)]


TARGETS: dict[str, Target] = {
    **{ending: Target(edited(valid), feed_records(ending)) for ending, valid in VALID.items()},
    **{f"{e}.gz": Target(edited(valid), feed_records(f"{e}.gz", True)) for e, valid in VALID.items()},
    "torn.gz": Target(edited(gzip.compress(VALID["jsonl"])), feed_records("jsonl.gz")),
    "values": Target(RECORD, feed_values),
    "parquet": Target(st.deferred(lambda: edited(parquet_bytes())), feed_records("parquet")),
    "state": Target(edited(b'{"_data_files": [{"filename": "data.arrow"}]}'), feed_state),
    "manifest": Target(edited(MANIFEST), feed_manifest),
    "checkpoint": Target(
        edited(b'{"step": 3, "kl_coef": 0.05, "draws": 3, "moments": [0, 0.0, 1.5]}'), feed_checkpoint
    ),
    "toml": Target(st.tuples(JOB, JOB.flatmap(lambda job: edited(to_toml(JOBS[job]()).encode()))), feed_toml),
    "settings": Target(
        JOB.flatmap(
            lambda job: st.tuples(
                st.just(job), st.dictionaries(st.sampled_from(KEYS_OF[job]), NUMBER | VALUE, max_size=2)
            )
        ),
        feed_settings,
    ),
    "arguments": Target(
        st.tuples(JOB, st.lists(OPTION, max_size=4).map(_arguments) | st.lists(WORD, max_size=3)),
        feed_arguments,
    ),
}


def fuzz(name: str, examples: int, start: int) -> tuple[int, int]:
    """Try one target; returns how many inputs there were, and how many were refused. Raises what it finds."""
    target, counts = TARGETS[name], [0, 0]

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def attempt(value: Any) -> None:
        counts[0] += 1
        try:
            target.feed(value, Path(folder))
        except UserError as error:
            counts[1] += 1
            if "\n" in str(error):
                raise AssertionError(f"more than one line: {str(error)!a}") from error

    with tempfile.TemporaryDirectory() as folder:
        attempt()
    return counts[0], counts[1]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default=",".join(TARGETS))
    arguments = parser.parse_args()
    names = arguments.targets.split(",")
    failed = 0
    print("| target | inputs | refused | seconds |\n| --- | --- | --- | --- |")
    for name in names:
        began = time.perf_counter()
        try:
            tried, refused = fuzz(name, -(-arguments.examples // len(names)), arguments.seed)
        except Exception as error:  # whatever it is, it was found
            failed += 1
            notes = "\n".join(getattr(error, "__notes__", []))
            print(f"{name}: {type(error).__name__}: {error}\n{notes}", flush=True)
            continue
        print(f"| {name} | {tried} | {refused} | {time.perf_counter() - began:.0f} |", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
