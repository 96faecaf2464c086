"""The steps of `proxlm control`: act → scale rewards → advantages → update, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from proxlm.checkpoint import with_prefix
from proxlm.config import ControlConfig
from proxlm.control.batch import ControlBatch, build_batch, by_environment
from proxlm.control.environments import Environments, MakeEnvironment
from proxlm.control.network import Agent, LSTMState
from proxlm.control.normalise import (
    ReturnStatistics,
    VectorStatistics,
    empty_statistics,
    scale_for,
    scaled_rewards,
    with_rewards,
    with_rows,
)
from proxlm.control.policy import save_policy
from proxlm.control.spaces import spaces_of
from proxlm.control.trajectories import Trajectories, collect_trajectories
from proxlm.control.update import update_agent
from proxlm.doctor import Facts, facts_of
from proxlm.rl.advantages import explained_variance
from proxlm.rl.running_statistics import RunningStatistics
from proxlm.runlog.folder import JsonRow
from proxlm.runlog.rows import RowCounts
from proxlm.runlog.run_log import RunLog
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.common.clock import Stopwatch
from proxlm.train.common.non_finite import finite_update
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.common.run_loop import LoopState, TrainingLoop
from proxlm.train.ppo.minibatch_statistics import summarise

# The mean return is of so many newest episodes, as is the custom.
RECENT = 100


@dataclass
class ControlState(LoopState):
    """The numbers of a checkpoint, besides its tensors.

    Attributes:
        observations_seen: Observations in the running statistics.
        returns: Statistics of the discounted sums of rewards.
        episodes: (undiscounted return, length in steps) of the newest episodes.
    """

    observations_seen: float = 0.0
    returns: RunningStatistics = RunningStatistics()  # noqa: RUF009 (immutable)
    episodes: list[tuple[float, int]] = field(default_factory=list)

    def problem(self) -> str:
        if self.observations_seen < 0:
            return f"observations_seen = {self.observations_seen:g}, where at least 0 is needed"
        if len(self.episodes) > RECENT:
            return f"episodes: {len(self.episodes)}, of which only the newest {RECENT} are kept"
        return super().problem()


def ppo_steps(config: ControlConfig) -> int:
    """How many PPO steps a run has."""
    return config.environment.steps // (config.environment.count * config.ppo.horizon)


class ControlLoop(TrainingLoop[ControlState]):
    """One run: environments, agent, optimisers, running statistics.

    Args:
        config: The settings.
        make: Makes one environment.
        folder: The run's folder.
    """

    config: ControlConfig

    def __init__(self, config: ControlConfig, make: MakeEnvironment, folder: Path) -> None:
        super().__init__(config, folder, ControlState())
        seed, count = config.run.seed, config.environment.count
        example = make()
        self.spaces = spaces_of(example, config.environment.id)
        example.close()
        self.environments = Environments(make, count, self.spaces, seed)
        self.agent = Agent(self.spaces, config.model, derive_seed(seed, Purpose.WEIGHTS))
        self.optimisers = {
            name: Optimiser(self.agent.parameters_of(name), optim, section=f"optim.{name}")
            for name, optim in (("policy", config.optim.policy), ("critic", config.optim.critic))
        }
        self.steps = ppo_steps(config)
        self.observation_statistics = empty_statistics(self.spaces.observation)
        self.return_statistics = ReturnStatistics(
            RunningStatistics(), torch.zeros(count, dtype=torch.float64)
        )
        self.lstm_states: dict[str, LSTMState | None] = dict.fromkeys(self.optimisers)
        if config.model.lstm:
            self.lstm_states = {name: self.agent.initial_state(count) for name in self.optimisers}
        self._started = False

    def finished(self) -> bool:
        return self.state.step >= self.steps

    def step(self, log: RunLog) -> dict[str, float]:
        """One PPO step: trajectories and an update. Returns its metrics."""
        config, environments, clock = self.config, self.environments, Stopwatch(log.phase)
        if not self._started:
            environments.start()
            self._started = True
        ended_before = len(environments.finished)
        with clock("rollout"):
            scale = scale_for(config.environment, self.observation_statistics)
            seed = derive_seed(config.run.seed, Purpose.ACTIONS, self.state.step)
            trajectories = collect_trajectories(
                self.agent, environments, scale, config.ppo.horizon, self.lstm_states["policy"], seed
            )
        with clock("prepare"):
            rewards = self._scaled_rewards(trajectories)
            batch, critic_state = build_batch(
                self.agent, trajectories, rewards, scale, config.ppo, self.lstm_states["critic"]
            )
        with clock("update"):
            stats = update_agent(
                self.agent,
                self.optimisers,
                batch,
                config.ppo,
                seed=derive_seed(config.run.seed, Purpose.UPDATE),
                step=self.state.step,
                steps=self.steps,
            )
        self.lstm_states = {"policy": trajectories.last_state, "critic": critic_state}
        self._count_observations(trajectories)
        self.state.step += 1
        finite = finite_update([s.grad_norm for s in stats])
        self.count_update(finite, partial(self._offending_rows, trajectories), "environment {environment}")
        ended = environments.finished[ended_before:]
        environments.finished = environments.finished[-RECENT:]
        metrics = episode_metrics(ended, environments.finished)
        metrics |= batch_metrics(trajectories, batch) | summarise(stats)
        for unused in ("kl_loss", "positive_loss", "ptx_loss"):
            del metrics[unused]
        steps = trajectories.rewards.numel()
        return metrics | {
            "environment_steps": float(self.state.step * steps),
            **clock.time_metrics(),
            "steps_per_second": steps / sum(clock.seconds.values()),
        }

    def _scaled_rewards(self, trajectories: Trajectories) -> Tensor:
        """Rewards [T, N] as they are learnt from."""
        settings = self.config.environment
        if not settings.normalise_rewards:
            return trajectories.rewards
        # One number that is not finite would stay in the statistics for ever; so with the observations.
        finite = trajectories.rewards.nan_to_num(0.0, 0.0, 0.0)
        self.return_statistics = with_rewards(
            self.return_statistics, finite, trajectories.ended, self.config.ppo.gamma
        )
        return scaled_rewards(self.return_statistics, trajectories.rewards, settings.clip)

    def _count_observations(self, trajectories: Trajectories) -> None:
        if self.config.environment.normalise_observations:
            rows = trajectories.observations.flatten(0, 1)
            rows = rows[rows.isfinite().all(-1)]
            self.observation_statistics = with_rows(self.observation_statistics, rows)

    def _offending_rows(self, trajectories: Trajectories) -> list[JsonRow]:
        """The environments whose rewards or observations are not finite, or all if each one's are."""
        finite = trajectories.rewards.isfinite() & trajectories.observations.isfinite().all(-1)
        bad = [i for i, ok in enumerate(finite.all(0).tolist()) if not ok]
        return [
            {"step": self.state.step, "environment": i, "rewards": trajectories.rewards[:, i].tolist()}
            for i in bad or range(len(self.environments))
        ]

    def facts(self) -> Facts:
        return facts_of(self.config)

    def weights(self) -> dict[str, Tensor]:
        return {f"agent.{name}": p for name, p in self.agent.named_parameters()}

    def optimisers_by_name(self) -> dict[str, Optimiser]:
        return self.optimisers

    def extra_tensors(self) -> dict[str, Tensor]:
        """Environments, running statistics, and the LSTMs' states."""
        observed = self.observation_statistics
        tensors = {f"environments.{name}": t for name, t in self.environments.state_tensors().items()}
        tensors |= {"observations.mean": observed.mean, "observations.squares": observed.squares}
        tensors["discounted_rewards"] = self.return_statistics.discounted
        for name, state in self.lstm_states.items():
            if state is not None:
                tensors |= {f"lstm.{name}.h": state[0], f"lstm.{name}.c": state[1]}
        return tensors

    def save(
        self,
        metrics: Mapping[str, float] | None = None,
        rows: RowCounts | None = None,
        rows_sha256: Mapping[str, str] | None = None,
    ) -> Path:
        self.state.observations_seen = self.observation_statistics.n
        self.state.returns = self.return_statistics.returns
        self.state.episodes = self.environments.finished
        return super().save(metrics, rows, rows_sha256)

    def restore(self, checkpoint: Path, state: ControlState, extra: Mapping[str, Tensor]) -> None:  # noqa: ARG002
        self.environments.restore(with_prefix(extra, "environments."))
        self.environments.finished = state.episodes
        self._started = True
        self.observation_statistics = VectorStatistics(
            state.observations_seen, extra["observations.mean"], extra["observations.squares"]
        )
        self.return_statistics = ReturnStatistics(state.returns, extra["discounted_rewards"])
        if self.config.model.lstm:
            self.lstm_states = {n: (extra[f"lstm.{n}.h"], extra[f"lstm.{n}.c"]) for n in self.optimisers}

    def save_model(self, folder: Path) -> None:
        """Write what acting needs: weights, scaling of observations, settings of the network."""
        save_policy(folder, self.agent, self.observation_statistics, self.config)


