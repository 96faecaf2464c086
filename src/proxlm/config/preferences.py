"""The settings of training on preferences and other labels: reward models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from proxlm.config.problems import (
    Problems,
    best_is_model_problems,
    chat_problems,
    model_problems,
    new_model_problems,
    optimiser_problems,
    required,
)
from proxlm.config.schema import (
    ON_BAD_RECORD,
    ModelSettings,
    NewModelSettings,
    OptimiserSettings,
    RunSettings,
    SupervisedSettings,
)
from proxlm.config.setting import setting


@dataclass(frozen=True)
class PreferenceSettings:
    """Records with labels: two completions of which one is better, by default."""

    train: list[str] = setting(
        factory=list, help="files or data sets of records with a prompt, chosen and rejected", path="input"
    )
    validation: list[str] = setting(
        factory=list, help="held-out files; empty: validation_share is set aside, by prompt", path="input"
    )
    validation_share: float = setting(0.05, "share of the prompts to set aside for validation", gt=0, lt=1)
    on_bad_record: Literal["fail", "skip"] = setting("fail", ON_BAD_RECORD)
    prompt_field: str = setting(
        "prompt",
        "field with the prompt (text or messages); a record without it: what chosen and rejected have in common",
    )
    chosen_field: str = setting("chosen", "field with the better completion (text or messages)")
    rejected_field: str = setting("rejected", "field with the worse completion")
    winner_field: str = setting(
        "winner", "field that says which of completion_fields is better, in records without chosen_field"
    )
    winner_values: list[str] = setting(
        factory=list,
        help="what winner_field holds for the first and for the second completion; empty: the field's name, a or b,"
        " model_a or model_b, 0 or 1. A tie is left out",
    )
    completion_fields: list[str] = setting(
        factory=lambda: ["response_a", "response_b"], help="fields with two completions, with winner_field"
    )
    margin_field: str = setting(
        "", "field with how much better the chosen one is; its score must lead by that much; empty: none"
    )
    slice_field: str = setting("", "field by whose values accuracy is also reported; empty: none")
    chat: bool = setting(False, "render prompt and completion with the chat template")
    chat_template: str = setting(
        "", "file with a Jinja chat template, for a tokenizer without one", path="input"
    )
    chat_template_kwargs: dict[str, Any] = setting(
        factory=dict, help="variables of the chat template, such as {enable_thinking = false}"
    )
    pair: bool = setting(
        False,
        "give prompt and completion to the tokenizer as two texts, which it separates; reward.args.pair must say"
        " the same",
    )
    max_tokens: int = setting(
        0, "longest prompt with its completion, in tokens; 0: the model's context", ge=0
    )
    on_long_text: Literal["fail", "skip", "truncate"] = setting(
        "fail",
        "a text longer than max_tokens: stop with an error, skip and count it, or cut off its beginning, as"
        " reward.args.truncate does",
    )


@dataclass(frozen=True)
class ObjectiveSettings:
    """What a reward model learns from a record."""

    centring: float = setting(
        0.0,
        "factor of (score of the chosen + score of the rejected)² in the loss, which keeps scores around 0"
        " (Eisenstein et al. 2023); 0: off",
        ge=0,
    )
    label_smoothing: float = setting(
        0.0, "share of the comparisons that are taken to be the wrong way round", ge=0, lt=0.5
    )


@dataclass(frozen=True)
class EnsembleSettings:
    """Several reward models from one run."""

    size: int = setting(
        1, "number of models, which learn side by side; their new heads and weights differ", ge=1
    )
    bagging: bool = setting(
        True,
        "each learns a sample of the comparisons of its own, drawn with replacement; false: all of them alike",
    )
    save: Literal["members", "average"] = setting(
        "members",
        "members: all of them, for reward.use = reward_ensemble; average: one model with the means of their weights"
        " (Ramé et al. 2024), for models that begin as one",
    )


@dataclass(frozen=True)
class DPOSettings:
    """Direct preference optimisation (Rafailov et al. 2023)."""

    beta: float = setting(
        0.1, "β: how much the policy is held to its start, as a KL coefficient in units of reward", gt=0
    )
    label_smoothing: float = setting(
        0.0,
        "share of the comparisons that are taken to be the wrong way round (conservative DPO)",
        ge=0,
        lt=0.5,
    )


@dataclass(frozen=True)
class ComparisonTestSettings:
    """How the finished reward model is judged."""

    files: list[str] = setting(
        factory=list,
        help="held-out files of comparisons to judge it on after the run; empty: the validation part, which has also"
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
        "judge by length alone, too, and by single words where scikit-learn is installed",
        on_resume="free",
    )


def _reward_optimiser() -> OptimiserSettings:
    return OptimiserSettings(
        lr=1e-5, schedule="cosine", warmup=20, final=0.1, beta2=0.95, eps=1e-8, weight_decay=0.01
    )


@dataclass(frozen=True)
class RewardConfig:
    """Train a reward model on preferences: the score of a better completion is to be higher."""

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
    ensemble: EnsembleSettings = setting(factory=EnsembleSettings)
    train: SupervisedSettings = setting(
        factory=lambda: SupervisedSettings(steps=1000, batch_tokens=16384, validate_every=50)
    )
    optim: OptimiserSettings = setting(factory=_reward_optimiser)
    test: ComparisonTestSettings = setting(factory=ComparisonTestSettings)
    run: RunSettings = setting(factory=RunSettings)

    def problems(self) -> Problems:
        found = required(("text.train", self.text.train)) + _text_problems(self.text)
        found += model_problems(self.model) + _model_problems(self.model) + best_is_model_problems(self.run)
        found += _ensemble_problems(self)
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
        """ "": the run's model is the one of the best validation."""
        return ""


@dataclass(frozen=True)
class DPOConfig:
    """Train a language model on preferences directly, without a reward model (DPO)."""

    model: ModelSettings = setting(factory=ModelSettings)
    text: PreferenceSettings = setting(factory=PreferenceSettings)
    dpo: DPOSettings = setting(factory=DPOSettings)
    train: SupervisedSettings = setting(
        factory=lambda: SupervisedSettings(steps=500, batch_tokens=16384, validate_every=25)
    )
    optim: OptimiserSettings = setting(
        factory=lambda: OptimiserSettings(lr=1e-6, schedule="linear", warmup=20, eps=1e-8)
    )
    run: RunSettings = setting(factory=RunSettings)

    def problems(self) -> Problems:
        found = required(("model.policy", self.model.policy), ("text.train", self.text.train))
        found += _text_problems(self.text) + model_problems(self.model) + best_is_model_problems(self.run)
        if self.text.pair:
            found.append(("text.pair", "a policy goes on with its prompt; set it to false"))
        return found + optimiser_problems("optim", self.optim)

    def best_metric(self) -> str:
        """ "": policy/ is the model of the best validation."""
        return ""


def _text_problems(text: PreferenceSettings) -> Problems:
    found = chat_problems("text.chat_template_kwargs", text.chat_template_kwargs)
    if len(text.completion_fields) != 2 or len(set(text.completion_fields)) != 2:
        found.append(("text.completion_fields", "needs the names of two fields"))
    if text.winner_values and (len(text.winner_values) != 2 or len(set(text.winner_values)) != 2):
        found.append(("text.winner_values", "needs two values: for the first and for the second completion"))
    return found


def _ensemble_problems(job: RewardConfig) -> Problems:
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
