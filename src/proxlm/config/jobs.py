"""The jobs: each is a tree of sections, and knows what cannot be right between two fields.

A job's `problems()` returns (key, message) pairs; the bounds of a single field stand beside it in schema.py.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, ClassVar

from proxlm.config.algorithms import ADVANTAGES, LOSSES, advantage_of, is_user_function
from proxlm.config.ppo import PPOConfig, PtxConfig, ShapingConfig
from proxlm.config.schema import (
    DataConfig,
    ModelConfig,
    NewModelConfig,
    OptimiserConfig,
    OptimisersConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    SupervisedConfig,
    TextConfig,
)
from proxlm.config.setting import setting

Problems = list[tuple[str, str]]


@dataclass(frozen=True)
class PPOJob:
    """Improve a language model with PPO on a reward."""

    model: ModelConfig = setting(factory=ModelConfig)
    data: DataConfig = setting(factory=DataConfig)
    rollout: RolloutConfig = setting(factory=RolloutConfig)
    reward: RewardConfig = setting(factory=RewardConfig)
    shaping: ShapingConfig = setting(factory=ShapingConfig)
    ppo: PPOConfig = setting(factory=PPOConfig)
    ptx: PtxConfig = setting(factory=PtxConfig)
    optim: OptimisersConfig = setting(factory=OptimisersConfig)
    run: RunConfig = setting(factory=RunConfig)

    def problems(self) -> Problems:
        found = _needed(("model.policy", self.model.policy), ("data.prompts", self.data.prompts))
        found += _reward_problems(self.reward)
        if self.rollout.temperature == 0:
            found.append(("rollout.temperature", "PPO needs samples: must be more than 0"))
        if self.ppo.minibatches > self.ppo.batch_size * self.ppo.samples_per_prompt:
            found.append(("ppo.minibatches", "more minibatches than responses in a step"))
        found += _algorithm_problems(self.ppo, self.model) + _stability_problems(self)
        for who in ("policy", "critic"):
            found += _optimiser_problems(f"optim.{who}", getattr(self.optim, who))
        return found


def _optim(lr: float, **more: Any) -> OptimiserConfig:
    return OptimiserConfig(
        lr=lr, schedule="cosine", warmup=20, final=0.1, beta2=0.95, eps=1e-8, weight_decay=0.1, **more
    )


@dataclass(frozen=True)
class PretrainJob:
    """Train a new language model, tokenizer included, on text files."""

    new: NewModelConfig = setting(factory=NewModelConfig)
    model: ModelConfig = setting(
        factory=ModelConfig, help="policy: go on from this model instead of a new one"
    )
    text: TextConfig = setting(factory=TextConfig)
    train: SupervisedConfig = setting(factory=SupervisedConfig)
    optim: OptimiserConfig = setting(factory=lambda: _optim(2e-3))
    run: RunConfig = setting(factory=RunConfig)

    def problems(self) -> Problems:
        found = _needed(("text.train", self.text.train)) + _optimiser_problems("optim", self.optim)
        found += _new_model_problems("new", self.new, self.model)
        if not self.model.policy and self.train.block > self.new.context:
            found.append(("train.block", f"longer than new.context = {self.new.context}"))
        return found


@dataclass(frozen=True)
class SFTJob:
    """Fine-tune a language model on prompts with responses, or on conversations; or train a new one on them."""

    scratch: NewModelConfig = setting(
        factory=lambda: NewModelConfig(type=""),
        help='type: train a new model of this type, tokenizer included ("t5", "bart", ...); empty: model.policy',
    )
    model: ModelConfig = setting(factory=ModelConfig)
    text: TextConfig = setting(factory=TextConfig)
    train: SupervisedConfig = setting(factory=SupervisedConfig)
    optim: OptimiserConfig = setting(factory=lambda: _optim(1e-4))
    run: RunConfig = setting(factory=RunConfig)

    def problems(self) -> Problems:
        found = _needed(("text.train", self.text.train))
        if not self.model.policy and not self.scratch.type:
            found.append(("model.policy", "needed, but not given; scratch.type makes a new model instead"))
        if self.scratch.type:
            found += _new_model_problems("scratch", self.scratch, self.model)
            if self.model.policy:
                found.append(("scratch.type", "give model.policy or scratch.type, not both"))
        return found + _optimiser_problems("optim", self.optim)


@dataclass(frozen=True)
class GenerateJob:
    """Write text with a model: one prompt, a file of them, or a conversation."""

    model: ModelConfig = setting(factory=ModelConfig)
    data: DataConfig = setting(factory=DataConfig)
    rollout: RolloutConfig = setting(factory=RolloutConfig)
    prompt: str = setting("", "one prompt; empty and no data.prompts: ask for prompts in a loop")
    output: str = setting("", "with data.prompts: JSONL file to write; empty: print")
    seed: int = setting(0, "seed of the sampling", ge=0, lt=2**32)

    def problems(self) -> Problems:
        return _needed(("model.policy", self.model.policy))


@dataclass(frozen=True)
class EvaluateJob:
    """Measure models on held-out prompts, side by side."""

    model: ModelConfig = setting(factory=ModelConfig, help="policy: the reference, evaluated first")
    models: list[str] = setting(factory=list, help="more models to evaluate: folders or hub names")
    data: DataConfig = setting(factory=DataConfig)
    rollout: RolloutConfig = setting(factory=RolloutConfig)
    reward: RewardConfig = setting(factory=RewardConfig)
    output: str = setting("", "JSON file for the results; empty: only print")
    samples: int = setting(3, "completions of each model to show", ge=0)
    micro_batch_tokens: int = setting(4096, "most tokens in one forward pass", ge=1)
    seed: int = setting(0, "seed of the sampling", ge=0, lt=2**32)

    def problems(self) -> Problems:
        found = _needed(("model.policy", self.model.policy))
        if not (self.data.eval_prompts or self.data.prompts):
            found.append(("data.eval_prompts", "needed: a file of prompts to evaluate on"))
        return found + _reward_problems(self.reward)


@dataclass(frozen=True)
class ReportJob:
    """Write a run's report: one HTML file that needs no network."""

    folder: str = setting("", "the run's folder (also: proxlm report FOLDER)")
    output: str = setting("", "where to write it; empty: report.html in the run's folder")

    positional: ClassVar[str] = "folder"

    def problems(self) -> Problems:
        return _needed(("folder", self.folder))


