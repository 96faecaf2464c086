"""The PPO loop: generate → score → prepare → update → publish, on one page."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxlm.checkpoint import check_fit, load_checkpoint, newest_checkpoint, save_checkpoint, with_prefix
from proxlm.config import PPOJob
from proxlm.data.prompts import PromptStream
from proxlm.errors import RunError
from proxlm.models.actor_critic import ActorCritic
from proxlm.models.save import save_language_model
from proxlm.rl.kl import adapt_kl_coefficient
from proxlm.rollout.native import generate
from proxlm.runlog.writer import RunLog
from proxlm.train.observe import peak_memory_gb, sample_rows
from proxlm.train.optimiser import Optimiser
from proxlm.train.prepare import prepare
from proxlm.train.update import Optimisers, plan_pass, summarise, update
from proxlm.types import Rollout, Scores


@dataclass
class PPOState:
    """All that a run carries from one step to the next, besides weights and optimisers."""

    step: int
    kl_coef: float


class PPOTrainer:
    """What one PPO run holds. `train` is the loop; everything it calls is a function you can call yourself."""

    def __init__(
        self,
        config: PPOJob,
        models: ActorCritic,
        prompts: PromptStream,
        reward: Callable[[Rollout], Scores],
        folder: Path,
    ) -> None:
        self.config, self.models, self.prompts, self.reward, self.folder = (
            config,
            models,
            prompts,
            reward,
            folder,
        )
        self.optimisers = Optimisers(
            Optimiser(models.policy_parameters(), config.optim.policy),
            Optimiser(models.critic_parameters(), config.optim.critic),
        )
        self.state = PPOState(step=0, kl_coef=config.ppo.kl_coef)

    def train(self, log: RunLog) -> None:
        """Run from the state's step to the last one."""
        ppo, run = self.config.ppo, self.config.run
        while self.state.step < ppo.steps:
            metrics = self.step(log)
            log.metrics(self.state.step, metrics)
            last = self.state.step == ppo.steps
            if last or (run.save_every and self.state.step % run.save_every == 0):
                log.phase("checkpoint")
                self.save()

    def step(self, log: RunLog) -> dict[str, float]:
        """One PPO step; returns its metrics."""
        ppo, rollout_config, seed = self.config.ppo, self.config.rollout, self.config.run.seed
        step, clock = self.state.step, Clock(log)
        prompts = [p for p in self.prompts.batch(step) for _ in range(ppo.samples_per_prompt)]
        with clock("generate"):
            rollout = generate(
                self.models.policy,
                prompts,
                rollout_config,
                seed=seed,
                step=step,
                version=step,
                on_progress=log.progress,
            )
        with clock("score"):
            scores = self.reward(rollout)
        with clock("prepare"):
            first_pass = plan_pass(rollout.sequences.lengths, ppo, seed, step, epoch=0)
            experience, metrics = prepare(
                self.models,
                rollout,
                scores,
                ppo,
                temperature=rollout_config.temperature,
                kl_coef=self.state.kl_coef,
                layout=[micro for minibatch in first_pass for micro in minibatch],
                on_progress=log.progress,
            )
        with clock("update"):
            stats = update(
                self.models,
                self.optimisers,
                experience,
                ppo,
                temperature=rollout_config.temperature,
                limit=rollout_config.max_new_tokens,
                seed=seed,
                step=step,
                on_progress=log.progress,
            )
        metrics |= summarise(stats) | {"kl_coef": self.state.kl_coef} | clock.metrics(rollout)
        if ppo.kl_controller == "adaptive":
            self.state.kl_coef = adapt_kl_coefficient(
                self.state.kl_coef, metrics["kl"], ppo.kl_target, len(rollout), ppo.kl_horizon
            )
        self.state.step += 1
        count = self.config.run.log_samples
        log.samples(
            self.state.step, sample_rows(rollout, experience, scores, self.models.policy.tokenizer, count)
        )
        return metrics

    def save(self) -> Path:
        """Write a checkpoint of the state after the newest step."""
        tensors: dict[str, Tensor] = {**self._learning()}
        for who in ("policy", "critic"):
            moments = getattr(self.optimisers, who).state_tensors()
            tensors |= {f"optimiser.{who}.{name}": t for name, t in moments.items()}
        return save_checkpoint(
            self.folder,
            self.state.step,
            tensors,
            {"kl_coef": self.state.kl_coef, "seed": self.config.run.seed},
            self.config.run.keep,
            lambda folder: save_language_model(self.models.policy, folder),
        )

    def _learning(self) -> dict[str, nn.Parameter]:
        """All that learns, by the names it has in a checkpoint."""
        policy = {f"policy.{name}": p for name, p in self.models.policy_parameters()}
        return policy | {f"critic.{name}": p for name, p in self.models.critic_parameters()}

    @torch.no_grad()
    def resume(self) -> Path:
        """Go on from the newest complete checkpoint of the run's folder.

        Raises RunError, before anything is changed, where it does not fit the model, the critic or the seed.
        """
        checkpoint = newest_checkpoint(self.folder)
        tensors, state = load_checkpoint(checkpoint)
        learning = self._learning()
        check_fit(checkpoint, tensors, learning)
        if state["seed"] != self.config.run.seed:
            raise RunError(f"{checkpoint}: made with run.seed = {state['seed']}; resume with the same")
        for name, p in learning.items():
            p.copy_(tensors[name])
        for who in ("policy", "critic"):
            getattr(self.optimisers, who).load_state_tensors(with_prefix(tensors, f"optimiser.{who}."))
        self.state = PPOState(step=state["step"], kl_coef=state["kl_coef"])
        return checkpoint


class Clock:
    """Seconds by phase, told to the live view as they begin."""

    def __init__(self, log: RunLog) -> None:
        self.log, self.seconds = log, dict[str, float]()

    @contextmanager
    def __call__(self, phase: str) -> Any:
        self.log.phase(phase)
        began = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - began

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """Seconds, response tokens per second, and peak memory."""
        tokens, total = len(rollout.logprobs), sum(self.seconds.values())
        return {
            **{f"time/{phase}": s for phase, s in self.seconds.items()},
            "time/step": total,
            "tokens_per_second": tokens / total,
            "tokens_per_second/generate": tokens / self.seconds["generate"],
            "tokens_per_second/update": tokens / self.seconds["update"],
            "memory_gb": peak_memory_gb(),
        }
