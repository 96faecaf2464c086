"""The loop of `proxlm control`: act → scale → advantages → update, on one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxlm.checkpoint import (
    Keep,
    check_fit,
    check_settings,
    list_of_numbers,
    load_checkpoint,
    newest_checkpoint,
    numbers_of,
    save_checkpoint,
    set_aside_newer,
    settings_of,
    with_prefix,
)
from proxlm.config import ControlConfig
from proxlm.control.collect import Rollout, collect
from proxlm.control.environments import Environments, MakeEnvironment
from proxlm.control.experience import Experience, by_environment, prepare
from proxlm.control.network import Agent, State
from proxlm.control.normalise import (
    ReturnStatistics,
    VectorStatistics,
    no_rows,
    scale_for,
    scaled_rewards,
    with_rewards,
    with_rows,
)
from proxlm.control.policy import save_policy
from proxlm.control.spaces import spaces_of
from proxlm.control.update import Learner, update
from proxlm.doctor import Doctor, facts_of
from proxlm.errors import RunError
from proxlm.rl.advantages import explained_variance
from proxlm.rl.running_statistics import RunningStatistics
from proxlm.runlog.writer import RunLog
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.common.clock import Stopwatch
from proxlm.train.common.non_finite import end_of_run, nothing_learnt
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.ppo.minibatch_statistics import MinibatchStats, summarise

# Of so many newest episodes the mean is told, as is the custom.
RECENT = 100


class ControlTrainer:
    """What one run holds: environments, agent, optimisers, moments, counters."""

    def __init__(self, config: ControlConfig, make: MakeEnvironment, folder: Path) -> None:
        self.config, self.folder, seed = config, folder, config.run.seed
        first = make()
        self.spaces = spaces_of(first, config.environment.id)
        first.close()
        self.envs = Environments(make, config.environment.count, self.spaces, seed)
        self.agent = Agent(self.spaces, config.model, derive_seed(seed, Purpose.WEIGHTS))
        self.optimisers = {
            who: Optimiser(self.agent.parameters_of(who), getattr(config.optim, who))
            for who in ("policy", "critic")
        }
        count = config.environment.count
        self.step_number, self.steps = 0, config.environment.steps // (count * config.ppo.horizon)
        self.observed = no_rows(self.spaces.observation)
        self.rewarded = ReturnStatistics(RunningStatistics(), torch.zeros(count, dtype=torch.float64))
        self.states: dict[str, State | None] = dict.fromkeys(("policy", "critic"))
        if config.model.lstm:
            self.states = {who: self.agent.no_memory(count) for who in self.states}
        self.started, self.skipped = False, 0
        self.problem = ""  # why the run cannot go on

    def train(self, log: RunLog) -> None:
        """Run from the newest step to the last one."""
        run = self.config.run
        doctor = Doctor.of_run(facts_of(asdict(self.config)), self.folder, self.step_number)
        while self.step_number < self.steps:
            metrics = self.step(log.phase)
            log.metrics(self.step_number, metrics)
            for finding in doctor.see({"step": self.step_number, **metrics}):
                log.note(finding.line())
            due = run.save_every > 0 and self.step_number % run.save_every == 0
            ended = self.step_number == self.steps or bool(self.problem)
            log.checkpoint(partial(self.save, metrics), due or ended)
            if self.problem:
                raise RunError(self.problem)

    def step(self, phase: Callable[[str], None] = lambda _name: None) -> dict[str, float]:
        """One PPO step: a rollout and an update. Returns its metrics."""
        config, clock = self.config, Stopwatch(phase)
        if not self.started:
            self.envs.start()
            self.started = True
        ended_before = len(self.envs.finished)
        with clock("rollout"):
            scale = scale_for(config.environment, self.observed)
            seed = derive_seed(config.run.seed, Purpose.ACTIONS, self.step_number)
            rollout = collect(self.agent, self.envs, scale, config.ppo.horizon, self.states["policy"], seed)
        with clock("prepare"):
            rewards = self._rewards(rollout)
            experience, critic_state = prepare(
                self.agent, rollout, rewards, scale, config.ppo, self.states["critic"]
            )
        with clock("update"):
            seed = derive_seed(config.run.seed, Purpose.UPDATE)
            learner = Learner(self.agent, self.optimisers, config.ppo, seed, self.step_number, self.steps)
            stats = update(learner, experience)
        self.states = {"policy": rollout.last_state, "critic": critic_state}
        if config.environment.normalise_observations:
            rows = rollout.observations.flatten(0, 1)
            # One number that is not finite would be in the moments for ever; so with the rewards.
            self.observed = with_rows(self.observed, rows[rows.isfinite().all(-1)])
        self.step_number += 1
        self._count_skipped(stats, rollout)
        episodes = self.envs.finished[ended_before:]
        self.envs.finished = self.envs.finished[-RECENT:]
        metrics = episode_metrics(episodes, self.envs.finished)
        metrics |= step_metrics(rollout, experience) | summarise(stats)
        for unused in ("kl_loss", "ptx_loss"):
            del metrics[unused]
        steps = rollout.rewards.numel()
        return metrics | {
            "environment_steps": float(self.step_number * steps),
            **{f"time/{name}": s for name, s in clock.seconds.items()},
            "steps_per_second": steps / sum(clock.seconds.values()),
        }

    def _count_skipped(self, stats: list[MinibatchStats], rollout: Rollout) -> None:
        """Whether this step's updates were skipped, and whether that has happened too often."""
        self.skipped = self.skipped + 1 if nothing_learnt(stats) else 0
        if 0 < self.config.run.max_skipped <= self.skipped:
            finite = rollout.rewards.isfinite() & rollout.observations.isfinite().all(-1)
            bad = [i for i, ok in enumerate(finite.all(0).tolist()) if not ok]
            rows = [
                {"step": self.step_number, "environment": i, "rewards": rollout.rewards[:, i].tolist()}
                for i in bad or range(len(self.envs.envs))
            ]
            what = "environment {environment}"
            self.problem = end_of_run(self.folder, self.step_number, self.skipped, rows, what)
            self.skipped = 0  # whoever goes on from here wants to try again

    def _rewards(self, rollout: Rollout) -> Tensor:
        """Rewards [T, N] as they are learnt from."""
        if not self.config.environment.normalise_rewards:
            return rollout.rewards
        gamma = self.config.ppo.gamma
        finite = rollout.rewards.nan_to_num(0.0, 0.0, 0.0)
        self.rewarded = with_rewards(self.rewarded, finite, rollout.ended, gamma)
        return scaled_rewards(self.rewarded, rollout.rewards, self.config.environment.clip)

    def save(self, metrics: Mapping[str, float] | None = None) -> Path:
        """Write a checkpoint of the state after the newest step, whose metrics these are."""
        tensors: dict[str, Tensor] = {f"agent.{name}": p for name, p in self.agent.named_parameters()}
        for who, optimiser in self.optimisers.items():
            tensors |= {f"optimiser.{who}.{name}": t for name, t in optimiser.state_tensors().items()}
        tensors |= {f"environments.{name}": t for name, t in self.envs.state_tensors().items()}
        for who, state in self.states.items():
            if state is not None:
                tensors |= {f"memory.{who}.h": state[0], f"memory.{who}.c": state[1]}
        tensors |= {"observed.mean": self.observed.mean, "observed.squares": self.observed.squares}
        tensors["rewarded.running"] = self.rewarded.running
        state_json: dict[str, Any] = {
            "metrics": metrics or {},
            "settings": settings_of(self.config),
            "observed": self.observed.n,
            "skipped": self.skipped,
            "rewarded": list(self.rewarded.moments),
            "finished": self.envs.finished,
        }
        return save_checkpoint(
            self.folder, self.step_number, tensors, state_json, Keep.of(self.config.run), self.save_policy
        )

    def save_policy(self, folder: Path) -> None:
        """Write what acting needs: weights, observation moments, settings."""
        save_policy(folder, self.agent, self.observed, self.config)

    @torch.no_grad()
    def resume(self) -> Path:
        """Go on from the newest whole checkpoint of the run's folder.

        Raises RunError where it does not fit the network or the settings, or the environment cannot be played again.
        """
        checkpoint = newest_checkpoint(self.folder)
        tensors, saved = load_checkpoint(checkpoint)
        check_settings(checkpoint, saved.get("settings"), self.config)
        current = {f"agent.{name}": p for name, p in self.agent.named_parameters()}
        check_fit(checkpoint, {n: t for n, t in tensors.items() if n.startswith("agent.")}, current)
        numbers = numbers_of(checkpoint, saved, {"step": int, "skipped": int, "observed": float})
        rewarded = list_of_numbers(checkpoint, saved, "rewarded", 3)
        self.envs.restore(with_prefix(tensors, "environments."))
        self.envs.finished = _finished(checkpoint, saved)
        set_aside_newer(checkpoint)
        for name, p in current.items():
            p.copy_(tensors[name])
        for who, optimiser in self.optimisers.items():
            optimiser.load_state_tensors(with_prefix(tensors, f"optimiser.{who}."))
            if self.config.model.lstm:
                self.states[who] = tensors[f"memory.{who}.h"], tensors[f"memory.{who}.c"]
        self.observed = VectorStatistics(
            numbers["observed"], tensors["observed.mean"], tensors["observed.squares"]
        )
        self.rewarded = ReturnStatistics(RunningStatistics(*rewarded), tensors["rewarded.running"])
        self.step_number, self.skipped, self.started = numbers["step"], numbers["skipped"], True
        return checkpoint


