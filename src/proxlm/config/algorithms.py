"""The advantage estimators and policy losses by name. Adding one is one line here.

Functions are named, not imported: nothing here may import torch.
"""

from __future__ import annotations

from typing import NamedTuple


class Advantage(NamedTuple):
    """An advantage estimator.

    Attributes:
        function: "module:name".
        critic: It uses values.
        whiten: Its advantages are whitened unless a setting says otherwise.
        groups: It needs several responses to each prompt.
        rowwise: A response's advantages depend on no other response.
    """

    function: str
    critic: bool = False
    whiten: bool = False
    groups: bool = False
    rowwise: bool = False


ADVANTAGES = {
    "gae": Advantage("proxlm.rl.estimators:gae_advantages", critic=True, whiten=True, rowwise=True),
    # For rollouts of an older policy or another engine.
    "vtrace": Advantage("proxlm.rl.estimators:vtrace_advantages", critic=True, whiten=True, rowwise=True),
    "retrace": Advantage("proxlm.rl.estimators:retrace_advantages", critic=True, whiten=True, rowwise=True),
    "reinforce": Advantage("proxlm.rl.estimators:reinforce_advantages"),
    "reinforce++": Advantage("proxlm.rl.estimators:reinforce_advantages", whiten=True),
    "rloo": Advantage("proxlm.rl.estimators:rloo_advantages", groups=True),
    "grpo": Advantage("proxlm.rl.estimators:grpo_advantages", groups=True),
}


class Loss(NamedTuple):
    """A policy loss.

    Attributes:
        function: "module:name".
        tokenwise: A token's loss depends on no other token.
    """

    function: str
    tokenwise: bool = False


LOSSES = {
    "ppo": Loss("proxlm.rl.policy_losses:ppo_loss", tokenwise=True),
    "pg": Loss("proxlm.rl.policy_losses:pg_loss", tokenwise=True),
    "gspo": Loss("proxlm.rl.policy_losses:gspo_loss"),
    "cispo": Loss("proxlm.rl.policy_losses:cispo_loss", tokenwise=True),
    "dppo": Loss("proxlm.rl.policy_losses:dppo_loss", tokenwise=True),
    "clip_cov": Loss("proxlm.rl.policy_losses:clip_cov_loss", tokenwise=True),
    "kl_cov": Loss("proxlm.rl.policy_losses:kl_cov_loss", tokenwise=True),
    # The second-order method: the surrogate ρ A, and a step of its own (train/ppo/trpo.py).
    "trpo": Loss("proxlm.rl.policy_losses:surrogate_loss"),
}


def advantage_of(name: str) -> Advantage:
    """The properties of the estimator that a setting names; a user's function is assumed to use everything."""
    return ADVANTAGES.get(name, Advantage(name, critic=True, whiten=True))


def loss_of(name: str) -> Loss:
    """The properties of the loss that a setting names; a user's function is assumed to look at all tokens."""
    return LOSSES.get(name, Loss(name))
