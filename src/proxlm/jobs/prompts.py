"""Loading a job's prompts: training and held-out, checked against the model's tokenizer and context."""

from __future__ import annotations

from proxlm.config import DataSettings, ModelSettings, RolloutSettings
from proxlm.data.prompts import LoadedPrompts, load_prompts
from proxlm.data.skipped import Skipped
from proxlm.data.tokenizer import load_tokenizer
from proxlm.jobs.model_limits import is_encoder_decoder, prompt_limit


def load_prompt_sets(
    model: ModelSettings, data: DataSettings, rollout: RolloutSettings, seed: int, skipped: Skipped
) -> tuple[LoadedPrompts, LoadedPrompts]:
    """Training and held-out prompts, checked against the model's tokenizer and context."""
    tokenizer = load_tokenizer(model.policy, model.trust_remote_code)
    limit = prompt_limit(model, data, rollout)
    source = is_encoder_decoder(model)
    train = load_prompts(data, tokenizer, limit, "train", seed, source, skipped)
    held_out = load_prompts(data, tokenizer, limit, "eval", seed, source, skipped)
    return train, held_out


def describe_prompts(train: LoadedPrompts, held_out: LoadedPrompts, skipped: Skipped) -> str:
    """One line that says how many prompts there are and how many were left out, and why."""
    unused = f"{held_out.unused} left out, beyond data.eval_count" if held_out.unused else ""
    said = "; ".join(filter(None, (skipped.report(), unused)))
    return f"{len(train.prompts)} prompts to train on, {len(held_out.prompts)} held out" + (
        f" ({said})" if said else ""
    )
