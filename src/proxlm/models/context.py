"""How long a sequence a model reads as one text, of its configuration alone."""

from __future__ import annotations

from typing import Any, NamedTuple

from proxlm.errors import ModelError

# Names of the same limit; transformers maps most of them to the first.
LIMIT_FIELDS = ("max_position_embeddings", "max_seq_len", "n_positions", "max_target_positions")
# Model types whose first token has the position pad_token_id + 1, so that so many fewer are left.
AFTER_PADDING = {
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


class Context(NamedTuple):
    """The longest sequence in tokens, prompt and response; None: no limit. `reason`: what sets it, for messages."""

    limit: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.limit} tokens ({self.reason})"


def context_of(config: Any) -> Context:
    """The context of a transformers configuration; of an encoder–decoder, of each side.

    Beyond it a position has no embedding, or was never trained. Rotary embeddings of the kinds longrope and dynamic
    also change their angles there by the longest row of a batch: the log-probs of a text would depend on the texts
    beside it, and those of its first tokens on how long it becomes. So their limit is where that begins.
    """
    try:
        text = config.get_text_config()
    except ValueError as error:  # a text encoder and a decoder of something else
        raise ModelError(
            f"model type {config.model_type} is not one language model; use another type"
        ) from error
    named = {name: limit for name in LIMIT_FIELDS if isinstance(limit := getattr(text, name, None), int)}
    before = (getattr(text, "pad_token_id", None) or 0) + 1 if text.model_type in AFTER_PADDING else 0
    found = [Context(limit - before, f"its {name}") for name, limit in list(named.items())[:1] if limit > 0]
    for rotation in _rotations(text):
        kind, original = rotation.get("rope_type", ""), rotation.get("original_max_position_embeddings")
        if kind == "longrope" and isinstance(original, int):
            found.append(Context(original, "its original_max_position_embeddings, for longrope"))
    return min(found, key=lambda context: context.limit or 0, default=Context(None, ""))


def _rotations(text: Any) -> list[dict[str, Any]]:
    """The settings of rotary embeddings: one set, or one for each kind of layer."""
    settings = getattr(text, "rope_parameters", None) or {}
    if not isinstance(settings, dict):
        return []
    return [settings, *(part for part in settings.values() if isinstance(part, dict))]