def episode_metrics(ended: list[tuple[float, int]], recent: list[tuple[float, int]]) -> dict[str, float]:
    """Returns and lengths of episodes; nothing of what there is no episode for yet.

    Args:
        ended: (undiscounted return, length in steps) of the episodes that ended in this step: `reward` is their mean
            return, `reward_std` its deviation.
        recent: Of the newest 100: `episode_return` and `episode_length` are their means.
    """
    metrics = {"episodes_ended": float(len(ended))}
    if ended:
        returns = torch.tensor([total for total, _ in ended], dtype=torch.float64)
        metrics |= {"reward": float(returns.mean()), "reward_std": float(returns.std(correction=0))}
    if recent:
        metrics["episode_return"] = sum(total for total, _ in recent) / len(recent)
        metrics["episode_length"] = sum(length for _, length in recent) / len(recent)
    return metrics


def batch_metrics(trajectories: Trajectories, batch: ControlBatch) -> dict[str, float]:
    """The numbers of a batch before the update, named as those of a language model."""
    every = torch.ones(len(batch.values), dtype=torch.bool)
    gap = by_environment(trajectories.logprobs) - batch.logprobs
    return {
        "entropy": float(batch.entropy.mean()),
        "return_mean": float(batch.returns.mean()),
        "value_mean": float(batch.values.mean()),
        "advantage_mean": float(batch.raw_advantages.mean()),
        "advantage_std": float(batch.raw_advantages.std(correction=0)),
        "explained_variance": explained_variance(batch.values, batch.returns, every),
        "rollout_gap": float(gap.abs().max()),
    }
