"""Transformer blocks around an attention of our own, from the modules of transformers (so adapters work)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from proxlm.kernels.frozen import Weights, one_product
from proxlm.kernels.fused import gated_silu, rms_norm, rotated
from proxlm.kernels.gradients import embedded
from proxlm.kernels.matrices import is_plain
from proxlm.kernels.products import gated_mlp, joined, ready

# Of the heads' angles, cos [b, t, 1, D] and sin [b, t, 1, D / 2] as `rotated` takes them; or the same for each head,
# which a processor reads in longer runs; None where positions are in the embeddings.
Turn = tuple[Tensor, Tensor] | None


class Block(Protocol):
    """A transformer block around its attention."""

    scale: float

    def heads(self, x: Tensor, turn: Turn, wanted: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x [b, t, H] → queries [b, t, Q, D], keys and values [b, t, G, D], turned by their positions.

        wanted [w]: the only places of t that queries are asked for.
        """

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [b, t, H] and attention's [b, t, Q · D] → the block's output [b, t, H]."""


class LlamaBlock:
    """Llama, Mistral, Qwen2 and Qwen3, through the modules of transformers (so adapters work).

    wanted is for training passes, where the modules themselves are called.
    """

    def __init__(self, layer: Any, frozen: Weights | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.layer, self.scale, self.size = layer, attention.scaling, attention.head_dim
        heads = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.groups = attention.config.num_key_value_heads
        self.together = one_product(heads, frozen) if frozen else None
        self.project = joined(heads, None)
        self.queries, self.keys_values = ready(heads[0], None), joined(heads[1:], None)
        self.o, self.down = (ready(module, frozen) for module in (attention.o_proj, mlp.down_proj))
        self.gate_up = joined([mlp.gate_proj, mlp.up_proj], frozen)
        self.q_norm, self.k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        self.silu = isinstance(mlp.act_fn, nn.SiLU) or type(mlp.act_fn).__name__ == "SiLUActivation"
        self.one_product = not frozen and self.silu and is_plain(mlp.gate_proj, mlp.up_proj, mlp.down_proj)

    def heads(self, x: Tensor, turn: Turn, wanted: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        y, of_queries = normed(self.layer.input_layernorm, x), turn
        if self.together is not None and wanted is None:
            heads = self.together(y).unflatten(-1, (-1, self.size))
            if self.q_norm is None:
                return self._turned_together(heads, turn)
            q, k, v = heads.split([heads.shape[2] - 2 * self.groups, self.groups, self.groups], 2)
        else:
            asked = y if wanted is None else y.index_select(1, wanted)
            q, k, v = (part.unflatten(-1, (-1, self.size)) for part in self._projected(y, asked))
            if wanted is not None and turn is not None:
                of_queries = turn[0].index_select(1, wanted), turn[1].index_select(1, wanted)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = normed(self.q_norm, q), normed(self.k_norm, k)
        return _rotated(q, of_queries), _rotated(k, turn), v

    def _projected(self, y: Tensor, asked: Tensor) -> tuple[Tensor, ...]:
        """Queries of the states asked for, keys and values of all of y; not yet in heads."""
        return self.project(y) if asked is y else (self.queries(asked), *self.keys_values(y))

    def _turned_together(self, heads: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """All heads [b, t, Q + 2 G, D] in one tensor; the first Q + G are turned."""
        turned, values = _rotated(heads[:, :, : -self.groups], turn), heads[:, :, -self.groups :]
        return turned[:, :, : -self.groups], turned[:, :, -self.groups :], values

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.o(attended)
        y = normed(self.layer.post_attention_layernorm, x)
        mlp = self.layer.mlp
        if self.one_product:
            return x + gated_mlp(y, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
        gate, up = self.gate_up(y)
        return x + self.down(gated_silu(gate, up) if self.silu else mlp.act_fn(gate) * up)


def _rotated(heads: Tensor, turn: Turn) -> Tensor:
    """Heads [b, t, h, D], turned."""
    assert turn is not None
    cos, sin = (table[:, :, : heads.shape[2]] for table in turn)
    return rotated(heads, cos, sin)


class GPT2Block:
    """GPT-2: positions are in the embeddings, so heads are not turned."""

    def __init__(self, layer: Any, frozen: Weights | None) -> None:
        attention, mlp = layer.attn, layer.mlp
        self.layer, self.scale, self.size = layer, attention.scaling, attention.head_dim
        self.qkv, self.o, self.up, self.down = (
            ready(module, frozen) for module in (attention.c_attn, attention.c_proj, mlp.c_fc, mlp.c_proj)
        )

    def heads(self, x: Tensor, turn: Turn, wanted: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        q, k, v = self.qkv(self.layer.ln_1(x)).chunk(3, dim=-1)
        if wanted is not None:
            q = q.index_select(1, wanted)
        q, k, v = (part.reshape(*part.shape[:2], -1, self.size) for part in (q, k, v))
        return q, k, v

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.o(attended)
        return x + self.down(self.layer.mlp.act(self.up(self.layer.ln_2(x))))


def normed(norm: Any, x: Tensor) -> Tensor:
    """A norm module of transformers on x: the root-mean-square norm in few passes, others as they are."""
    eps = getattr(norm, "variance_epsilon", None)
    return norm(x) if eps is None else rms_norm(x, norm.weight, eps)


class Family(Protocol):
    """A model type's trunk in parts: embeddings, blocks, and the norm at the end.

    Made with `frozen` its weights must not change while it is used: they are copied, and rounded if asked.
    """

    blocks: Sequence[Block]
    final: Callable[[Tensor], Tensor]

    def embed(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Turn]:
        """Tokens and positions [b, t] → embeddings [b, t, H], and how the heads are turned."""

    def reach(self, length: int) -> None:
        """Positions up to this length will come, many times: what depends on them alone is computed once."""


class LlamaFamily:
    """Llama, Mistral, Qwen2 and Qwen3."""

    def __init__(self, trunk: Any, frozen: Weights | None = None) -> None:
        self.trunk = trunk
        self.final: Callable[[Tensor], Tensor] = partial(normed, trunk.norm)
        self.blocks: Sequence[Block] = [LlamaBlock(layer, frozen) for layer in trunk.layers]
        self.angles: tuple[Tensor, Tensor] | None = None
        self.each_head = not frozen  # in a pass of many tokens

    def embed(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Turn]:
        x = embedded(self.trunk.embed_tokens, tokens)
        known = self.angles
        tables = self._angles(x, positions) if known is None else (known[0][positions], known[1][positions])
        heads = self.trunk.config.num_attention_heads if self.each_head and x.device.type == "cpu" else 1
        cos, sin = (table[:, :, None].expand(-1, -1, heads, -1).contiguous() for table in tables)
        return x, (cos, sin)

    def _angles(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos [b, t, D] and sin [b, t, D / 2] of the heads' angles, in the dtype of `like`."""
        cos, sin = self.trunk.rotary_emb(like, position_ids=positions)
        return cos, sin[..., : sin.shape[-1] // 2]  # the second half is the same

    def reach(self, length: int) -> None:
        weight = self.trunk.embed_tokens.weight
        cos, sin = self._angles(weight, torch.arange(length, device=weight.device)[None])
        self.angles = cos[0].contiguous(), sin[0].contiguous()


class GPT2Family:
    """GPT-2."""

    def __init__(self, trunk: Any, frozen: Weights | None = None) -> None:
        self.trunk = trunk
        self.final: Callable[[Tensor], Tensor] = trunk.ln_f
        self.blocks: Sequence[Block] = [GPT2Block(layer, frozen) for layer in trunk.h]

    def embed(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Turn]:
        # Padding may stand behind the last position that there is an embedding for.
        last = self.trunk.wpe.weight.shape[0] - 1
        return embedded(self.trunk.wte, tokens) + self.trunk.wpe(positions.clamp(max=last)), None

    def reach(self, length: int) -> None:
        pass


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


def fits(config: Any) -> bool:
    """Whether a model of this configuration is of a type in FAMILIES, in the form that is known here."""
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
