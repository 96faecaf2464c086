"""Runs of every job that take a second, and what must be the same in two of them."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from proxlm.__main__ import main
from proxlm.checkpoint import checkpoints, damage
from proxlm.errors import RunError

TEXTS = [
    "The cat sat on the mat and looked at the moon.",
    "One day a small dog found a big red ball in the park.",
    "def add(a, b): return a + b",
    "春眠不觉晓，处处闻啼鸟。",
]
REWARD = "def score(completions):\n    return [sum(c in 'aeiou' for c in x.text) / 20 for x in completions]\n"
ENVIRONMENT = """class Vowels:
    def reset(self, task):
        self.turns = 0
        return f"game {task.seed % 7}:"

    def step(self, reply):
        self.turns += 1
        return " again:", sum(c in "aeiou" for c in reply) / 20, self.turns == 2
"""
# What the runs write is below this folder, which is the one that is watched.
WATCHED = Path("out")
RUN = WATCHED / "run"
# Two checkpoints of three stay, so that one is removed; the tokens are few.
COMMON = ["--run.threads", "1", "--run.save-every", "1", "--run.keep", "2",
          "--run.folder", str(RUN)]  # fmt: skip
MODEL = ["--model.device", "cpu"]
# All that a run carries: a critic of its own, β that adapts, rewards scaled by all so far, a reference that moves.
PPO = [
    "ppo", *COMMON, *MODEL, "--model.policy", "model", "--rollout.max-new-tokens", "4", "--ppo.steps", "3",
    "--ppo.batch-size", "4", "--ppo.epochs", "1", "--ppo.minibatches", "2", "--model.critic", "separate",
    "--ppo.kl-controller", "adaptive", "--ppo.kl-target", "0.1", "--ppo.kl-horizon", "100",
    "--ppo.reference-decay", "0.9", "--shaping.scale", "running", "--optim.policy.lr", "1e-3",
    "--optim.critic.schedule", "cosine", "--evaluation.every", "1",
]  # fmt: skip
PROMPTS = ["--data.prompts", "prompts.jsonl", "--data.eval-count", "2", "--reward.use", "reward.py:score"]
ASKED = ["--data.prompts", "prompts.jsonl", "--data.eval-count", "2"]
TALK = ["--environment.use", "environment.py:Vowels", "--environment.tasks", "12", "--environment.max-turns", "2",
        "--data.eval-count", "2", "--ppo.gae-steps", "turn"]  # fmt: skip
TRAIN = ["--train.steps", "3", "--train.batch-tokens", "60", "--train.validate-every", "1", "--train.patience", "0",
         "--optim.lr", "1e-2", "--optim.warmup", "2"]  # fmt: skip
AHEAD = ["--ppo.max-staleness", "1", "--ppo.staleness-correction.mode", "token_truncate"]
CONTROL = [
    "control", *COMMON, "--environment.id", "CartPole-v1", "--environment.count", "2",
    "--environment.steps", "96", "--ppo.horizon", "16", "--ppo.epochs", "1", "--ppo.minibatches", "2",
    "--model.width", "8", "--model.lstm", "4", "--run.keep-best", "entropy", "--run.keep-best-is", "lowest",
]  # fmt: skip
ASYNCHRONOUS = ["--run.asynchronous-save", "true"]
JOBS: dict[str, list[str]] = {
    "ppo": [*PPO, *PROMPTS],
    "ppo, ahead": [*PPO, *PROMPTS, *AHEAD],
    "ppo, asynchronous": [*PPO, *PROMPTS, *ASYNCHRONOUS],
    "ppo, conversations": [*PPO, *TALK],
    "ppo, conversations, ahead": [*PPO, *TALK, *AHEAD],
    "ppo, distilled": [*PPO, *PROMPTS, "--model.teacher", "model"],
    # A categorical critic: its head starts in the first step.
    "value": [
        "value", *PPO[1:], *PROMPTS,
        "--model.value.head", "categorical", "--model.value.bins", "9", "--evaluation.every", "0",
        "--run.keep-best", "value_loss", "--run.keep-best-is", "lowest",
    ],
    "sft": ["sft", *COMMON, *MODEL, "--model.policy", "model", "--text.train", "pairs.jsonl", *TRAIN],
    "reward": ["reward", *COMMON, *MODEL, "--model.policy", "model", "--text.train", "comparisons.jsonl", *TRAIN],
    "reward, ensemble": [
        "reward", *COMMON, *MODEL, "--model.policy", "model", "--text.train", "comparisons.jsonl",
        "--ensemble.size", "2", *TRAIN,
    ],
    "dpo": ["dpo", *COMMON, *MODEL, "--model.policy", "model", "--text.train", "comparisons.jsonl", *TRAIN],
    "distill": [
        "distill", *COMMON, *MODEL, "--model.policy", "model", "--model.teacher", "model", *ASKED,
        "--distill.mode", "on_policy", "--rollout.max-new-tokens", "4", *TRAIN,
    ],
    "pretrain": [
        "pretrain", *COMMON, *MODEL, "--text.train", "text.txt", "--new.type", "llama", "--new.hidden", "16",
        "--new.layers", "1", "--new.heads", "2", "--new.context", "32", "--new.vocabulary", "280",
        "--train.block", "32", *TRAIN,
    ],
    "control": CONTROL,
    "control, asynchronous": [*CONTROL, *ASYNCHRONOUS],
    "evaluate": [
        "evaluate", *MODEL, "--model.policy", "model", "--data.eval-prompts", "prompts.jsonl", "--data.eval-count",
        "2", "--rollout.max-new-tokens", "4", "--reward.use", "reward.py:score", "--output",
        str(WATCHED / "evaluation.json"),
    ],
    "data": [
        "data", "pages.jsonl", "--output", str(WATCHED / "data"), "--save-every", "0.001",
        *(word for step in ("unicode", "exact", "pii", "split") for word in ("--steps", step)),
    ],
    "classify": [
        "classify", "model", "--data.train", "classes.jsonl", "--use", "logistic", "--folds", "2", "--output",
        str(WATCHED / "classify"), "--run.threads", "1",
    ],
    "report": ["report", "finished", "--output", str(WATCHED / "report.html")],
}  # fmt: skip
TRAINS = [name for name in JOBS if name not in ("evaluate", "data", "classify", "report")]
# What a clock or a memory gauge says, at the end of a name or its beginning.
TIMED = ("time", "tokens_per_second", "steps_per_second", "memory_gb", "seconds")


class Ended(NamedTuple):
    """How a command ended: its exit status, negative for a signal, and what it wrote."""

    status: int
    output: str
    errors: str


def prepare(folder: Path, jobs: Sequence[str]) -> None:
    """What these jobs read, in `folder`, with an empty out/, and the modules that they need."""
    (folder / WATCHED).mkdir()
    torch.set_num_threads(1)
    if set(jobs) - {"control", "control, asynchronous", "report"}:
        _language(folder)
    if "report" in jobs:
        control = [argument.replace(str(RUN), "finished") for argument in JOBS["control"]]
        if (ended := run(folder, control)).status != 0:
            raise SystemExit(f"{control}: {ended}")
    for name in jobs:
        _import_what_it_imports(folder, JOBS[name])


def _import_what_it_imports(folder: Path, command: Sequence[str]) -> None:
    names = folder / "modules.txt"
    before = set(sys.modules)

    def note() -> None:
        status = main(command)
        names.write_text("\n".join(set(sys.modules) - before))
        os._exit(status)

    if (ended := run(folder, command, note)).status != 0:
        raise SystemExit(f"{command}: {ended}")
    for name in names.read_text().splitlines():
        with suppress(Exception):  # some are only there while another one is imported
            importlib.import_module(name)
    shutil.rmtree(folder / WATCHED)
    (folder / WATCHED).mkdir()


def _language(folder: Path) -> None:
    """A tiny model, prompts, pairs, text, a reward and an environment."""
    from proxlm.config import ModelSettings, NewModelSettings
    from proxlm.data.tokenizer import train_tokenizer
    from proxlm.models.load import build_language_model
    from proxlm.models.save import save_language_model

    tokenizer = train_tokenizer(TEXTS * 20, vocabulary=280, context=64)
    torch.manual_seed(0)
    new = NewModelSettings(type="llama", hidden=16, layers=1, heads=2, context=64)
    save_language_model(build_language_model(new, tokenizer, ModelSettings(device="cpu")), folder / "model")
    prompts = [{"prompt": f"{text[:8]} {i}"} for i in range(3) for text in TEXTS]
    pairs = [{"prompt": text[:6], "response": f"{text[6:16]} {i}"} for i in range(6) for text in TEXTS]
    comparisons = [
        {"prompt": f"{text[:6]} {i}", "chosen": text[6:12], "rejected": text[12:20]}
        for i in range(6)
        for text in TEXTS
    ]
    classes = [
        {"text": f"{text[:24]} {text[:3]} {i}", "label": f"kind {n % 2}"}
        for i in range(16)
        for n, text in enumerate(TEXTS)
    ]
    pages = [{"text": f"{text} {i // 2} a{i}@b.org"} for i in range(20) for text in TEXTS]
    records = {
        "prompts": prompts,
        "pairs": pairs,
        "comparisons": comparisons,
        "classes": classes,
        "pages": pages,
    }
    for name, rows in records.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "text.txt").write_text("\n\n".join(TEXTS * 12), encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    (folder / "environment.py").write_text(ENVIRONMENT, encoding="utf-8")


def run(place: Path, arguments: Sequence[str], first: Callable[[], object] = lambda: None) -> Ended:
    """Run a command in a fork of this process, with `place` as the current folder. `first` is called there before."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.chdir(place)
            for descriptor, name in ((1, "output.txt"), (2, "errors.txt")):
                file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, descriptor)
                os.close(file)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            first()
            status = main(arguments)
            sys.stdout.flush()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    read = [
        (place / name).read_text(encoding="utf-8", errors="replace") for name in ("output.txt", "errors.txt")
    ]
    return Ended(status, *read)


