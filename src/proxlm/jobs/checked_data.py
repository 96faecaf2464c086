"""The data of a recipe, read fully: how many records there are, what is wrong with them, and how long they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from proxlm.config import (
    DPOConfig,
    EvaluateConfig,
    GenerateConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    SFTConfig,
)
from proxlm.data.chat import ChatFormat
from proxlm.data.choices import read_choices
from proxlm.data.preferences import comparisons
from proxlm.data.prompts import LoadedPrompts, PromptSources, load_prompts
from proxlm.data.records import iter_records
from proxlm.data.seams import seam_problem
from proxlm.data.skipped import Skipped
from proxlm.data.supervised import sft_examples
from proxlm.data.text import read_texts
from proxlm.data.token_view import boundaries, lengths_in_words
from proxlm.data.tokenizer import encode_prompt
from proxlm.errors import BadRecordError
from proxlm.jobs.in_memory import GivenRecords
from proxlm.jobs.model_limits import prompt_limit
from proxlm.jobs.prompts import all_prompts
from proxlm.jobs.reward_records import RewardRecords
from proxlm.jobs.sampling import data_of, prompts_of
from proxlm.models.source import ModelSource
from proxlm.rewards.reading import Reader
from proxlm.text import counted
from proxlm.types import Completion

_LONG = "over the length limit"
_MOST_SHOWN = 5


class AllBad(Skipped):
    """Leaves every bad record out and keeps what is wrong with it, also where the recipe would stop at the first."""

    def __init__(self) -> None:
        super().__init__(skip=True)
        self.errors: list[str] = []

    def bad(self, error: BadRecordError, file: str, line: int, raw: str) -> None:
        if (file, line) not in self._seen:
            self.errors.append(str(error))
        super().bad(error, file, line, raw)


@dataclass
class CheckedData:
    """What is in the data.

    Attributes:
        counts: What there is, in words.
        errors: Why the run would stop: a line for each record, the first ones.
        notes: What is left out, and how long texts are.
        shown: Samples, token by token.
        seams: What is wrong where prompts end.
        held_out: How many prompts the run evaluates on.
    """

    counts: str = ""
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    seams: list[str] = field(default_factory=list)
    held_out: int = 0


def checked_data(config: Any, folder: Path | None, samples: int) -> CheckedData | None:
    """What the data of a job hold; None for a job without any.

    Args:
        config: The job's settings.
        folder: A model's folder with the tokenizer that the job has trained, or None.
        samples: How many to show.

    Raises:
        UserError: Nothing can be read.
    """
    if isinstance(config, EvaluateConfig):
        config = replace(config, model=replace(config.model, policy=config.model.policy or config.models[0]))
        if config.perplexity.text or config.choices.field:
            return _of_likelihood(config)
    if isinstance(config, PPOConfig | EvaluateConfig | GenerateConfig):
        return _prompts(config, samples)
    if not isinstance(config, PretrainConfig | RewardConfig | DPOConfig | SFTConfig):
        return None
    source = ModelSource(replace(config.model, policy=str(folder)) if folder else config.model)
    bad, found = AllBad(), CheckedData()
    if isinstance(config, PretrainConfig):
        documents = read_texts([*config.text.train, *config.text.validation], config.text.extensions, bad)
        tokens = [
            encode_prompt(source.tokenizer, documents[i][:20_000])
            for i in range(min(samples, len(documents)))
        ]
        size = sum(map(documents.size, range(len(documents))))
        found.counts = f"{counted(len(documents), 'document')} of {size:,} bytes"
        found.shown = [boundaries(source.tokenizer, ids) for ids in tokens]
    elif isinstance(config, RewardConfig | DPOConfig):
        lengths, shown = list[int](), list[list[int]]()
        reader = Reader(ChatFormat.of(source.tokenizer, config.text), config.text.pair, "the recipe")
        for record, sides in _completions(config, bad):
            with bad.judging(record):
                read = [reader.tokens(side) for side in sides]
                lengths += map(len, read)
                shown += read[: 1 if len(shown) < samples else 0]
        found.counts = f"{counted(len(lengths), 'completion')} to learn from or to validate on"
        found.notes = lengths_in_words(lengths, "completion")
        found.shown = [boundaries(source.tokenizer, ids) for ids in shown[:samples]]
    else:
        _examples(config, source, bad, found, samples)
    _take_bad(found, bad, config.text.on_bad_record == "fail")
    return found


def _completions(config: RewardConfig | DPOConfig, bad: AllBad) -> Iterator[tuple[Any, list[Completion]]]:
    given = GivenRecords.of(None, None, config.text)
    if isinstance(config, RewardConfig):
        records = RewardRecords(config, given, bad)
        for record, found in records.examples([*given.training, *given.validation], bad):
            yield record, list(found.sides)
    else:
        every = [*given.training, *given.validation]
        for record, comparison in comparisons(config.text, every, bad):
            yield record, list(comparison.sides)


def _examples(config: SFTConfig, source: ModelSource, bad: AllBad, found: CheckedData, samples: int) -> None:
    """Of sft."""
    scratch = config.scratch
    limit = scratch.context if scratch.type else source.context or 2**31
    lengths, learnt = list[int](), 0
    files = [*config.text.train, *config.text.validation]
    for example in sft_examples(
        config.text, files, source.tokenizer, limit, source.encoder_decoder, bad, source.eos
    ):
        if example is None:
            continue
        lengths.append(len(example.prompt_ids) + len(example.response_ids))
        learnt += sum(example.loss_mask)
        if len(found.shown) < samples:
            parts = (boundaries(source.tokenizer, ids) for ids in (example.prompt_ids, example.response_ids))
            found.shown.append("  ⟶  ".join(parts))
    found.counts = f"{counted(len(lengths), 'example')}, {learnt:,} of their tokens with a loss"
    found.notes = lengths_in_words(lengths, "example")


def _prompts(config: PPOConfig | EvaluateConfig | GenerateConfig, samples: int) -> CheckedData | None:
    source, bad, found = ModelSource(config.model), AllBad(), CheckedData()
    fail = config.data.on_long_prompt == "fail"
    config = replace(
        config, data=replace(config.data, on_long_prompt="skip" if fail else config.data.on_long_prompt)
    )
    if isinstance(config, PPOConfig):
        tasks = config.environment.use and not config.data.prompts
        train, held_out = prompts_of(config, source, bad, None if tasks else PromptSources.of(config.data))
    elif isinstance(config, EvaluateConfig):
        if not (config.data.prompts or config.data.eval_prompts):
            return None
        named = PromptSources(
            config.data.prompts or config.data.eval_prompts, config.data.eval_prompts or None
        )
        limit = prompt_limit(source, config.data, config.rollout)
        which = load_prompts(
            data_of(config), source.tokenizer, limit, "eval", config.seed, source.encoder_decoder, bad, named
        )
        train, held_out = LoadedPrompts([]), which
    else:
        if not config.data.prompts:
            return None
        limit = prompt_limit(source, config.data, config.rollout)
        train = all_prompts(config.data, source, limit, config.seed, bad)
        held_out = LoadedPrompts([])
    prompts = [*train.prompts, *held_out.prompts]
    found.held_out = len(held_out.prompts)
    found.counts = f"{counted(len(train.prompts), 'prompt')} to train on, {len(held_out.prompts)} held out"
    if config.environment.use if not isinstance(config, GenerateConfig) else False:
        found.notes.append(
            "the environment says what a conversation begins with; a prompt alone is not what is read"
        )
    else:
        room = prompt_limit(source, config.data, config.rollout)
        found.notes = lengths_in_words([len(p.input_ids) for p in prompts], "prompt")
        if room < 2**31:
            found.notes.append(f"room for a prompt: {room} tokens")
        found.shown = [boundaries(source.tokenizer, p.input_ids) for p in prompts[:samples]]
        problems = (seam_problem(source.tokenizer, p.text) for p in prompts[:64])
        found.seams = list(dict.fromkeys(filter(None, problems)))[:1]
    _take_bad(found, bad, config.data.on_bad_record == "fail")
    if fail and (count := bad.counts.get(_LONG, 0)):
        first = f"; the longest prompt may have {prompt_limit(source, config.data, config.rollout)} tokens"
        found.errors.append(
            f"{counted(count, 'prompt')} too long{first}: data.on_long_prompt = fail would stop the run; shorten them"
            " or set it to skip"
        )
    return found


def _of_likelihood(config: EvaluateConfig) -> CheckedData:
    """Texts, or questions with their choices."""
    bad, found = AllBad(), CheckedData()
    if config.perplexity.text:
        documents = read_texts(config.perplexity.text, config.perplexity.extensions, bad)
        found.counts = counted(len(documents), "document")
    else:
        good = 0
        for record in iter_records(config.data.eval_prompts or config.data.prompts, bad):
            with bad.judging(record):
                read_choices(record, config.choices)
                good += 1
        found.counts = counted(good, "question")
    _take_bad(found, bad, config.data.on_bad_record == "fail")
    return found


def _take_bad(found: CheckedData, bad: AllBad, fail: bool) -> None:
    if bad.summary():
        found.notes.insert(0, bad.summary())
    if fail:
        found.errors += bad.errors[:_MOST_SHOWN]
        if (more := len(bad.errors) - _MOST_SHOWN) > 0:
            found.errors.append(f"and {counted(more, 'record')} more like these")
