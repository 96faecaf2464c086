"""Loading a job's prompts: training and held-out, checked against the model's tokenizer and context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from proxlm.config import DataSettings, RolloutSettings
from proxlm.data.prompts import LoadedPrompts, PromptSources, load_prompts
from proxlm.data.records import Source
from proxlm.data.skipped import Record, Skipped
from proxlm.engine.protocol import Engine
from proxlm.jobs.model_limits import prompt_limit
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource
from proxlm.text import counted
from proxlm.types import Prompt


def load_prompt_sets(
    model: ModelSource,
    data: DataSettings,
    rollout: RolloutSettings,
    seed: int,
    skipped: Skipped,
    sources: PromptSources | None = None,
) -> tuple[LoadedPrompts, LoadedPrompts]:
    """Training and held-out prompts, checked against the model's tokenizer and context."""
    limit = prompt_limit(model, data, rollout)
    train, held_out = (
        load_prompts(data, model.tokenizer, limit, which, seed, model.encoder_decoder, skipped, sources)
        for which in ("train", "eval")
    )
    return train, held_out


def load_prompts_of(
    source: Source, model: ModelSource, data: DataSettings, rollout: RolloutSettings, seed: int
) -> list[Prompt]:
    """All prompts of one source; none are held out. Raises DataError."""
    skipped = Skipped(data.on_bad_record == "skip")
    loaded = all_prompts(data, model, prompt_limit(model, data, rollout), seed, skipped, source)
    skipped.print_summary()
    return loaded.prompts


def all_prompts(
    data: DataSettings,
    model: ModelSource | Engine,
    limit: int,
    seed: int,
    skipped: Skipped | None = None,
    source: Source | None = None,
) -> LoadedPrompts:
    """All prompts of a source, or of the file that the settings name; none are held out. Raises DataError."""
    everything = replace(data, eval_count=0, eval_prompts="")
    sources = None if source is None else PromptSources(source)
    return load_prompts(
        everything, model.tokenizer, limit, "train", seed, model.encoder_decoder, skipped, sources
    )


def held_out_prompts(
    data: DataSettings,
    given: Source | None,
    model: LanguageModel,
    limit: int,
    seed: int,
    skipped: Skipped,
    examples: Source | None = None,
    check: Callable[[Record], object] | None = None,
) -> LoadedPrompts:
    """The prompts that a model is evaluated on, in its tokens.

    Args:
        data: The section [data].
        given: All of these are held out; None: those that the settings name.
        model: Whose tokens they are made of.
        limit: The longest prompt in tokens.
        seed: Draws those to use, and examples.
        skipped: Receives what is left out.
        examples: Solved examples, instead of those that the settings name.
        check: Raises BadRecordError for a record that cannot be used.

    Raises:
        DataError: With file and line.
    """
    which: Literal["train", "eval"] = "eval"
    sources = PromptSources(data.prompts or data.eval_prompts, data.eval_prompts or None, examples)
    if given is not None:
        which, sources, data = "train", PromptSources(given, None, examples), replace(data, eval_count=0)
    return load_prompts(
        data, model.tokenizer, limit, which, seed, model.encoder_decoder, skipped, sources, check
    )


def describe_prompts(train: LoadedPrompts, held_out: LoadedPrompts, skipped: Skipped) -> str:
    """One line that says how many prompts there are and how many were left out, and why."""
    unused = f"{held_out.unused} left out, beyond data.eval_count" if held_out.unused else ""
    said = "; ".join(filter(None, (skipped.report(), unused)))
    return f"{counted(len(train.prompts), 'prompt')} to train on, {len(held_out.prompts)} held out" + (
        f" ({said})" if said else ""
    )