def differences(whole: Path, found: Path) -> list[str]:
    """What is not the same in the folders that two runs wrote, out/ of each; the first is taken to be right.

    Every file is compared byte for byte, but: JSON and JSONL without times, speeds and memory; a checkpoint's
    manifest by whether it fits its checkpoint, as it holds the hash of such a file; a report by whether it is the one
    that the run's files give.
    """
    names = [{str(p.relative_to(f)) for p in f.rglob("*") if not p.is_dir()} for f in (whole, found)]
    # A file that was begun beside the one that a command writes, which is no run, stays there.
    names[1] = {name for name in names[1] if not name.startswith((".writing-", "classify/.writing-"))}
    different = [f"{name}: missing" for name in sorted(names[0] - names[1])]
    different += [f"{name}: left behind" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        if _content(whole, name) != _content(found, name):
            different.append(f"{name}: {_first_difference(whole, found, name)}")
    return different + [problem for p in checkpoints(found / RUN.name) if (problem := _damage(p))]


def _damage(checkpoint: Path) -> str | None:
    try:
        problem = damage(checkpoint)
    except RunError as error:
        return str(error)
    return problem and f"{checkpoint.name}: {problem}"


def _content(folder: Path, name: str) -> Any:
    path = folder / name
    if path.name == "manifest.json":
        return None
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".json" and path.parent.name not in ("policy", "reward", "value"):
        return timeless(json.loads(path.read_text(encoding="utf-8")))
    if path.name == "report.html" and (folder / RUN.name) == path.parent:
        from proxlm.report.page import page
        from proxlm.report.run_data import read_run

        return path.read_text(encoding="utf-8") == page(read_run(path.parent))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _first_difference(whole: Path, found: Path, name: str) -> str:
    contents = [_content(folder, name) for folder in (whole, found)]
    if name.endswith(".jsonl"):
        lines = [i for i, (a, b) in enumerate(zip(*contents, strict=False), start=1) if a != b]
        return f"line {lines[0]}" if lines else f"{len(contents[1])} lines, not {len(contents[0])}"
    return "not the same"


def timeless(value: Any) -> Any:
    """JSON without what clocks and gauges say."""
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if not name.startswith(TIMED)}
    return [timeless(item) for item in value] if isinstance(value, list) else value
