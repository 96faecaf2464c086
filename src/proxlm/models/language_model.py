"""A language model as two parts: a trunk (tokens → states) and a head (states → logits)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxlm.errors import ModelError
from proxlm.kernels.widened import rounded, widen_products, widens
from proxlm.models.encoder_decoder import EncoderDecoderTrunk, start_token

# Fields of a configuration by which `logits` changes what the head gives.
LOGIT_CHANGES = ("scale_decoder_outputs", "logit_scale", "logits_scaling", "final_logit_softcapping")


# PEFT's names of the adapters.
POLICY, CRITIC = "default", "critic"


@dataclass(eq=False)
class LanguageModel:
    """A transformers causal LM or encoder–decoder, its tokenizer, and its adapters if it has any.

    network: the transformers model (with PEFT's layers inside it, where `adapters` is the PeftModel around it).
    bfloat16: run forward passes under bf16 autocast; weights, log-probs and losses stay in float32.
    packed: transformers' forward passes hold sequences one after another, without padding.
    activation_checkpointing: blocks keep their input only and are computed again in the backward pass.
    """

    network: Any
    tokenizer: Any
    device: torch.device
    bfloat16: bool = False
    adapters: Any = None
    source: str = ""
    packed: bool = False
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.widened:
            widen_products()

    @property
    def widened(self) -> bool:
        """Whether bf16 products are float32 products of bf16 inputs, for want of instructions."""
        return self.bfloat16 and widens(self.device)

    @property
    def trunk(self) -> nn.Module:
        """The model without its output head."""
        return EncoderDecoderTrunk(self.network) if self.encoder_decoder else self.network.base_model

    @property
    def encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt and a decoder writes the response (T5, BART)."""
        return bool(self.network.config.is_encoder_decoder)

    @property
    def start_id(self) -> int:
        """An encoder–decoder's token before every response."""
        return start_token(self.network, self.source)

    @property
    def hidden_size(self) -> int:
        return self.network.get_output_embeddings().weight.shape[1]

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens, or None where the model sets no limit; of an encoder–decoder, of each side."""
        text_config = self.network.config.get_text_config()
        return getattr(text_config, "max_position_embeddings", None)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a response: the tokenizer's EOS and those of the generation config."""
        more = getattr(getattr(self.network, "generation_config", None), "eos_token_id", None)
        ids = more if isinstance(more, list) else [more]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    def states(self, input_ids: Tensor, **arguments: Any) -> Any:
        """Run the trunk. Returns transformers' output, with last_hidden_state [b, t, H]."""
        with self.autocast():
            return self.trunk(input_ids=input_ids, **arguments)

    def logits(self, hidden: Tensor) -> Tensor:
        """States [..., H] → logits [..., V], as the model's own forward computes them."""
        config = self.network.config.get_text_config()
        if getattr(config, "scale_decoder_outputs", False):  # T5
            hidden = hidden * config.d_model**-0.5
        if self.widened and (weight := self.head_weight) is not None:
            # Unrounded, as `head_logprobs` has them; it costs no more.
            with torch.autocast(self.device.type, enabled=False):
                return F.linear(rounded(hidden), rounded(weight))
        with self.autocast():
            logits = self.network.get_output_embeddings()(hidden)
        bias = getattr(self.network, "final_logits_bias", None)  # BART
        if bias is not None:
            logits = logits + bias[0]
        scale = getattr(config, "logit_scale", None)  # Cohere
        if scale is not None:
            logits = logits * scale
        divisor = getattr(config, "logits_scaling", None)  # Granite
        if divisor is not None:
            logits = logits / divisor
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @property
    def head_weight(self) -> nn.Parameter | None:
        """The head's matrix [V, H], if the logits are its product with the states and nothing else, in float32.

        Where products are widened, the product of both rounded to bf16.
        """
        config, head = self.network.config.get_text_config(), self.network.get_output_embeddings()
        weight: Any = getattr(head, "weight", None)
        kind: type = type(head)
        if kind is not nn.Linear or head.bias is not None or type(weight) is not nn.Parameter:
            return None  # adapters around it, or its matrix in pieces on many devices
        changed = any(getattr(config, name, None) for name in LOGIT_CHANGES)
        if changed or getattr(self.network, "final_logits_bias", None) is not None:
            return None
        if self.bfloat16 and not self.widened:
            return None
        return weight

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 computation if asked, else nothing."""
        if self.bfloat16 and not torch.is_autocast_enabled(self.device.type):
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def without_adapters(self) -> Iterator[None]:
        """The bare base, bit for bit: the reference of a policy with LoRA."""
        with self.adapters.disable_adapter() if self.adapters is not None else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def with_critic_adapters(self) -> Iterator[None]:
        """The critic's adapters in the place of the policy's; both go on to learn."""
        learning = [p for _, p in self.trainable() + self.trainable(CRITIC)]
        self.adapters.set_adapter(CRITIC)
        try:
            let_learn(learning)
            yield
        finally:
            self.adapters.set_adapter(POLICY)
            let_learn(learning)

    def trainable(self, whose: str = POLICY) -> list[tuple[str, nn.Parameter]]:
        """Named parameters that learn: with adapters, those of that name."""
        named = self.network.named_parameters()
        if self.adapters is None:
            return [(name, p) for name, p in named if p.requires_grad]
        return [(name, p) for name, p in named if f".{whose}." in name and "lora_" in name]


def let_learn(parameters: list[nn.Parameter]) -> None:
    """PEFT lets only the adapters in force learn."""
    for p in parameters:
        p.requires_grad_(True)


@torch.no_grad()
def check_head(model: LanguageModel) -> None:
    """Raise ModelError unless head(trunk(x)) is what the model's own forward gives.

    Some families change the logits in their forward; one that this library does not know must not train wrongly.
    """
    size = model.network.get_input_embeddings().weight.shape[0]
    tokens = torch.arange(4, device=model.device)[None] * 7 % size
    sides = {}
    if model.encoder_decoder:
        sides = {"attention_mask": torch.ones_like(tokens), "decoder_input_ids": tokens.flip(-1)}
    own = model.network(input_ids=tokens, use_cache=False, **sides).logits
    ours = model.logits(model.states(tokens, use_cache=False, **sides).last_hidden_state)
    worst = float((own.float() - ours.float()).abs().max())
    if not worst <= (0.1 if model.bfloat16 else 1e-3) * max(1.0, float(own.abs().max())):
        kind = model.network.config.model_type
        raise ModelError(
            f"{model.source}: the logits of model type {kind} differ by {worst:.3g} from its output head's, "
            "so it changes them in a way proxlm does not know; use another model type"
        )
