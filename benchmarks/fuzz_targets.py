"""What reads from outside, each with valid inputs to begin with: TARGETS of fuzz.py."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from proxlm.checkpoint import load_checkpoint, read_state
from proxlm.checkpoint.manifest import damage, read_manifest, write_manifest
from proxlm.config import (
    JOBS,
    DataSettings,
    ModelSettings,
    NewModelSettings,
    RewardSettings,
    TextSettings,
    load_config,
    to_toml,
)
from proxlm.config.tree import known_keys
from proxlm.config.values import dotted
from proxlm.data.prompts import load_prompts
from proxlm.data.records import iter_records
from proxlm.data.skipped import Skipped
from proxlm.data.supervised import sft_examples
from proxlm.data.text import read_texts
from proxlm.data.tokenizer import decode, load_tokenizer, train_tokenizer
from proxlm.data.turn_end import turn_end_of
from proxlm.engine.request import Request, SamplingParams
from proxlm.engine.stopping import StopCheck
from proxlm.errors import UserError
from proxlm.jobs.doctor import as_json, as_lines, examine
from proxlm.models.load import build_language_model, load_language_model
from proxlm.models.save import save_language_model
from proxlm.report.run_data import read_run
from proxlm.report.verify import verify_run
from proxlm.rewards.isolated import components_of
from proxlm.rewards.numeric import last_number, marked_number, to_number
from proxlm.rewards.python_code import python_parse_report
from proxlm.rewards.resolve import resolve_terms
from proxlm.rewards.result import read_result
from proxlm.rewards.worker import receive
from proxlm.runlog.folder import read_jsonl, truncate_jsonl
from proxlm.sandbox.watch import reports_in
from proxlm.sandbox.wire import LostError, Peer
from proxlm.train.ppo.state import PPOState
from proxlm.types import Completion

Feed = Callable[[bytes, Path], None]


@dataclass(frozen=True)
class Target:
    """What is read, and how.

    Attributes:
        seeds: Valid inputs.
        feed: Reads an input; with a folder to write to. Raises AssertionError where two ways of reading differ.
        words: What mutations put in beside what they always do: bytes, or values of JSON.
        weight: Its share of the inputs.
        refusals: What it may raise beside a UserError.
    """

    seeds: Callable[[], list[bytes]]
    feed: Feed
    words: Sequence[Any] = ()
    weight: float = 1.0
    refusals: tuple[type[BaseException], ...] = ()


def these(*inputs: Any) -> Callable[[], list[bytes]]:
    """Inputs as bytes; values that are none as JSON."""
    return lambda: [one if isinstance(one, bytes) else json.dumps(one).encode() for one in inputs]


# Data.

RECORDS = {
    "jsonl": '{"prompt": "2 + 2?", "n": [1.5, null]}\n\n{"prompt": "你好", "b": {"c": "\\u00e9"}}\r\n'.encode(),
    "json": '\ufeff[{"prompt": "2 + 2?", "n": 12},\n {"prompt": "你好"}]\n'.encode(),
    "csv": 'prompt,n\n"2 +\n2?",1\n你好,"a ""b"""\n'.encode(),
    "tsv": b"prompt\tn\n2 + 2?\t1\n",
    "txt": "one\r\n 你好\n".encode(),
}


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
        assert [(r.line, repr(r.fields)) for r in kept] == [(r.line, repr(r.fields)) for r in found]
        for _ in iter_records(path, Skipped(skip=True)):
            pass
        if refused is not None:
            raise refused

    return feed


@cache
def tokenizer() -> Any:
    made = train_tokenizer(["user assistant 2 + 2 = 4"], 270, 64)
    made.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    return made


TOOL_CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CHATS = (
    {"prompt": "2 + 2?", "response": "4", "text": "2 + 2 = 4"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], "response": "b"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]},
                  {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
                  {"role": "tool", "tool_call_id": "c", "content": "3"}, {"role": "assistant", "content": "3"}],
     "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "a", "input": "b", "output": "c"},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}],
     "chat_template_kwargs": {"thinking": True}},
)  # fmt: skip
CHAT_WORDS = (
    "role", "content", "user", "assistant", "system", "tool", "tools", "tool_calls", "type", "text", "from", "value",
    "human", "gpt", "messages", "prompt", "response", "completion", "conversations", "instruction", "output",
    "weight",
    "arguments", "name", "chat_template_kwargs", {"role": "user", "content": "x"}, [{"type": "text", "text": "y"}],
)  # fmt: skip


