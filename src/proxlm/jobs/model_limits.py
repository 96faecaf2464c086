"""What a model's configuration says of the sequences it can read, before its weights are loaded."""

from __future__ import annotations

from proxlm.config import DataSettings, RolloutSettings
from proxlm.config.paths import short
from proxlm.config.rollout import bias_ids
from proxlm.config.values import shown_value
from proxlm.data.tokenizer import different_tokens
from proxlm.engine.logit_processors import spellings
from proxlm.errors import ConfigError, DataError, ModelError
from proxlm.models.context import context_of
from proxlm.models.source import ModelSource


def prompt_limit(model: ModelSource, data: DataSettings, rollout: RolloutSettings) -> int:
    """The longest prompt in tokens: data.max_prompt_tokens, or what the context leaves for the response.

    An encoder–decoder has its whole context for the prompt, and as much for the start token and the response.
    Reads the model's configuration only. Raises DataError if nothing is left for a prompt, and ConfigError for tokens
    that the model does not have.
    """
    check_tokens(model, rollout)
    context = model.context
    if context is None:
        return data.max_prompt_tokens or 2**31
    room = context - rollout.max_new_tokens
    if model.encoder_decoder:
        room = context if rollout.max_new_tokens < context else 0
    if room < 1:
        raise DataError(
            f"rollout.max_new_tokens = {rollout.max_new_tokens}: the model's context of"
            f" {context_of(model.configuration)} leaves no room for a prompt; lower it"
        )
    if data.max_prompt_tokens > room:
        raise DataError(
            f"data.max_prompt_tokens = {data.max_prompt_tokens}: with rollout.max_new_tokens ="
            f" {rollout.max_new_tokens} the model's context of {context_of(model.configuration)} leaves {room}; lower"
            " one of them"
        )
    return data.max_prompt_tokens or room


def check_block(key: str, block: int, model: ModelSource) -> None:
    """Raise ConfigError if packed sequences of `block` tokens, the setting `key`, are longer than the context."""
    context = model.context
    if context is not None and block > context:
        raise ConfigError(
            f"{key} = {block}: longer than the model's context of {context_of(model.configuration)}"
        )


def check_tokens(model: ModelSource, rollout: RolloutSettings) -> None:
    """Raise ConfigError if a setting names a token beyond the model's vocabulary, or a text that has no tokens."""
    size = getattr(model.configuration.get_text_config(), "vocab_size", None)
    named = {
        "rollout.stop_token_ids": rollout.stop_token_ids,
        "rollout.logit_bias": [token for key in rollout.logit_bias for token in bias_ids(key) or ()],
    }
    for setting, tokens in named.items():
        if size is not None and (wrong := [token for token in tokens if token >= size]):
            raise ConfigError(
                f"{setting}: {wrong[0]} is not a token of the model, whose ids end at {size - 1}"
            )
    texts = [("rollout.bad_words", word) for word in rollout.bad_words]
    texts += [("rollout.logit_bias", key) for key in rollout.logit_bias if bias_ids(key) is None]
    for setting, text in texts:
        if not spellings(model.tokenizer, text):
            raise ConfigError(f"{setting}: {shown_value(text)} has no tokens; leave it out")


def check_same_tokens(reference: ModelSource, model: ModelSource, longest: int) -> None:
    """The same ids must mean the same to both models, and fit their contexts. Reads no weights."""
    name, other = short(model.settings.policy), short(reference.settings.policy)
    if difference := different_tokens(model.tokenizer, reference.tokenizer, "the other's"):
        raise ModelError(
            f"{name}: another tokenizer than {other}'s: {difference}. Evaluate each by itself with --responses FILE,"
            " and give both files to proxlm compare"
        )
    if model.encoder_decoder != reference.encoder_decoder:
        raise ModelError(f"{name}: it and {other} are not both encoder–decoders: their prompts differ")
    if reference.context and model.context and model.context < min(longest, reference.context):
        raise ModelError(
            f"{name}: its context of {model.context} tokens is shorter than {longest}; lower"
            " data.max_prompt_tokens or rollout.max_new_tokens"
        )
