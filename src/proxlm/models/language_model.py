"""A language model as two parts: a trunk (tokens → states) and a head (states → logits)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from proxlm.data.turn_end import TurnEnd, eos_of, turn_end_of
from proxlm.errors import ModelError
from proxlm.kernels.module_hooks import has_hooks
from proxlm.models.adapters import POLICY, adapter_parameters
from proxlm.models.context import context_of
from proxlm.models.encoder_decoder import EncoderDecoderTrunk, start_token
from proxlm.text import shown

# Fields of a configuration by which the logits are more than the head's output.
LOGIT_CHANGES = ("scale_decoder_outputs", "logit_scale", "logits_scaling", "final_logit_softcapping")


@dataclass(eq=False)
class LanguageModel:
    """A transformers causal LM or encoder–decoder, its tokenizer, and its adapters if it has any.

    Attributes:
        network: The transformers model, with PEFT's layers inside it where `adapters` is the PeftModel around it.
        tokenizer: Its tokenizer.
        device: Where its weights are.
        bfloat16: Run forward passes under bf16 autocast; weights, log-probs and losses stay in float32.
        adapters: PEFT's model around the network, or None.
        source: Where it came from, for messages.
        packed: transformers' forward passes hold sequences one after another, without padding.
        activation_checkpointing: Blocks keep their input only and are computed again in the backward pass.
        own_kernels: Run proxlm's own passes for the model types they know (`kernels/`), which read the weights from
            the modules and add gradients to `weight.grad` themselves. False: every pass goes through the modules' own
            forward and autograd, as sharded weights and hooks on gradients (DDP's, say) need it; slower. Hooks that
            torch can list and sharded parameters are found without it (`kernels/module_hooks.py`).
        save_dtype: The precision that its weights are saved in; in memory they are float32.
        cached: The engine keeps keys and values while it generates. False: every token reads the whole text again,
            for model types whose cache cannot hold rows of different lengths (found by `engine/agreement.py`).
        frozen_blocks: How many of the first blocks never learn, nor the embeddings below them: passes may start
            behind them, at states that are kept (models/frozen.py).
    """

    network: Any
    tokenizer: Any
    device: torch.device
    bfloat16: bool = False
    adapters: Any = None
    source: str = ""
    packed: bool = False
    activation_checkpointing: bool = False
    own_kernels: bool = True
    save_dtype: torch.dtype = torch.float32
    cached: bool = True
    frozen_blocks: int = 0
    # How far this model has been compared with transformers (models/agreement.py, engine/agreement.py); a model that
    # `replace` makes of it has not been.
    agrees: Literal["unknown", "training", "engine"] = field(default="unknown", init=False)

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
        return context_of(self.network.config).limit

    def check_length(self, longest: int) -> None:
        """Raise ModelError for a sequence of so many tokens (of an encoder–decoder: a side) beyond the context."""
        context = context_of(self.network.config)
        if context.limit is not None and longest > context.limit:
            raise ModelError(
                f"{self.source}: a text that may be {longest} tokens long does not fit the model's context of"
                f" {context}; shorten the prompt or lower rollout.max_new_tokens"
            )

    def check_tokens(self, what: str, tokens: Iterable[int] | Tensor) -> None:
        """Raise ModelError for a token without an embedding: a special one that only its own spelling gives.

        Args:
            what: Where the tokens are from, for the message.
            tokens: Token ids.
        """
        rows: int = self.network.get_input_embeddings().weight.shape[0]
        if isinstance(tokens, Tensor):  # pages of a file, perhaps of a type that torch does not compute with
            last = max((int(part.int().max()) for part in tokens.split(2**22) if len(part)), default=0)
        else:
            last = max(tokens, default=0)
        if last >= rows:
            name = shown(str(self.tokenizer.convert_ids_to_tokens(last)), 40)
            raise ModelError(
                f"{what}: holds the special token {name}, of which {self.source or 'the model'} knows nothing: its"
                f" number is {last}, and the embedding has {rows} rows; leave it out of the text"
            )

    @property
    def turn_end(self) -> TurnEnd:
        """What ends a turn: EOS of the tokenizer and the generation config, and the chat template's own end."""
        return turn_end_of(self.tokenizer, eos_of(getattr(self.network, "generation_config", None)))

    def states(self, input_ids: Tensor, **arguments: Any) -> Any:
        """Run the trunk. Returns transformers' output, with last_hidden_state [b, t, H]."""
        with self.autocast():
            return self.trunk(input_ids=input_ids, **arguments)

    def logits(self, hidden: Tensor) -> Tensor:
        """States [..., H] → logits [..., V], as the model's own forward computes them."""
        config = self.network.config.get_text_config()
        if getattr(config, "scale_decoder_outputs", False):  # T5
            hidden = hidden * config.d_model**-0.5
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
        """The head's matrix [V, H], if the logits are its product with the states and nothing else.

        None where a pass must call the head: where it has a bias, hooks or adapters, and where the model's own
        forward changes the logits. Without own kernels a head that learns is called, too.
        """
        config = self.network.config.get_text_config()
        head: Any = self.network.get_output_embeddings()
        head_type: type = type(head)
        if head_type is not nn.Linear or head.bias is not None:
            return None
        if not self.own_kernels and head.weight.requires_grad:
            return None
        changed = any(getattr(config, name, None) for name in LOGIT_CHANGES)
        if changed or getattr(self.network, "final_logits_bias", None) is not None or has_hooks(head):
            return None
        weight: nn.Parameter = head.weight
        return weight

    @property
    def states_dtype(self) -> torch.dtype:
        """The precision that states are kept in between passes."""
        return torch.bfloat16 if self.bfloat16 else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 computation if asked, else nothing."""
        if self.bfloat16 and not torch.is_autocast_enabled(self.device.type):
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def trainable(self, adapter: str = POLICY) -> list[tuple[str, nn.Parameter]]:
        """Named parameters that learn: with adapters, those of the set of that name."""
        if self.adapters is not None:
            return adapter_parameters(self.network, adapter)
        return [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