def feed_chats(data: bytes, folder: Path) -> None:
    """Records as prompts, as training examples and as text; each bad one is listed as JSON, or named."""
    path = folder / "data.jsonl"
    path.write_bytes(data.rstrip(b"\n") + b'\n{"prompt": "a", "response": "b", "text": "c"}\n')
    skipped = Skipped(skip=True)
    settings = DataSettings(prompts=str(path), eval_count=0)
    assert load_prompts(settings, tokenizer(), 40, "train", 0, skipped=skipped).prompts
    assert list(sft_examples(TextSettings(), [str(path)], tokenizer(), 40, skipped=skipped))
    assert list(read_texts([str(path)], [], skipped))
    skipped.save(folder)
    for row in (folder / "skipped.jsonl").read_bytes().splitlines() if len(skipped) else []:
        json.loads(row)
    load_prompts(settings, tokenizer(), 40, "train", 0)


def parquet_seeds() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[list[dict[str, Any]]] = [
        [{"prompt": "2 + 2?", "n": 1}, {"prompt": None, "n": 2}],
        [{"m": [{"a": "b"}]}],
    ]
    seeds = []
    for one in rows:
        for compression in ("none", "zstd"):
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(one), sink, compression=compression)
            seeds.append(sink.getvalue())
    return seeds


@cache
def arrow_seeds() -> list[bytes]:
    import pyarrow as pa

    table = pa.Table.from_pylist([{"prompt": "2 + 2?", "m": [{"a": "b", "c": None}]}, {"prompt": None}])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return [sink.getvalue()]


DATA_SET = {"_data_files": [{"filename": "data.arrow"}]}


def feed_data_set(state: bytes, folder: Path, rows: bytes | None = None) -> None:
    """The list of files of a saved data set, and its rows."""
    (folder / "set").mkdir(exist_ok=True)
    (folder / "set" / "data.arrow").write_bytes(arrow_seeds()[0] if rows is None else rows)
    (folder / "set" / "state.json").write_bytes(state)
    list(iter_records(folder / "set"))


def feed_arrow(rows: bytes, folder: Path) -> None:
    feed_data_set(json.dumps(DATA_SET).encode(), folder, rows)


# Settings.

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
KEYS = sorted({dotted(key) for job in JOBS.values() for key in known_keys(job)})
SETTING_WORDS = (
    *KEYS,
    "true",
    "nan",
    "[]",
    "{a = 1}",
    "auto",
    "1e999",
    "--",
    "env:HOME",
    "~",
    "~root/x",
    "[run]",
    "[[x]]",
)


def job_of(data: bytes) -> tuple[str, bytes]:
    """A job, by the first line, and the rest."""
    name, _, rest = data.partition(b"\n")
    jobs = sorted(JOBS)
    return (
        name.decode("utf-8", "replace")
        if name.decode("utf-8", "replace") in JOBS
        else jobs[len(name) % len(jobs)]
    ), rest


def feed_toml(data: bytes, folder: Path) -> None:
    """A recipe; what is taken comes back from TOML as it was."""
    job, text = job_of(data)
    recipe = folder / "recipe.toml"
    recipe.write_bytes(text)
    recipe.write_text(to_toml(load_config(job, recipe, NEEDED.get(job))), encoding="utf-8")
    config = load_config(job, recipe)  # relative paths are now relative to the recipe
    recipe.write_text(to_toml(config), encoding="utf-8")
    assert repr(load_config(job, recipe)) == repr(config)


def feed_arguments(data: bytes, _: Path) -> None:
    """A command line, each argument on a line."""
    job, text = job_of(data)
    load_config(job, overrides=NEEDED.get(job), arguments=text.decode("utf-8", "surrogateescape").split("\n"))


def feed_settings(data: bytes, _: Path) -> None:
    """Settings as Python gives them."""
    job, text = job_of(data)
    try:
        chosen = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(chosen, dict):
        load_config(job, overrides={**NEEDED.get(job, {}), **chosen})


def toml_seeds() -> list[bytes]:
    return [name.encode() + b"\n" + to_toml(JOBS[name]()).encode() for name in sorted(JOBS)]


