"""A vLLM worker that says what it computes with: vllm serve … --worker-extension-cls proxlm_checksums.Checksums.

This file runs in vLLM's environment, where proxlm is not: it imports torch alone. vLLM has checksums of its own, of
parameters (/weight_checker); on CPUs it empties most of them after it has prepared a copy, and computes with that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Checksums:
    """Becomes a base class of vLLM's worker, whose attributes it uses."""

    def computed_checksums(self) -> dict[str, str]:
        """The SHA-256 of each tensor's bytes, by vLLM's name for it behind the worker's place in the group."""
        worker: Any = self
        place = worker._weight_checksum_prefix()
        tensors = _computed_with(worker.model_runner.get_model())
        return {place + name: _sha256(tensor) for name, tensor in tensors}


@torch.no_grad()
def _computed_with(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            tensor = parameter.detach()
            if name == "weight" and (prepared := _prepared(module)) is not None:
                tensor = prepared
            yield f"{module_name}.{name}".replace(".base_layer.", "."), tensor


def _prepared(module: Any) -> Tensor | None:
    """The weight in the copy that a layer on a CPU computes with: products with the unit vectors, which are exact.

    An embedding has such a copy too, but looks its rows up in the parameter.
    """
    product = getattr(module, "cpu_linear", None)
    if product is None or type(module).__name__ == "VocabParallelEmbedding":
        return None
    sizes = ("embedding_dim", "input_size_per_partition", "input_size")  # of a head, and of layers
    size = next(getattr(module, name) for name in sizes if hasattr(module, name))
    unit = torch.eye(size, dtype=module.params_dtype)
    columns: Tensor = product(unit, module.weight, None)
    return columns.T


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()