def _finished(checkpoint: Path, saved: Mapping[str, Any]) -> list[tuple[float, int]]:
    """(return, length) of the newest episodes. Raises RunError."""
    try:
        return [(float(total), int(length)) for total, length in saved["finished"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{checkpoint / 'state.json'}: no episodes at 'finished'") from error


def episode_metrics(ended: list[tuple[float, int]], recent: list[tuple[float, int]]) -> dict[str, float]:
    """reward: mean undiscounted return of the episodes that ended in this step, reward_std; episode_return and
    episode_length: means of the newest 100. Nothing where there is no episode yet."""
    metrics = {"episodes_ended": float(len(ended))}
    if ended:
        returns = torch.tensor([total for total, _ in ended], dtype=torch.float64)
        metrics |= {"reward": float(returns.mean()), "reward_std": float(returns.std(correction=0))}
    if recent:
        metrics["episode_return"] = sum(total for total, _ in recent) / len(recent)
        metrics["episode_length"] = sum(length for _, length in recent) / len(recent)
    return metrics


def step_metrics(rollout: Rollout, experience: Experience) -> dict[str, float]:
    """The numbers of a rollout before the update, named as those of a language model's."""
    e, every = experience, torch.ones(len(experience.values), dtype=torch.bool)
    gap = by_environment(rollout.logprobs) - e.logprobs
    return {
        "entropy": float(e.entropy.mean()),
        "return_mean": float(e.returns.mean()),
        "value_mean": float(e.values.mean()),
        "advantage_mean": float(e.raw.mean()),
        "advantage_std": float(e.raw.std(correction=0)),
        "explained_variance": explained_variance(e.values, e.returns, every),
        "rollout_gap": float(gap.abs().max()),
    }