def argument_seeds() -> list[bytes]:
    lines = ("--run.seed=1", "--run.seed\n2", "--ppo.steps=3\n--model.policy\nx", "recipe.toml", "--help")
    return [f"{job}\n{line}".encode() for job in sorted(JOBS) for line in lines]


def setting_seeds() -> list[bytes]:
    chosen = (
        {"run.seed": 1},
        {"run": {"seed": 1, "threads": 2}},
        {"reward.args": {"a": [1, {"b": "c"}]}},
        {"output": "x"},
    )
    return [f"{job}\n{json.dumps(one)}".encode() for job in sorted(JOBS) for one in chosen]


# A run's folder.

METRICS = (
    {"step": 1, "time": 1.5, "reward/mean": 0.5, "kl/mean": 0.01},
    {"step": 2, "time": 3.0, "reward/mean": None},
)
SAMPLE = {
    "step": 1, "id": 0, "prompt": "a", "response": "b c", "reward": 1.5, "finish": "eos", "tokens": ["b", " c"],
    "components": {"length": 1.5}, "per_token": {"kl": [0.1, -0.2]},
}  # fmt: skip
MODEL = {
    "name": "after", "metrics": {"reward": {"mean": 0.5, "low": 0.1, "high": 0.9}},
    "samples": [{"prompt": "a", "response": "b", "reward": 1.0}],
}  # fmt: skip
EVALUATION = {
    "models": [{**MODEL, "name": "before"}, MODEL],
    "metrics": {"reward": {"better": "higher"}},
    "prompts": 2,
}
MANIFEST = b'{"format": 1, "files": {"state.json": {"size": 12, "sha256": "%s"}}}' % (b"0f" * 32)
STATE = asdict(PPOState(kl_coef=0.05, draws=3, step=3))


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@cache
def ppo_settings() -> str:
    return to_toml(load_config("ppo", overrides=NEEDED["ppo"]))


def run_files(folder: Path, **changed: bytes) -> None:
    """A run's folder with these files instead of good ones."""
    files = {
        "config.toml": ppo_settings().encode(), "metrics.jsonl": jsonl(*METRICS), "samples.jsonl": jsonl(SAMPLE),
    }  # fmt: skip
    for name, content in {
        **files,
        **{name.replace("_", "."): data for name, data in changed.items()},
    }.items():
        (folder / name).write_bytes(content)


def feed_metrics(data: bytes, folder: Path) -> None:
    """Read for the doctor and the report, and cut for a resume, after which they are read as they were."""
    run_files(folder, metrics_jsonl=data)
    examination = examine(folder)
    as_lines(examination), json.dumps(as_json(examination))
    read_run(folder)
    truncate_jsonl(folder / "metrics.jsonl", "step", 1)
    assert all(row["step"] <= 1 for row in read_jsonl(folder / "metrics.jsonl"))


def feed_report(name: str) -> Feed:
    """One of the files that the report shows, with the page that becomes of it."""

    def feed(data: bytes, folder: Path) -> None:
        from proxlm.report.page import page

        run_files(folder, **{name: data})
        assert "<script src" not in page(read_run(folder))

    return feed


def feed_manifest(data: bytes, folder: Path) -> None:
    """The list of a checkpoint's files; what is taken is compared with the files."""
    (folder / "manifest.json").write_bytes(data)
    read_manifest(folder)
    damage(folder)


def checkpoint_folder(folder: Path) -> Path:
    checkpoint = folder / "step-00000003"
    checkpoint.mkdir(exist_ok=True)
    return checkpoint


def feed_state(state: bytes, folder: Path) -> None:
    """A checkpoint's counters, and what a PPO run takes from them."""
    checkpoint = checkpoint_folder(folder)
    save_file({"policy.w": torch.zeros(1)}, checkpoint / "state.safetensors")
    (checkpoint / "state.json").write_bytes(state)
    write_manifest(checkpoint)
    _, found = load_checkpoint(checkpoint)
    read_state(PPOState, checkpoint, found)


def feed_tensors(data: bytes, folder: Path) -> None:
    """A checkpoint's tensors; the manifest fits them."""
    checkpoint = checkpoint_folder(folder)
    (checkpoint / "state.json").write_text(json.dumps(STATE))
    (checkpoint / "state.safetensors").write_bytes(with_header_length(data))
    write_manifest(checkpoint)
    for tensor in load_checkpoint(checkpoint)[0].values():
        tensor.sum()


