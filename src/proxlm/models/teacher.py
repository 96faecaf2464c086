"""The teacher of on-policy distillation: another model, frozen, that reads what the policy wrote.

It shares nothing with the policy, and no checkpoint holds it: like the run's other inputs it is a path and the
hashes of its files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from proxlm.config import ModelSettings
from proxlm.data.tokenizer import different_tokens
from proxlm.errors import ConfigError, ModelError
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource, named_as
from proxlm.text import shown

KEY = "model.teacher"


def check_teacher(policy: ModelSource, longest_prompt: int, longest_response: int) -> None:
    """Raise if `model.teacher` cannot teach this policy. Configurations and tokenizers are read, and no weights.

    Args:
        policy: The policy, whose settings name the teacher.
        longest_prompt: In tokens; 0: not known.
        longest_response: In tokens; of a conversation, what follows its prompt.

    Raises:
        ModelError: It cannot be read, has other tokens, or is no decoder where the policy is one, or the reverse.
        ConfigError: Its context is too short.
    """
    teacher = _source_of(policy.settings)
    with named_as(KEY):
        _check_kind(teacher, policy.encoder_decoder)
        _check_tokens(teacher, policy.tokenizer, _rows_of(policy.configuration))
        limit = teacher.context
    longest = longest_prompt + longest_response
    if policy.encoder_decoder:
        longest = max(longest_prompt, longest_response + 1)
    if policy.context is not None:
        longest = min(longest, policy.context)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"{KEY}: the teacher's context of {limit} tokens is too short for a prompt of {longest_prompt} and a"
            f" response of up to {longest_response}; give shorter ones, or a teacher of a longer context"
        )


def note_on_ends(policy: ModelSource) -> str:
    """A note, where no token that ends a text of the policy's ends one of the teacher's; else ""."""
    with named_as(KEY):
        own, others = ({m.tokenizer.eos_token_id, *m.eos} for m in (policy, _source_of(policy.settings)))
    if own & others:
        return ""
    names = [shown(str(policy.tokenizer.convert_ids_to_tokens(min(ids))), 30) for ids in (others, own)]
    return f"the teacher ends a text with {names[0]}, the policy with {names[1]}: it finds the policy's ends unlikely"


def teacher_source(settings: ModelSettings, model: Any = None, tokenizer: Any = None) -> ModelSource:
    """A teacher that is not read yet, on the student's device and in its precision.

    Args:
        settings: The student's; `teacher` names it.
        model: It, instead of settings.teacher; see `ModelSource`.
        tokenizer: The tokenizer of a transformers model.
    """
    plain = ModelSettings(
        policy=settings.teacher,
        device=settings.device,
        precision=settings.precision,
        trust_remote_code=settings.trust_remote_code,
    )
    return ModelSource(ModelSettings() if isinstance(model, LanguageModel) else plain, model, tokenizer)


def load_teacher(policy: LanguageModel, settings: ModelSettings) -> LanguageModel:
    """The teacher that `settings.teacher` names, on the policy's device and in its precision, without gradients.

    It is loaded and compared with transformers as a policy is, whatever its type; an adapter is merged into its base.

    Raises:
        ModelError: It cannot be loaded, has other tokens, or is no decoder where the policy is one, or the reverse.
    """
    teacher = _source_of(settings, policy)
    with named_as(KEY):
        _check_kind(teacher, policy.encoder_decoder)
        _check_tokens(teacher, policy.tokenizer, len(policy.network.get_output_embeddings().weight))
        model = teacher.load()
    model.network.requires_grad_(False)
    return model


def _source_of(settings: ModelSettings, policy: LanguageModel | None = None) -> ModelSource:
    """The teacher before its weights are read."""
    plain = ModelSettings(policy=settings.teacher, trust_remote_code=settings.trust_remote_code)
    if policy is not None:
        plain = replace(
            plain, device=str(policy.device), precision="bfloat16" if policy.bfloat16 else "float32"
        )
    return ModelSource(plain)


def _check_kind(teacher: ModelSource, encoder_decoder: bool) -> None:
    if teacher.encoder_decoder != encoder_decoder:
        own, other = ("an encoder–decoder", "a decoder")[:: 1 if teacher.encoder_decoder else -1]
        raise ModelError(
            f'{KEY} = "{teacher.settings.policy}": {own}, and the policy is {other}; give a teacher of its kind'
        )


def _check_tokens(teacher: ModelSource, tokenizer: Any, rows: int | None) -> None:
    """Raise ModelError unless every token that the policy can sample is the same one of the teacher's.

    rows: how many tokens the policy's head has.
    """
    what = f'{KEY} = "{teacher.settings.policy}"'
    if difference := different_tokens(teacher.tokenizer, tokenizer, "the policy's", may_have_more=True):
        raise ModelError(
            f"{what}: {difference}; a teacher reads the policy's token ids, so they must be its own"
        )
    own = _rows_of(teacher.configuration)
    if own is not None and rows is not None and own < rows:
        raise ModelError(
            f"{what}: its head has {own} rows and the policy's {rows}, so the policy can write what it cannot score;"
            " give a teacher with as many"
        )


def _rows_of(configuration: Any) -> int | None:
    return getattr(configuration.get_text_config(), "vocab_size", None)
