"""Writing responses: proxlm's decoding beside transformers' `generate` on the same model, in turn, in one process.

    python benchmarks/generation.py [--models small vocab 58m] [--batches 1 16 64] [--repeats 5] [--threads 2]

Random Llamas in float32 (step_models.py), prompts of 16 tokens and 64 sampled tokens each; `ragged` is 256 prompts
of 8 to 128 tokens whose responses end by EOS, 64 at once, which transformers gets as batches of 64 with prompts of
like length. proxlm runs with the weights as they are and rounded to int8 (rollout.weights), of which the distance
from the policy's own log-probs is measured. Both sides sample from the whole distribution and stop at the same
length. Medians; writes benchmarks/results/generation.json and .md. Needs a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step_models import EOS, Work, make_models

from proxlm.config import ModelSettings, RolloutSettings
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.jobs.startup import start_job
from proxlm.models.forward import token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import load_language_model
from proxlm.rl.kl import kl_estimate
from proxlm.types import Prompt, Rollout

RESULTS = Path(__file__).parent / "results"
MODELS = {
    "small": Work(),
    "vocab": Work(vocabulary=32_000),
    "58m": Work(hidden=512, layers=8, vocabulary=32_000),
}
RAGGED, RAGGED_ROWS = Work(ragged=True), 256
WEIGHTS = ("policy", "int8")


def prompts_of(work: Work, rows: int) -> list[Prompt]:
    made = work.prompts(-(-rows // work.batch))[:rows]
    return [Prompt(i, tuple(ids), f"prompt {i}") for i, ids in enumerate(made)]


@torch.no_grad()
def theirs(model: LanguageModel, prompts: list[Prompt], work: Work) -> int:
    """transformers' generate, 64 rows at once, prompts of like length together; how many tokens were written."""
    ordered, written = sorted(prompts, key=lambda p: len(p.input_ids)), 0
    for start in range(0, len(ordered), work.batch):
        rows = [list(p.input_ids) for p in ordered[start : start + work.batch]]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        found = model.network.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=work.response,
            min_new_tokens=None if work.ragged else work.response,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=EOS,
            eos_token_id=EOS if work.ragged else None,
        )
        new = found[:, longest:]
        ended = (new == EOS).long().cumsum(-1)
        written += int((ended == 0).sum() + (ended[:, -1] > 0).sum()) if work.ragged else new.numel()
    return written


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = run()
    return time.perf_counter() - began, found


@torch.no_grad()
def mismatch(model: LanguageModel, rollout: Rollout) -> float:
    """KL from the rollout's policy to the model's own, nats per token (k3)."""
    own = token_outputs(model, rollout.sequences).logprobs
    return float(kl_estimate(rollout.logprobs, own, "k3").mean())


def measure(work: Work, rows: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds, tokens per second and mismatch of transformers and of proxlm with each kind of weights."""
    with tempfile.TemporaryDirectory() as name:
        make_models(work, Path(name))
        model = load_language_model(ModelSettings(policy=f"{name}/policy", device="cpu", precision="float32"))
    prompts = prompts_of(work, rows)

    def ours(weights: Any) -> Rollout:
        config = RolloutSettings(max_new_tokens=work.response, batch_size=work.batch, weights=weights)
        return generate(NativeEngine(model, config), prompts, config, seed=0, step=0)

    seconds: dict[str, list[float]] = {name: [] for name in ("transformers", *WEIGHTS)}
    tokens: dict[str, int] = {}
    gaps: dict[str, float] = {}
    for turn in range(repeats + 1):
        taken, tokens["transformers"] = timed(lambda: theirs(model, prompts, work))
        if turn:
            seconds["transformers"].append(taken)
        for weights in WEIGHTS:
            taken, rollout = timed(lambda kind=weights: ours(kind))
            tokens[weights] = len(rollout.logprobs)
            if turn:
                seconds[weights].append(taken)
            else:
                gaps[weights] = mismatch(model, rollout)
    found = {}
    for name, values in seconds.items():
        middle = statistics.median(values)
        found[name] = {"seconds": middle, "tokens_per_second": tokens[name] / middle} | (
            {"kl": gaps[name]} if name in gaps else {}
        )
    return found


def table(found: dict[str, Any]) -> str:
    lines = [
        "| model | rows | transformers, tokens/s | proxlm | ratio | int8 weights | ratio | KL of int8, nats/token |",
        "| --- " * 8 + "|",
    ]
    for key, row in found.items():
        model, rows = key.split("/")
        base = row["transformers"]["tokens_per_second"]
        cells = [model, rows, f"{base:.0f}"]
        for name in WEIGHTS:
            rate = row[name]["tokens_per_second"]
            cells += [f"{rate:.0f}", f"{rate / base:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{row['int8']['kl']:.4f}"]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=[*MODELS, "ragged"], choices=[*MODELS, "ragged"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    start_job(given.threads)
    found: dict[str, Any] = {}
    for name in given.models:
        for rows in [RAGGED_ROWS] if name == "ragged" else given.batches:
            found[f"{name}/{rows}"] = measure(MODELS.get(name, RAGGED), rows, given.repeats)
            print(table({f"{name}/{rows}": found[f"{name}/{rows}"]}), flush=True)
    (RESULTS / "generation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "generation.md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
