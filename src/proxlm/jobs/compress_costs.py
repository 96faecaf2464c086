"""What each stage of a compression costs: measured once, and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from proxlm.compression.cost import Cost, distances, seconds_per_token
from proxlm.compression.magnitude import share_of_zeros
from proxlm.config import CompressConfig, EvaluateConfig, ModelSettings
from proxlm.export.original import load_original
from proxlm.jobs.evaluate import evaluate
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource, named_as
from proxlm.runlog.folder import write_json_atomic
from proxlm.runlog.metric_names import REWARD

COSTS = "costs.json"


def loaded(name: str, config: CompressConfig) -> LanguageModel:
    """The model of a stage."""
    settings = ModelSettings(
        policy=name, device="cpu", save_dtype="source", trust_remote_code=config.trust_remote_code
    )
    with named_as("model"):
        return load_original(ModelSource(settings)).language_model


def costs_of(
    folder: Path,
    config: CompressConfig,
    original: LanguageModel,
    stages: Sequence[tuple[str, str]],
    texts: Sequence[Sequence[int]],
    scored: bool,
) -> list[Cost]:
    """What each stage costs, from costs.json as far as it was measured before."""
    file = folder / COSTS
    known = {one["name"]: Cost(**one) for one in json.loads(file.read_text("utf-8"))} if file.exists() else {}
    costs: list[Cost] = []
    for name, path in stages:
        if name not in known:
            print(f"measuring {name} …", flush=True)
            model = original if name == "original" else loaded(path, config)
            known[name] = _cost(name, path, model, original, config, texts)
        costs.append(known[name])
        write_json_atomic(file, [asdict(cost) for cost in costs])
    if scored and any(cost.reward is None for cost in costs):
        costs = _with_rewards(config, stages, costs)
        write_json_atomic(file, [asdict(cost) for cost in costs])
    return costs


def _cost(
    name: str,
    path: str,
    model: LanguageModel,
    original: LanguageModel,
    config: CompressConfig,
    texts: Sequence[Sequence[int]],
) -> Cost:
    perplexity, kl, same = distances(original.network, model.network, texts)
    parameters = sum(p.numel() for p in model.network.parameters())
    file = Path(path)
    if path.endswith(".gguf") and name != "original":
        from proxlm.export.llama_cpp import llama_cpp

        size, program = file.stat().st_size, "llama.cpp"
        with llama_cpp(file, model.network.config.vocab_size, 512, config.run.threads or 1) as reader:
            seconds = min(
                reader.seconds_per_token(texts[0][:8], config.cost.new_tokens)
                for _ in range(config.cost.repeats)
            )
    else:
        size, program = _bytes(file) or 4 * parameters, "proxlm"
        seconds = seconds_per_token(model, texts, config.cost.new_tokens, config.cost.repeats)
    zeros = share_of_zeros(model.network)
    return Cost(name, parameters, zeros, size, seconds, program, perplexity, kl, same)


def _bytes(model: Path) -> int:
    """Of the weights in a model's folder or file; 0: it is neither."""
    files = [*model.glob("*.safetensors")] if model.is_dir() else [model] if model.is_file() else []
    return sum(file.stat().st_size for file in files)


def _with_rewards(
    config: CompressConfig, stages: Sequence[tuple[str, str]], costs: Sequence[Cost]
) -> list[Cost]:
    """The same with the mean reward of each stage's responses to the same prompts."""
    evaluations = evaluate(
        [path for _, path in stages],
        config=EvaluateConfig(
            model=ModelSettings(device="cpu"),
            data=config.data,
            rollout=config.rollout,
            reward=config.reward,
            greedy=False,
            seed=config.seed,
        ),
    )
    return [
        replace(cost, reward=one.metrics[REWARD].mean) for cost, one in zip(costs, evaluations, strict=True)
    ]
