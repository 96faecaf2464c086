"""What a model's configuration says of the sequences it can read, before its weights are loaded."""

from __future__ import annotations

from typing import Any

from proxlm.config import DataSettings, ModelSettings, RolloutSettings
from proxlm.data.tokenizer import require_folder
from proxlm.errors import ConfigError, DataError, ModelError
from proxlm.text import reason_of


def prompt_limit(model: ModelSettings, data: DataSettings, rollout: RolloutSettings) -> int:
    """The longest prompt in tokens: data.max_prompt_tokens, or what the context leaves for the response.

    An encoder–decoder has its whole context for the prompt, and as much for the start token and the response.
    Reads the model's configuration only. Raises DataError if nothing is left for a prompt.
    """
    context = model_context(model)
    if context is None:
        return data.max_prompt_tokens or 2**31
    room = context - rollout.max_new_tokens
    if is_encoder_decoder(model):
        room = context if rollout.max_new_tokens < context else 0
    if room < 1:
        raise DataError(
            f"rollout.max_new_tokens = {rollout.max_new_tokens}: the model's context of {context} tokens leaves no"
            " room for a prompt; lower it"
        )
    if data.max_prompt_tokens > room:
        raise DataError(
            f"data.max_prompt_tokens = {data.max_prompt_tokens}: with rollout.max_new_tokens ="
            f" {rollout.max_new_tokens} the model's context of {context} leaves {room}; lower one of them"
        )
    return data.max_prompt_tokens or room


def model_context(model: ModelSettings) -> int | None:
    """The model's longest sequence in tokens, or None if its configuration names none; see LanguageModel."""
    return getattr(_configuration(model).get_text_config(), "max_position_embeddings", None)


def is_encoder_decoder(model: ModelSettings) -> bool:
    """Whether the model's prompts are for an encoder. Reads its configuration only."""
    return bool(_configuration(model).is_encoder_decoder)


def _configuration(model: ModelSettings) -> Any:
    from transformers import AutoConfig

    from proxlm.models.model_types import register_model_types

    register_model_types()
    require_folder(model.policy)
    try:
        return AutoConfig.from_pretrained(model.policy, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f'model.policy = "{model.policy}": cannot be loaded: {reason_of(error)}') from error


def check_block(key: str, block: int, model: ModelSettings) -> None:
    """Raise ConfigError if packed sequences of `block` tokens, the setting `key`, are longer than the context."""
    context = model_context(model)
    if context is not None and block > context:
        raise ConfigError(f"{key} = {block}: longer than the model's context of {context}")
