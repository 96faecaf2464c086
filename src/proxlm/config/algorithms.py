"""The advantage estimators and policy losses by name. Adding one is one line here.

Functions are named, not imported: nothing here may import torch.
"""

from __future__ import annotations

from typing import NamedTuple


class Advantage(NamedTuple):
    """function: module:name; critic: uses values; whiten: followed by whitening unless a setting says otherwise;
    groups: needs several responses to each prompt; rowwise: a response's depend on no other response."""

    function: str
    critic: bool = False
    whiten: bool = False
    groups: bool = False
    rowwise: bool = False


ADVANTAGES = {
    "gae": Advantage("proxlm.rl.estimators:gae_advantages", critic=True, whiten=True, rowwise=True),
    "reinforce": Advantage("proxlm.rl.estimators:reinforce_advantages"),
    "reinforce++": Advantage("proxlm.rl.estimators:reinforce_advantages", whiten=True),
    "rloo": Advantage("proxlm.rl.estimators:rloo_advantages", groups=True),
    "grpo": Advantage("proxlm.rl.estimators:grpo_advantages", groups=True),
}


class Loss(NamedTuple):
    """function: module:name; tokenwise: a token's loss depends on no other token."""

    function: str
    tokenwise: bool = False


LOSSES = {
    "ppo": Loss("proxlm.rl.policy_losses:ppo_loss", tokenwise=True),
    "pg": Loss("proxlm.rl.policy_losses:pg_loss", tokenwise=True),
    "gspo": Loss("proxlm.rl.policy_losses:gspo_loss"),
    "cispo": Loss("proxlm.rl.policy_losses:cispo_loss", tokenwise=True),
    "dppo": Loss("proxlm.rl.policy_losses:dppo_loss", tokenwise=True),
    # The second-order method: the surrogate ρ A, and a step of its own (train/ppo/trpo.py).
    "trpo": Loss("proxlm.rl.policy_losses:surrogate_loss"),
}


def is_user_function(name: str) -> bool:
    """Whether a setting names a function of the user's, path/to/file.py:function."""
    path, colon, function = name.rpartition(":")
    return bool(path and colon and function)


def advantage_of(name: str) -> Advantage:
    """What is known of an estimator by its setting; a user's function may use all there is."""
    return ADVANTAGES.get(name, Advantage(name, critic=True, whiten=True))


def loss_of(name: str) -> Loss:
    """What is known of a loss by its setting; a user's function may look at all tokens."""
    return LOSSES.get(name, Loss(name))
