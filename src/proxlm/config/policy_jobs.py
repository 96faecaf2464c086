"""The jobs that collect responses and learn from their rewards: PPO, and a critic by itself."""

from __future__ import annotations

from dataclasses import dataclass

from proxlm.config.algorithms import ADVANTAGES
from proxlm.config.distributed import DistributedSettings, sharding_problems
from proxlm.config.engine import EngineSettings
from proxlm.config.metrics import MetricSettings, baseline_problems, metric_problems
from proxlm.config.model import ModelSettings
from proxlm.config.optimiser import OptimisersSettings
from proxlm.config.ppo import KL_ERROR_LIMIT, PPOSettings, PtxSettings, ShapingSettings
from proxlm.config.problems import (
    Problems,
    algorithm_problems,
    chat_problems,
    keep_best_problems,
    learnt_rollout_problems,
    model_problems,
    optimisers_problems,
    required,
    reward_problems,
    rollout_problems,
)
from proxlm.config.rollout import EnvironmentSettings, EvaluationSettings, RolloutSettings
from proxlm.config.schema import DataSettings, RewardSettings, RunSettings
from proxlm.config.setting import setting
from proxlm.text import shown


@dataclass(frozen=True)
class PPOConfig:
    """Improve a language model with PPO on a reward."""

    model: ModelSettings = setting(factory=ModelSettings)
    data: DataSettings = setting(factory=DataSettings)
    rollout: RolloutSettings = setting(factory=RolloutSettings)
    engine: EngineSettings = setting(factory=EngineSettings)
    environment: EnvironmentSettings = setting(factory=EnvironmentSettings)
    reward: RewardSettings = setting(factory=RewardSettings)
    shaping: ShapingSettings = setting(factory=ShapingSettings)
    ppo: PPOSettings = setting(factory=PPOSettings)
    evaluation: EvaluationSettings = setting(factory=EvaluationSettings)
    metrics: MetricSettings = setting(factory=MetricSettings)
    ptx: PtxSettings = setting(factory=PtxSettings)
    optim: OptimisersSettings = setting(factory=OptimisersSettings)
    distributed: DistributedSettings = setting(factory=DistributedSettings)
    run: RunSettings = setting(factory=RunSettings)

    def problems(self) -> Problems:
        found = required(("model.policy", self.model.policy))
        if not self.environment.use:
            found += required(("data.prompts", self.data.prompts))
        elif self.reward.overlap:
            found.append(
                ("reward.overlap", "conversations (environment.use) are all scored together; set it to 0")
            )
        found += reward_problems(self.reward)
        found += chat_problems(
            "data.chat_template_kwargs", self.data.chat_template_kwargs
        ) + rollout_problems(self.rollout)
        found += learnt_rollout_problems(self.rollout)
        if self.evaluation.every and not (self.data.eval_prompts or self.data.eval_count):
            found.append(
                ("evaluation.every", "there are no held-out prompts: set data.eval_count to 1 or more")
            )
        found += keep_best_problems(self.run, self.evaluation)
        if self.rollout.temperature == 0:
            found.append(("rollout.temperature", "PPO needs samples: must be more than 0"))
        if self.ppo.minibatches > self.ppo.batch_size * self.ppo.samples_per_prompt:
            found.append(("ppo.minibatches", "more minibatches than responses in a step"))
        found += algorithm_problems(self.ppo, self.model) + model_problems(self.model)
        found += _engine_problems(self)
        found += _stability_problems(self) + metric_problems(self.metrics)
        found += sharding_problems(
            self.distributed,
            {"optim.policy": self.optim.policy, "optim.critic": self.optim.critic},
            ppo__max_staleness=self.ppo.max_staleness,
            ppo__loss=self.ppo.loss == "trpo",
        )
        found += baseline_problems(self.metrics, choices=False, conversations=bool(self.environment.use))
        if self.metrics.use and not (self.data.eval_prompts or self.data.eval_count):
            found.append(("metrics.use", "there are no held-out prompts: set data.eval_count to 1 or more"))
        return found + optimisers_problems(self.optim)

    def best_metric(self) -> str:
        """The metric whose best step's model is kept in best/; "": none is."""
        return self.run.best_metric("evaluation/reward" if self.evaluation.every else "")


@dataclass(frozen=True)
class ValueConfig(PPOConfig):
    """Pretrain a critic on a fixed policy's responses, and save it as a model that others load, too."""

    def problems(self) -> Problems:
        found = super().problems()
        if self.ppo.advantage in ADVANTAGES and not ADVANTAGES[self.ppo.advantage].critic:
            found.append(("ppo.advantage", "has no critic to train; set it to gae"))
        for key, used, reason in (
            ("model.lora.rank", self.model.lora.rank, "a critic is saved as a whole model; set it to 0"),
            ("model.teacher", self.model.teacher, "the policy does not learn; leave it out"),
            ("ptx.coef", self.ptx.coef, "the policy does not learn; set it to 0"),
            ("ppo.critic_warmup", self.ppo.critic_warmup, "every step trains the critic alone; leave it out"),
            ("evaluation.every", self.evaluation.every, "the policy does not change; set it to 0"),
            ("metrics.use", self.metrics.use, "the policy does not change; leave it out"),
            (
                "distributed.strategy",
                self.distributed.strategy != "ddp",
                "the critic is saved from whole weights; set it to ddp",
            ),
        ):
            if used:
                found.append((key, reason))
        return found


