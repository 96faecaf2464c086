"""The jobs that only use models: generation and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import abspath
from typing import Literal

from proxlm.config.likelihood import ChoiceSettings, PerplexitySettings, perplexity_problems
from proxlm.config.metrics import MetricSettings, baseline_problems, metric_problems
from proxlm.config.model import ModelSettings
from proxlm.config.problems import (
    Problems,
    chat_problems,
    required,
    reward_problems,
    rollout_problems,
    trained_model_problems,
)
from proxlm.config.rollout import GREEDY, EnvironmentSettings, RolloutSettings
from proxlm.config.schema import DataSettings, ProcessSettings, RewardSettings
from proxlm.config.setting import setting
from proxlm.text import shown

# How one of several responses is chosen.
PICKS = ("majority", "reward")


@dataclass(frozen=True)
class PickSettings:
    """One of several responses to each prompt, as `proxlm evaluate --pick` measures it."""

    by: Literal["none", "majority", "reward"] = setting(
        "none",
        "majority: the response with the answer that most have (self-consistency); reward: the one with the highest"
        " reward.use (best of n); none: one response is sampled",
    )
    count: int = setting(8, "responses sampled to each prompt", ge=2, le=10_000)
    read: Literal["whole", "first_line", "last_line", "number", "label", "pattern"] = setting(
        "whole", "majority: what of a response is its answer, as metrics.read of evaluate"
    )
    pattern: str = setting("", "read = pattern: a regular expression; its first group is the answer")
    labels: list[str] = setting(factory=list, help="read = label: the labels")
    ignore_case: bool = setting(False, "majority: whether upper and lower case are the same in an answer")

    def reading(self) -> MetricSettings:
        """How an answer is read, in the words of the section [metrics]."""
        return MetricSettings(
            read=self.read, pattern=self.pattern, labels=self.labels, ignore_case=self.ignore_case
        )


@dataclass(frozen=True)
class GenerateConfig:
    """Generate text with a model, for one prompt, a file of prompts, or a conversation."""

    model: ModelSettings = setting(factory=ModelSettings)
    data: DataSettings = setting(factory=DataSettings)
    rollout: RolloutSettings = setting(factory=RolloutSettings)
    models: list[str] = setting(
        factory=list,
        help="more models of the same tokenizer: each token is sampled from the mean of the probabilities of all",
        path="model",
    )
    pick: PickSettings = setting(factory=PickSettings)
    reward: RewardSettings = setting(factory=RewardSettings, help="with pick.by = reward")
    prompt: str = setting(
        "",
        "one prompt, instead of data.prompts; without either: lines of standard input, up to an empty one",
    )
    output: str = setting("", "with data.prompts: JSONL file to write; empty: print", path="output")
    seed: int = setting(0, "seed of the sampling", ge=0, lt=2**32)
    run: ProcessSettings = setting(factory=ProcessSettings)

    def problems(self) -> Problems:
        found = required(("model.policy", self.model.policy)) + trained_model_problems(self.model)
        if self.model.teacher:
            found.append(("model.teacher", "is about training or evaluation; leave it out"))
        if self.output and not self.data.prompts:
            found.append(("output", "is for the responses to data.prompts: set that, or leave it out"))
        found += _generate_pick_problems(self)
        return (
            found
            + _overwritten("output", self.output, [], self.data)
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
    average: bool = setting(
        False,
        "also evaluate all the models together: each token is sampled from the mean of their probabilities",
    )
    pick: list[str] = setting(
        factory=list,
        help="also report one of the metrics.samples_per_prompt responses to each prompt: majority, of the answers"
        " that metrics.read finds (self-consistency), or reward, the best of n",
    )
    samples: int = setting(3, "number of each model's completions to show", ge=0)
    micro_batch_tokens: int = setting(4096, "most tokens in one forward pass", ge=1)
    seed: int = setting(0, "seed of the sampling", ge=0, lt=2**32)
    run: ProcessSettings = setting(factory=ProcessSettings)

    def problems(self) -> Problems:
        found = [] if self.models else required(("model.policy", self.model.policy))
        found += trained_model_problems(self.model)
        if not (self.data.eval_prompts or self.data.prompts or self.environment.use or self.perplexity.text):
            found.append(("data.eval_prompts", "required: a file of prompts to evaluate on"))
        if self.metrics.samples_per_prompt > 1 and self.rollout.temperature == 0:
            reason = (
                "greedy responses to one prompt are all the same; set it to 1, or rollout.temperature above 0"
            )
            found.append(("metrics.samples_per_prompt", reason))
        found += _pick_problems(self)
        if not self.perplexity.text:
            found += baseline_problems(self.metrics, bool(self.choices.field), bool(self.environment.use))
        found += perplexity_problems(self.perplexity)
        found += chat_problems(
            "data.chat_template_kwargs", self.data.chat_template_kwargs
        ) + rollout_problems(self.rollout)
        if self.output and not self.output.endswith((".json", ".md", ".html", ".txt")):
            found.append(("output", "must end with .json, .md, .html or .txt"))
        found += _overwritten("output", self.output, [self.responses], self.data, self.perplexity.text)
        found += _overwritten("responses", self.responses, [], self.data, self.perplexity.text)
        return found + reward_problems(self.reward) + metric_problems(self.metrics)


def _generate_pick_problems(job: GenerateConfig) -> Problems:
    """Picks that cannot be."""
    found: Problems = []
    pick, has_reward = job.pick, bool(job.reward.use or job.reward.terms)
    if pick.by == "reward" and not has_reward:
        found.append(("reward.use", "required with pick.by = reward: what says which response is best"))
    if pick.by != "reward" and has_reward:
        found.append(("reward.use", "is for pick.by = reward; set that, or leave it out"))
    if pick.by != "none" and job.rollout.temperature == 0:
        found.append(("rollout.temperature", "must be above 0 for pick: greedy responses are all the same"))
    if pick.by == "majority":
        if pick.read == "label" and not pick.labels:
            found.append(("pick.labels", "required with pick.read = label"))
        renamed = {"metrics.pattern": "pick.pattern", "metrics.labels": "pick.labels"}
        reading = metric_problems(pick.reading())
        found += [(renamed.get(key, key), reason.replace("metrics.", "pick.")) for key, reason in reading]
    return found + reward_problems(job.reward)


def _pick_problems(job: EvaluateConfig) -> Problems:
    """Picks and averages that cannot be."""
    found: Problems = []
    if unknown := [name for name in job.pick if name not in PICKS]:
        found.append(("pick", f"{shown(unknown[0])}: not one of {' and '.join(PICKS)}"))
    if job.pick and job.metrics.samples_per_prompt < 2:
        found.append(("metrics.samples_per_prompt", "must be 2 or more for pick, which chooses one of them"))
    if job.pick and job.rollout.temperature == 0:
        found.append(("rollout.temperature", "must be above 0 for pick: greedy responses are all the same"))
    if job.average and (job.environment.use or job.choices.field or job.perplexity.text):
        found.append(("average", "of responses to prompts alone; set it to false"))
    return found


def _overwritten(
    key: str, path: str, others: list[str], data: DataSettings, texts: Sequence[str] = ()
) -> Problems:
    """What is read, or written as well, must not be the file that is written."""
    read = [*others, data.prompts, data.eval_prompts, data.examples, data.chat_template, *texts]
    same = path and any(other and abspath(other) == abspath(path) for other in read)
    return [(key, f"{path} is another file of this command; name a new one")] if same else []
