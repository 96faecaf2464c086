"""The settings of `proxlm reward`: reward models that learn comparisons, scores, classes or steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.distributed import DistributedSettings
from proxlm.config.early_stopping import REWARD_MODEL
from proxlm.config.loss import LossSettings
from proxlm.config.model import ModelSettings
from proxlm.config.new_model import NewModelSettings
from proxlm.config.optimiser import OptimiserSettings
from proxlm.config.preferences import PreferenceSettings, preference_problems
from proxlm.config.problems import (
    Problems,
    required,
    scratch_problems,
)
from proxlm.config.schema import RunSettings, SupervisedSettings
from proxlm.config.setting import setting
from proxlm.config.supervised_problems import supervised_problems


@dataclass(frozen=True)
class ObjectiveSettings:
    """What a reward model learns from a record."""

    kind: Literal["comparisons", "scores", "classes", "steps"] = setting(
        "comparisons",
        "comparisons: of two completions the better one; scores: a number, or several, for a response; classes: its"
        " label; steps: for each step of a response whether it is right",
    )
    centring: float = setting(
        0.0,
        "factor of (score of the chosen + score of the rejected)² in the loss, which keeps scores around 0"
        " (Eisenstein et al. 2023); 0: off",
        ge=0,
    )
    label_smoothing: float = setting(
        0.0, "share of the comparisons that are taken to be the wrong way round", ge=0, lt=0.5
    )
    score_loss: Literal["mse", "huber"] = setting(
        "mse", "of scores: squared error, or Huber's, which an outlier moves less"
    )
    huber_delta: float = setting(
        1.0, "from which error on Huber's loss is linear, in standard deviations of the scores", gt=0
    )


@dataclass(frozen=True)
class LabelSettings:
    """Where the labels of single responses are; other fields of a record are those of the section [text]."""

    response_field: str = setting(
        "response",
        "field with the response (text or messages), for scores and classes; a record may have no prompt",
    )
    score_fields: list[str] = setting(
        factory=lambda: ["score"],
        help="fields with numbers, one output of the model for each; with several, a record may lack some",
    )
    class_field: str = setting("label", "field with the class: a name, or a number")
    classes: list[str] = setting(
        factory=list,
        help="all classes, in the order of the model's outputs; a number in class_field that is none of these names"
        " counts them from 0. Empty: those of the training files, sorted",
    )
    steps_field: str = setting(
        "completions", "field with the steps of a response: a list of texts, or a text with separators"
    )
    step_labels_field: str = setting(
        "labels", "field with a label for each step: true or false, or how likely it is right, from 0 to 1"
    )
    separator: str = setting(
        "\n", "what stands between two steps; it is saved with the model, whose reward splits responses by it"
    )


@dataclass(frozen=True)
class EnsembleSettings:
    """Several reward models from one run."""

    size: int = setting(
        1, "number of models, which learn side by side; their new heads and weights differ", ge=1, le=64
    )
    bagging: bool = setting(
        True,
        "each learns a sample of the records of its own, drawn with replacement; false: all of them alike",
    )
    boosting: bool = setting(
        False,
        "each learns what the sum of those before it gets wrong, and the reward is the sum of all (gradient boosting,"
        " Friedman 2001; all at once, Beygelzimer et al. 2015); of comparisons",
    )
    save: Literal["members", "average"] = setting(
        "members",
        "members: all of them, for reward.use = reward_ensemble; average: one model with the means of their weights"
        " (Ramé et al. 2024), for models that begin as one",
    )


@dataclass(frozen=True)
class ComparisonTestSettings:
    """How the finished reward model is judged."""

    files: list[str] = setting(
        factory=list,
        help="held-out files of records to judge it on after the run; empty: the validation part, which has also"
        " chosen the weights that are kept",
        path="input",
        on_resume="free",
    )
    best_of: str = setting(
        "",
        "file of prompts with right and wrong completions (lists in chosen_field and rejected_field), as"
        " RewardBench 2 has it: how often a right one scores highest; empty: none",
        path="input",
        on_resume="free",
    )
    baselines: bool = setting(
        True,
        "judge by length alone, too (of other labels: by one answer for all), and by single words where scikit-learn"
        " is installed",
        on_resume="free",
    )


def _reward_optimiser() -> OptimiserSettings:
    return OptimiserSettings(
        lr=1e-5, schedule="cosine", warmup=20, final=0.1, beta2=0.95, eps=1e-8, weight_decay=0.01
    )


@dataclass(frozen=True)
class RewardConfig:
    """Train a reward model: on comparisons, scores, classes or steps."""

    scratch: NewModelSettings = setting(
        factory=lambda: NewModelSettings(type=""),
        help='type: begin with a new decoder of this type, tokenizer included ("llama", ...); empty: model.policy',
    )
    model: ModelSettings = setting(
        factory=ModelSettings,
        help="policy: what the reward model begins with, a language model or a classifier",
    )
    text: PreferenceSettings = setting(factory=PreferenceSettings)
    objective: ObjectiveSettings = setting(factory=ObjectiveSettings)
    loss: LossSettings = setting(factory=LossSettings, help="of classes")
    labels: LabelSettings = setting(factory=LabelSettings)
    ensemble: EnsembleSettings = setting(factory=EnsembleSettings)
    train: SupervisedSettings = setting(
        factory=lambda: SupervisedSettings(steps=1000, batch_tokens=16384, validate_every=50)
    )
    optim: OptimiserSettings = setting(factory=_reward_optimiser)
    test: ComparisonTestSettings = setting(factory=ComparisonTestSettings)
    distributed: DistributedSettings = setting(factory=DistributedSettings)
    run: RunSettings = setting(factory=RunSettings)

    def problems(self) -> Problems:
        found = required(("text.train", self.text.train)) + preference_problems(self.text)
        averaged = self.ensemble.size > 1 and self.ensemble.save == "average"
        found += supervised_problems(self, REWARD_MODEL[self.objective.kind], ensemble__save=averaged)
        found += _model_problems(self.model) + scratch_problems(self.scratch, self.model)
        return found + _ensemble_problems(self) + _label_problems(self)

    def best_metric(self) -> str:
        """ "": the run's model is the one of the best validation."""
        return ""