@dataclass(frozen=True)
class DoctorJob:
    """Read a PPO run's metrics, during the run or after it, and say what is wrong and what to try."""

    folder: str = setting("", "the run's folder (also: proxlm doctor FOLDER)")
    output: str = setting("", "JSON file for the findings; empty: only print")

    positional: ClassVar[str] = "folder"

    def problems(self) -> Problems:
        return _needed(("folder", self.folder))


@dataclass(frozen=True)
class DemoJob:
    """From the standard library's source to a model that PPO teaches to write code that parses."""

    folder: str = setting("", "where the two runs are written; empty: runs/demo-DATE-TIME")
    seed: int = setting(0, "seed of everything random", ge=0, lt=2**32)
    minutes: float = setting(1.25, "minutes of pretraining", gt=0)
    ppo_steps: int = setting(75, "PPO steps", ge=1)
    eval_count: int = setting(512, "held-out prefixes", ge=2)

    def problems(self) -> Problems:
        return []


def _algorithm_problems(ppo: PPOConfig, model: ModelConfig) -> Problems:
    """What the advantage and the loss ask of the other settings."""
    found: Problems = []
    for key, name, known in (("advantage", ppo.advantage, ADVANTAGES), ("loss", ppo.loss, LOSSES)):
        if name not in known and not is_user_function(name):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            found.append((f"ppo.{key}", f"unknown; {hint} One of your own is path/to/file.py:function"))
    advantage = advantage_of(ppo.advantage)
    if advantage.groups and ppo.samples_per_prompt < 2:
        found.append(("ppo.samples_per_prompt", f"must be 2 or more with ppo.advantage = {ppo.advantage}"))
    if not advantage.critic:
        for key, used in (
            ("ppo.critic_warmup", ppo.critic_warmup > 0),
            ("ppo.truncation", ppo.truncation == "bootstrap"),
            ("model.critic_from", bool(model.critic_from)),
        ):
            if used:
                found.append((key, f"ppo.advantage = {ppo.advantage} has no critic"))
    if model.critic_from and model.critic == "shared":
        found.append(("model.critic_from", "needs model.critic = separate"))
    if ppo.critic_lam < 0 and ppo.critic_lam != -1:
        found.append(("ppo.critic_lam", "must be −1 (the same as lam) or from 0 to 1"))
    if 0 < ppo.dual_clip <= 1:
        found.append(("ppo.dual_clip", "must be more than 1, or 0 for off"))
    if ppo.kl_in == "loss" and ppo.kl_estimator == "k1":
        found.append(("ppo.kl_estimator", "k1 as a loss has an expected gradient of 0; use k2 or k3"))
    if ppo.correction.mode == "mask" and ppo.correction.low > ppo.correction.high:
        found.append(("ppo.correction.low", "must not be more than ppo.correction.high"))
    return found


