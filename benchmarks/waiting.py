"""Conversations whose environments wait, beside ones that answer at once: tokens per second and their ratio.

    python benchmarks/waiting.py [--threads 2] [--repeats 3] [--hidden 512] [--layers 8]

64 conversations of four turns of 32 tokens with a random Llama; each call of `step` waits 0 to 200 ms, uniformly.
Both kinds alternate. Writes benchmarks/results/waiting.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from proxlm.config import EnvironmentSettings, ModelSettings, NewModelSettings, RolloutSettings
from proxlm.data.tokenizer import train_tokenizer
from proxlm.engine.native import NativeEngine
from proxlm.environments.message_tokens import PlainMessageTokens
from proxlm.environments.multi_turn import MultiTurn
from proxlm.environments.protocol import Answer, Task
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import build_language_model
from proxlm.types import Prompt

CONVERSATIONS, TURNS, LENGTH, LONGEST_WAIT = 64, 4, 32, 0.2
RESULTS = Path(__file__).parent / "results"


class Waits:
    """Answers the same few words after up to `longest` seconds."""

    def __init__(self, longest: float) -> None:
        self.longest = longest

    def reset(self, task: Task) -> str:
        self.draw = random.Random(task.chance)
        return "Say something, please:"

    async def step(self, reply: str) -> Answer:  # noqa: ARG002
        await asyncio.sleep(self.draw.uniform(0.0, self.longest))
        return " And then?", 0.0, False


def model_of(hidden: int, layers: int) -> LanguageModel:
    """A random model that never ends a turn early."""
    tokenizer = train_tokenizer(["Say something, please: And then?"] * 8, vocabulary=300, context=512)
    new = NewModelSettings(vocabulary=len(tokenizer), hidden=hidden, layers=layers, heads=8, context=512)
    model = build_language_model(new, tokenizer, ModelSettings())
    model.network.generation_config.eos_token_id = model.tokenizer.eos_token_id = None
    return model


def tokens_per_second(model: LanguageModel, longest_wait: float, count: int, length: int) -> float:
    settings = EnvironmentSettings(use="waits", max_turns=TURNS, max_tokens=512)
    make: Callable[[], Waits] = lambda: Waits(longest_wait)  # noqa: E731
    multi_turn = MultiTurn(make, PlainMessageTokens(model.tokenizer), settings)
    prompts = [Prompt(i, (), "") for i in range(count)]
    config = RolloutSettings(max_new_tokens=length, batch_size=count)
    began = time.perf_counter()
    rollout = multi_turn(NativeEngine(model, config), prompts, config, seed=0, step=0)
    return float(rollout.action_mask.sum()) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = model_of(given.hidden, given.layers)
    tokens_per_second(model, 0.0, 8, 8)
    found: dict[str, list[float]] = {"at once": [], "waiting": []}
    for _ in range(given.repeats):
        for name, longest in (("at once", 0.0), ("waiting", LONGEST_WAIT)):
            found[name].append(tokens_per_second(model, longest, CONVERSATIONS, LENGTH))
            print(f"{name}: {found[name][-1]:.0f} tokens/s", flush=True)
    ratio = statistics.median(found["waiting"]) / statistics.median(found["at once"])
    print(f"waiting / at once: {ratio:.1%}")
    size = sum(p.numel() for p in model.network.parameters())
    result = {
        "parameters": size,
        "conversations": CONVERSATIONS,
        "turns": TURNS,
        "tokens a turn": LENGTH,
        "wait in seconds": [0.0, LONGEST_WAIT],
        "threads": given.threads,
        "tokens per second": found,
        "ratio of medians": ratio,
    }
    (RESULTS / "waiting.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
