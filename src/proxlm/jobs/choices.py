"""Multiple choice in `proxlm evaluate`: the questions of a file, for each model in its own tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from proxlm.config import DataSettings, EvaluateConfig
from proxlm.config.paths import short
from proxlm.data.chat import carry_template
from proxlm.data.choices import Choices, Question, question_of, read_choices, solved_records
from proxlm.data.records import Source
from proxlm.data.skipped import Record, Skipped
from proxlm.data.tokenizer import encode_continuation
from proxlm.errors import DataError
from proxlm.evaluation.choices import evaluate_choices
from proxlm.evaluation.results import Evaluation
from proxlm.evaluation.words_beside import evaluate_word_choices
from proxlm.jobs.progress import progress_line
from proxlm.jobs.prompts import held_out_prompts
from proxlm.jobs.words import read_known_prompts
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource
from proxlm.types import Prompt

_NO_LIMIT = 2**31


def evaluate_choices_of(
    sources: Sequence[ModelSource], config: EvaluateConfig, given: Source | None
) -> list[Evaluation]:
    """The evaluation of each model on the same questions.

    Args:
        sources: The models; their tokenizers may differ.
        config: The settings.
        given: The questions, instead of the file that the settings name.

    Raises:
        DataError: A question cannot be read or is too long for a model.
    """
    data = replace(config.data, answer_separator=config.choices.separator)
    examples: Source | None = None
    if data.shots:
        skipped = Skipped(data.on_bad_record == "skip")
        examples = solved_records(data.examples, data, config.choices, skipped)
        skipped.print_summary()
    config = replace(config, data=data)
    known = read_known_prompts(config.metrics, data, config.choices)
    evaluations: list[Evaluation] = []
    asked: list[Question] = []
    for number, source in enumerate(sources):
        model = source.load()
        carry_template(model.tokenizer, data.chat_template)
        name = short(source.settings.policy)
        questions = _questions(model, config, given, examples, number == 0)
        asked = asked or questions
        print(f"evaluating {name} ({number + 1}/{len(sources)}) …", file=sys.stderr, flush=True)
        evaluations.append(
            evaluate_choices(
                name,
                model,
                questions,
                config.micro_batch_tokens,
                max(config.samples, 16),
                progress_line("questions"),
            )
        )
    if known is not None:
        evaluations.append(evaluate_word_choices(known, asked, max(config.samples, 16)))
    return evaluations


def _questions(
    model: LanguageModel, config: EvaluateConfig, given: Source | None, examples: Source | None, say: bool
) -> list[Question]:
    """The questions in the model's tokens. say: print how many are left out."""
    data, settings, tokenizer = config.data, config.choices, model.tokenizer
    skipped = Skipped(data.on_bad_record == "skip")

    def choices_of(record: Record) -> Choices:
        return read_choices(record, settings)

    def load(data: DataSettings, limit: int) -> list[tuple[Prompt, Choices]]:
        loaded = held_out_prompts(data, given, model, limit, config.seed, skipped, examples, choices_of)
        if say and data.shots == config.data.shots and loaded.unused:
            of = loaded.unused + len(loaded.prompts)
            print(f"note: data.eval_count = {data.eval_count} of {of} questions", file=sys.stderr, flush=True)
        return [(prompt, choices_of(Record(dict(prompt.fields), prompt.id + 1))) for prompt in loaded.prompts]

    # How long a prompt may be depends on the choices, so that they are read first.
    bare = load(replace(data, shots=0), _NO_LIMIT)
    if not bare:
        raise DataError("data.eval_count = 0: no questions to evaluate on; set it to 1 or more")
    longest = max(
        len(encode_continuation(tokenizer, settings.separator + text))
        for _, found in bare
        for text in found.texts
    )
    room = _NO_LIMIT if model.context is None else model.context - (0 if model.encoder_decoder else longest)
    if room < 1 or longest >= (model.context or _NO_LIMIT):
        raise DataError(
            f"{settings.field}: a choice of {longest} tokens leaves no room for a prompt in the context of"
            f" {model.context} of {model.source}"
        )
    asked = load(data, min(data.max_prompt_tokens or _NO_LIMIT, room))
    if say:
        skipped.print_summary()
    texts = {prompt.id: _asked(prompt) for prompt, _ in bare}
    made = []
    for prompt, found in asked:
        question = question_of(tokenizer, prompt, found, settings.separator, model.encoder_decoder)
        made.append(replace(question, asked=texts[prompt.id]))
    return made


def _asked(prompt: Prompt) -> str:
    """The prompt, or of a conversation its last message."""
    return str(prompt.messages[-1].get("content") or "") if prompt.messages else prompt.text