def _stability_problems(job: PPOJob) -> Problems:
    """What cannot be combined."""
    found: Problems = []
    ppo = job.ppo
    responses = ppo.batch_size * ppo.samples_per_prompt
    if ppo.kl_controller == "adaptive" and ppo.kl_horizon <= 0.2 * responses:
        most = f"must be more than 0.2 · {responses} responses of a step, or β could fall to 0 and below"
        found.append(("ppo.kl_horizon", most))
    if ppo.filter_groups and ppo.samples_per_prompt < 2:
        found.append(("ppo.filter_groups", "needs ppo.samples_per_prompt of 2 or more"))
    if ppo.reference_decay < 1 and job.model.lora.rank:
        found.append(("ppo.reference_decay", "with LoRA the reference is the frozen base; it cannot move"))
    if job.shaping.overlong_buffer > job.rollout.max_new_tokens:
        found.append(("shaping.overlong_buffer", "must not be more than rollout.max_new_tokens"))
    if job.ptx.coef > 0 and not job.ptx.text:
        found.append(("ptx.text", "needed with ptx.coef above 0"))
    if ppo.loss == "trpo":
        for key, used in (
            ("ppo.kl_in", ppo.kl_in == "loss"),
            ("ppo.entropy_coef", ppo.entropy_coef > 0),
            ("ptx.coef", job.ptx.coef > 0),
            ("ppo.target_kl", ppo.target_kl > 0),
        ):
            if used:
                found.append(
                    (key, "cannot be used with ppo.loss = trpo, whose step is on the surrogate alone")
                )
    return found


def _new_model_problems(key: str, new: NewModelConfig, model: ModelConfig) -> Problems:
    found: Problems = []
    if new.hidden % new.heads:
        found.append((f"{key}.hidden", f"must be a multiple of {key}.heads = {new.heads}"))
    elif new.hidden // new.heads % 2:
        found.append((f"{key}.hidden", f"{key}.hidden / {key}.heads must be even (rotary positions)"))
    if not model.policy and model.lora.rank:
        found.append(("model.lora.rank", "adapters need model.policy, a model to go on from"))
    return found


def _needed(*pairs: tuple[str, Any]) -> Problems:
    return [(key, "needed, but not given") for key, value in pairs if not value]


def _reward_problems(reward: RewardConfig) -> Problems:
    if reward.use and reward.terms:
        return [("reward.use", "give use or terms, not both")]
    return [
        (f"reward.terms.{name}.use", "needed, but not given") for name, t in reward.terms.items() if not t.use
    ]


def _optimiser_problems(key: str, optim: OptimiserConfig) -> Problems:
    if optim.schedule == "staged" and not optim.stages:
        return [(f"{key}.stages", 'needed with schedule = "staged"')]
    if optim.schedule == "exponential" and optim.final == 0:
        return [(f"{key}.final", 'must be more than 0 with schedule = "exponential"')]
    return [
        (f"{key}.stages", f'"{step}" is not a step number') for step in optim.stages if not step.isdecimal()
    ]