def _engine_problems(job: PPOConfig) -> Problems:
    """What servers cannot be used for."""
    if job.engine.use == "native":
        return []
    found = required(("engine.url", job.engine.url))
    for url in job.engine.url:
        if not url.startswith(("http://", "https://")):
            found.append(("engine.url", f'"{shown(url, 60)}": must begin with http:// or https://'))
        elif "," in url or " " in url:
            form = '["http://one:8000", "http://two:8000"]'
            found.append(("engine.url", f'"{shown(url, 60)}": is one address; several are {form}'))
    unfit = {
        "engine.sink": (
            job.engine.sink == "adapter" and not job.model.lora.rank,
            "there is no adapter without model.lora.rank; set it to weights",
        ),
        "engine.checksums": (
            job.engine.sink == "adapter" and job.engine.checksums,
            "with engine.sink = adapter servers do not load the weights that are compared; leave it out",
        ),
        "rollout.weights": (
            job.rollout.weights != "policy",
            "the servers choose their precision; set it to policy",
        ),
        "rollout.keep_sampling_mask": (
            job.rollout.filtered and job.rollout.keep_sampling_mask,
            "servers do not give the sets that tokens are sampled from; set it to false, or leave out the filters",
        ),
    }
    return found + [(key, f"with engine.use = vllm: {fix}") for key, (used, fix) in unfit.items() if used]


def _stability_problems(job: PPOConfig) -> Problems:
    """Settings that cannot be combined."""
    found: Problems = []
    ppo = job.ppo
    responses = ppo.batch_size * ppo.samples_per_prompt
    if ppo.kl_controller == "adaptive" and ppo.kl_horizon <= KL_ERROR_LIMIT * responses:
        least = f"{KL_ERROR_LIMIT} · {responses} responses of a step"
        found.append(("ppo.kl_horizon", f"must be more than {least}, or β could fall to 0 and below"))
    if ppo.filter_groups and ppo.samples_per_prompt < 2:
        found.append(("ppo.filter_groups", "needs ppo.samples_per_prompt of 2 or more"))
    if ppo.reference_decay < 1 and job.model.lora.rank:
        found.append(("ppo.reference_decay", "with LoRA the reference is the frozen base; it cannot move"))
    if job.shaping.normalise != "none" and job.shaping.scale != "none":
        found.append(
            ("shaping.normalise", f"not with shaping.scale = {job.shaping.scale}: scores are scaled once")
        )
    if job.shaping.normalise == "group" and job.ppo.samples_per_prompt < 2:
        found.append(("ppo.samples_per_prompt", "must be 2 or more with shaping.normalise = group"))
    if job.shaping.overlong_buffer > job.rollout.max_new_tokens:
        found.append(("shaping.overlong_buffer", "must not be more than rollout.max_new_tokens"))
    if job.ptx.coef > 0 and not job.ptx.text:
        found.append(("ptx.text", "required with ptx.coef above 0"))
    for key, used, written_by, weight, correction in (
        (
            "rollout.weights",
            job.rollout.weights != "policy",
            "a policy with rounded weights",
            "engine_correction",
            ppo.engine_correction,
        ),
        (
            "ppo.max_staleness",
            ppo.max_staleness,
            "an older policy",
            "staleness_correction",
            ppo.staleness_correction,
        ),
    ):
        if used and correction.mode == "none":
            fix = f"set ppo.{weight}.mode, to token_truncate for instance"
            found.append((key, f"its responses come from {written_by}: {fix}"))
    if ppo.old_logprobs == "rollout":
        found += _sampled_by_another_policy(job)
    if ppo.max_staleness and ppo.loss == "trpo":
        reason = (
            "cannot be used with ppo.loss = trpo, which switches the kernels that a concurrent rollout uses"
        )
        found.append(("ppo.max_staleness", reason))
    if ppo.partial_rollouts:
        found += _partial_rollout_problems(job)
    if ppo.loss == "trpo":
        for key, used in (
            ("ppo.kl_in", ppo.kl_in == "loss"),
            ("ppo.entropy_coef", ppo.entropy_coef > 0),
            ("ptx.coef", job.ptx.coef > 0),
            ("ppo.target_kl", ppo.target_kl > 0),
        ):
            if used:
                found.append((key, "cannot be used with ppo.loss = trpo, whose step uses only the surrogate"))
    return found


def _partial_rollout_problems(job: PPOConfig) -> Problems:
    """What responses that go on over the updates cannot be used with."""
    unfit = {
        "environment.use": (job.environment.use, "whose conversations are written whole"),
        "ppo.filter_groups": (job.ppo.filter_groups, "which draws prompts when later rollouts have begun"),
        "reward.overlap": (job.reward.overlap, "since the last segments of all responses end together"),
    }
    found = [
        ("ppo.partial_rollouts", f"cannot be used with {key}, {why}; leave one of them out")
        for key, (used, why) in unfit.items()
        if used
    ]
    least = job.ppo.max_staleness
    if job.rollout.max_new_tokens < least:
        why = f"with ppo.partial_rollouts at least ppo.max_staleness = {least}: a segment has a token or more"
        found.append(("rollout.max_new_tokens", why))
    return found


def _sampled_by_another_policy(job: PPOConfig) -> Problems:
    """Settings with which the responses are not samples of the policy itself, as ppo.old_logprobs = rollout needs."""
    rollout, ppo = job.rollout, job.ppo
    others = {
        "rollout.keep_sampling_mask = false": rollout.unlike_policy,
        "rollout.weights": rollout.weights != "policy",
        "ppo.max_staleness": ppo.max_staleness > 0,
        "ppo.engine_correction.mode": ppo.engine_correction.mode != "none",
        "ppo.staleness_correction.mode": ppo.staleness_correction.mode != "none",
    }
    used = [key for key, is_so in others.items() if is_so]
    reason = f"cannot be rollout with {', '.join(used)}: it needs responses of the policy itself"
    return [("ppo.old_logprobs", reason)] if used else []