def tensor_seeds() -> list[bytes]:
    from safetensors.torch import save

    tensors = {
        "policy.w": torch.zeros(2, 3),
        "critic.b": torch.ones(1, dtype=torch.bfloat16),
        "extra.e": torch.zeros(0),
    }
    seeds = []
    for file in (save(tensors), save(tensors, {"format": "pt"}), save({})):
        size = int.from_bytes(file[:8], "little")
        seeds.append(file[8 : 8 + size].rstrip() + b"\n" + file[8 + size :])
    return seeds


def with_header_length(data: bytes) -> bytes:
    """A file of safetensors: the length of the header, which mutations would only break, the header, the numbers."""
    header, _, numbers = data.partition(b"\n")
    return len(header).to_bytes(8, "little") + header + numbers


def feed_verify(name: str) -> Feed:
    """One of the files that `proxlm verify` compares with the others; what it finds are lines."""

    def feed(data: bytes, folder: Path) -> None:
        run_files(folder)
        checkpoint = folder / "checkpoints" / "step-00000002"
        checkpoint.mkdir(parents=True, exist_ok=True)
        save_file({"policy.w": torch.zeros(1)}, checkpoint / "state.safetensors")
        for path, content in (("inputs.json", INPUTS), ("checkpoints/step-00000002/state.json", RUN_STATE)):
            (folder / path).write_bytes(data if path.endswith(name) else json.dumps(content).encode())
        write_manifest(checkpoint)
        assert all(isinstance(line, str) for line in verify_run(folder))

    return feed


PROMPTS = {"path": "p.txt", "files": {"p.txt": {"sha256": "0f" * 32, "stamp": [1, 2, 3]}}}
INPUTS = {"format": 1, "inputs": {"data.prompts": PROMPTS}}
RUN_STATE = {
    **STATE, "step": 2, "row_counts": {"metrics": 2, "samples": 1}, "inputs": {}, "settings": {"run": {"seed": 1}},
}  # fmt: skip


@cache
def model_bytes() -> dict[str, bytes]:
    """The files of a tiny model."""
    with TemporaryDirectory() as made:
        new = NewModelSettings(type="llama", hidden=16, layers=1, heads=2, context=64)
        built = build_language_model(new, tokenizer(), ModelSettings(device="cpu"))
        save_language_model(built, Path(made))
        return {path.name: path.read_bytes() for path in Path(made).iterdir()}


def feed_model(name: str) -> Feed:
    """One of the files of a model's folder, in which the others are right."""

    def feed(data: bytes, folder: Path) -> None:
        made = folder / "model"
        made.mkdir(exist_ok=True)
        for file, content in model_bytes().items():
            (made / file).write_bytes(content)
        (made / name).write_bytes(with_header_length(data) if name.endswith(".safetensors") else data)
        load_language_model(ModelSettings(policy=str(made), device="cpu"))

    return feed


def model_tensor_seeds() -> list[bytes]:
    file = model_bytes()["model.safetensors"]
    size = int.from_bytes(file[:8], "little")
    return [file[8 : 8 + size].rstrip() + b"\n" + file[8 + size :]]


@cache
def tokenizer_seeds() -> list[bytes]:
    return [tokenizer().backend_tokenizer.to_str().encode()[: 1 << 14]]


def feed_tokenizer(data: bytes, folder: Path) -> None:
    """A model's tokenizer.json, and what it encodes."""
    made = folder / "model"
    if not made.exists():
        tokenizer().save_pretrained(made)
    (made / "tokenizer.json").write_bytes(data)
    loaded = load_tokenizer(str(made))
    loaded.decode(loaded("2 + 2 user", verbose=False)["input_ids"])


# Rewards.

ANSWERS = (
    b"so 1,234.50\n#### 1,234.50", b"#### $-5e3", b"#### **72**", b"\\boxed{72}", b"1/2", b"72%", b"7-2", b"1.2.3",
    b"\xe2\x88\x923",
    b"x = [1]\nprint(x)", b"f'{a!r:>{w}}'", b"```python\nx = 1\n```", b"lambda: (yield)", b"if x:\n\ty\n        z",
    b"def f(:", b"",
)  # fmt: skip
BUILTINS = (
    ("length", {"target": 3}), ("repetition", {}), ("keyword", {"words": ["a", "1"]}), ("exact_match", {}),
    ("numeric_answer", {"fallback": True}), ("python_parses", {}), ("chrf", {}), ("regex", {"pattern": r"\d+"}),
)  # fmt: skip


