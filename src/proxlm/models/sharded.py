"""Blocks whose weights, gradients and optimiser state are spread over ranks, with torch's FSDP2 (`fully_shard`).

A block's weights are gathered for its pass and given up after it. Embeddings, the last norm, the output head and the
value head are a copy on each rank, as without sharding: passes read them outside the blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from proxlm.errors import ConfigError
from proxlm.models.actor_critic import ActorCritic
from proxlm.models.few_blocks import stacks


def shard(models: ActorCritic, size: int) -> None:
    """Spread the blocks of what learns over all ranks: the policy's, and those of a critic's own trunk.

    Gradients are then added up over ranks in the backward pass. Every rank must make the same passes.

    Args:
        models: Changed in place.
        size: How many ranks there are.

    Raises:
        ConfigError: A network has no blocks that can be found.
    """
    shard_network(models.policy.network, models.policy.device, size)
    if models.critic_trunk is not None:
        shard_network(models.critic_trunk, models.policy.device, size)


def shard_network(network: Any, device: torch.device, size: int) -> None:
    """The same of one network, which is on that device."""
    mesh = init_device_mesh(device.type, (size,))
    blocks = [block for _, _, stack in stacks(network) for block in stack]
    if not blocks:
        raise ConfigError(
            'distributed.strategy = "fsdp": this type of model has no list of blocks; set it to ddp'
        )
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
        # A sum over ranks, which gloo can do, too: the loss has its denominator already.
        block.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        block.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds a part of it only."""
    return isinstance(tensor, DTensor)


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded. All ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded: each rank its part."""
    if isinstance(tensor, DTensor):
        part = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(part.to_local())
    else:
        tensor.copy_(value)
