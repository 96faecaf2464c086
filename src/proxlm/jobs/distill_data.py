"""What a student learns from: texts that its teacher writes, or texts that are given."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from proxlm.config import DistillConfig
from proxlm.data.chat import NO_EXTRAS, ChatFormat, carry_template, read_template
from proxlm.data.formats import Conversation
from proxlm.data.prompts import LoadedPrompts, PromptSources, load_prompts
from proxlm.data.records import Source
from proxlm.data.skipped import Skipped
from proxlm.data.supervised import ExampleMaker, SFTExample, sft_examples
from proxlm.data.text import split_validation
from proxlm.data.tokenizer import different_tokens, tokenizer_of_new_model, train_tokenizer
from proxlm.data.turn_end import turn_end_of
from proxlm.errors import DataError, ModelError
from proxlm.jobs.in_memory import GivenRecords
from proxlm.jobs.model_limits import prompt_limit
from proxlm.jobs.progress import progress_line
from proxlm.jobs.prompts import describe_prompts
from proxlm.jobs.sft import in_parts
from proxlm.jobs.supervised import tokenizer_to_resume
from proxlm.jobs.teacher_answers import Answer, Asked, answers_of, take_answers
from proxlm.jobs.teacher_engine import TeacherEngine
from proxlm.jobs.teacher_server import TeacherServer
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource, named_as
from proxlm.models.teacher import KEY
from proxlm.runlog.folder import ANSWERS, has_checkpoint
from proxlm.train.supervised.examples import Examples
from proxlm.types import Prompt

_UNLIMITED = 2**31


@dataclass(frozen=True)
class Texts:
    """Texts in the student's tokens.

    Attributes:
        training: To learn from.
        validation: Held out.
        tokenizer: The student's.
        shared_tokens: Whether they are the teacher's tokens, too, so that it can read them.
    """

    training: Examples
    validation: Examples
    tokenizer: Any
    shared_tokens: bool


class DistillData:
    """Prompts and texts of a distillation, read and checked before the run's folder is made.

    Args:
        config: The settings.
        teacher: The teacher before its weights are read.
        student: The same of the student; without a model where one is made.
        prompts: What the teacher is to answer.
        records: Texts that are given instead.
        skipped: Receives what cannot be used.
    """

    def __init__(
        self,
        config: DistillConfig,
        teacher: ModelSource,
        student: ModelSource,
        prompts: PromptSources,
        records: GivenRecords,
        skipped: Skipped,
    ) -> None:
        self.config, self.source, self.student, self.records = config, teacher, student, records
        self._prompts, self._skipped = prompts, skipped
        self._asked: tuple[LoadedPrompts, LoadedPrompts] | None = None

    def check(self) -> None:
        """Read tokenizers, configurations, prompts and the teacher, and compare them; nothing is written.

        Raises:
            UserError: What cannot be.
        """
        config = self.config
        if self.source.network is not None and self.source.network is self.student.network:
            raise ModelError("teacher and student are one model, and a teacher never learns; load it twice")
        if self.server is None:
            self._check_models()
        if not config.text.train:
            self._asked = self._read_prompts()
            print(describe_prompts(*self._asked, self._skipped), flush=True)
        if self.server is None:
            _ = self.teacher

    @cached_property
    def server(self) -> TeacherServer | None:
        """The teacher, where it is behind a URL. Raises ConfigError."""
        config = self.config
        return TeacherServer(config.teacher, config.rollout) if config.teacher.url else None

    def _check_models(self) -> None:
        """Raise ModelError for a teacher and a student that do not fit each other."""
        config = self.config
        with named_as(KEY):
            _ = self.source.encoder_decoder, self.source.tokenizer
        for name, source in (("model.teacher", self.source), ("model.policy", self.student)):
            if (name == "model.teacher" or not config.scratch.type) and source.encoder_decoder:
                raise ModelError(f"{name}: an encoder–decoder; distillation is for decoders")
        if difference := self._difference():
            if config.distill.mode != "sequence":
                raise ModelError(
                    f"model.teacher: {difference}; at each token the two must choose among the same tokens. With"
                    ' distill.mode = "sequence" the student learns its texts, with any tokenizer'
                )
            print(f"note: the teacher's tokens are others ({difference}): its texts are learnt", flush=True)

    def _read_prompts(self) -> tuple[LoadedPrompts, LoadedPrompts]:
        """The prompts to train on and those held out, in the tokens of who answers them if these are known."""
        config = self.config
        if self.server is None or not config.scratch.type:
            source = self.source if self.server is None else self.student
            tokenizer, limit = source.tokenizer, prompt_limit(source, config.data, config.rollout)
        else:  # nothing is known but their texts
            tokenizer = train_tokenizer([], 260, config.scratch.context)
            limit = config.data.max_prompt_tokens or _UNLIMITED
        train, held_out = (
            load_prompts(
                config.data, tokenizer, limit, which, config.run.seed, False, self._skipped, self._prompts
            )
            for which in ("train", "eval")
        )
        if not (train.prompts and held_out.prompts):
            raise DataError(
                "data.prompts: no prompt is left to train on, or none is held out (data.eval_count)"
            )
        return train, held_out

    def _difference(self) -> str:
        """How the student's tokens differ from the teacher's; "": they do not, or are trained later."""
        if self.config.scratch.type:
            return ""
        return different_tokens(
            self.source.tokenizer, self.student.tokenizer, "the student's", may_have_more=True
        )

    @property
    def shared_tokens(self) -> bool:
        """Whether the teacher can read the student's tokens."""
        if self.server is not None:
            return False
        if self.config.scratch.type:
            return self.config.distill.tokenizer == "teacher"
        return not self._difference()

    @cached_property
    def teacher(self) -> LanguageModel:
        """The teacher, with its weights, which never learn."""
        with named_as(KEY):
            model = self.source.load()
        model.network.requires_grad_(False)
        carry_template(model.tokenizer, self.config.data.chat_template)
        return model

    def check_head(self, rows: int) -> None:
        """Raise ModelError if the student can write what its teacher cannot score. rows: of the student's head."""
        own = len(self.teacher.network.get_output_embeddings().weight)
        if own < rows:
            raise ModelError(
                f"model.teacher: its head has {own} rows and the student's {rows}, so the student can write what it"
                " cannot score; give a teacher with as many"
            )

    def texts(self, folder: Path) -> Texts:
        """The texts; what the teacher has to write for them is written to the run's folder first.

        Raises:
            DataError: They do not fit the student.
            RunError: The folder holds other answers.
        """
        if self.config.text.train:
            return self._given()
        assert self._asked is not None
        train, held_out = self._asked
        asked = [Asked(prompt, "held_out") for prompt in held_out.prompts]
        if not self._only_own_samples:
            count = self.config.distill.samples_per_prompt
            asked += [Asked(prompt, "train", k) for k in range(count) for prompt in train.prompts]
        if self.config.distill.answers and not (folder / ANSWERS).exists():
            take_answers(Path(self.config.distill.answers), folder)
        teacher = self.server or TeacherEngine(self.config, self.source, self.teacher)
        answers = answers_of(
            folder, asked, teacher.made_with(), teacher, teacher.group, progress_line("answers")
        )
        blank = sum(not answer.text.strip() for answer in answers)
        if blank and not self.shared_tokens:
            print(f"note: {blank:,} of {len(answers):,} answers are blank, and left out", flush=True)
        tokenizer = self._tokenizer(
            [(a, b) for a, b in zip(asked, answers, strict=True) if a.part == "train"]
        )
        split = len(held_out.prompts)
        validation = self._examples(asked[:split], answers[:split], tokenizer)
        if self._only_own_samples:
            nothing = [SFTExample(prompt.input_ids, (), ()) for prompt in train.prompts]
            training = Examples.from_rows(nothing)
        else:
            training = self._examples(asked[split:], answers[split:], tokenizer)
        return Texts(
            training.select(range(len(training))),
            validation.select(range(len(validation))),
            tokenizer,
            self.shared_tokens,
        )

    @property
    def _only_own_samples(self) -> bool:
        settings = self.config.distill
        return settings.mode == "on_policy" and settings.student_share == 1

    def _given(self) -> Texts:
        """The records of the section [text]."""
        config, skipped = self.config, self._skipped
        tokenizer = self.source.tokenizer if config.scratch.type else self.student.tokenizer

        def examples(sources: Sequence[Source]) -> Examples:
            limit = self._limit()
            return Examples.from_rows(
                sft_examples(config.text, sources, tokenizer, limit, False, skipped, self.source.eos)
            )

        def split(every: Examples) -> Sequence[Sequence[int]]:
            return split_validation(range(len(every)), config.text.validation_share, config.run.seed)

        return Texts(*in_parts(self.records, examples, split), tokenizer, True)

    def _limit(self) -> int:
        """The longest text in tokens: student and, where it reads the text, teacher must have room for it."""
        own = self.config.scratch.context if self.config.scratch.type else self.student.context
        others = self.source.context if self.shared_tokens else None
        return min(limit for limit in (own, others, _UNLIMITED) if limit)

    def _tokenizer(self, pairs: Sequence[tuple[Asked, Answer]]) -> Any:
        """The student's: its own, its teacher's, that of the run to resume, or a new one trained on the answers."""
        config = self.config
        if not config.scratch.type:
            return self.student.tokenizer
        if config.distill.tokenizer == "teacher":
            return self.source.tokenizer
        if config.run.resume and has_checkpoint(Path(config.run.folder)):
            return tokenizer_to_resume(config.run)
        scratch, special = config.scratch, self._template_tokens()
        special = [*scratch.tokens.special, *(name for name in special if name not in scratch.tokens.special)]
        new = replace(scratch, tokens=replace(scratch.tokens, special=special))
        texts = (text for asked, answer in pairs for text in (*_contents(asked), answer.text))
        tokenizer = tokenizer_of_new_model("scratch", new, texts, config.model.trust_remote_code)
        if config.data.chat and self.server is None and not tokenizer.chat_template:
            tokenizer.chat_template = self.source.tokenizer.chat_template
        carry_template(tokenizer, config.data.chat_template)
        return tokenizer

    def _template_tokens(self) -> list[str]:
        """The teacher's special tokens that its chat template writes: a new tokenizer has them, too."""
        if not self.config.data.chat or self.server is not None:
            return []
        tokenizer = self.source.tokenizer
        template = read_template(self.config.data.chat_template) or str(tokenizer.chat_template)
        names = (made.content for made in tokenizer.added_tokens_decoder.values() if made.special)
        return sorted(name for name in names if name in template)

    def _examples(self, asked: Sequence[Asked], answers: Sequence[Answer], tokenizer: Any) -> Examples:
        """Prompts and answers in the student's tokens; a blank answer is left out. An answer that was cut off has no
        end of turn, so that the student does not learn to stop there.
        """
        limit = self._limit()
        chat = ChatFormat.of(tokenizer, self.config.data)
        end = turn_end_of(chat, [] if self.config.scratch.type else self.student.eos)
        make = ExampleMaker(chat, end, limit, False)

        def example(one: Asked, answer: Answer) -> SFTExample | None:
            prompt, where = one.prompt, f"the answer to prompt {one.prompt.id}"
            if self.shared_tokens and answer.tokens:
                made = SFTExample(prompt.input_ids, answer.tokens, (True,) * len(answer.tokens))
                if len(prompt.input_ids) + len(answer.tokens) > limit:
                    raise DataError(
                        f"{where}: {len(prompt.input_ids)} tokens and {len(answer.tokens)} of the answer, the limit"
                        f" is {limit}; raise scratch.context, or lower rollout.max_new_tokens"
                    )
                return made
            if not answer.text.strip():
                return None
            made = make(_content(prompt, answer.text), where)
            return _without_end(made, end.tokens) if answer.finish == "length" else made

        return Examples.from_rows(example(*pair) for pair in zip(asked, answers, strict=True))


def _contents(asked: Asked) -> list[str]:
    """The texts of a prompt without what a template puts around them."""
    messages = asked.prompt.messages
    return [str(message["content"] or "") for message in messages] if messages else [asked.prompt.text]


def _content(prompt: Prompt, answer: str) -> tuple[str, str] | Conversation:
    """A prompt with its answer, as fine-tuning reads it."""
    if not prompt.messages:
        return prompt.text, answer
    messages = [*(dict(message) for message in prompt.messages), {"role": "assistant", "content": answer}]
    weights = (*(0 for _ in prompt.messages), 1)
    return Conversation(messages, weights, NO_EXTRAS, "prompt")


def _without_end(example: SFTExample, ends: Collection[int]) -> SFTExample:
    """The example up to the last token that does not end a turn."""
    length = len(example.response_ids)
    while length and (example.response_ids[length - 1] in ends or not example.loss_mask[length - 1]):
        length -= 1
    return replace(example, response_ids=example.response_ids[:length], loss_mask=example.loss_mask[:length])