@cache
def rewards() -> list[Any]:
    return [resolve_terms(RewardSettings(use=name, args=args), None)[0].function for name, args in BUILTINS]


def feed_answer(data: bytes, _: Path) -> None:
    """A response and a record's answer, in every built-in reward that reads texts."""
    text, _, answer = data.decode("utf-8", "replace").partition("\n----\n")
    for found in (marked_number(text), last_number(text), to_number(text)):
        assert found is None or str(found)
    python_parse_report(answer, text)
    completion = Completion("p", text, (1, 2, 3), fields={"answer": answer or "4", "response": answer or "x"})
    for reward in rewards():
        (part,) = read_result(reward([completion]), [completion]).values()
        assert part.problems or -1e30 < part.values[0] < 1e30


# Where a response stops.

STOPS = (
    {"text": "x. and 鸟啼。then", "stop": ["。"], "bytes": [229, 184]}, {"text": "a\n\nb", "stop": ["\n\n", "b"],
    "bytes": []},
    {"text": "é👍🏽 ok </s> more", "stop": ["👍", "</s>"], "bytes": [240, 159]},
)  # fmt: skip


@cache
def byte_tokenizers() -> list[Any]:
    """A byte-level tokenizer, and one that spells what it does not know in bytes, as of SentencePiece."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    names = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{n:02X}>" for n in range(256)),
        "▁",
        *"abcdeijknotuxy.,:\n",
        "▁a",
        "an",
        "the",
    ]
    backend = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, [("▁", "a"), ("a", "n")], unk_token="<unk>",
                                   byte_fallback=True, fuse_unk=True))  # fmt: skip
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    fallback = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    return [tokenizer(), fallback]


def feed_stops(data: bytes, _: Path) -> None:
    """A response token by token: it stops at the first token after which the whole text holds a stop text."""
    try:
        asked = json.loads(data)
        text, stops = str(asked["text"])[:60], tuple(str(one)[:12] for one in asked["stop"])[:4]
        raw = [int(one) % 256 for one in asked["bytes"]][:8]
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return
    stops = tuple(one.encode("utf-8", "replace").decode() for one in stops)
    text = text.encode("utf-8", "replace").decode()
    if not all(stops):
        return
    for one in byte_tokenizers():
        prompt = one("a", add_special_tokens=False)["input_ids"]
        ids = one(text, add_special_tokens=False)["input_ids"]
        byte = one.convert_tokens_to_ids([f"<0x{n:02X}>" for n in raw])
        ids = [*ids, *(i for i in byte if i not in (None, one.unk_token_id)), *ids]
        model: Any = SimpleNamespace(tokenizer=one, encoder_decoder=False, turn_end=turn_end_of(one))
        check, request = (
            StopCheck(model),
            Request(0, prompt, SamplingParams(stop=stops, max_new_tokens=10_000)),
        )
        read = request.params.response_text(one, model.turn_end)
        for count in range(1, len(ids) + 1):
            if (why := check.finish(request, ids[:count])) is not None:
                shown = read(prompt, ids[:count])
                assert why != "stop" or not any(stop in shown for stop in stops), (shown, stops)
                break
            whole = decode(one, [*prompt, *ids[:count]])[len(decode(one, prompt)) :]
            whole = whole.removesuffix("\ufffd")
            assert not any(stop in whole.rstrip("\ufffd") for stop in stops), (whole, stops)


# The sandbox's protocol.


def framed(*messages: Any) -> bytes:
    """Messages as they are written to the line, one a row: what is not JSON stays as it is."""
    return b"\n".join(json.dumps(one).encode() for one in messages)


def stream(data: bytes) -> bytes:
    """Rows as frames; a row that begins with "!" is written without its length."""
    rows = data.split(b"\n")
    return b"".join(r[1:] if r[:1] == b"!" else len(r).to_bytes(4, "big") + r for r in rows)[: 60 << 10]


def peer_of(data: bytes, *, open: bool) -> tuple[Peer, list[int]]:
    """A peer that will read the bytes and then the end."""
    reads, writes = os.pipe()
    os.write(writes, stream(data))
    os.close(writes)
    nothing = os.open(os.devnull, os.O_WRONLY)
    return Peer(reads, nothing, open=open), [reads, nothing]


class FaultError(Exception):
    """What tests must not see."""


def feed_answers(data: bytes, _: Path) -> None:
    """What a program writes to its tests: names, then answers to calls. Raises what tests would see."""
    peer, opened = peer_of(data, open=False)
    try:
        for name, value in peer.published().items():
            assert type(name) is str
            for use in (
                lambda v: v(1, [2]),
                lambda v: list(islice(v, 3)),
                len,
                str,
                bool,
                lambda v: v.x,
                lambda v: v == 4,
            ):
                try:
                    use(value)
                except StopIteration as error:
                    raise FaultError("StopIteration from a program's function") from error
                except BaseException as error:
                    seen_by_tests(error)
    except BaseException as error:
        seen_by_tests(error)
    finally:
        for one in opened:
            os.close(one)


def seen_by_tests(error: BaseException) -> None:
    """Raises the exception again if it is the end of the line or a fault of the protocol's.

    One that a program raised in a test, SystemExit for instance, is the test's to see.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    for_tests = (
        "request",
        "__len__",
        "__str__",
        "__repr__",
        "__bool__",
        "__iter__",
        "__next__",
        "__getitem__",
    )
    own = isinstance(error, FaultError) or type(error).__module__ != "builtins"
    if own or (last.filename.endswith("wire.py") and last.name not in for_tests):
        raise error


