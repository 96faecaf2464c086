"""Whether a pass that reads weights from their modules would bypass something: hooks, or sharded parameters.

proxlm's own passes do not call the modules whose weights they use, and they may add gradients to `weight.grad`
themselves. Where somebody listens to the modules or their parameters, transformers' own forward runs instead.
"""

from __future__ import annotations

from torch import nn

_MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def has_hooks(network: nn.Module, skip_embeddings: bool = False) -> bool:
    """Whether any module in `network` has hooks, or any parameter has hooks or is no plain tensor (DTensor, say).

    Hooks that torch does not list (DistributedDataParallel's) are not found; `LanguageModel.own_kernels` is for them.

    Args:
        network: The modules that a pass does not call.
        skip_embeddings: Ignore the hooks of embedding modules, which every pass calls.
    """
    for module in network.modules():
        if skip_embeddings and isinstance(module, nn.Embedding):
            continue
        if any(getattr(module, name) for name in _MODULE_HOOKS):
            return True
    return any(
        type(p) is not nn.Parameter or any(getattr(p, name, None) for name in _PARAMETER_HOOKS)
        for p in network.parameters()
    )
