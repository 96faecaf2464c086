"""Every causal model type of transformers that can be built small, through all that a PPO run does with a model.

python benchmarks/model_zoo.py [--types llama opt] [--output benchmarks/results/model_zoo.json]
    [--page docs/model-types.md]

Each model is random, with weights large enough that positions and attention matter (tests/causal_types.py). Of each:
whether it is refused when it is loaded, and why; else log-probs of responses that the engine has written, against the
training pass and against transformers' forward of each row alone; whether greedy responses are those of
transformers' `generate`; by how much another last token changes earlier logits; the logits of the saved and loaded
model; those of adapters beside the weights and merged into them; and one step of PPO with a separate critic: the
largest |ratio − 1| of its first minibatch, and whether all that learns has moved and is finite.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import with_tests  # noqa: F401
from helpers import SilentLog, job, parameters, vowels
from transformers.utils import logging

from causal_types import AGREE, REFUSED, loaded
from proxlm.config import LoraSettings, ModelSettings, RolloutSettings
from proxlm.data.prompts import PromptStream
from proxlm.data.tokenizer import train_tokenizer
from proxlm.engine.agreement import check_engine
from proxlm.engine.decoders import BlockDecoder, make_decoder
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.errors import UserError
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.adapters import add_lora, merged, some_logits
from proxlm.models.agreement import check_gradients
from proxlm.models.forward import token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import load_language_model
from proxlm.models.save import save_language_model
from proxlm.train.ppo.loop import PPOLoop
from proxlm.types import Prompt
from small_models import TEXTS, WORDS

COLUMNS = {
    "engine": "engine − training pass",
    "alone": "engine − transformers",
    "greedy": "greedy = `generate`",
    "causality": "causality",
    "saved": "saved and loaded",
    "lora": "adapters merged",
    "ratio": "PPO: ratio − 1",
    "learns": "PPO: learns",
}
HEAD = """# Model types

{count} causal model types of transformers: {right} generate, {trained} of them train, and the others are
refused by name. Each is a random model of some 30,000 parameters with weights large enough that positions and
attention matter, in float32. Made by `python benchmarks/model_zoo.py --output
benchmarks/results/model_zoo.json --page docs/model-types.md` (transformers 5.23, torch 2.13, CPU).

