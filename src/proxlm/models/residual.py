"""Where the blocks of a model type add to its residual stream, by the names that types give these matrices."""

from __future__ import annotations

from torch import nn

from proxlm.models.few_blocks import stacks

NAMES = (
    "o_proj", "down_proj", "c_proj", "out_proj", "fc2", "fc_out", "dense_4h_to_h", "attention.dense", "o", "wo", "Wo",
    "self_attention.dense", "self_attn.dense", "output.dense", "out_lin", "ffn.lin2",
)  # fmt: skip


def residual_modules(network: nn.Module) -> list[list[list[nn.Module]]]:
    """The linear layers whose products are added to the residual stream: of each stack, of each of its blocks.

    A block in which none is known has an empty list, and so has one whose experts are layers of their own: which
    tokens they see is up to a router.
    """
    return [
        [[module for name, module in block.named_modules() if _adds(name)] for block in stack]
        for _, _, stack in stacks(network)
    ]


def _adds(name: str) -> bool:
    return "expert" not in name and any(f".{name}".endswith(f".{ending}") for ending in NAMES)
