"""Model types by name: proxlm's own, registered with the Auto classes of transformers, and which have an encoder."""

from __future__ import annotations

# A short name for `new.type` → transformers' model type.
SHORT_NAMES = {"lstm": "proxlm_lstm"}


def register_model_types() -> None:
    """Let AutoConfig, AutoModel and the like know proxlm's own model types; may be called any number of times.

    Called wherever proxlm loads or builds a model, not on import, for it imports transformers. Whoever loads such a
    model with transformers alone calls it first.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    from proxlm.models import lstm

    AutoConfig.register(lstm.LSTMConfig.model_type, lstm.LSTMConfig, exist_ok=True)
    AutoModel.register(lstm.LSTMConfig, lstm.LSTMModel, exist_ok=True)
    AutoModelForCausalLM.register(lstm.LSTMConfig, lstm.LSTMForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(
        lstm.LSTMConfig, lstm.LSTMForSequenceClassification, exist_ok=True
    )


def is_encoder_decoder_type(name: str) -> bool:
    """Whether transformers knows the model type as an encoder–decoder; False for a name it does not know.

    And for a type that has no configuration without settings, which `build_language_model` then refuses.
    """
    from transformers import AutoConfig

    try:
        return bool(AutoConfig.for_model(name).is_encoder_decoder)
    except Exception:  # of a type's own validation, whatever it raises
        return False
