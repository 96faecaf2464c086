"""The judge of words in `proxlm evaluate` and in PPO's evaluations: what it learns from, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from proxlm.config import ChoiceSettings, DataSettings, PPOConfig
from proxlm.config.metrics import MetricSettings
from proxlm.data.choices import read_choices
from proxlm.data.formats import prompt_content
from proxlm.data.records import iter_records
from proxlm.data.shots import templated
from proxlm.data.skipped import Record, Skipped
from proxlm.errors import DataError
from proxlm.evaluation.results import Evaluation
from proxlm.evaluation.words_beside import KnownPrompts, evaluate_words, known_prompts
from proxlm.types import Prompt


def read_known_prompts(
    metrics: MetricSettings, data: DataSettings, choices: ChoiceSettings | None = None
) -> KnownPrompts | None:
    """The prompts of `metrics.baseline` with their answers; None: the settings name no such file.

    Args:
        metrics: The section [metrics].
        data: The section [data], which says how prompts are read.
        choices: Of multiple choice: the answer is the right choice.

    Raises:
        DataError: The file cannot be read, or does not hold answers.
    """
    if not metrics.baseline:
        return None
    skipped = Skipped(data.on_bad_record == "skip")
    prompts, right = list[Prompt](), list[str]()
    try:
        for record in iter_records(metrics.baseline, skipped):
            with skipped.judging(record):
                text = _plain(record, data)
                if choices is not None:
                    found = read_choices(record, choices)
                    right.append(found.texts[found.right].strip())
                prompts.append(Prompt(len(prompts), (), text, record.fields))
    except DataError as error:
        raise DataError(f"metrics.baseline: {error}") from error
    if not prompts:
        raise DataError(f"metrics.baseline = {metrics.baseline}: no record can be used")
    if choices is not None:
        known = KnownPrompts([prompt.text for prompt in prompts], right, metrics.baseline)
    else:
        known = known_prompts(prompts, metrics, metrics.baseline)
    known.without(())  # enough of each class
    return known


def words_beside(
    known: KnownPrompts,
    prompts: Sequence[Prompt],
    data: DataSettings,
    metrics: MetricSettings,
    *,
    seed: int,
    samples: int = 16,
    greedy: bool,
) -> Evaluation:
    """What the judge of words answers to held-out prompts. Raises DataError."""
    texts = [_plain(Record(dict(prompt.fields), prompt.id + 1), data) for prompt in prompts]
    return evaluate_words(known, prompts, texts, metrics, seed=seed, samples=samples, greedy=greedy)


def words_of_run(config: PPOConfig, prompts: Sequence[Prompt]) -> Evaluation | None:
    """The judge of words beside a PPO run; None: the settings name no file. Raises DataError."""
    known = read_known_prompts(config.metrics, config.data) if prompts else None
    if known is None:
        return None
    return words_beside(
        known, prompts, config.data, config.metrics, seed=config.run.seed, greedy=config.evaluation.greedy
    )


def _plain(record: Record, data: DataSettings) -> str:
    """What the judge reads: the prompt without examples and chat template, of a conversation the last message."""
    plain = replace(data, chat=False)
    content = prompt_content(templated(record, plain), plain, data.prompt_field)
    return content if isinstance(content, str) else str(content.messages[-1].get("content") or "")