Numbers are the largest differences: of log-probs of eight greedy tokens after prompts of 17, 1, 9 and 2, in
nats, between what the engine recorded and the pass that trains, and transformers' own forward of each row
alone; of logits before a last token that is changed (causality), of the saved and loaded model, and of
adapters (LoRA) merged into the weights; of the ratio of PPO's first minibatch and 1 (0 by construction; a
type whose attention has other kernels with gradients than without is not exact). The last column: after one
PPO step with a separate critic all weights are finite, and the policy's have moved. "refused": an error says
that there can be no adapters. Written by: own blocks (proxlm's passes and cache), CachedDecoder
(transformers' cache) or RecomputeDecoder (every token reads its whole text again).
"""
NUMBER_OF_TOKENS = 8
# What a type's own settings let `generate` do besides, such as EOS as the last token.
FORCED = (
    "forced_eos_token_id",
    "forced_bos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
)


def rows() -> list[list[int]]:
    """Prompts of different lengths."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 320, (n,), generator=generator).tolist() for n in (17, 1, 9, 2)]


@torch.no_grad()
def generation(model: LanguageModel) -> dict[str, Any]:
    """Greedy responses: against the training pass, transformers' forward and transformers' `generate`."""
    settings = RolloutSettings(max_new_tokens=NUMBER_OF_TOKENS, temperature=0.0)
    prompts = [Prompt(i, tuple(row), "") for i, row in enumerate(rows())]
    rollout = generate(NativeEngine(model, settings), prompts, settings, seed=0, step=0)
    for name in FORCED:
        setattr(model.network.generation_config, name, None)
    sequences, engine, alone, same = rollout.sequences, rollout.logprobs, [], True
    lengths = sequences.response_lengths.tolist()
    for prompt, response in zip(prompts, sequences.response_tokens.split(lengths), strict=True):
        text = torch.tensor([*prompt.input_ids, *response.tolist()])[None]
        logits = (
            model.network(input_ids=text, use_cache=False).logits[0, len(prompt.input_ids) - 1 : -1].float()
        )
        alone.append(logits.log_softmax(-1).gather(-1, response[:, None])[:, 0])
        with contextlib.redirect_stderr(io.StringIO()):
            ids = torch.tensor(prompt.input_ids)[None]
            found = model.network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=len(response),
                do_sample=False,
                use_cache=False,
            )
        same &= found[0, len(prompt.input_ids) :].tolist() == response.tolist()
    trained = token_outputs(model, sequences).logprobs
    return {
        "engine": float((trained - engine).abs().max()),
        "alone": float((torch.cat(alone) - engine).abs().max()),
        "greedy": same,
    }


@torch.no_grad()
def causality(model: LanguageModel) -> dict[str, Any]:
    """By how much another last token changes the logits before it."""
    text = torch.tensor(rows()[0])[None]
    other = text.clone()
    other[0, -1] = (other[0, -1] + 7) % 320
    first, second = (
        model.network(input_ids=x, use_cache=False).logits[0, :-1].float() for x in (text, other)
    )
    return {"causality": float((first - second).abs().max())}


@torch.no_grad()
def saved_and_loaded(model: LanguageModel) -> dict[str, Any]:
    """By how much the logits of the saved and loaded model differ."""
    with tempfile.TemporaryDirectory() as folder:
        save_language_model(model, Path(folder))
        again = load_language_model(ModelSettings(policy=folder, device="cpu"))
        return {"saved": float((some_logits(again.network) - some_logits(model.network)).abs().max())}


@torch.no_grad()
def adapters(model: LanguageModel) -> dict[str, Any]:
    """By how much the logits of adapters beside the weights differ from those merged into them."""
    adapted = add_lora(model, LoraSettings(rank=2))
    generator = torch.Generator().manual_seed(3)
    for name, p in adapted.network.named_parameters():
        if "lora_B" in name:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    beside = some_logits(adapted.network)
    return {"lora": float((some_logits(merged(adapted.adapters)) - beside).abs().max())}


def ppo_step(model: LanguageModel) -> dict[str, Any]:
    """One step on a reward that varies."""
    config = job("separate", steps=1)
    texts = [Prompt(i, tuple(model.tokenizer(text).input_ids), text) for i, text in enumerate(WORDS * 3)]
    stream = PromptStream(texts, config.ppo.batch_size, 0)
    made = PPOLoop(config, make_actor_critic(model, "separate"), stream, vowels, Path())
    before = parameters(made)
    metrics = made.step(SilentLog())  # type: ignore[arg-type]
    after = parameters(made)
    finite = all(bool(p.isfinite().all()) for p in after.values())
    moved = any(
        not torch.equal(after[name], before[name]) for name, _ in made.learner.optimisers.policy.named
    )
    return {"ratio": metrics["first_minibatch/ratio_error"], "learns": finite and moved}


TRIALS: list[Callable[[LanguageModel], dict[str, Any]]] = [
    generation,
    causality,
    saved_and_loaded,
    ppo_step,
    adapters,
]


def tried(model_type: str, tokenizer: Any) -> dict[str, Any]:
    """All figures of a model type, or why it is refused."""
    found: dict[str, Any] = {"parameters": 0}
    for trial in TRIALS:
        try:
            model = loaded(tokenizer, model_type)
            found["parameters"] = sum(p.numel() for p in model.network.parameters())
            check_engine(model)
            if trial is ppo_step:
                check_gradients(model)
            found["cache"] = (
                "own blocks"
                if isinstance(make_decoder(model), BlockDecoder)
                else type(make_decoder(model)).__name__
            )
            found |= trial(model)
        except UserError as error:
            found.setdefault("refused", {})[trial.__name__] = str(error)
            if trial is generation:
                break
        except Exception as error:  # what a user would see as a traceback
            found.setdefault("failed", {})[trial.__name__] = f"{type(error).__name__}: {error}"[:300]
    return found


def wrong(found: dict[str, Any]) -> list[str]:
    """What is neither right nor refused."""
    bad = [f"{name}: {text}" for name, text in found.get("failed", {}).items()]
    for name, most in (
        ("engine", 1e-3),
        ("alone", 1e-3),
        ("causality", 1e-4),
        ("saved", 1e-5),
        ("ratio", 1e-5),
    ):
        if found.get(name, 0.0) > most:
            bad.append(f"{name} = {found[name]:.2g}")
    return bad + [name for name in ("greedy", "learns") if found.get(name) is False]


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        HEAD.format(
            count=len(results),
            right=sum("generation" not in found.get("refused", {}) for found in results.values()),
            trained=sum(found.get("learns", False) for found in results.values()),
        )
    ]
    lines += [
        f"| type | written by | {' | '.join(COLUMNS.values())} |",
        "| --- | --- |" + " --- |" * len(COLUMNS),
    ]
    refused = []
    for model_type, found in results.items():
        if said := found.get("refused", {}).get("generation"):
            refused.append(f"| {model_type} | {said.replace('|', ' ')} |")
            continue
        cells = [_cell(name, found) for name in COLUMNS]
        lines.append(f"| {model_type} | {found['cache']} | {' | '.join(cells)} |")
    return (
        "\n".join(
            [
                *lines,
                "",
                "## Refused when they are loaded",
                "",
                "| type | message |",
                "| --- | --- |",
                *refused,
            ]
        )
        + "\n"
    )


def _cell(name: str, found: dict[str, Any]) -> str:
    if name not in found:
        return "refused" if found.get("refused") else "–"
    value = found[name]
    return ("yes" if value else "no") if isinstance(value, bool) else "0" if value == 0 else f"{value:.0e}"


def main() -> int:
    """Try the types and write the results; 1 if one of them is wrong in silence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--types", nargs="*", default=[*AGREE, *REFUSED])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    logging.set_verbosity_error()
    tokenizer, results, bad = train_tokenizer(TEXTS * 20, vocabulary=320, context=128), dict[str, Any](), 0
    for model_type in given.types:
        began = time.monotonic()
        results[model_type] = found = tried(model_type, tokenizer)
        said = wrong(found)
        bad += bool(said)
        short = {
            name: f"{found[name]:.1g}" if isinstance(found[name], float) else found[name]
            for name in COLUMNS
            if name in found
        }
        print(
            f"{model_type}: {short} {found.get('refused', '')} {said or 'right'} {time.monotonic() - began:.1f} s",
            flush=True,
        )
        if given.output:
            given.output.write_text(json.dumps(results, indent=1) + "\n")
    if given.page:
        given.page.write_text(page(results), encoding="utf-8")
    print(f"{len(results)} types, {bad} wrong in silence")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
