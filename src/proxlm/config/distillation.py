"""The settings of `proxlm distill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.early_stopping import DISTILLATION, early_stopping_problems
from proxlm.config.mixture import is_mixture
from proxlm.config.new_model import NewModelSettings
from proxlm.config.problems import (
    Problems,
    best_is_model_problems,
    chat_problems,
    model_problems,
    optimiser_problems,
    required,
    rollout_problems,
    scratch_problems,
)
from proxlm.config.rollout import RolloutSettings
from proxlm.config.schema import (
    DataSettings,
    ModelSettings,
    OptimiserSettings,
    RunSettings,
    SupervisedSettings,
    TextSettings,
)
from proxlm.config.setting import setting


@dataclass(frozen=True)
class DistillSettings:
    """What of the teacher the student learns."""

    mode: Literal["sequence", "logits", "on_policy"] = setting(
        "logits",
        "sequence: the teacher's answers, as text (Kim and Rush 2016), with any tokenizer; logits: its distribution"
        " at each token of them; on_policy: that distribution at the student's own samples, too (GKD, Agarwal et al."
        " 2024)",
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = setting(
        "forward_kl",
        "KL(teacher ‖ student), KL(student ‖ teacher), or the generalised Jensen–Shannon divergence between the two",
    )
    beta: float = setting(
        0.5, "β of jsd: towards 0 it is like the forward KL, towards 1 like the reverse KL", gt=0, lt=1
    )
    temperature: float = setting(
        1.0, "divides the logits of both; the loss is multiplied by its square (Hinton et al. 2015)", gt=0
    )
    top_k: int = setting(
        0,
        "only the teacher's k likeliest tokens count one by one, and the others as one; 0: all. With k the teacher is"
        " read once, and k numbers a token are kept",
        ge=0,
    )
    cross_entropy: float = setting(
        0.0, "share of the loss that is the cross-entropy of the text's own tokens", ge=0, le=1
    )
    student_share: float = setting(
        0.5, "on_policy: λ, the share of a batch's responses that the student samples itself", gt=0, le=1
    )
    student_temperature: float = setting(1.0, "on_policy: temperature at which the student samples", gt=0)
    tokenizer: Literal["teacher", "new"] = setting(
        "teacher",
        "of a new student (scratch.type): the teacher's, or one of its own: scratch.tokenizer, or scratch.vocabulary"
        " tokens trained on the answers",
    )
    answers: str = setting(
        "",
        "the answers.jsonl of an earlier run, whose teacher was asked the same in the same way: they are taken from"
        " there; empty: the teacher is asked",
        path="input",
    )
    samples_per_prompt: int = setting(1, "answers of the teacher to each training prompt", ge=1)
    cache_gb: float = setting(
        2.0,
        "keep what the teacher says of the texts on disk if it is no more than so many GiB, rather than read them"
        " again in each epoch; 0: never",
        ge=0,
        on_resume="free",
    )
    eval_samples: int = setting(
        64, "held-out prompts that the student answers to measure its reverse KL; 0: not measured", ge=0
    )


@dataclass(frozen=True)
class DistillConfig:
    """Train a small model to write like a large one: on its answers, or on its distribution at each token."""

    scratch: NewModelSettings = setting(
        factory=lambda: NewModelSettings(type=""),
        help="type: train a new student of this type; empty: model.policy is the student",
    )
    model: ModelSettings = setting(
        factory=ModelSettings, help="policy: the student; teacher: the teacher; both in the same precision"
    )
    distill: DistillSettings = setting(factory=DistillSettings)
    data: DataSettings = setting(factory=DataSettings, help="prompts that the teacher answers")
    rollout: RolloutSettings = setting(factory=RolloutSettings, help="how the teacher answers")
    text: TextSettings = setting(
        factory=TextSettings, help="instead of data.prompts: texts that the teacher reads, as sft learns from"
    )
    train: SupervisedSettings = setting(factory=SupervisedSettings)
    optim: OptimiserSettings = setting(
        factory=lambda: OptimiserSettings(
            lr=1e-3, schedule="cosine", warmup=20, final=0.1, beta2=0.95, eps=1e-8, weight_decay=0.1
        )
    )
    run: RunSettings = setting(factory=RunSettings)

    def problems(self) -> Problems:
        found = required(("model.teacher", self.model.teacher))
        if self.data.prompts and self.text.train:
            found.append(("data.prompts", "give prompts to answer or text.train to read, not both"))
        elif not self.text.train:
            found += required(("data.prompts", self.data.prompts))
        found += chat_problems("data.chat_template_kwargs", self.data.chat_template_kwargs)
        found += chat_problems("text.chat_template_kwargs", self.text.chat_template_kwargs)
        found += model_problems(self.model) + best_is_model_problems(self.run)
        found += scratch_problems(self.scratch, self.model) + rollout_problems(self.rollout)
        if self.text.train and self.distill.mode == "sequence":
            reason = (
                "the teacher has no part in given texts: proxlm sft learns them; set data.prompts instead"
            )
            found.append(("text.train", reason))
        if self.distill.tokenizer == "new" and self.distill.mode != "sequence":
            reason = "its tokens are not the teacher's; set distill.mode = sequence, which learns texts"
            found.append(("distill.tokenizer", reason))
        found += early_stopping_problems(self.train, DISTILLATION)
        if is_mixture(self.text):
            found.append(("text.weights", "and text.temperature are not of distillation; leave them out"))
        return found + optimiser_problems("optim", self.optim)

    def best_metric(self) -> str:
        """ "": policy/ is the model of the best validation."""
        return ""
