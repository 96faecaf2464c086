"""AdamW over named parameters, with its schedule and gradient clipping; its state is plain tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from proxlm.config import OptimiserSettings
from proxlm.train.common.schedules import learning_rate


class Optimiser:
    """AdamW (Loshchilov and Hutter 2019). Weight decay applies to matrices only, not to biases and norms.

    A step whose gradient is not finite is skipped: one bad batch must not destroy the weights. Its norm is
    returned unchanged, so that the metrics count it.

    Long-lived tensors are allocated together, the moments here and the gradients by `hold`: allocated one by one
    among the tensors of a pass, they would fragment memory into pieces too small for the next pass.
    """

    def __init__(self, parameters: Sequence[tuple[str, nn.Parameter]], config: OptimiserSettings) -> None:
        self.named = list(parameters)
        self.config = config
        groups = [
            {"params": [p for _, p in self.named if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for _, p in self.named if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        for _, p in self.named:
            state = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.adamw.state[p] = {"step": torch.zeros((), device=p.device), **state}

    def step(self, step: int, total: int) -> tuple[float, float]:
        """Clip the gradient, update the parameters and clear the gradient.

        Args:
            step: Number of this step on the schedule, from 0.
            total: Steps of the whole schedule.

        Returns:
            The gradient's norm before clipping, and the learning rate.
        """
        lr = learning_rate(self.config, step, total)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        limit = self.config.max_grad_norm or float("inf")
        norm = float(nn.utils.clip_grad_norm_([p for _, p in self.named], limit))
        if norm == norm and norm != float("inf"):
            self.adamw.step()
        self.clear()
        return norm, lr

    def hold(self) -> None:
        """Allocate the gradients of all parameters, as zeros, unless they are there."""
        for _, p in self.named:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad

    def clear(self) -> None:
        """Set the gradients to 0."""
        self.adamw.zero_grad(set_to_none=False)

    def release(self) -> None:
        """Free the gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state: `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`."""
        return {
            f"{key}.{name}": value
            for name, p in self.named
            for key, value in self.adamw.state[p].items()
            if isinstance(value, Tensor)
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_tensors`: every one of its tensors must be there."""
        for name, p in self.named:
            self.adamw.state[p] = {
                key: tensors[f"{key}.{name}"].to(p.device, copy=True) for key in self.adamw.state[p]
            }
