"""The jobs that learn from texts: pretraining and fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from proxlm.config.distributed import DistributedSettings
from proxlm.config.early_stopping import LANGUAGE_MODEL
from proxlm.config.loss import LossSettings
from proxlm.config.mixture import kept_tokens_problems, mixture_problems
from proxlm.config.model import ModelSettings
from proxlm.config.new_model import NewModelSettings
from proxlm.config.optimiser import OptimiserSettings
from proxlm.config.problems import (
    Problems,
    chat_problems,
    new_model_problems,
    required,
    scratch_problems,
)
from proxlm.config.schema import RunSettings, SupervisedSettings, TextSettings
from proxlm.config.setting import setting
from proxlm.config.supervised_problems import supervised_problems


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
    loss: LossSettings = setting(factory=LossSettings)
    train: SupervisedSettings = setting(factory=SupervisedSettings)
    optim: OptimiserSettings = setting(factory=lambda: _optim(2e-3))
    distributed: DistributedSettings = setting(factory=DistributedSettings)
    run: RunSettings = setting(factory=RunSettings)

    def problems(self) -> Problems:
        found = required(("text.train", self.text.train)) + supervised_problems(self, LANGUAGE_MODEL)
        found += mixture_problems(self.text)
        if self.train.curriculum_steps:
            found.append(
                (
                    "train.curriculum_steps",
                    "blocks of text are all of the same length; leave it out in pretrain",
                )
            )
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
    loss: LossSettings = setting(factory=LossSettings)
    train: SupervisedSettings = setting(factory=SupervisedSettings)
    optim: OptimiserSettings = setting(factory=lambda: _optim(1e-4))
    distributed: DistributedSettings = setting(factory=DistributedSettings)
    run: RunSettings = setting(factory=RunSettings)

    def problems(self) -> Problems:
        found = required(("text.train", self.text.train))
        found += chat_problems("text.chat_template_kwargs", self.text.chat_template_kwargs)
        found += supervised_problems(self, LANGUAGE_MODEL)
        found += scratch_problems(self.scratch, self.model)
        return found + mixture_problems(self.text) + kept_tokens_problems(self.text)

    def best_metric(self) -> str:
        """ "": policy/ is the model of the best validation."""
        return ""