def _label_problems(job: RewardConfig) -> Problems:
    """Settings of labels that cannot be."""
    found: Problems = []
    labels, kind = job.labels, job.objective.kind
    for key, names, least in (("score_fields", labels.score_fields, 1), ("classes", labels.classes, 2)):
        if (names or key == "score_fields") and (len(names) < least or len(set(names)) < len(names)):
            found.append((f"labels.{key}", f"needs {least} name{'s' * (least > 1)} or more, each once"))
    if not labels.separator:
        found.append(("labels.separator", "must not be empty"))
    if kind == "steps" and job.text.pair:
        found.append(("text.pair", "steps stand in one text with their prompt; set it to false"))
    if kind == "steps" and job.text.on_long_text == "truncate":
        found.append(("text.on_long_text", 'steps would be cut off; set it to "skip" or "fail"'))
    return found


def _ensemble_problems(job: RewardConfig) -> Problems:
    if job.ensemble.size > 1 and job.train.average != "none":
        return [("train.average", "not of an ensemble; ensemble.save = average is the mean of its members")]
    if job.ensemble.boosting and job.objective.kind != "comparisons":
        return [("ensemble.boosting", "of comparisons only; set it to false")]
    if job.ensemble.boosting and job.ensemble.save == "average":
        return [("ensemble.save", "boosted models add up and have no mean; set it to members")]
    if job.objective.kind == "steps" and job.ensemble.size > 1:
        return [("ensemble.size", "a process reward model is one; set it to 1")]
    if job.ensemble.size == 1 or job.ensemble.save == "members":
        return []
    if job.scratch.type:
        reason = "new models do not begin as one, so their weights have no mean; set it to members"
        return [("ensemble.save", reason)]
    if job.model.lora.rank:
        return [("ensemble.save", "adapters have no mean; set it to members, or model.lora.rank to 0")]
    return []


def _model_problems(model: ModelSettings) -> Problems:
    """Settings of [model] that are about a policy's passes."""
    found: Problems = []
    if model.packed:
        found.append(("model.packed", "a reward model's texts are not packed; set it to false"))
    if model.activation_checkpointing:
        found.append(
            (
                "model.activation_checkpointing",
                "not of a reward model; lower train.micro_batch_tokens instead",
            )
        )
    if model.critic_from:
        found.append(("model.critic_from", "a reward model has no critic; leave it out"))
    return found
