"""The settings of training on preferences, and of DPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from proxlm.config.distributed import DistributedSettings
from proxlm.config.early_stopping import PREFERENCES
from proxlm.config.model import ModelSettings
from proxlm.config.optimiser import OptimiserSettings
from proxlm.config.problems import (
    Problems,
    chat_problems,
    required,
)
from proxlm.config.schema import ON_BAD_RECORD, RunSettings, SupervisedSettings
from proxlm.config.setting import setting
from proxlm.config.supervised_problems import supervised_problems


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
    distributed: DistributedSettings = setting(factory=DistributedSettings)
    run: RunSettings = setting(factory=RunSettings)

    def problems(self) -> Problems:
        found = required(("model.policy", self.model.policy), ("text.train", self.text.train))
        found += preference_problems(self.text) + supervised_problems(self, PREFERENCES)
        if self.text.pair:
            found.append(("text.pair", "a policy goes on with its prompt; set it to false"))
        if self.train.dropout:
            found.append(("train.dropout", "log-probs are compared with the reference's; set it to 0 in dpo"))
        return found

    def best_metric(self) -> str:
        """ "": policy/ is the model of the best validation."""
        return ""


def preference_problems(text: PreferenceSettings) -> Problems:
    found = chat_problems("text.chat_template_kwargs", text.chat_template_kwargs)
    if len(text.completion_fields) != 2 or len(set(text.completion_fields)) != 2:
        found.append(("text.completion_fields", "needs the names of two fields"))
    if text.winner_values and (len(text.winner_values) != 2 or len(set(text.winner_values)) != 2):
        found.append(("text.winner_values", "needs two values: for the first and for the second completion"))
    return found
