"""Blocks whose weights, gradients and optimiser state are spread over ranks, with torch's FSDP2 (`fully_shard`).

The matrices of the blocks that learn are gathered for a block's pass and given up after it. The rest is a copy on
each rank, as without sharding: embeddings, the last norm, the output head and the value head, because passes read
them outside the blocks; vectors (norms, biases), because they are small, and passes in bf16 use them in float32;
blocks that do not learn, because the reference and the copy that samples share them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from proxlm.errors import ConfigError
from proxlm.models.actor_critic import ActorCritic
from proxlm.models.few_blocks import stacks
from proxlm.models.frozen_copy import frozen_copy

# Matrices are gathered in bf16 and their gradients added up in float32; autocast chooses every other precision, so
# that a pass rounds what it rounds without sharding.
BFLOAT16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)


def shard(models: ActorCritic, size: int) -> ActorCritic:
    """Spread the blocks of what learns over all ranks: the policy's, and those of a critic's own trunk.

    Gradients are then added up over ranks in the backward pass. Every rank must make the same passes.

    Args:
        models: Changed in place.
        size: How many ranks there are.

    Returns:
        The same with a whole copy of the policy, which samples, is evaluated and is saved.

    Raises:
        ConfigError: A network has no blocks that learn.
    """
    policy, reference = models.policy, models.reference
    policy.frozen_blocks = 0  # sharded weights need transformers' own forward, which begins at the tokens
    whole_models = replace(models, policy=frozen_copy(policy))
    if reference is not None and policy.bfloat16:
        # Its passes must round as the policy's, or there would be a KL where none is.
        models.reference = replace(reference, own_kernels=False)
    checkpointing = policy.activation_checkpointing
    shard_network(policy.network, policy.device, size, policy.bfloat16, checkpointing)
    if models.critic_trunk is not None:
        shard_network(models.critic_trunk, policy.device, size, policy.bfloat16, checkpointing)
    return whole_models


def shard_network(
    network: Any,
    device: torch.device,
    size: int,
    bfloat16: bool = False,
    activation_checkpointing: bool = False,
) -> None:
    """The same of one network.

    Args:
        network: A transformers model; changed in place.
        device: Where it is.
        size: How many ranks there are.
        bfloat16: Its passes run under bf16 autocast.
        activation_checkpointing: A block keeps its input only, and is computed again in the backward pass.

    Raises:
        ConfigError: It has no blocks that learn.
    """
    mesh = init_device_mesh(device.type, (size,))
    blocks = [block for _, _, stack in stacks(network) for block in stack]
    learning = [block for block in blocks if any(p.requires_grad for p in block.parameters())]
    if not learning:
        reason = "none of the model's blocks learns" if blocks else "this type of model has no list of blocks"
        raise ConfigError(f'distributed.strategy = "fsdp": {reason}; set it to ddp')
    for block in learning:
        if activation_checkpointing:
            _checkpoint(block)
        _return_no_view(block)
        fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=True,
            mp_policy=BFLOAT16 if bfloat16 else MixedPrecisionPolicy(),
            ignored_params={p for p in block.parameters() if p.dim() < 2},
        )
        # A sum over ranks, which gloo can do, too: the loss has its denominator already.
        block.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        block.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]


def _checkpoint(block: nn.Module) -> None:
    """Have a block keep its input only. Inside the hooks of `fully_shard`: its weights are gathered once to be
    computed again and differentiated.
    """
    forward = block.forward

    def run(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*given, **named)
        return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False, **named)

    block.forward = run


def _return_no_view(block: nn.Module) -> None:
    """Have a block return copies of views: the hooks of `fully_shard` stand on the tensors that a block returns, and
    would be lost if one were changed in place. T5's first block returns its position bias so, which the others share.
    """
    forward = block.forward

    def run(*given: Any, **named: Any) -> Any:
        returned = forward(*given, **named)
        return tuple(map(_owned, returned)) if isinstance(returned, tuple) else _owned(returned)

    block.forward = run


def _owned(value: Any) -> Any:
    is_view = isinstance(value, Tensor) and value.requires_grad and value._base is not None
    return value.clone() if is_view else value


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds a part of it only."""
    return isinstance(tensor, DTensor)


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded. All ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that may be sharded; in the same memory, without gradient."""
    found = tensor.detach()
    return found.to_local() if isinstance(found, DTensor) else found


@torch.no_grad()
def assign(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded: each rank its part."""
    if isinstance(tensor, DTensor):
        own = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(own.to_local())
    else:
        tensor.copy_(value)
