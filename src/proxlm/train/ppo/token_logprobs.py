"""What policy, reference and teacher say of a rollout's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from proxlm.config import PPOSettings
from proxlm.models.actor_critic import ActorCritic
from proxlm.train.common.memory import failing_together
from proxlm.train.ppo.critic import CriticValues, fill_values, no_values
from proxlm.train.ppo.plan import UpdatePlan
from proxlm.types import Rollout


class LogProbs(NamedTuple):
    """policy, reference, entropy [R] float32: log π of the tokens under both, and the policy's entropy; with
    a sampling mask, of the policy that sampled: renormalised over the kept sets.

    values: of a trunk that policy and critic share; 0 if they do not, or where the policy makes no pass.
    teacher [R] float32: log π of the tokens under the teacher; None: there is none.
    """

    policy: Tensor
    reference: Tensor
    entropy: Tensor
    values: CriticValues
    teacher: Tensor | None = None


def read_logprobs(
    models: ActorCritic,
    rollout: Rollout,
    plan: UpdatePlan,
    ppo: PPOSettings,
    temperature: float,
    on_pass: Callable[[], None] = lambda: None,
) -> LogProbs:
    """The passes of policy, reference and teacher over the update's first epoch.

    Args:
        models: The networks.
        rollout: The responses.
        plan: Of the update.
        ppo: With `old_logprobs` = "rollout" the policy makes no pass.
        temperature: Of the policy, of the reference and of the teacher.
        on_pass: Called after each micro-batch.
    """
    sequences, device, known = rollout.sequences, models.policy.device, ppo.old_logprobs == "rollout"
    policy, reference, entropy, teacher = (torch.zeros(len(rollout.logprobs)) for _ in range(4))
    values = no_values(models, len(rollout), len(rollout.logprobs))

    def passes() -> None:
        for micro in (micro for minibatch in plan.epoch(0) for micro in minibatch.micro_batches):
            part, at = sequences.select(micro.rows).to(device), micro.tokens
            mask = None if rollout.sampling_mask is None else rollout.sampling_mask.select(at)
            if not known:
                outputs = models.policy_outputs(part, temperature, entropy=True, mask=mask)
                assert outputs.entropy is not None
                if models.shared:
                    fill_values(values, models, micro, outputs.states, outputs.final_states)
                if not micro.padding:
                    policy[at], entropy[at] = outputs.logprobs.cpu(), outputs.entropy.cpu()
            of_others = mask if ppo.mask_reference else None
            of_reference = models.reference_logprobs(part, temperature, of_others)
            if not micro.padding:
                reference[at] = of_reference.cpu()
            if models.teacher is not None:
                of_teacher = models.teacher_logprobs(part, temperature, of_others)
                if not micro.padding:
                    teacher[at] = of_teacher.cpu()
            on_pass()

    failing_together(plan.ranks, passes)
    policy, reference, entropy = (plan.ranks.sum(x) for x in (policy, reference, entropy))
    values = values.over(plan.ranks)
    if known:
        # What an environment wrote was not sampled: no KL there.
        policy = torch.where(rollout.action_mask, rollout.logprobs, reference)
        entropy = -policy
    found = plan.ranks.sum(teacher) if models.teacher is not None else None
    return LogProbs(policy, reference, entropy, values, found)
