"""`proxlm distill`: a small model learns from a large one, its teacher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from proxlm.config import DistillConfig, settings_or_default, validate
from proxlm.config.signature import checked
from proxlm.data.chat import carry_template
from proxlm.data.prompts import PromptSources
from proxlm.data.records import Source
from proxlm.data.skipped import Skipped
from proxlm.data.tokenizer import decode
from proxlm.distributed.ranks import Ranks, made_on_all
from proxlm.jobs.distill_card import write_card
from proxlm.jobs.distill_data import DistillData, Texts
from proxlm.jobs.in_memory import GivenRecords, record_source
from proxlm.jobs.new_models import check_new_model, new_or_loaded
from proxlm.jobs.progress import progress_line
from proxlm.jobs.startup import after_restart, start_job
from proxlm.jobs.supervised import SupervisedTrainer, check_to_train, made_for_run, print_result
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource
from proxlm.models.teacher import teacher_source
from proxlm.report.run import Run
from proxlm.runlog.metric_names import LOSS, VALIDATION_AGREEMENT, VALIDATION_FORWARD_KL, VALIDATION_LOSS
from proxlm.train.common.callbacks import Callback, Callbacks
from proxlm.train.supervised.distill_objective import DistillObjective
from proxlm.train.supervised.dropout import Dropout
from proxlm.train.supervised.loop import SupervisedLoop
from proxlm.train.supervised.teacher_reading import GIB, KeptReading, Teacher, bytes_of_reading


def main(config: DistillConfig) -> None:
    """Run the job and print where everything is."""
    start_job(config.run.threads, config.model)
    print_result(DistillTrainer(config=after_restart(config)).train())


class DistillLoop(SupervisedLoop):
    """Supervised training whose batches may hold the student's own samples."""

    headline: ClassVar[tuple[str, ...]] = (LOSS, VALIDATION_LOSS, VALIDATION_FORWARD_KL, VALIDATION_AGREEMENT)
    objective: DistillObjective

    def gradient(self, rows: list[int]) -> tuple[float, int]:
        self.objective.share_samples(rows, self.ranks)
        return super().gradient(rows)


