"""A model that has read calls of a calculator and guesses learns to call it: sums of a product and a number.

    python benchmarks/tool_use.py OUTPUT_FOLDER [--seeds 0 1 2]

Writes OUTPUT_FOLDER/{play.jsonl, train.jsonl, held-out.jsonl, read/, SEED/} and tool_use.json.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from proxlm import load_config
from proxlm.environments.protocol import Task
from proxlm.environments.tools.environment import ToolUse
from proxlm.jobs import ppo, pretrain

TEXTS, HELD_OUT, CALL_SHARE = 12_000, 256, 0.25
RECIPE = Path("recipes") / "calculator.toml"
READ: dict[str, Any] = {
    "new.hidden": 64,
    "new.layers": 2,
    "new.heads": 4,
    "new.vocabulary": 300,
    "new.context": 160,
    "text.validation_share": 0.05,
    "train.steps": 800,
    "train.batch_tokens": 1024,
    "train.block": 64,
    "optim.lr": 3e-3,
}


def conversation(draw: random.Random, prompt: str) -> str:
    """The prompt with a call, its result and the answer, or with a guess."""
    expression = prompt.removesuffix(" =")
    if draw.random() > CALL_SHARE:
        return f"{prompt} {draw.randint(0, 89)}\n"
    tool = ToolUse(["calculator"], describe=False)
    tool.reset(Task(prompt))
    arguments = json.dumps({"name": "calculator", "arguments": {"expression": expression}})
    call = f"<tool_call>{arguments}</tool_call>"
    results, _, _ = tool.step(call)
    found = results[0]["content"]
    return f"{prompt} {call}\n<tool_response>{found}</tool_response>\n {found}\n"


def prepare(folder: Path, threads: int) -> None:
    """The prompts, the texts, and the model that has read them."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    sums = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
    draw.shuffle(sums)
    records = [{"prompt": f"{a} * {b} + {c} =", "answer": str(a * b + c)} for a, b, c in sums]
    parts = {"held-out": records[:HELD_OUT], "train": records[HELD_OUT:]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part), "utf-8")
    texts = [conversation(draw, draw.choice(parts["train"])["prompt"]) for _ in range(TEXTS)]
    (folder / "play.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    given = {"text.train": [str(folder / "play.jsonl")], "run.folder": str(folder / "read")}
    pretrain.main(load_config("pretrain", None, {**READ, **given, "run.threads": threads}))


def learn(folder: Path, seed: int, threads: int) -> dict[str, Any]:
    """One PPO run: accuracy on held-out products before and after, and calls of the tool."""
    run = folder / str(seed)
    if not (run / "report.html").exists():
        given = {
            "model.policy": str(folder / "read" / "policy"),
            "data.prompts": str(folder / "train.jsonl"),
            "data.eval_prompts": str(folder / "held-out.jsonl"),
            "run.folder": str(run),
            "run.seed": seed,
            "run.threads": threads,
        }
        ppo.main(load_config("ppo", RECIPE, given))
    models = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["models"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    before, after = (m["metrics"]["reward"] for m in models)
    calls = [rows[0]["counted/tool_calls"], rows[-1]["counted/tool_calls"]]
    return {"before": before, "after": after, "calls": calls, "seconds": rows[-1]["time"], "steps": len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if not (given.output / "read" / "policy").exists():
        prepare(given.output, given.threads)
    found = {}
    for seed in given.seeds:
        found[str(seed)] = result = learn(given.output, seed, given.threads)
        before, after, calls = result["before"]["mean"], result["after"]["mean"], result["calls"]
        print(
            f"seed {seed}: {before:.3f} → {after:.3f}; calls {calls[0]:.2f} → {calls[1]:.2f},"
            f" {result['seconds']:.0f} s",
            flush=True,
        )
    (given.output / "tool_use.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
