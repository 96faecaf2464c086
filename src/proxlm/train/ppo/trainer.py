"""The PPO loop: generate → score → prepare → update → publish, on one page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from proxlm.checkpoint import (
    Keep,
    check_fit,
    check_settings,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    set_aside_newer,
    settings_of,
    with_prefix,
)
from proxlm.config import PPOConfig
from proxlm.data.prompts import PromptStream
from proxlm.doctor import Doctor, facts_of
from proxlm.engine.native import Generate, generate
from proxlm.errors import RunError
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
from proxlm.train.common.non_finite import end_of_run, nothing_learnt, offending_rows
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.common.schedules import temperature_at
from proxlm.train.ppo.algorithms import Algorithm, build_algorithm
from proxlm.train.ppo.collect import Collected, collect, reference_rewards
from proxlm.train.ppo.critic import CriticsFirst
from proxlm.train.ppo.metrics import Metrics, sample_rows
from proxlm.train.ppo.minibatch_statistics import MinibatchStats, summarise
from proxlm.train.ppo.prefetch import Collector, Prefetcher
from proxlm.train.ppo.prepare import StepNumbers, prepare
from proxlm.train.ppo.ptx import PtxText
from proxlm.train.ppo.state import PPOState, state_from
from proxlm.train.ppo.trpo import trust_region_update
from proxlm.train.ppo.update import Learner, Optimisers, minibatch_weights, plan_pass, update
from proxlm.types import Experience, Rollout, Scores


class PPOTrainer:
    """What one PPO run holds. `train` is the loop; everything it calls is a function you can call yourself."""

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
        self.config, self.models, self.prompts, self.reward, self.folder = (
            config,
            models,
            prompts,
            reward,
            folder,
        )
        self.algorithm, self.ptx, self.generate = algorithm or build_algorithm(config.ppo), ptx, generate
        critic = models.critic_parameters()
        self.optimisers = Optimisers(
            Optimiser(models.policy_parameters(), config.optim.policy),
            Optimiser(critic, config.optim.critic) if critic else None,
        )
        ahead = config.ppo.prefetch
        self.collector = Prefetcher(models.policy, config.ppo.steps) if ahead else Collector(models.policy)
        self.state = PPOState(step=0, kl_coef=config.ppo.kl_coef)
        self.budget = TokenBudget(config.ppo.micro_batch_tokens)
        self.problem = ""  # why the run cannot go on

    def train(self, log: RunLog) -> None:
        """Run from the state's step to the last one."""
        ppo, run = self.config.ppo, self.config.run
        doctor = Doctor.of_run(facts_of(self.config), self.folder, self.state.step)
        with closing(self.collector):
            while self.state.step < ppo.steps:
                metrics = self.step(log)
                log.metrics(self.state.step, metrics)
                for finding in doctor.see({"step": self.state.step, **metrics}):
                    log.note(finding.line())
                due = run.save_every > 0 and self.state.step % run.save_every == 0
                ended = self.state.step == ppo.steps or bool(self.problem)
                log.checkpoint(partial(self.save, metrics), due or ended)
                if self.problem:
                    raise RunError(self.problem)

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
            for _, optimiser in self._optimisers():
                optimiser.hold()
            stats = self._update(experience, now, seen["entropy"], critics_first, log)
            for _, optimiser in self._optimisers():
                optimiser.release()
        metrics |= seen | summarise(stats) | self._own_metrics(now, rollout)
        metrics |= clock.metrics(len(rollout.logprobs))
        self._advance(metrics["kl"], len(rollout), stats)
        if 0 < config.run.max_skipped <= state.skipped:
            rows = offending_rows(state.step, rollout, experience, scores)
            self.problem = end_of_run(self.folder, state.step, state.skipped, rows, "prompt {prompt_id}")
            state.skipped = 0  # whoever goes on from here wants to try again
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
        state.skipped = state.skipped + 1 if nothing_learnt(stats) else 0
        if self.budget.tokens < ppo.micro_batch_tokens:
            state.pass_tokens = self.budget.tokens
        state.step += 1

    def save(self, metrics: Mapping[str, float] | None = None) -> Path:
        """Write a checkpoint of the state after the newest step, whose metrics these are."""
        tensors: dict[str, Tensor] = {**self._tensors()}
        for who, optimiser in self._optimisers():
            tensors |= {f"optimiser.{who}.{name}": t for name, t in optimiser.state_tensors().items()}
        return save_checkpoint(
            self.folder,
            self.state.step,
            tensors,
            {**asdict(self.state), "metrics": metrics or {}, "settings": settings_of(self.config)},
            Keep.of(self.config.run),
            lambda folder: save_language_model(self.models.policy, folder),
        )

    def _tensors(self) -> dict[str, Tensor]:
        """All that changes, by the names it has in a checkpoint: the reference where it moves, an older policy."""
        models = self.models
        tensors: dict[str, Tensor] = {f"policy.{name}": p for name, p in models.policy_parameters()}
        tensors |= {f"critic.{name}": p for name, p in models.critic_parameters()}
        if self.config.ppo.reference_decay < 1 and models.reference is not None:
            tensors |= {f"reference.{name}": p for name, p in models.reference.network.named_parameters()}
        return tensors | self.collector.tensors()

    def _optimisers(self) -> list[tuple[str, Optimiser]]:
        both = ("policy", self.optimisers.policy), ("critic", self.optimisers.critic)
        return [(who, optimiser) for who, optimiser in both if optimiser is not None]

    @torch.no_grad()
    def resume(self) -> Path:
        """Go on from the newest whole checkpoint of the run's folder.

        Raises RunError, before anything is changed, where it does not fit the model, the critic or the settings.
        """
        checkpoint = newest_checkpoint(self.folder)
        tensors, saved = load_checkpoint(checkpoint)
        check_settings(checkpoint, saved.get("settings"), self.config)
        current = self._tensors()
        check_fit(checkpoint, tensors, current)
        state = state_from(checkpoint, saved)
        set_aside_newer(checkpoint)
        self.collector.go_on_from(state.step)
        for name, p in current.items():
            p.copy_(tensors[name])
        for who, optimiser in self._optimisers():
            optimiser.load_state_tensors(with_prefix(tensors, f"optimiser.{who}."))
        self.state = state
        if state.pass_tokens:
            self.budget.tokens = min(state.pass_tokens, self.budget.tokens)
        if self.ptx is not None:
            self.ptx.skip(self.state.ptx_batches)
        return checkpoint
