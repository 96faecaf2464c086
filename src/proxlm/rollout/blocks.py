"""Transformer blocks around an attention of our own, from the modules of transformers (so adapters work)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxlm.models.language_model import LanguageModel


class Block(Protocol):
    """A transformer block around its attention."""

    scale: float

    def heads(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [b, t, H] → queries [b, t, Q, D], keys and values [b, t, G, D], turned by their positions."""

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [b, t, H] and attention's [b, t, Q · D] → the block's output [b, t, H]."""


def ready(module: Any, bfloat16: bool) -> Callable[[Tensor], Tensor]:
    """The module; in bf16, a plain linear layer with its weights cast once and not at every token.

    Others (adapters around a layer) are called as they are.
    """
    from transformers.pytorch_utils import Conv1D

    if not bfloat16 or type(module) not in (nn.Linear, Conv1D):
        return module
    weight = module.weight.T if type(module) is Conv1D else module.weight
    weight = weight.detach().to(torch.bfloat16).contiguous()
    bias = None if module.bias is None else module.bias.detach().to(torch.bfloat16)
    return lambda x: F.linear(x.to(torch.bfloat16), weight, bias)


class LlamaBlock:
    """Llama, Mistral, Qwen2 and Qwen3, through the modules of transformers (so adapters work)."""

    def __init__(self, layer: Any, bfloat16: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.layer, self.scale, self.size = layer, attention.scaling, attention.head_dim
        self.q, self.k, self.v, self.o, self.gate, self.up, self.down = (
            ready(module, bfloat16)
            for module in (
                attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
                mlp.gate_proj, mlp.up_proj, mlp.down_proj,
            )
        )  # fmt: skip
        self.q_norm, self.k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))

    def heads(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        y = self.layer.input_layernorm(x)
        shape = (*x.shape[:2], -1, self.size)
        q, k, v = (project(y).view(shape) for project in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        assert turn is not None
        return _turned(q, turn), _turned(k, turn), v

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.o(attended)
        y = self.layer.post_attention_layernorm(x)
        return x + self.down(self.layer.mlp.act_fn(self.gate(y)) * self.up(y))


class GPT2Block:
    """GPT-2: positions are in the embeddings, so heads are not turned."""

    def __init__(self, layer: Any, bfloat16: bool) -> None:
        attention, mlp = layer.attn, layer.mlp
        self.layer, self.scale, self.size = layer, attention.scaling, attention.head_dim
        self.qkv, self.o, self.up, self.down = (
            ready(module, bfloat16) for module in (attention.c_attn, attention.c_proj, mlp.c_fc, mlp.c_proj)
        )

    def heads(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        q, k, v = self.qkv(self.layer.ln_1(x)).chunk(3, dim=-1)
        shape = (*x.shape[:2], -1, self.size)
        return q.reshape(shape), k.reshape(shape), v.reshape(shape)

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.o(attended)
        return x + self.down(self.layer.mlp.act(self.up(self.layer.ln_2(x))))


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding (Su et al. 2021) in the layout of transformers: halves, not pairs."""
    cos, sin = turn
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


class Family(Protocol):
    """A model type's trunk in parts: embeddings, blocks, and the norm at the end."""

    blocks: Sequence[Block]
    final: Callable[[Tensor], Tensor]

    def embed(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Tokens and positions [b, t] → embeddings [b, t, H], and cos and sin of the heads' angles, [b, t, 1, D]."""


class LlamaFamily:
    """Llama, Mistral, Qwen2 and Qwen3."""

    def __init__(self, trunk: Any, bfloat16: bool) -> None:
        self.trunk = trunk
        self.final: Callable[[Tensor], Tensor] = trunk.norm
        self.blocks: Sequence[Block] = [LlamaBlock(layer, bfloat16) for layer in trunk.layers]

    def embed(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        x = self.trunk.embed_tokens(tokens)
        cos, sin = self.trunk.rotary_emb(x, position_ids=positions)
        return x, (cos[:, :, None], sin[:, :, None])


class GPT2Family:
    """GPT-2."""

    def __init__(self, trunk: Any, bfloat16: bool) -> None:
        self.trunk = trunk
        self.final: Callable[[Tensor], Tensor] = trunk.ln_f
        self.blocks: Sequence[Block] = [GPT2Block(layer, bfloat16) for layer in trunk.h]

    def embed(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        # Padding may stand behind the last position that there is an embedding for.
        last = self.trunk.wpe.weight.shape[0] - 1
        return self.trunk.wte(tokens) + self.trunk.wpe(positions.clamp(max=last)), None


# transformers' model type → its family.
FAMILIES: dict[str, type[LlamaFamily] | type[GPT2Family]] = {
    "llama": LlamaFamily,
    "mistral": LlamaFamily,
    "qwen2": LlamaFamily,
    "qwen3": LlamaFamily,
    "gpt2": GPT2Family,
}
# Rotary embeddings whose angles depend on the position alone.
STATIC_ROTATIONS = ("default", "linear", "llama3", "yarn")


def fits(model: LanguageModel) -> bool:
    """Whether the model is of a type that SlotDecoder knows, in the form that it knows."""
    config = model.network.config
    if config.model_type not in FAMILIES:
        return False
    windows = getattr(config, "layer_types", None) or [
        "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    ]
    rotation = getattr(config, "rope_parameters", None) or {}
    return (
        set(windows) == {"full_attention"}
        and rotation.get("rope_type", "default") in STATIC_ROTATIONS
        and not getattr(config, "add_cross_attention", False)
    )
