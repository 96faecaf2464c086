"""The PPO loop: generate → score → prepare → update → publish, on one page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from proxlm.config import PPOConfig
from proxlm.config.ppo import KL_ERROR_LIMIT
from proxlm.data.prompts import PromptStream
from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.doctor import Facts, facts_of
from proxlm.engine.generate import Generate, generate
from proxlm.engine.native import NativeEngine
from proxlm.engine.protocol import Engine
from proxlm.engine.shared import Share, SharedEngine, with_engine
from proxlm.engine.vllm import VLLMEngine
from proxlm.environments.multi_turn import MultiTurn
from proxlm.models.actor_critic import ActorCritic
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import save_language_model
from proxlm.models.sharded import shard, whole
from proxlm.rl.kl import adapt_kl_coefficient
from proxlm.rl.running_statistics import RunningStatistics, with_values
from proxlm.rl.shaping import response_rewards
from proxlm.runlog.metric_names import EVALUATION, GREEDY, KL, REWARD, TEACHER_KL
from proxlm.runlog.run_log import NoLog, RunLog
from proxlm.runlog.text import number
from proxlm.train.common.clock import Clock
from proxlm.train.common.memory import TokenBudget
from proxlm.train.common.non_finite import finite_update
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.common.schedules import temperature_at
from proxlm.train.common.shared_loop import SharedLoop
from proxlm.train.ppo.algorithms import Algorithm
from proxlm.train.ppo.behaviour import trainer_logprobs
from proxlm.train.ppo.collect import Collected, collect, reference_rewards
from proxlm.train.ppo.learner import StepParameters, build_learner, step_parameters
from proxlm.train.ppo.metrics import sample_rows, staleness_metrics
from proxlm.train.ppo.minibatch_statistics import MinibatchStats, summarise
from proxlm.train.ppo.offending_rows import offending_rows
from proxlm.train.ppo.partial_rollouts import PartialRolloutQueue, PartialRollouts
from proxlm.train.ppo.plan import plan_update
from proxlm.train.ppo.prepare import prepare
from proxlm.train.ppo.ptx import PtxText
from proxlm.train.ppo.rollout_queue import Collector, CopyEngine, RolloutQueue
from proxlm.train.ppo.state import PPOState
from proxlm.train.ppo.update import update
from proxlm.types import Progress, Rollout, Scores


def engine_of(policy: LanguageModel, config: PPOConfig, folder: Path) -> CopyEngine:
    """What writes the responses of a step; folder: of the run."""
    if config.engine.use == "native":
        return NativeEngine(policy, config.rollout)
    served = Path(config.engine.folder) if config.engine.folder else folder / "served"
    return VLLMEngine(policy, config.engine, served, config.rollout.batch_size)


class PPOLoop(SharedLoop[PPOState]):
    """One PPO run. `train` is the loop; everything it calls is a function you can call yourself.

    Args:
        config: Of the run.
        models: Policy, critic, reference and teacher.
        prompts: Where each step's prompts come from.
        reward: What responses are worth.
        folder: Of the run.
        algorithm: The advantage and the loss; None: those that the settings name.
        ptx: Text whose language-model loss is mixed into each optimiser step.
        generate: What samples the responses.
        ranks: The processes that train together. Rank 0 draws prompts and scores; all share generation and passes.
    """

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
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        sharded = config.distributed.shards(ranks.size)
        super().__init__(config, folder, PPOState(kl_coef=config.ppo.kl_coef), ranks, sharded)
        self.models, self.prompts, self.reward = models, prompts, reward
        self.ptx, self.generate = ptx, generate
        # What samples, is evaluated and is saved: the policy, or a whole copy of one whose weights are sharded.
        self.whole_models = shard(models, ranks.size) if sharded else models
        policy = self.whole_models.policy
        self.learner = build_learner(models, config, algorithm, ptx)
        self.engine = (
            engine_of(policy, config, folder) if ranks.rank == 0 else NativeEngine(policy, config.rollout)
        )
        self.share = Share(ranks, self.engine)
        self.collector = Collector(policy, self.engine)
        self.partial_rollouts: PartialRollouts | None = None
        if config.ppo.max_staleness and ranks.rank == 0:
            ppo, make = config.ppo, partial(engine_of, config=config, folder=folder)
            if ppo.partial_rollouts:
                self.partial_rollouts = PartialRollouts(prompts, config)
                self.collector = PartialRolloutQueue(policy, ppo.steps, make, self.partial_rollouts)
            else:
                self.collector = RolloutQueue(policy, ppo.max_staleness, ppo.steps, make)
        self.budget = TokenBudget(config.ppo.micro_batch_tokens)
        # Metrics on held-out prompts, for evaluation.every; it may use the reward and the policy.
        self.evaluate: Callable[[Progress], Mapping[str, float]] | None = None

    def handlers(self) -> dict[str, Callable[..., object]]:
        return {
            **super().handlers(),
            "sample": lambda *given: self.share.sample(*given),
            "reset_share": lambda: self.share.reset(),
        }

    def step(self, log: RunLog | NoLog) -> dict[str, float]:
        """One PPO step; returns its metrics. All ranks take it together."""
        config, state, clock = self.config, self.state, Clock(log)
        self._refresh()
        self._measure_reference(log)
        rollout, scores, draws, metrics = self.ranks.broadcast(
            lambda: self.collector.take(self._collect, state.step, state.draws, clock)
        )
        state.draws += draws
        self.callbacks.on_rollout(state.step, rollout)
        self.callbacks.on_scores(state.step, rollout, scores)
        parameters = self._parameters(rollout, scores)
        with clock("prepare"):
            prepared = prepare(
                self.models,
                rollout,
                scores,
                config,
                plan=plan_update(rollout, config, state.step, self.budget, self.ranks),
                parameters=parameters,
                algorithm=self.learner.algorithm,
                on_progress=log.progress,
            )
        with clock("update"):
            stats = update(self.learner, prepared, log.progress)
        metrics |= prepared.metrics | summarise(stats) | self._own_metrics(parameters, rollout)
        self._advance(metrics["kl"], len(rollout), stats)
        if config.evaluation.every and state.step % config.evaluation.every == 0:
            self._refresh()
        metrics |= self.ranks.broadcast(lambda: self._evaluated(clock) | clock.metrics(len(rollout.logprobs)))
        self.count_update(
            finite_update([s.grad_norm for s in stats]),
            lambda: offending_rows(state.step, rollout, prepared.experience, scores),
            "prompt {prompt_id}",
        )
        if self.ranks.rank == 0:
            tokenizer, count = self.models.policy.tokenizer, config.run.log_samples
            log.samples(state.step, sample_rows(rollout, prepared.experience, scores, tokenizer, count))
        return metrics

    def _collect(self, engine: Engine, step: int, draw: int, clock: Clock) -> Collected:
        """The scored rollout of a step. May run beside an update: see rollout_queue.py."""
        config = self.config
        temperature = temperature_at(config.rollout, step, config.ppo.steps)
        found = collect(
            engine,
            self.prompts,
            self.reward,
            config,
            temperature=temperature,
            draw=draw,
            clock=clock,
            generate=self.partial_rollouts or self.sampler(),
        )
        rollout = found.rollout
        if isinstance(self.generate, MultiTurn) and (news := self.generate.pace.news()):
            clock.log.note(news)
        stale = engine.version != step and config.ppo.engine_correction.mode != "none"
        if self.partial_rollouts or not stale or not isinstance(engine, CopyEngine):
            return found
        with clock("trainer_logprobs"):
            budget = config.ppo.micro_batch_tokens
            known = trainer_logprobs(
                rollout.sequences, rollout.sampling_mask, engine.model, temperature, budget
            )
            return found._replace(rollout=replace(rollout, trainer_logprobs=known))

    def sampler(self) -> Generate:
        """What samples responses of the policy as it is: all ranks together, where that can be.

        Not with servers, which belong to rank 0, nor beside an update, whose calls have another order.
        """
        known = self.generate is generate or isinstance(self.generate, MultiTurn)  # they need an Engine alone
        alone = self.ranks.size == 1 or self.config.ppo.max_staleness or self.config.engine.use != "native"
        if known and not alone:
            return with_engine(self.generate, SharedEngine(self.ranks, self.share))
        return self.generate

    def _evaluated(self, clock: Clock) -> dict[str, float]:
        """Metrics on held-out prompts, in the steps that evaluate."""
        every = self.config.evaluation.every
        if self.evaluate is None or every == 0 or self.state.step % every:
            return {}
        self.collector.wait()  # the reward belongs to one thread at a time
        with clock("evaluate"):
            found = self.evaluate(clock.log.progress)
        shown = {name: found[name] for name in (REWARD, GREEDY(REWARD), TEACHER_KL, KL) if name in found}
        numbers = ", ".join(f"{name} {number(value)}" for name, value in shown.items())
        clock.log.note(f"evaluation, step {self.state.step}: {numbers}")
        return {EVALUATION(name): value for name, value in found.items()}

    def _measure_reference(self, log: RunLog | NoLog) -> None:
        """Before the first step: statistics of the reference's rewards, if scores are scaled by them."""
        if self.config.shaping.scale == "reference" and self.state.score_statistics.n == 0:
            log.phase("reference")
            if self.ranks.rank == 0:
                self.engine.load_weights((), self.state.step)
            rewards = self.ranks.broadcast(
                lambda: reference_rewards(self.engine, self.prompts, self.reward, self.config, self.sampler())
            )
            self.state.score_statistics = with_values(RunningStatistics(), rewards)

    def _parameters(self, rollout: Rollout, scores: Scores) -> StepParameters:
        """The numbers of this step; running statistics of scores take in this step's."""
        if self.config.shaping.scale == "running":
            offsets = rollout.sequences.response_offsets
            rewards = response_rewards(scores.total, scores.per_token, offsets)
            # A number that is not finite would stay in the statistics for the rest of the run.
            self.state.score_statistics = with_values(
                self.state.score_statistics, rewards[rewards.isfinite()]
            )
        return replace(
            step_parameters(self.config, self.state.step),
            kl_coef=self.state.kl_coef,
            score_statistics=self.state.score_statistics,
        )

    def _own_metrics(self, parameters: StepParameters, rollout: Rollout) -> dict[str, float]:
        metrics = {
            "kl_coef": parameters.kl_coef,
            "temperature": parameters.temperature,
            "warmup": float(parameters.critic_only),
            **staleness_metrics(rollout, self.state.step, self.config.ppo.max_staleness),
        }
        if self.config.shaping.scale != "none":
            statistics = parameters.score_statistics
            metrics |= {"scale/mean": statistics.mean, "scale/std": statistics.std}
        return metrics

    def _advance(self, kl: float, responses: int, stats: list[MinibatchStats]) -> None:
        """The state after a step: β, the reference if it moves, the text used, the counter."""
        ppo, state = self.config.ppo, self.state
        if ppo.kl_controller == "adaptive" and math.isfinite(kl):
            state.kl_coef = adapt_kl_coefficient(
                state.kl_coef, kl, ppo.kl_target, responses, ppo.kl_horizon, KL_ERROR_LIMIT
            )
        if ppo.reference_decay < 1 and any(s.policy for s in stats):
            self.models.move_reference(ppo.reference_decay, whole)
        state.ptx_batches = self.ptx.used if self.ptx is not None else 0
        state.lowered_budget = self.budget.lowered
        state.step += 1

    def finished(self) -> bool:
        return self.state.step >= self.config.ppo.steps

    def facts(self) -> Facts:
        return facts_of(self.config)

    def weights(self) -> dict[str, Tensor]:
        """Policy, critic, and the reference if it moves."""
        models = self.models
        weights: dict[str, Tensor] = {f"policy.{name}": p for name, p in models.policy_parameters()}
        weights |= {f"critic.{name}": p for name, p in models.critic_parameters()}
        if self.config.ppo.reference_decay < 1 and models.reference is not None:
            weights |= {f"reference.{name}": p for name, p in models.reference.network.named_parameters()}
        return weights

    def extra_tensors(self) -> dict[str, Tensor]:
        """The older policies that later rollouts are sampled with."""
        return self.collector.tensors()

    def extra_of_all(self) -> dict[str, Tensor]:
        return {}  # rank 0 alone samples with these

    def optimisers_by_name(self) -> dict[str, Optimiser]:
        return dict(self.learner.optimisers)

    def save_model(self, folder: Path) -> None:
        save_language_model(self.whole_models.policy, folder)

    def restore(self, checkpoint: Path, state: PPOState, extra: Mapping[str, Tensor]) -> None:
        self.collector.resume(checkpoint, state.step, extra)
        self.budget.restore(state.lowered_budget)
        if self.ptx is not None:
            self.ptx.skip(state.ptx_batches)

    def copies(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.sharded:
            copies = dict(self.whole_models.policy.network.named_parameters())
            yield from ((p, copies[name]) for name, p in self.models.policy.trainable())

    def close(self) -> None:
        self.collector.close()
        self.engine.reset()
