"""From a rollout to what is learnt from: segments of episodes, values, advantages.

A segment is a stretch of one episode within a rollout: it ends where the episode does or where the rollout does.
Segments are the ragged rows of proxlm.rl, and what follows a segment is its bootstrap:

    terminated       0: nothing follows
    truncated        V of the episode's last observation: the time limit ended it, not the task (Pardo et al. 2018)
    rollout over     V of the observation that the next rollout begins with
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.config import ControlPPOSettings
from proxlm.control.collect import Rollout, forgotten, scaled
from proxlm.control.network import Agent, Rows, State, rows_of
from proxlm.control.normalise import Scale
from proxlm.rl.advantages import gae, whiten
from proxlm.rl.ragged import offsets_of, ragged_index


@dataclass(frozen=True)
class Experience:
    """R steps in B segments. observations [R, D] as the networks see them; actions [R] or [R, A]; logprobs, values:
    before the update; raw: advantages before whitening; all [R]; offsets [B+1]; the LSTMs' states before each segment
    [B, H], None without; entropy [R] in nats.
    """

    observations: Tensor
    actions: Tensor
    logprobs: Tensor
    values: Tensor
    raw: Tensor
    advantages: Tensor
    returns: Tensor
    entropy: Tensor
    offsets: Tensor
    policy_state: State | None
    critic_state: State | None

    def rows(self, state: State | None) -> Rows | None:
        """All segments, for a network with this state."""
        return rows_of(self.offsets, state)


def by_environment(x: Tensor) -> Tensor:
    """[T, N, ...] → [N · T, ...], environment after environment."""
    return x.transpose(0, 1).reshape(-1, *x.shape[2:])


def segment_offsets(ended: Tensor) -> Tensor:
    """Where segments begin and end in a rollout's flat steps. ended [T, N] bool → [B+1] int64."""
    last = ended.clone()
    last[-1] = True
    ends = by_environment(last).nonzero().squeeze(-1) + 1
    return torch.cat([ends.new_zeros(1), ends])


def states_of_segments(state: State | None, offsets: Tensor, horizon: int) -> State | None:
    """The LSTM's state before each segment [B, H]: the rollout's first [N, H] for an environment's first segment,
    zeros for an episode that begins within the rollout."""
    if state is None:
        return None
    starts = offsets[:-1]
    begins = (starts % horizon == 0).unsqueeze(-1).float()
    return state[0][starts // horizon] * begins, state[1][starts // horizon] * begins


@torch.no_grad()
def prepare(
    agent: Agent,
    rollout: Rollout,
    rewards: Tensor,
    scale: Scale | None,
    config: ControlPPOSettings,
    critic_state: State | None,
) -> tuple[Experience, State | None]:
    """Values, log-probs and advantages of a rollout; rewards [T, N] as they are learnt from.

    critic_state [N, H]: the critic's LSTM before the rollout; returned is that after it. The log-probs are computed
    anew, with the batches of the update's kind, as everywhere in proxlm.
    """
    horizon = len(rewards)
    offsets = segment_offsets(rollout.ended)
    x = scaled(by_environment(rollout.observations), scale)
    policy_rows, critic_rows = (
        states_of_segments(state, offsets, horizon) for state in (rollout.state, critic_state)
    )
    choice, _ = agent.act(x, rows_of(offsets, policy_rows))
    values, after = agent.value(x, rows_of(offsets, critic_rows))
    ends = offsets[1:] - 1
    following = scaled(by_environment(rollout.after)[ends], scale)
    single = rows_of(torch.arange(len(ends) + 1), after)
    terminated = by_environment(rollout.terminated)[ends]
    bootstrap = torch.where(terminated, 0.0, agent.value(following, single)[0])
    mask = torch.ones(len(values), dtype=torch.bool)
    flat_rewards, actions = by_environment(rewards), by_environment(rollout.actions)
    raw, returns = gae(flat_rewards, values, mask, offsets, config.gamma, config.lam, bootstrap)
    experience = Experience(
        x, actions, choice.logprob(actions), values, raw,
        whiten(raw, mask) if config.whiten_advantages else raw,
        returns, choice.entropy(), offsets, policy_rows, critic_rows,
    )  # fmt: skip
    if after is None:
        return experience, None
    # The last segment of each environment ends with the rollout.
    last = ((offsets[1:] % horizon) == 0).nonzero().squeeze(-1)
    return experience, forgotten((after[0][last], after[1][last]), rollout.ended[-1])


def select(experience: Experience, chosen: Tensor) -> Experience:
    """The given steps [r], or where there is an LSTM the given whole segments [b]."""
    e, index, offsets = experience, chosen, experience.offsets
    policy_state, critic_state = e.policy_state, e.critic_state
    if policy_state is not None and critic_state is not None:
        index = ragged_index(e.offsets, chosen)
        offsets = offsets_of((e.offsets[1:] - e.offsets[:-1])[chosen])
        policy_state = policy_state[0][chosen], policy_state[1][chosen]
        critic_state = critic_state[0][chosen], critic_state[1][chosen]
    return Experience(
        observations=e.observations[index],
        actions=e.actions[index],
        logprobs=e.logprobs[index],
        values=e.values[index],
        raw=e.raw[index],
        advantages=e.advantages[index],
        returns=e.returns[index],
        entropy=e.entropy[index],
        offsets=offsets,
        policy_state=policy_state,
        critic_state=critic_state,
    )
