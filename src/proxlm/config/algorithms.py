"""The advantage estimators and policy losses by name. Adding one is one line here.

Functions are named, not imported: nothing here may import torch.
"""

from __future__ import annotations

from typing import NamedTuple


class Advantage(NamedTuple):
    """function: module:name; critic: uses values; whiten: followed by whitening unless a setting says otherwise;
    groups: needs several responses to each prompt."""

    function: str
    critic: bool = False
    whiten: bool = False
    groups: bool = False


ADVANTAGES = {
    "gae": Advantage("proxlm.rl.estimators:gae_advantages", critic=True, whiten=True),
    "reinforce": Advantage("proxlm.rl.estimators:reinforce_advantages"),
    "reinforce++": Advantage("proxlm.rl.estimators:reinforce_advantages", whiten=True),
    "rloo": Advantage("proxlm.rl.estimators:rloo_advantages", groups=True),
    "grpo": Advantage("proxlm.rl.estimators:grpo_advantages", groups=True),
}

LOSSES = {
    "ppo": "proxlm.rl.policy_losses:ppo_loss",
    "pg": "proxlm.rl.policy_losses:pg_loss",
    "gspo": "proxlm.rl.policy_losses:gspo_loss",
    "cispo": "proxlm.rl.policy_losses:cispo_loss",
    "dppo": "proxlm.rl.policy_losses:dppo_loss",
    # The second-order method: the surrogate ρ A, and a step of its own (train/second_order.py).
    "trpo": "proxlm.rl.policy_losses:surrogate_loss",
}


def is_user_function(name: str) -> bool:
    """Whether a setting names a function of the user's, path/to/file.py:function."""
    path, colon, function = name.rpartition(":")
    return bool(path and colon and function)


def advantage_of(name: str) -> Advantage:
    """What is known of an estimator by its setting; a user's function may use all there is."""
    return ADVANTAGES.get(name, Advantage(name, critic=True, whiten=True))
