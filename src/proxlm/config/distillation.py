"""The settings of `proxlm distill`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from proxlm.config.distributed import DistributedSettings
from proxlm.config.early_stopping import DISTILLATION
from proxlm.config.mixture import is_mixture, kept_tokens_problems
from proxlm.config.model import ModelSettings
from proxlm.config.new_model import NewModelSettings
from proxlm.config.optimiser import OptimiserSettings
from proxlm.config.problems import (
    Problems,
    chat_problems,
    required,
    rollout_problems,
    scratch_problems,
)
from proxlm.config.rollout import RolloutSettings
from proxlm.config.schema import DataSettings, RunSettings, SupervisedSettings, TextSettings
from proxlm.config.secrets import PREFIX, SECRET
from proxlm.config.setting import setting
from proxlm.config.supervised_problems import supervised_problems

# What of [rollout] a server is told.
_TOLD = ("max_new_tokens", "temperature", "top_p", "stop", "batch_size")
_OF_REQUEST = ("model", "messages", "stream", "n", "temperature", "max_tokens", "top_p", "stop")


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
class TeacherSettings:
    """A teacher behind a URL: a server that speaks OpenAI's chat completions. Its texts are learnt."""

    url: str = setting("", "instead of model.teacher: http://127.0.0.1:8000/v1 for instance")
    name: str = setting("", "its name at the server")
    key: str = setting("", "its key, as env:NAME of a variable that holds it; empty: none", on_resume="free")
    extra: dict[str, Any] = setting(
        factory=dict, help="more of each request, as the server knows it: {top_k = 20}"
    )
    concurrency: int = setting(8, "requests at a time", ge=1, le=256, on_resume="free")
    timeout: float = setting(120.0, "seconds for one request", gt=0, le=3600, on_resume="free")
    retries: int = setting(4, "how often a question that failed is asked again", ge=0, on_resume="free")
    max_requests: int = setting(
        0, "most requests of this process, repeated ones too; 0: no limit", ge=0, on_resume="free"
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
    teacher: TeacherSettings = setting(factory=TeacherSettings)
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
    distributed: DistributedSettings = setting(factory=DistributedSettings)
    run: RunSettings = setting(factory=RunSettings)

    def problems(self) -> Problems:
        found = _teacher_problems(self)
        if self.data.prompts and self.text.train:
            found.append(("data.prompts", "give prompts to answer or text.train to read, not both"))
        elif not self.text.train:
            found += required(("data.prompts", self.data.prompts))
        found += chat_problems("data.chat_template_kwargs", self.data.chat_template_kwargs)
        found += chat_problems("text.chat_template_kwargs", self.text.chat_template_kwargs)
        found += supervised_problems(
            self,
            DISTILLATION,
            distill__mode=self.distill.mode == "on_policy",
            distill__eval_samples=self.distill.eval_samples,
        )
        found += scratch_problems(self.scratch, self.model) + rollout_problems(self.rollout)
        if self.text.train and self.distill.mode == "sequence":
            reason = (
                "the teacher has no part in given texts: proxlm sft learns them; set data.prompts instead"
            )
            found.append(("text.train", reason))
        if self.distill.tokenizer == "new" and self.distill.mode != "sequence":
            reason = "its tokens are not the teacher's; set distill.mode = sequence, which learns texts"
            found.append(("distill.tokenizer", reason))
        found += kept_tokens_problems(self.text)
        if is_mixture(self.text):
            found.append(("text.weights", "and text.temperature are not of distillation; leave them out"))
        return found

    def best_metric(self) -> str:
        """ "": policy/ is the model of the best validation."""
        return ""


def _teacher_problems(config: DistillConfig) -> Problems:
    """What cannot be of the teacher, who is a model or a server."""
    url, found = config.teacher.url, list[tuple[str, str]]()
    if config.distill.samples_per_prompt > 1 and config.rollout.temperature == 0:
        reason = "greedy answers to one prompt are all the same; set it to 1, or rollout.temperature above 0"
        found.append(("distill.samples_per_prompt", reason))
    if not url:
        return found + required(("model.teacher", config.model.teacher))
    if config.model.teacher:
        return [*found, ("teacher.url", "give model.teacher or teacher.url, not both")]
    found += required(("teacher.name", config.teacher.name))
    if config.distill.mode != "sequence":
        found.append(
            ("distill.mode", "a server gives texts alone: set it to sequence, or give model.teacher")
        )
    if config.scratch.type and config.distill.tokenizer == "teacher":
        found.append(("distill.tokenizer", "a server's tokens are not known; set it to new"))
    if config.teacher.key and not config.teacher.key.startswith(PREFIX):
        found.append(("teacher.key", SECRET))
    default = RolloutSettings()
    untold = (f.name for f in fields(RolloutSettings) if f.name not in _TOLD)
    found += [
        (f"rollout.{name}", "a server is not told this one; put what it knows into teacher.extra")
        for name in untold
        if getattr(config.rollout, name) != getattr(default, name)
    ]
    taken = [name for name in config.teacher.extra if name in _OF_REQUEST]
    return found + [(f"teacher.extra.{name}", "is set by [teacher] and [rollout]") for name in taken]