def feed_requests(data: bytes, _: Path) -> None:
    """What tests write to a program: requests."""
    peer, opened = peer_of(data, open=True)
    peer.publish({"f": lambda *arguments, **_: arguments, "items": [1], "text": "x"})
    try:
        peer.serve_for_ever()
    finally:
        for one in opened:
            os.close(one)


def feed_verdict(data: bytes, _: Path) -> None:
    """What the process of the tests reports."""
    assert isinstance(reports_in(stream(data)), list)


def feed_isolated(data: bytes, _: Path) -> None:
    """What the process of an isolated reward answers."""
    completions = [Completion("p", "a", (1, 2)), Completion("p", "b", (3,))]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(stream(data))
        theirs.close()
        ours.settimeout(5)
        while (reply := receive(ours)) is not None:
            for part in components_of(reply, completions).values():
                assert len(part.values) == 2


WIRE_WORDS = (
    "value", "raise", "call", "get", "list", "tuple", "dict", "set", "frozenset", "deque", "mine", "yours", "int",
    "bytes",
    "bytearray", "complex", "range", "module", "math", "StopIteration", "SystemExit", "ExceptionGroup", "__next__",
    "__iter__", "__class__", "__globals__", ["mine", 0], ["yours", 0], ["tuple"], ["dict", "a", 1], ["int", "0xff"],
)  # fmt: skip
ANSWER_SEEDS = these(
    framed(["value", ["tuple", ["dict", "f", ["mine", 1], "k", 3], ["tuple"]]], ["value", ["tuple", 4, ["tuple",
    None, None]]],
           ["raise", [["ValueError", "Exception"], "no"]], ["value", ["mine", 2]], ["call", [0, ["tuple"],
           ["dict"]]]),
    framed(["value", ["tuple", ["dict", "m", ["module", "math"], "b", ["bytes", "00ff"], "c", ["complex", 1.0, 2.0],
    "r",
            ["range", 0, 9, 2], "d", ["deque", 1, 2], "i", ["int", "0x1ff"], "s", ["set", 1], "z", ["frozenset"]],
            ["tuple"]]]),
    framed(["value", ["tuple", ["dict", "f", ["mine", 1]], ["tuple"]]], ["raise", [["StopIteration"], ""]]),
)  # fmt: skip
REQUEST_SEEDS = these(
    framed(
        ["call", [0, ["tuple"], ["dict"]]],
        ["call", [1, ["tuple", 1, ["list", 2]], ["dict", "k", ["set", 3]]]],
    ),
    framed(
        ["get", [1, "__name__"]], ["get", [1, "__call__"]], ["call", [2, ["tuple", ["mine", 5]], ["dict"]]]
    ),
)
PARTS = {"parts": {"": {"values": [1.0, math.nan], "per_token": None, "problems": {"1": "no"}}}}
TOKENS = {"parts": {"a": {"values": [1.0, 2.0], "per_token": [0.5, 0.5, 2.0], "problems": {}}}}