class DistillTrainer(SupervisedTrainer[DistillConfig]):
    """Trains a student to write like its teacher: on the teacher's texts, or on its distribution at each token.

    Settings are checked here; data and models when `train` is called. Everything that is not passed comes from
    `config`.

    Args:
        teacher: A folder, a name on the Hugging Face hub, a GGUF file, a transformers model (with
            `teacher_tokenizer`) or a `LanguageModel`. Nothing of it changes.
        prompts: Texts, chats or records that it answers, or the path of a file of these.
        config: The settings.
        student: As the teacher (with `student_tokenizer`); it is trained in place. With `config.scratch.type` a new
            model is made instead.
        eval_prompts: Held-out prompts; None: `config.data.eval_count` are set aside.
        train: Instead of prompts: records with a prompt and a response, as `SFTTrainer` takes them.
        validation: Held-out ones; None: `config.text.validation_share` are set aside.
        teacher_tokenizer: The tokenizer of a transformers model.
        student_tokenizer: The same of the student.
        callbacks: Called at the events of the loop.

    Raises:
        ConfigError: A setting is wrong, or does not fit another one.
        ModelError: `teacher` or `student` is nothing that can be a model.
        DataError: `prompts` or `train` is nothing that can be prompts or records.
    """

    job = "distill"
    _loop = DistillLoop

    @checked("prompts", "config", "eval_prompts", "train", "validation", "callbacks")
    def __init__(
        self,
        teacher: Any = None,
        prompts: Iterable[Any] | str | Path | None = None,
        config: DistillConfig | None = None,
        *,
        student: Any = None,
        eval_prompts: Iterable[Any] | str | Path | None = None,
        train: Iterable[Any] | str | Path | None = None,
        validation: Iterable[Any] | str | Path | None = None,
        teacher_tokenizer: Any = None,
        student_tokenizer: Any = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        config = settings_or_default(DistillConfig, config)
        self.source = ModelSource(config.model, student, student_tokenizer)
        self.teacher = teacher_source(config.model, teacher, teacher_tokenizer)
        field, data = config.data.prompt_field, config.data
        asked = record_source(prompts, "prompts", field), record_source(eval_prompts, "eval_prompts", field)
        self._prompts = PromptSources(
            data.prompts if asked[0] is None else asked[0],
            (data.eval_prompts or None) if asked[1] is None else asked[1],
        )
        self._records = GivenRecords.of(train, validation, config.text)
        config = replace(
            config,
            model=replace(self.source.settings, teacher=self.teacher.settings.policy),
            text=self._records.named_in(config.text),
            data=replace(data, prompts=str(self._prompts.train), eval_prompts=str(self._prompts.eval or "")),
        )
        self.config = validate(
            config, {"model.policy": "student", "model.teacher": "teacher", "data.prompts": "prompts"}
        )
        self._callbacks = Callbacks(callbacks)
        self._in_python = (
            self._records.in_memory
            or self.source.in_memory
            or self.teacher.in_memory
            or any(source is not None and not isinstance(source, str) for source in asked)
        )

    def train(self) -> Run:
        """As every trainer's; the teacher is lent as well."""
        with self.teacher.lent():
            return super().train()

    def _train(self, ranks: Ranks) -> Run:
        config = self.config
        skipped = Skipped(config.data.on_bad_record == "skip" or config.text.on_bad_record == "skip")
        data = DistillData(config, self.teacher, self.source, self._prompts, self._records, skipped)
        if config.scratch.type:
            check_new_model(config.scratch, "scratch")
        made_for_run(ranks, config.run, data.check)
        with self._folder(ranks) as folder:
            texts = ranks.broadcast(lambda: data.texts(folder))
            objective = made_on_all(ranks, lambda: self._objective(data, texts))
            card = partial(self._write_card, data, objective.model)
            return self._minimise(folder, objective, skipped, ranks, after=card)

    def _objective(self, data: DistillData, texts: Texts) -> DistillObjective:
        """The student at its start, and what it is to learn."""
        config, student = self.config, self._student(texts)
        teacher = self._teacher(data, texts, student)
        check_to_train(student, texts.training, texts.validation, what="the texts")
        return DistillObjective(
            student,
            teacher,
            texts.training,
            texts.validation,
            config.distill,
            config.rollout.max_new_tokens,
            config.run.seed,
            self._kept(teacher, texts),
            Dropout([student.network], config.train.dropout, config.run.seed),
        )

    def _write_card(self, data: DistillData, student: LanguageModel, folder: Path) -> None:
        """What was made: teacher and student side by side."""
        config, known = self.config, data.server is None
        name = config.model.teacher if known else config.teacher.name
        write_card(folder, name, data.teacher if known else None, student)

    def _student(self, texts: Texts) -> LanguageModel:
        config = self.config
        model = new_or_loaded(config, self.source, texts.tokenizer, partial(_read, texts))
        carry_template(model.tokenizer, config.data.chat_template or config.text.chat_template)
        return model

    def _teacher(self, data: DistillData, texts: Texts, student: LanguageModel) -> Teacher | None:
        """The teacher as the student's texts need it; None: its tokens are others."""
        if not texts.shared_tokens:
            return None
        rows = len(student.network.get_output_embeddings().weight)
        data.check_head(rows)
        settings = self.config.distill
        return Teacher(data.teacher, rows, settings.temperature, settings.top_k)

    def _kept(self, teacher: Teacher | None, texts: Texts) -> tuple[KeptReading | None, KeptReading | None]:
        """What the teacher says of the training and of the validation texts, where there is room for it."""
        if teacher is None:
            return None, None
        settings, budget = self.config.distill, self.config.distill.cache_gb * GIB
        # The validation compares whole distributions.
        wanted = [(replace(teacher, top_k=0), texts.validation)]
        if settings.mode != "sequence" and not (settings.mode == "on_policy" and settings.student_share == 1):
            wanted.append((teacher, texts.training))
        found: list[KeptReading | None] = []
        for reader, examples in wanted:
            size = bytes_of_reading(reader, examples)
            budget -= size
            if budget < 0:
                found.append(None)
                continue
            what = "held-out" if not found else "training"
            print(
                f"the teacher's reading of the {what} texts is kept: {size / GIB:.3f} GiB on disk", flush=True
            )
            found.append(
                KeptReading(
                    reader, examples, self.config.train.micro_batch_tokens, progress_line("texts read")
                )
            )
        return (found[1] if len(found) > 1 else None), found[0]

    def _sources(self) -> Mapping[str, Source | ModelSource | None]:
        return {
            **self._records.by_setting(),
            "data.prompts": self._prompts.train,
            "data.eval_prompts": self._prompts.eval,
            "model.teacher": self.teacher if self.teacher.in_memory else None,
        }


def _read(texts: Texts) -> Iterator[str]:
    """The training texts, one after another."""
    for row in range(len(texts.training)):
        yield decode(texts.tokenizer, texts.training.batch([row])[0].tokens.tolist())
