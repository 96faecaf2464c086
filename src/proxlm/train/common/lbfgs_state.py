"""The state of torch's L-BFGS as tensors of fixed shapes: it keeps lists that grow, and plain numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What torch keeps for each past step, newest last, and for the newest step alone.
PAST, NEWEST, NUMBERS = (
    ("old_dirs", "old_stps", "ro"),
    ("d", "prev_flat_grad"),
    ("n_iter", "func_evals", "t", "H_diag"),
)


def lbfgs_tensors(optimiser: torch.optim.LBFGS) -> dict[str, Tensor]:
    """Everything that the next step depends on.

    Returns:
        `old_dirs`, `old_stps` [h, n] and `ro` [h], of h past steps of n weights, 0 where there are fewer; `d` and
        `prev_flat_grad` [n]; `numbers` [5] float64: how many past steps, and NUMBERS.
    """
    state, group = _state(optimiser), optimiser.param_groups[0]
    first, most = group["params"][0], group["history_size"]
    size = sum(p.numel() for p in group["params"])
    past: list[Tensor] = state.get("ro", [])
    tensors = {name: first.new_zeros(most, size) for name in PAST[:2]} | {"ro": first.new_zeros(most)}
    for name in PAST:
        for i, value in enumerate(state.get(name, [])):
            tensors[name][i] = value
    for name in NEWEST:
        tensors[name] = state[name].detach().clone() if name in state else first.new_zeros(size)
    numbers = [len(past), *(float(state.get(name, 0)) for name in NUMBERS)]
    tensors["numbers"] = torch.tensor(numbers, dtype=torch.float64)
    return {f"lbfgs.{name}": tensor.detach() for name, tensor in tensors.items()}


def load_lbfgs_tensors(optimiser: torch.optim.LBFGS, tensors: dict[str, Tensor]) -> None:
    """Inverse of `lbfgs_tensors`."""
    state, first = _state(optimiser), optimiser.param_groups[0]["params"][0]
    found = {name: tensors[f"lbfgs.{name}"] for name in (*PAST, *NEWEST, "numbers")}
    count, *numbers = found["numbers"].tolist()
    state.clear()
    state.update(zip(NUMBERS, numbers, strict=True))
    state["n_iter"], state["func_evals"] = int(state["n_iter"]), int(state["func_evals"])
    if state["n_iter"] == 0:
        return
    for name in PAST:
        state[name] = [value.to(first.device, copy=True) for value in found[name][: int(count)]]
    for name in NEWEST:
        state[name] = found[name].to(first.device, copy=True)
    state["prev_loss"] = 0.0


def _state(optimiser: torch.optim.LBFGS) -> dict[str, Any]:
    """Torch keeps all of it at the first parameter."""
    state: dict[str, Any] = optimiser.state[optimiser.param_groups[0]["params"][0]]
    return state
