"""Layouts of transformer blocks: how the modules of a model type make embeddings, heads, attention's output and MLP.

proxlm's own passes put their own attention and cache between these parts: `unpadded_forward.py` for training, the
engine's key–value cache for decoding. The parts are the modules of transformers, so adapters work. A model type that
is not in LAYOUTS runs through its own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from proxlm.kernels.fused_ops import gated_silu, rms_norm, rotate
from proxlm.kernels.inference_products import Weights
from proxlm.kernels.training_products import linear, linears

# The angles of the heads' rotation (rotary embeddings), cos [b, t, 1, D] and sin [b, t, 1, D / 2] as `rotate` takes
# them; None where positions are in the embeddings.
Rotation = tuple[Tensor, Tensor] | None


class Block(Protocol):
    """A transformer block around its attention: its module, and the factor of attention's scores."""

    layer: Any
    scale: float

    def heads(
        self, x: Tensor, rotation: Rotation, query_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values, rotated by their positions.

        Args:
            x: States [b, t, H].
            rotation: Angles of their positions.
            query_index: For training passes: the only places [w] of t whose queries are needed.

        Returns:
            Queries [b, t or w, Q, D]; keys and values [b, t, G, D].
        """

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's input x [b, t, H] and attention's result [b, t, Q · D] → the block's output [b, t, H]."""


class LlamaBlock:
    """Llama, Mistral, Qwen2 and Qwen3."""

    def __init__(self, layer: Any, weights: Weights | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.layer, self.scale, self.size = layer, attention.scaling, attention.head_dim
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.q, self.kv = linear(projections[0], weights), linears(projections[1:], weights)
        self.qkv = linears(projections, weights)
        self.o, self.down = (linear(module, weights) for module in (attention.o_proj, mlp.down_proj))
        self.gate_up = linears([mlp.gate_proj, mlp.up_proj], weights)
        self.q_norm, self.k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        self.silu = isinstance(mlp.act_fn, nn.SiLU) or type(mlp.act_fn).__name__ == "SiLUActivation"

    def heads(
        self, x: Tensor, rotation: Rotation, query_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, of_queries = norm(self.layer.input_layernorm, x), rotation
        if query_index is None:
            projected = self.qkv(y)
        else:
            projected = self.q(y.index_select(1, query_index)), *self.kv(y)
            if rotation is not None:
                cos, sin = rotation
                of_queries = cos.index_select(1, query_index), sin.index_select(1, query_index)
        q, k, v = (part.unflatten(-1, (-1, self.size)) for part in projected)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = norm(self.q_norm, q), norm(self.k_norm, k)
        return _rotated(q, of_queries), _rotated(k, rotation), v

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.o(attended)
        y = norm(self.layer.post_attention_layernorm, x)
        gate, up = self.gate_up(y)
        return x + self.down(gated_silu(gate, up) if self.silu else self.layer.mlp.act_fn(gate) * up)


def _rotated(heads: Tensor, rotation: Rotation) -> Tensor:
    """Heads [b, t, h, D], rotated by the angles of their positions."""
    assert rotation is not None
    return rotate(heads, *rotation)


class GPT2Block:
    """GPT-2: positions are in the embeddings, so heads are not rotated."""

    def __init__(self, layer: Any, weights: Weights | None) -> None:
        attention, mlp = layer.attn, layer.mlp
        self.layer, self.scale, self.size = layer, attention.scaling, attention.head_dim
        self.qkv, self.o, self.up, self.down = (
            linear(module, weights) for module in (attention.c_attn, attention.c_proj, mlp.c_fc, mlp.c_proj)
        )

    def heads(
        self,
        x: Tensor,
        rotation: Rotation,  # noqa: ARG002
        query_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(self.layer.ln_1(x)).chunk(3, dim=-1)
        if query_index is not None:
            q = q.index_select(1, query_index)
        q, k, v = (part.reshape(*part.shape[:2], -1, self.size) for part in (q, k, v))
        return q, k, v

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.o(attended)
        return x + self.down(self.layer.mlp.act(self.up(self.layer.ln_2(x))))


def norm(module: Any, x: Tensor) -> Tensor:
    """A norm module of transformers on x: `rms_norm` for a root-mean-square norm, others as they are."""
    eps = getattr(module, "variance_epsilon", None)
    return module(x) if eps is None else rms_norm(x, module.weight, eps)


class Layout(Protocol):
    """A trunk in parts: embeddings, blocks, and the final norm. embeddings: the modules that `embed` reads."""

    embeddings: Sequence[Any]
    blocks: Sequence[Block]
    final: Callable[[Tensor], Tensor]

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens and positions [b, t] → embeddings [b, t, H]."""

    def rotation(self, x: Tensor, positions: Tensor) -> Rotation:
        """The rotation of the heads at positions [b, t], for states of the dtype of x."""


class LlamaLayout:
    """Llama, Mistral, Qwen2 and Qwen3."""

    def __init__(self, trunk: Any, weights: Weights | None = None) -> None:
        self.trunk = trunk
        self.embeddings: Sequence[Any] = [trunk.embed_tokens]
        self.final: Callable[[Tensor], Tensor] = partial(norm, trunk.norm)
        self.blocks: Sequence[Block] = [LlamaBlock(layer, weights) for layer in trunk.layers]

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002
        x: Tensor = self.trunk.embed_tokens(tokens)
        return x

    def rotation(self, x: Tensor, positions: Tensor) -> Rotation:
        cos, sin = self.trunk.rotary_emb(x, position_ids=positions)
        # The two halves of sin are the same.
        return cos[:, :, None], sin[:, :, None, : sin.shape[-1] // 2]


class GPT2Layout:
    """GPT-2."""

    def __init__(self, trunk: Any, weights: Weights | None = None) -> None:
        self.trunk = trunk
        self.embeddings: Sequence[Any] = [trunk.wte, trunk.wpe]
        self.final: Callable[[Tensor], Tensor] = trunk.ln_f
        self.blocks: Sequence[Block] = [GPT2Block(layer, weights) for layer in trunk.h]

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        # Padding may stand beyond the last position that has an embedding.
        last = self.trunk.wpe.weight.shape[0] - 1
        x: Tensor = self.trunk.wte(tokens) + self.trunk.wpe(positions.clamp(max=last))
        return x

    def rotation(self, x: Tensor, positions: Tensor) -> Rotation:  # noqa: ARG002
        return None


# transformers' model type → its layout.
LAYOUTS: dict[str, type[LlamaLayout] | type[GPT2Layout]] = {
    "llama": LlamaLayout,
    "mistral": LlamaLayout,
    "qwen2": LlamaLayout,
    "qwen3": LlamaLayout,
    "gpt2": GPT2Layout,
}
# Rotary embeddings whose angles depend on the position alone.
STATIC_ROTATIONS = ("default", "linear", "llama3", "yarn")


def has_layout(config: Any) -> bool:
    """Whether a model of this configuration is of a type in LAYOUTS, in the form that is known here."""
    if config.model_type not in LAYOUTS:
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


def layout_of(trunk: Any, weights: Weights | None = None) -> Layout:
    """The layout of a trunk's blocks, of which `has_layout` is true.

    Args:
        trunk: A transformers model without its head.
        weights: For decoding: copy the weights of linear layers, rounded to this; they must not change while the
            layout is used. None: for training passes, which read the weights from the modules.
    """
    return LAYOUTS[trunk.config.model_type](trunk, weights)
