"""A PPO step on a model of the shape of SmolLM2-135M with adapters on all blocks, and on the top ones alone.

python benchmarks/top_layers.py [--layers 6] [--steps 2] [--threads 2]

64 responses of 24 tokens to 16 prompts of 30 to 59, LoRA of rank 16, critic "adapter", one epoch of two minibatches,
float32. The weights are random, which changes no time. Seconds of processor and clock by phase; the last line is the
ratio of whole steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from proxlm.config import LoraSettings, ModelSettings, PPOConfig, PPOSettings, RolloutSettings
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.load import language_model_of
from proxlm.train.ppo.learner import build_learner
from proxlm.train.ppo.prepare import prepare
from proxlm.train.ppo.update import update
from proxlm.types import Prompt, Scores

VOCABULARY, RESPONSES, TOKENS = 49_152, 64, 24
T = TypeVar("T")


class Phases:
    """Adds up the seconds of a step by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        began = time.process_time(), time.perf_counter()
        found = work()
        self.seconds[name] = time.process_time() - began[0], time.perf_counter() - began[1]
        return found

    def total(self) -> tuple[float, float]:
        """Seconds of processor and of the clock."""
        return sum(cpu for cpu, _ in self.seconds.values()), sum(clock for _, clock in self.seconds.values())


def steps(layers: int, count: int) -> list[Phases]:
    """The seconds of `count` steps with adapters on the top `layers` blocks; 0: on all."""
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=2048,
        )
    )  # fmt: skip
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t3"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="t0", bos_token="t1", pad_token="t2", unk_token="t3"
    )
    lora = LoraSettings(rank=16)
    settings = ModelSettings(policy="random", critic="adapter", device="cpu", train_layers=layers, lora=lora)
    made = make_actor_critic(language_model_of(network, tokenizer, settings), "adapter")
    config = PPOConfig(
        model=settings,
        rollout=RolloutSettings(max_new_tokens=TOKENS, batch_size=RESPONSES),
        ppo=PPOSettings(batch_size=RESPONSES, minibatches=2, epochs=1, micro_batch_tokens=2048),
    )
    learner, engine = build_learner(made, config), NativeEngine(made.policy, config.rollout)
    generator = torch.Generator().manual_seed(0)
    prompts = [
        Prompt(
            i, tuple(torch.randint(4, VOCABULARY, (30 + 2 * i - i % 2,), generator=generator).tolist()), ""
        )
        for i in range(16)
    ] * 4
    found = []
    for step in range(count):
        phases = Phases()
        rollout = phases("generate", lambda s=step: generate(engine, prompts, config.rollout, seed=0, step=s))  # type: ignore[misc]
        scores = Scores(torch.randn(RESPONSES))
        prepared = phases("prepare", lambda r=rollout, s=scores, i=step: prepare(made, r, s, config, i))  # type: ignore[misc]
        phases("update", lambda p=prepared: update(learner, p))  # type: ignore[misc]
        found.append(phases)
        said = ", ".join(f"{name} {cpu:.1f} ({clock:.1f})" for name, (cpu, clock) in phases.seconds.items())
        cpu, clock = phases.total()
        print(
            f"{layers or 'all'} blocks, step {step + 1}: {said}, together {cpu:.1f} s ({clock:.1f} s)",
            flush=True,
        )
    return found


def main() -> None:
    """Run both and print the ratio of their last steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    top, everything = (steps(layers, given.steps)[-1].total() for layers in (given.layers, 0))
    cpu, clock = (a / b for a, b in zip(everything, top, strict=True))
    print(f"all / top {given.layers}: {cpu:.2f} of processor, {clock:.2f} of the clock")


if __name__ == "__main__":
    main()
