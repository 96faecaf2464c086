"""The sizes of a model that its memory and time follow from, read from its configuration. No weights are needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from proxlm.errors import ModelError, UserError
from proxlm.kernels.block_layouts import has_layout
from proxlm.models.few_blocks import stacks
from proxlm.models.model_types import register_model_types


@dataclass(frozen=True)
class Shape:
    """A causal language model.

    Attributes:
        hidden: H, width of the states.
        layers: Number of blocks.
        queries: Width of all query heads together.
        keys: G · D, width of all key heads together; as many values.
        heads: Number of query heads.
        inner: I, width of the MLP's inner layer.
        gated: Whether the MLP has a gate beside it.
        vocabulary: V, tokens of the output head.
        parameters: All of them; a tied head counts once.
        blocks: Those in the blocks.
        matrix: Numbers of one block's matrices.
        sides: Of each of one block's matrices, inputs and outputs.
        largest: Numbers of the largest tensor of a block.
        tied: Whether the head's matrix is the embedding's.
        known: Whether proxlm runs its blocks itself (kernels/block_layouts.py).
    """

    hidden: int
    layers: int
    queries: int
    keys: int
    heads: int
    inner: int
    gated: bool
    vocabulary: int
    parameters: int
    blocks: int
    matrix: int
    sides: tuple[tuple[int, int], ...]
    largest: int
    tied: bool
    known: bool

    @property
    def head(self) -> int:
        """Numbers of the output head's matrix."""
        return self.hidden * self.vocabulary

    @property
    def trunk(self) -> int:
        """Parameters without an output head of its own."""
        return self.parameters - (0 if self.tied else self.head)

    def adapters(self, rank: int, blocks: int = 0) -> int:
        """Parameters of adapters of this rank on the matrices of so many blocks; 0: of all."""
        return (blocks or self.layers) * rank * sum(inputs + outputs for inputs, outputs in self.sides)


def shape_of(configuration: Any, what: str) -> Shape:
    """The sizes of a model of a transformers configuration; the model is built without memory for its weights.

    Args:
        configuration: As `read_configuration` reads it.
        what: Beginning of an error's message.

    Raises:
        ModelError: It is no causal language model with a list of blocks, or transformers cannot build it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    register_model_types()
    if configuration.is_encoder_decoder:
        raise ModelError(f"{what}: an encoder–decoder, and only causal language models are planned")
    try:
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(configuration)
    except UserError:
        raise
    except Exception as error:  # what a type's own code raises for sizes that it does not take
        raise ModelError(
            f"{what}: transformers cannot build this configuration ({type(error).__name__})"
        ) from error
    lists = [stack for _, _, stack in stacks(network) if len(stack)]
    if not lists:
        raise ModelError(f"{what}: model type {configuration.model_type} has no list of blocks to plan by")
    stack, config = max(lists, key=len), configuration.get_text_config()
    tensors = [p for block in stack for p in block.parameters()]
    matrices = [p for p in stack[0].parameters() if p.dim() > 1]
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    sides = tuple((math.prod(p.shape[1:]), p.shape[0]) for p in matrices)
    head = network.get_output_embeddings().weight
    return Shape(
        hidden=config.hidden_size,
        layers=len(stack),
        queries=heads * size,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * size,
        heads=heads,
        inner=_inner(config),
        gated=any("gate" in name for name, _ in stack[0].named_parameters()),
        vocabulary=head.shape[0],
        parameters=sum(p.numel() for p in network.parameters()),
        blocks=sum(p.numel() for p in tensors),
        matrix=sum(p.numel() for p in matrices),
        sides=sides,
        largest=max(p.numel() for p in matrices),
        tied=head is network.get_input_embeddings().weight,
        known=has_layout(configuration),
    )


def _inner(config: Any) -> int:
    """Width of the MLP's inner layer, under the names that model types give it."""
    names = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
    return next((found for name in names if (found := getattr(config, name, None))), 4 * config.hidden_size)
