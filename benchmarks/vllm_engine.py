"""PPO with the native engine and with a vLLM server, from the same policy: reward, and seconds per step.

    python benchmarks/vllm_engine.py POLICY_FOLDER http://127.0.0.1:8000 [OUT]

The server is started by hand, as docs/cluster.md says, with the policy or another of its shape. Three seeds of each
engine, in turn. The reward is ten times the share of a response's characters that are an "e".
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from proxlm.__main__ import main
from proxlm.runlog.folder import read_jsonl

SEEDS, STEPS, LAST = (0, 1, 2), 20, 5
T_95 = 4.303  # Student's, two degrees of freedom
REWARD = "def score(completions):\n    return [10 * c.text.count('e') / max(len(c.text), 1) for c in completions]\n"
PROMPTS = [
    "First Citizen:\n",
    "KING RICHARD:\n",
    "What say you",
    "I know",
    "My lord,",
    "O, ",
    "Come,",
    "The ",
]


def run(policy: str, engine: list[str], seed: int, folder: Path) -> None:
    """One run of PPO."""
    prompts = folder.parent / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS * 8), encoding="utf-8")
    reward = folder.parent / "reward.py"
    reward.write_text(REWARD, encoding="utf-8")
    status = main([
        "ppo", "--model.policy", policy, "--model.device", "cpu", "--data.prompts", str(prompts),
        "--data.eval-count", "4", "--reward.use", f"{reward}:score", "--ppo.steps", str(STEPS),
        "--ppo.batch-size", "32", "--rollout.max-new-tokens", "32", "--optim.policy.lr", "5e-4",
        "--run.seed", str(seed), "--run.folder", str(folder), "--run.threads", "1", "--run.report", "false", *engine,
    ])  # fmt: skip
    if status:
        raise SystemExit(status)


def mean(folder: Path, name: str, part: slice) -> float:
    """Of a metric over some of the steps."""
    return statistics.fmean(row[name] for row in read_jsonl(folder / "metrics.jsonl")[part])


def compare(policy: str, url: str, out: Path) -> None:
    """All runs, and their table."""
    out.mkdir(parents=True, exist_ok=True)
    engines = {"native": [], "vllm": ["--engine.use", "vllm", "--engine.url", url]}
    rewards: dict[str, list[float]] = {name: [] for name in engines}
    lines = ["| engine | seed | reward, first step | last 5 | s/step | s/step writing | largest gap |"]
    for seed in SEEDS:
        for name, engine in engines.items():
            folder = out / f"{name}-{seed}"
            run(policy, engine, seed, folder)
            last = slice(-LAST, None)
            rewards[name].append(mean(folder, "reward", last))
            gap = max(row["rollout_gap"] for row in read_jsonl(folder / "metrics.jsonl"))
            lines.append(
                f"| {name} | {seed} | {mean(folder, 'reward', slice(1)):.3f} | {rewards[name][-1]:.3f}"
                f" | {mean(folder, 'time/step', slice(1, None)):.2f}"
                f" | {mean(folder, 'time/generate', slice(1, None)):.2f} | {gap:.1e} |"
            )
    lines.insert(1, "| --- " * 7 + "|")
    differences = [a - b for a, b in zip(rewards["vllm"], rewards["native"], strict=True)]
    half = T_95 * statistics.stdev(differences) / len(SEEDS) ** 0.5
    print("\n".join(lines))
    print(f"vllm - native: {statistics.fmean(differences):+.3f} ± {half:.3f} (95%, {len(SEEDS)} seeds)")


if __name__ == "__main__":
    compare(sys.argv[1], sys.argv[2], Path(sys.argv[3] if len(sys.argv) > 3 else "runs/vllm-engine"))