TARGETS: dict[str, Target] = {
    **{ending: Target(these(valid), feed_records(ending)) for ending, valid in RECORDS.items()},
    **{f"{e}.gz": Target(these(valid), feed_records(f"{e}.gz", True), weight=0.3) for e, valid in RECORDS.items()},
    "torn.gz": Target(these(gzip.compress(RECORDS["jsonl"])), feed_records("jsonl.gz")),
    "parquet": Target(parquet_seeds, feed_records("parquet"), weight=0.5),
    "data-set": Target(these(DATA_SET), feed_data_set, ("_data_files", "filename", "data.arrow",
    "../set/data.arrow")),
    "arrow": Target(arrow_seeds, feed_arrow, weight=0.5),
    "chats": Target(lambda: [jsonl(one) for one in CHATS], feed_chats, CHAT_WORDS, 0.7),
    "toml": Target(toml_seeds, feed_toml, SETTING_WORDS, 0.5),
    "arguments": Target(argument_seeds, feed_arguments, (*SETTING_WORDS, *(f"--{key}=" for key in KEYS))),
    "settings": Target(setting_seeds, feed_settings, SETTING_WORDS),
    "metrics": Target(these(jsonl(*METRICS), jsonl(METRICS[0])), feed_metrics, tuple(METRICS[0]), 0.25),
    "samples": Target(these(jsonl(SAMPLE), jsonl(SAMPLE, SAMPLE)), feed_report("samples_jsonl"), tuple(SAMPLE), 0.25),
    "evaluation": Target(these(EVALUATION), feed_report("evaluation_json"), tuple(EVALUATION), 0.15),
    "run-config": Target(lambda: [ppo_settings().encode()], feed_report("config_toml"), SETTING_WORDS, 0.15),
    "manifest": Target(these(MANIFEST), feed_manifest, ("files", "size", "sha256", "format", "../x", "/etc/passwd")),
    "state": Target(these(STATE), feed_state, tuple(STATE)),
    "safetensors": Target(tensor_seeds, feed_tensors, ("dtype", "shape", "data_offsets", "F32", "BF16", "F8_E4M3",
    "__metadata__")),
    "inputs": Target(these(INPUTS), feed_verify("inputs.json"), (*INPUTS, *PROMPTS, "stamp", "sha256"), 0.08),
    "run-state": Target(these(RUN_STATE), feed_verify("state.json"), tuple(RUN_STATE), 0.08),
    "model-config": Target(lambda: [model_bytes()["config.json"]], feed_model("config.json"),
                           ("llama", "gpt2", "t5", "model_type", "rope_parameters"), 0.05),
    "model-tensors": Target(model_tensor_seeds, feed_model("model.safetensors"), ("F32", "BF16", "shape"), 0.05),
    "generation": Target(lambda: [model_bytes()["generation_config.json"]], feed_model("generation_config.json"),
                         ("eos_token_id", "pad_token_id", "bos_token_id"), 0.05),
    "tokenizer": Target(tokenizer_seeds, feed_tokenizer, ("model", "vocab", "merges", "added_tokens", "id",
    "content"), 0.1),
    "answers": Target(these(*ANSWERS, *(a + b"\n----\n" + a for a in ANSWERS)), feed_answer,
                      (b"####", b"\\boxed{", b"$", b"%", b"1/2", b"1,234", b"e5", "−", "\nlambda", "f'{",
                      "match x:\n case"), 0.7),
    "stops": Target(these(*STOPS), feed_stops,
                    ("text", "stop", "bytes", "</s>", "a", "鸟", "é", "👍", "▁", " a", [240, 159])),
    "wire-answers": Target(ANSWER_SEEDS, feed_answers, WIRE_WORDS, 1.5, (LostError,)),
    "wire-requests": Target(REQUEST_SEEDS, feed_requests, WIRE_WORDS, 1.5, (LostError,)),
    "wire-verdict": Target(these(framed("", "AssertionError", True), framed("", False)), feed_verdict, (True, "",
    "lost")),
    "wire-isolated": Target(these(framed(PARTS), framed(TOKENS, TOKENS)), feed_isolated, tuple(PARTS["parts"][""]),
                            refusals=(ValueError, TypeError, KeyError, AttributeError)),
}  # fmt: skip
