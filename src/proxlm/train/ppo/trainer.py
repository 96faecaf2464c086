"""The PPO loop: generate → score → prepare → update → publish, on one page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from proxlm.config import PPOConfig
from proxlm.data.prompts import PromptStream
from proxlm.doctor import Facts, facts_of
from proxlm.engine.native import Generate, generate
from proxlm.models.actor_critic import ActorCritic
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import save_language_model
from proxlm.rl.kl import adapt_kl_coefficient
from proxlm.rl.losses import entropy_coefficient
from proxlm.rl.running_statistics import RunningStatistics, with_values
from proxlm.rl.shaping import response_rewards
from proxlm.runlog.writer import RunLog
from proxlm.train.common.clock import Clock
from proxlm.train.common.memory import TokenBudget, within_memory
from proxlm.train.common.non_finite import finite_update
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.common.run_loop import Trainer
from proxlm.train.common.schedules import temperature_at
from proxlm.train.ppo.algorithms import Algorithm, build_algorithm
from proxlm.train.ppo.collect import Collected, collect, reference_rewards
from proxlm.train.ppo.critic import CriticsFirst
from proxlm.train.ppo.metrics import Metrics, sample_rows
from proxlm.train.ppo.minibatch_statistics import MinibatchStats, summarise
from proxlm.train.ppo.offending_rows import offending_rows
from proxlm.train.ppo.prefetch import Collector, Prefetcher
from proxlm.train.ppo.prepare import StepNumbers, prepare
from proxlm.train.ppo.ptx import PtxText
from proxlm.train.ppo.state import PPOState
from proxlm.train.ppo.trpo import trust_region_update
from proxlm.train.ppo.update import Learner, Optimisers, minibatch_weights, plan_pass, update
from proxlm.types import Experience, Rollout, Scores


class PPOTrainer(Trainer[PPOState]):
    """What one PPO run holds. `train` is the loop; everything it calls is a function you can call yourself."""

    config: PPOConfig

    def __init__(
        self,
        config: PPOConfig,
        models: ActorCritic,
        prompts: PromptStream,
        reward: Callable[[Rollout], Scores],
        folder: Path,
        algorithm: Algorithm | None = None,
        ptx: PtxText | None = None,
        generate: Generate = generate,
    ) -> None:
        super().__init__(config, folder, PPOState(kl_coef=config.ppo.kl_coef))
        self.models, self.prompts, self.reward = models, prompts, reward
        self.algorithm, self.ptx, self.generate = algorithm or build_algorithm(config.ppo), ptx, generate
        critic = models.critic_parameters()
        self.optimisers = Optimisers(
            Optimiser(models.policy_parameters(), config.optim.policy),
            Optimiser(critic, config.optim.critic) if critic else None,
        )
        ahead = config.ppo.prefetch
        self.collector = Prefetcher(models.policy, config.ppo.steps) if ahead else Collector(models.policy)
        self.budget = TokenBudget(config.ppo.micro_batch_tokens)

    def step(self, log: RunLog) -> dict[str, float]:
        """One PPO step; returns its metrics."""
        config, state, clock = self.config, self.state, Clock(log)
        self._measure_reference(log)
        rollout, scores, draws, metrics = self.collector.take(self._collect, state.step, state.draws, clock)
        state.draws += draws
        now = self._numbers(rollout, scores)
        with clock("prepare"):
            experience, seen, critics_first = self._prepare(rollout, scores, now, log)
        with clock("update"):
            for optimiser in self.optimisers_by_name().values():
                optimiser.hold()
            stats = self._update(experience, now, seen["entropy"], critics_first, log)
            for optimiser in self.optimisers_by_name().values():
                optimiser.release()
        metrics |= seen | summarise(stats) | self._own_metrics(now, rollout)
        metrics |= clock.metrics(len(rollout.logprobs))
        self._advance(metrics["kl"], len(rollout), stats)
        self.count_update(
            finite_update([s.grad_norm for s in stats]),
            lambda: offending_rows(state.step, rollout, experience, scores),
            "prompt {prompt_id}",
        )
        count = config.run.log_samples
        log.samples(state.step, sample_rows(rollout, experience, scores, self.models.policy.tokenizer, count))
        return metrics

    def _collect(self, policy: LanguageModel, step: int, draw: int, version: int, clock: Clock) -> Collected:
        """The scored rollout of a step, sampled by the policy given. May run beside an update: see prefetch.py."""
        config = self.config
        return collect(
            policy,
            self.prompts,
            self.reward,
            config,
            temperature=temperature_at(config.rollout, step, config.ppo.steps),
            draw=draw,
            version=version,
            clock=clock,
            generate=self.generate,
        )

    def _prepare(
        self, rollout: Rollout, scores: Scores, now: StepNumbers, log: RunLog
    ) -> tuple[Experience, Metrics, CriticsFirst | None]:
        """The experience, from the passes that the update's first epoch will make again, or spare the critic."""
        config, lengths = self.config, rollout.sequences.lengths

        def passes(tokens: int) -> tuple[Experience, Metrics, CriticsFirst | None]:
            settings = replace(config.ppo, micro_batch_tokens=tokens)
            plan = plan_pass(lengths, settings, config.run.seed, self.state.step, epoch=0)
            layout = [micro for minibatch in plan for micro in minibatch]
            first = self._critics_first(rollout, plan[0])
            if first is not None and self.optimisers.critic is not None:
                self.optimisers.critic.hold()
            given = self.models, rollout, scores, config, self.algorithm, now, layout
            return *prepare(*given, on_progress=log.progress, critics_first=first), first

        def clear() -> None:
            if self.optimisers.critic is not None:
                self.optimisers.critic.clear()

        return within_memory(self.budget, passes, lengths, clear)

    def _critics_first(self, rollout: Rollout, minibatch: list[Tensor]) -> CriticsFirst | None:
        """Where the critic's gradient of the first minibatch can be taken while its values are read."""
        models, ppo = self.models, self.config.ppo
        apart = models.value_head is not None and not models.shared
        if not (apart and self.algorithm.rowwise and ppo.loss != "trpo"):
            return None
        limit = self.config.rollout.max_new_tokens
        weights = minibatch_weights(rollout, torch.cat(minibatch), ppo.aggregation, limit)
        return CriticsFirst(len(minibatch), weights, ppo)

    def _measure_reference(self, log: RunLog) -> None:
        """Before the first step: the moments of the reference's rewards, if scores are scaled by them."""
        if self.config.shaping.scale == "reference" and self.state.moments.n == 0:
            log.phase("reference")
            rewards = reference_rewards(
                self.models.policy, self.prompts, self.reward, self.config, self.generate
            )
            self.state.moments = with_values(RunningStatistics(), rewards)

    def _numbers(self, rollout: Rollout, scores: Scores) -> StepNumbers:
        if self.config.shaping.scale == "running":
            offsets = rollout.sequences.response_offsets
            rewards = response_rewards(scores.total, scores.per_token, offsets)
            # One number that is not finite would be in the moments for ever.
            self.state.moments = with_values(self.state.moments, rewards[rewards.isfinite()])
        warmup = self.state.step < self.config.ppo.critic_warmup
        temperature = temperature_at(self.config.rollout, self.state.step, self.config.ppo.steps)
        return StepNumbers(temperature, self.state.kl_coef, self.state.moments, warmup)

    def _update(
        self,
        experience: Experience,
        now: StepNumbers,
        entropy: float,
        critics_first: CriticsFirst | None,
        log: RunLog,
    ) -> list[MinibatchStats]:
        # The plan of the first epoch must be the one that `prepare` followed.
        ppo = replace(self.config.ppo, micro_batch_tokens=self.budget.tokens)
        learner = Learner(
            models=self.models,
            optimisers=self.optimisers,
            config=ppo,
            loss=self.algorithm.loss,
            temperature=now.temperature,
            limit=self.config.rollout.max_new_tokens,
            seed=self.config.run.seed,
            step=self.state.step,
            kl_coef=now.kl_coef if ppo.kl_in == "loss" else 0.0,
            entropy_coef=entropy_coefficient(ppo.entropy_coef, entropy, ppo.entropy_floor),
            policy_learns=not now.warmup,
            ptx=self.ptx,
            tokenwise=self.algorithm.tokenwise,
            budget=self.budget,
            critics_first=critics_first,
        )
        if ppo.loss == "trpo" and learner.policy_learns:
            step = trust_region_update(learner, experience)
            return [step, *update(replace(learner, policy_learns=False), experience, log.progress)]
        return update(learner, experience, log.progress)

    def _own_metrics(self, now: StepNumbers, rollout: Rollout) -> dict[str, float]:
        metrics = {"kl_coef": now.kl_coef, "temperature": now.temperature, "warmup": float(now.warmup)}
        metrics["staleness"] = float(self.state.step - rollout.policy_version)
        if self.config.shaping.scale != "none":
            metrics |= {"scale/mean": now.moments.mean, "scale/std": now.moments.std}
        return metrics

    def _advance(self, kl: float, responses: int, stats: list[MinibatchStats]) -> None:
        """The state after a step: β, the reference if it moves, the text used, the counter."""
        ppo, state = self.config.ppo, self.state
        if ppo.kl_controller == "adaptive" and math.isfinite(kl):
            state.kl_coef = adapt_kl_coefficient(state.kl_coef, kl, ppo.kl_target, responses, ppo.kl_horizon)
        if ppo.reference_decay < 1 and any(s.policy for s in stats):
            self.models.move_reference(ppo.reference_decay)
        state.ptx_batches = self.ptx.used if self.ptx is not None else 0
        state.lowered_budget = self.budget.lowered
        state.step += 1

    def finished(self) -> bool:
        return self.state.step >= self.config.ppo.steps

    def facts(self) -> Facts:
        return facts_of(self.config)

    def weights(self) -> dict[str, Tensor]:
        """Policy, critic, the reference if it moves, and the older policy of a prefetching run."""
        models = self.models
        weights: dict[str, Tensor] = {f"policy.{name}": p for name, p in models.policy_parameters()}
        weights |= {f"critic.{name}": p for name, p in models.critic_parameters()}
        if self.config.ppo.reference_decay < 1 and models.reference is not None:
            weights |= {f"reference.{name}": p for name, p in models.reference.network.named_parameters()}
        return weights | self.collector.tensors()

    def optimisers_by_name(self) -> dict[str, Optimiser]:
        both = {"policy": self.optimisers.policy, "critic": self.optimisers.critic}
        return {name: optimiser for name, optimiser in both.items() if optimiser is not None}

    def save_model(self, folder: Path) -> None:
        save_language_model(self.models.policy, folder)

    def restore(self, checkpoint: Path, state: PPOState, extra: Mapping[str, Tensor]) -> None:  # noqa: ARG002
        self.collector.go_on_from(state.step)
        self.budget.restore(state.lowered_budget)
        if self.ptx is not None:
            self.ptx.skip(state.ptx_batches)

    def close(self) -> None:
        self.collector.close()
