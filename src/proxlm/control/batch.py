"""From trajectories to the batch of an update: segments of episodes, values, advantages.

A segment is a stretch of one episode within the trajectories: it ends where the episode does or where they do.
Segments are the ragged rows of proxlm.rl, and what follows a segment is its bootstrap:

    terminated            0: nothing follows
    truncated             V of the episode's last observation: a time limit ended it, not the task (Pardo et al. 2018)
    end of trajectories   V of the observation that the next ones begin with
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.config import ControlPPOSettings
from proxlm.control.network import Agent, LSTMState, Segments, segments_for
from proxlm.control.normalise import Scale
from proxlm.control.trajectories import Trajectories, reset_where_ended, scale_observations
from proxlm.rl.advantages import gae, whiten
from proxlm.rl.ragged import offsets_of, ragged_index


@dataclass(frozen=True)
class ControlBatch:
    """R steps in B segments; tensors are [R] unless said otherwise.

    Attributes:
        observations: As the networks get them, [R, D].
        actions: [R] int64, or [R, A].
        logprobs: Of the policy before the update, in nats.
        values: Of the critic before the update.
        raw_advantages: Before whitening.
        advantages: As the policy loss uses them.
        returns: The critic's targets.
        entropy: Of the policy before the update, in nats.
        offsets: Where segments begin and end, [B + 1].
        policy_state: The policy's LSTM before each segment, [B, H]; None without one.
        critic_state: The critic's.
    """

    observations: Tensor
    actions: Tensor
    logprobs: Tensor
    values: Tensor
    raw_advantages: Tensor
    advantages: Tensor
    returns: Tensor
    entropy: Tensor
    offsets: Tensor
    policy_state: LSTMState | None
    critic_state: LSTMState | None

    def segments(self, state: LSTMState | None) -> Segments | None:
        """All segments, for a network with this state."""
        return segments_for(self.offsets, state)

    def select(self, chosen: Tensor) -> ControlBatch:
        """The chosen steps [r], or with an LSTM the chosen whole segments [b]."""
        index, offsets = chosen, self.offsets
        policy_state, critic_state = self.policy_state, self.critic_state
        if policy_state is not None and critic_state is not None:
            index = ragged_index(self.offsets, chosen)
            offsets = offsets_of((self.offsets[1:] - self.offsets[:-1])[chosen])
            policy_state = policy_state[0][chosen], policy_state[1][chosen]
            critic_state = critic_state[0][chosen], critic_state[1][chosen]
        return ControlBatch(
            observations=self.observations[index],
            actions=self.actions[index],
            logprobs=self.logprobs[index],
            values=self.values[index],
            raw_advantages=self.raw_advantages[index],
            advantages=self.advantages[index],
            returns=self.returns[index],
            entropy=self.entropy[index],
            offsets=offsets,
            policy_state=policy_state,
            critic_state=critic_state,
        )


def by_environment(x: Tensor) -> Tensor:
    """[T, N, ...] → [N · T, ...], environment after environment."""
    return x.transpose(0, 1).reshape(-1, *x.shape[2:])


def segment_offsets(ended: Tensor) -> Tensor:
    """Where segments begin and end in the flat steps of trajectories. ended [T, N] bool → [B + 1] int64."""
    last = ended.clone()
    last[-1] = True
    ends = by_environment(last).nonzero().squeeze(-1) + 1
    return torch.cat([ends.new_zeros(1), ends])


def states_of_segments(state: LSTMState | None, offsets: Tensor, horizon: int) -> LSTMState | None:
    """The LSTM's state before each segment, [B, H].

    Args:
        state: Before the first step of each environment, [N, H]. A segment that begins later begins an episode, so
            its state is zero.
        offsets: Of the segments, [B + 1].
        horizon: Steps T of each environment.
    """
    if state is None:
        return None
    starts = offsets[:-1]
    begins = (starts % horizon == 0).unsqueeze(-1).float()
    return state[0][starts // horizon] * begins, state[1][starts // horizon] * begins


@torch.no_grad()
def build_batch(
    agent: Agent,
    trajectories: Trajectories,
    rewards: Tensor,
    scale: Scale | None,
    config: ControlPPOSettings,
    critic_state: LSTMState | None,
) -> tuple[ControlBatch, LSTMState | None]:
    """Values, log-probs and advantages of trajectories.

    The log-probs are computed again, in batches like the update's, as everywhere in proxlm.

    Args:
        agent: Policy and critic.
        trajectories: T steps of N environments.
        rewards: As they are learnt from, [T, N].
        scale: Of the observations.
        config: Discounts and whitening.
        critic_state: The critic's LSTM before the trajectories, [N, H].

    Returns:
        The batch, and the critic's LSTM after the trajectories.
    """
    horizon = len(rewards)
    offsets = segment_offsets(trajectories.ended)
    x = scale_observations(by_environment(trajectories.observations), scale)
    policy_states = states_of_segments(trajectories.first_state, offsets, horizon)
    critic_states = states_of_segments(critic_state, offsets, horizon)
    choice, _ = agent.act(x, segments_for(offsets, policy_states))
    values, after = agent.value(x, segments_for(offsets, critic_states))
    ends = offsets[1:] - 1
    following = scale_observations(by_environment(trajectories.next_observations)[ends], scale)
    single_steps = segments_for(torch.arange(len(ends) + 1), after)
    terminated = by_environment(trajectories.terminated)[ends]
    bootstrap = torch.where(terminated, 0.0, agent.value(following, single_steps)[0])
    mask = torch.ones(len(values), dtype=torch.bool)
    actions = by_environment(trajectories.actions)
    raw, returns = gae(by_environment(rewards), values, mask, offsets, config.gamma, config.lam, bootstrap)
    batch = ControlBatch(
        observations=x,
        actions=actions,
        logprobs=choice.logprob(actions),
        values=values,
        raw_advantages=raw,
        advantages=whiten(raw, mask) if config.whiten_advantages else raw,
        returns=returns,
        entropy=choice.entropy(),
        offsets=offsets,
        policy_state=policy_states,
        critic_state=critic_states,
    )
    if after is None:
        return batch, None
    # The last segment of each environment ends with the trajectories.
    last = ((offsets[1:] % horizon) == 0).nonzero().squeeze(-1)
    return batch, reset_where_ended((after[0][last], after[1][last]), trajectories.ended[-1])
