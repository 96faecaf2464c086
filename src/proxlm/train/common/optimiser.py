"""torch's optimisers by name, with schedule and gradient clipping; their state is plain tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from proxlm.config import OptimiserSettings
from proxlm.models.sharded import is_sharded
from proxlm.train.common.clipping import clip_gradient
from proxlm.train.common.layer_rates import layer_rates
from proxlm.train.common.lbfgs_state import lbfgs_tensors, load_lbfgs_tensors
from proxlm.train.common.schedules import learning_rate

Named = Sequence[tuple[str, nn.Parameter]]
# Parts of a parameter's name by which it is an embedding or a head, whose rows are tokens or classes.
TOKEN_ROWS = ("embed", "wte", "wpe", "lm_head", "shared", "head", "score", "classifier")

# In a group of parameters: the multiple of the learning rate that it learns at.
RATE = "rate"


class Optimiser:
    """One of torch's optimisers. Weight decay applies to matrices only, not to biases and norms.

    A step whose gradient is not finite is skipped: one bad batch must not destroy the weights. Its norm is
    returned unchanged, so that the metrics count it.

    Long-lived tensors are allocated together, the moments here and the gradients by `hold`: allocated one by one
    among the tensors of a pass, they would fragment memory into pieces too small for the next pass.

    Args:
        parameters: What learns, by name.
        config: The settings.
        rates: Parameters that learn at a multiple of the rate, by name, besides what the settings say; not for
            L-BFGS, whose step is one for all.
        section: Of the settings, for messages.

    Raises:
        ConfigError: A pattern of the settings fits no parameter.
    """

    def __init__(
        self,
        parameters: Named,
        config: OptimiserSettings,
        rates: Mapping[str, float] | None = None,
        section: str = "optim",
    ) -> None:
        self.named = list(parameters)
        self.config = config
        names = (name for name, _ in self.named)
        by_layer = layer_rates(names, config.layer_decay, config.rates, section)
        every = {name: rate * (rates or {}).get(name, 1.0) for name, rate in by_layer.items()}
        self.parts = _parts(self.named, config, every)
        if config.name != "lbfgs":
            self._make_state()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of parameters, as torch's optimisers have them."""
        return [group for part in self.parts for group in part.param_groups]

    def _make_state(self) -> None:
        """Have torch make the state of every parameter, by a step of rate 0 along a gradient of 0."""
        groups = self.param_groups
        before = [dict(group) for group in groups]
        self.hold()
        for group in groups:
            group["lr"], group["weight_decay"] = 0.0, 0.0  # an L2 penalty is a gradient
        for part in self.parts:
            part.step()
            for state in part.state.values():
                for key, value in state.items():
                    if isinstance(value, Tensor):  # NAdam's product of its momenta so far begins at 1
                        value.fill_(1.0 if key == "mu_product" else 0.0)
        for group, settings in zip(groups, before, strict=True):
            group.update(settings)
        self.release()

    def step(self, step: int, total: int) -> tuple[float, float]:
        """Clip the gradient, update the parameters and clear the gradient.

        Args:
            step: Number of this step on the schedule, from 0.
            total: Steps of the whole schedule.

        Returns:
            The gradient's norm before clipping, and the learning rate.
        """
        lr = learning_rate(self.config, step, total)
        for group in self.param_groups:
            group["lr"] = lr * group.get(RATE, 1.0)
        limit = self.config.max_grad_norm or float("inf")
        norm = clip_gradient([p for _, p in self.named], limit)
        if norm == norm and norm != float("inf"):
            for part in self.parts:
                if isinstance(part, torch.optim.LBFGS):
                    part.step(_no_loss)
                else:
                    part.step()
        self.clear()
        return norm, lr

    def hold(self) -> None:
        """Allocate the gradients of all parameters, as zeros, unless they are there."""
        for _, p in self.named:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad

    def clear(self) -> None:
        """Set the gradients to 0."""
        for _, p in self.named:
            if p.grad is not None:
                p.grad.detach_().zero_()

    def release(self) -> None:
        """Free the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state: `KEY.NAME` for what torch keeps of a parameter, such as `exp_avg.NAME` and `step.NAME`."""
        if isinstance(self.parts[0], torch.optim.LBFGS):
            return lbfgs_tensors(self.parts[0])
        return {
            f"{key}.{name}": value
            for name, p in self.named
            for key, value in self._state_of(p).items()
            if isinstance(value, Tensor)
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_tensors`: every one of its tensors must be there."""
        if isinstance(self.parts[0], torch.optim.LBFGS):
            load_lbfgs_tensors(self.parts[0], tensors)
            return
        for name, p in self.named:
            state = self._state_of(p)
            for key, value in state.items():
                if isinstance(value, Tensor):
                    state[key] = tensors[f"{key}.{name}"].to(value.device, copy=True)

    def _state_of(self, p: nn.Parameter) -> dict[str, Any]:
        state: dict[str, Any] = next((part.state[p] for part in self.parts if p in part.state), {})
        return state


def _parts(
    named: Named, config: OptimiserSettings, rates: Mapping[str, float]
) -> list[torch.optim.Optimizer]:
    """The torch optimisers that update the parameters; for Muon two, since it is for hidden matrices alone."""
    lr, betas = config.lr, (config.beta1, config.beta2)
    if config.name == "lbfgs":
        # One step along the direction for each gradient: no search along it, which would need the batch again.
        return [
            torch.optim.LBFGS([p for _, p in named], lr, max_iter=1, tolerance_grad=0, tolerance_change=0)
        ]
    if config.name == "muon":
        hidden = [(name, p) for name, p in named if p.dim() == 2 and not any(x in name for x in TOKEN_ROWS)]
        chosen = {id(p) for _, p in hidden}
        others = [(name, p) for name, p in named if id(p) not in chosen]
        # Steps of the size of AdamW's, so that one learning rate is right for both.
        muon: list[torch.optim.Optimizer] = (
            [
                torch.optim.Muon(
                    _groups(hidden, config, rates),
                    lr,
                    momentum=config.momentum,
                    adjust_lr_fn="match_rms_adamw",
                )
            ]
            if hidden
            else []
        )
        return muon + ([_adamw(others, config, rates)] if others else [])
    if config.name == "adamw":
        return [_adamw(named, config, rates)]
    groups = _groups(named, config, rates)
    if config.name == "adam":
        return [torch.optim.Adam(groups, lr, betas, config.eps, fused=True)]
    if config.name == "nadam":
        return [torch.optim.NAdam(groups, lr, betas, config.eps, decoupled_weight_decay=True)]
    if config.name == "radam":
        return [torch.optim.RAdam(groups, lr, betas, config.eps, decoupled_weight_decay=True)]
    if config.name == "adamax":
        return [torch.optim.Adamax(groups, lr, betas, config.eps)]
    if config.name == "adagrad":
        return [torch.optim.Adagrad(groups, lr, eps=config.eps)]
    if config.name == "rmsprop":
        return [torch.optim.RMSprop(groups, lr, config.beta2, config.eps, momentum=config.momentum)]
    if config.name == "adafactor":
        return [torch.optim.Adafactor(groups, lr)]
    return [torch.optim.SGD(groups, lr, config.momentum)]


def _adamw(named: Named, config: OptimiserSettings, rates: Mapping[str, float]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        _groups(named, config, rates), config.lr, (config.beta1, config.beta2), config.eps, fused=True
    )


def _groups(named: Named, config: OptimiserSettings, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Matrices first, which alone decay; each in groups of one rate, sharded parameters apart from whole ones."""
    found: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, p in named:
        found.setdefault((is_sharded(p), p.dim() < 2, rates.get(name, 1.0)), []).append(p)
    return [
        {"params": parameters, "weight_decay": 0.0 if vector else config.weight_decay, RATE: rate}
        for (_, vector, rate), parameters in sorted(found.items(), key=lambda group: group[0])
    ]


def _no_loss() -> float:
    """L-BFGS asks for the loss, and without a line search does not use it."""
    return 0.0
