"""The built-in rewards: each is called once with its arguments, and returns the function that scores.

A scoring function takes the completions [B] and returns B floats, with a RewardError instead of a float for each
completion that it cannot score; or components by name, with an attribute `weights` for those whose weight is not 1.
A wrong argument raises ValueError("ARGUMENT: what is wrong").
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from proxlm.data.reasoning_gym import is_gym_name, tasks_of
from proxlm.errors import ConfigError, DataError, RewardError
from proxlm.rewards.fields import field_of
from proxlm.rewards.instructions import copies, mentions, share_kept, without, words
from proxlm.rewards.numeric import is_marked, last_number, marked_number, to_number
from proxlm.rewards.python_code import python_parse_report
from proxlm.rewards.python_tests import PythonTests
from proxlm.rewards.reward_ensemble import RewardEnsemble
from proxlm.rewards.reward_model import RewardModel
from proxlm.sandbox import Limits
from proxlm.text import reason_of
from proxlm.types import Completion

Scorer = Callable[[list[Completion]], list[Any] | dict[str, list[Any]]]


def sentiment(of: Literal["response", "text"] = "response") -> Scorer:
    """VADER's compound score in [-1, 1] (Hutto & Gilbert 2014) of the response, or of prompt and response."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()

    def score(completions: list[Completion]) -> list[float]:
        texts = [c.text if of == "response" else c.prompt + c.text for c in completions]
        return [analyser.polarity_scores(text)["compound"] for text in texts]

    return score


def regex(pattern: str, full: bool = False) -> Scorer:
    """1 if the pattern is found in the response (with `full`: if it matches all of it), else 0."""
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f'pattern = "{pattern}": not a regular expression: {error}') from error
    match = compiled.fullmatch if full else compiled.search
    return lambda completions: [float(match(c.text) is not None) for c in completions]


def exact_match(field: str = "answer", ignore_case: bool = False, strip: bool = True) -> Scorer:
    """1 if the response equals the text in the record's field, else 0; strip: surrounding white space is ignored."""

    def normal(text: str) -> str:
        text = text.strip() if strip else text
        return text.casefold() if ignore_case else text

    def score(completion: Completion) -> float | RewardError:
        expected = field_of(completion, field)
        if isinstance(expected, RewardError):
            return expected
        if isinstance(expected, bool) or not isinstance(expected, str | int | float):
            return RewardError(f'field "{field}" holds a {type(expected).__name__}, not a text or a number')
        return float(normal(completion.text) == normal(str(expected)))

    return lambda completions: [score(c) for c in completions]


def numeric_answer(field: str = "answer", fallback: bool = False) -> Scorer:
    """1 if the number after the response's last "####" equals the field's, else 0 (GSM8K, Cobbe et al. 2021).

    Args:
        field: The record's field: a number, a text with "####", or a text that is a number.
        fallback: In a response without "####", use its last number.
    """

    def score(completion: Completion) -> float | RewardError:
        expected = field_of(completion, field)
        if isinstance(expected, RewardError):
            return expected
        value = to_number(expected)
        if value is None:
            return RewardError(f'field "{field}" holds no number: {str(expected)[-40:]!r}')
        answer = marked_number(completion.text)
        if answer is None and fallback and not is_marked(completion.text):
            answer = last_number(completion.text)
        return float(answer == value)

    return lambda completions: [score(c) for c in completions]


def python_parses(
    min_tokens: int = 3, min_names: int = 1, max_string: int = 40, single_line: bool = True
) -> Scorer:
    """1 if prompt + response parses as Python and passes the guards of `python_parse_report`, else 0."""
    for name, value in (("min_tokens", min_tokens), ("min_names", min_names), ("max_string", max_string)):
        if value < 0:
            raise ValueError(f"{name} = {value}: must be at least 0")

    def score(completion: Completion) -> float:
        report = python_parse_report(
            completion.prompt,
            completion.text,
            min_tokens=min_tokens,
            min_names=min_names,
            max_string=max_string,
            single_line=single_line,
        )
        return float(report.parses and not report.guard)

    return lambda completions: [score(c) for c in completions]


def length(
    target: int,
    unit: Literal["tokens", "words", "characters"] = "tokens",
    tolerance: float | None = None,
) -> Scorer:
    """max(0, 1 − |length − target| / tolerance): 1 at the target, 0 at a distance of `tolerance` (None: target)."""
    if target < 1:
        raise ValueError(f"target = {target}: must be at least 1")
    width = float(target if tolerance is None else tolerance)
    if not 0 < width < float("inf"):
        raise ValueError(f"tolerance = {width:g}: must be a finite number more than 0")
    return lambda completions: [max(0.0, 1 - abs(len(_units(c, unit)) - target) / width) for c in completions]


def repetition(n: int = 3, unit: Literal["tokens", "words", "characters"] = "tokens") -> Scorer:
    """−(share of the response's n-grams that repeat an earlier one), in [-1, 0]; 0 for fewer than n units."""
    if n < 1:
        raise ValueError(f"n = {n}: must be at least 1")

    def score(completion: Completion) -> float:
        units = _units(completion, unit)
        grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
        return len(set(grams)) / len(grams) - 1 if grams else 0.0

    return lambda completions: [score(c) for c in completions]


def keyword(words: list[str], all: bool = False, ignore_case: bool = True) -> Scorer:
    """1 if the response contains one of the words (with `all`: all of them), else 0; "art" is found in "party"."""
    if not words or "" in words:
        raise ValueError(f"words = {words!r}: needs at least one word, and none may be empty")
    fold = str.casefold if ignore_case else str
    wanted = [fold(word) for word in words]
    needed = len(wanted) if all else 1
    return lambda completions: [
        float(sum(word in text for word in wanted) >= needed) for text in (fold(c.text) for c in completions)
    ]


def instructions(
    field: str = "instructions",
    all: bool = False,
    min_words: int = 0,
    about: str = "",
    about_as: Literal["guard", "instruction"] = "guard",
    copied_words: int = 0,
    repeats: bool = True,
) -> Callable[[list[Completion]], list[Any]]:
    """The share of the record's instructions that the response keeps (rewards/instructions.py).

    The other arguments are guards: what they refuse gets 0. They are off where nothing is said.

    Args:
        field: The record's field: a list of instructions, {"kind": "max_words", "count": 8} for instance.
        all: 1 if every one is kept, else 0, instead of the share.
        min_words: A response needs so many different words.
        about: The record's field that says what the response must be about: a word or phrase, or several of which
            one must be in it.
        about_as: Whether a response that is not about it is refused, or that is one more instruction, kept or not.
        copied_words: The most words in a row that a response may take from its prompt; 0: no limit.
        repeats: Whether one text, the words of `about` apart, may answer different prompts of a call.
    """
    for name, value in (("min_words", min_words), ("copied_words", copied_words)):
        if value < 0:
            raise ValueError(f"{name} = {value}: must be at least 0")

    def score(completion: Completion, subject: Sequence[str]) -> float | RewardError:
        asked = field_of(completion, field)
        if isinstance(asked, RewardError):
            return asked
        if not isinstance(asked, list):
            return RewardError(f'field "{field}" holds a {type(asked).__name__}, not a list of instructions')
        text = completion.text
        try:
            share = share_kept(text, asked)
        except ValueError as error:
            return RewardError(f'field "{field}": {error}')
        on_subject = not about or mentions(text, subject)
        if about and about_as == "instruction":
            share = (share * len(asked) + on_subject) / (len(asked) + 1)
        refused = (
            len({word.casefold() for word in words(text)}) < min_words
            or (about_as == "guard" and not on_subject)
            or (copied_words and copies(text, completion.prompt, copied_words))
        )
        return 0.0 if refused else float(share == 1 if all else share)

    def score_all(completions: list[Completion]) -> list[float | RewardError]:
        subjects = [_phrases(c, about) if about else [] for c in completions]
        scores = [
            subject if isinstance(subject, RewardError) else score(c, subject)
            for c, subject in zip(completions, subjects, strict=True)
        ]
        if repeats:
            return scores
        prompts: dict[str, set[str]] = {}
        texts = [
            without(c.text, [] if isinstance(subject, RewardError) else subject)
            for c, subject in zip(completions, subjects, strict=True)
        ]
        for text, completion in zip(texts, completions, strict=True):
            prompts.setdefault(text, set()).add(completion.prompt)
        return [
            0.0 if len(prompts[text]) > 1 and isinstance(value, float) else value
            for text, value in zip(texts, scores, strict=True)
        ]

    return score_all


def _phrases(completion: Completion, field: str) -> list[str] | RewardError:
    """The record's field as phrases: a text with a word in it, or a list of them."""
    found = field_of(completion, field)
    if isinstance(found, RewardError):
        return found
    phrases = found if isinstance(found, list) else [found]
    if phrases and all(isinstance(phrase, str) and words(phrase) for phrase in phrases):
        return phrases
    return RewardError(f'field "{field}" holds no word or phrase, and no list of them')


def chrf(field: str = "response", word_order: int = 0) -> Scorer:
    """chrF of the response against the field's text, in [0, 1] (Popović 2015), as sacrebleu computes it per sentence.

    Args:
        field: The record's field: a text, or a list of texts each of which is a right answer.
        word_order: 0: chrF; 2: chrF++.
    """
    if not 0 <= word_order <= 2:
        raise ValueError(f"word_order = {word_order}: must be 0, 1 or 2")
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise ConfigError('reward "chrf" needs sacrebleu: pip install "proxlm[metrics]"') from error
    metric = CHRF(word_order=word_order)

    def score(completion: Completion) -> float | RewardError:
        expected = field_of(completion, field)
        if isinstance(expected, RewardError):
            return expected
        texts = [expected] if isinstance(expected, str) else expected
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
            return RewardError(f'field "{field}" holds no text and no list of texts')
        return float(metric.sentence_score(completion.text.strip(), texts).score) / 100

    return lambda completions: [score(c) for c in completions]


def reasoning_gym(answer_tag: str = "") -> Scorer:
    """What the verifier of the record's task gives the response, in [0, 1]; records of data/reasoning_gym.py.

    Args:
        answer_tag: Score the text in the response's last <TAG>…</TAG>, 0 without one; empty: the whole response.
    """
    opening, closing = f"<{answer_tag}>", f"</{answer_tag}>"

    def answer(text: str) -> str | None:
        if not answer_tag:
            return text.strip()
        end = text.rfind(closing)
        start = text.rfind(opening, 0, max(0, end))
        return text[start + len(opening) : end].strip() if start >= 0 else None

    def score(completion: Completion) -> float | RewardError:
        task, index = (field_of(completion, name) for name in ("task", "index"))
        if isinstance(task, RewardError):
            return task
        if isinstance(index, RewardError):
            return index
        if not is_gym_name(task) or not isinstance(index, int) or isinstance(index, bool):
            return RewardError(f"{task!a}, {index!a}: no task of reasoning-gym and its number")
        try:
            tasks = tasks_of(task)
            if not 0 <= index < len(tasks):
                return RewardError(f"{task} has no number {index}; it has {len(tasks)}")
            return float(tasks.score_answer(answer(completion.text), tasks[index]))
        except DataError as error:
            return RewardError(str(error))
        except Exception as error:  # verifiers of many authors, on whatever a model writes
            return RewardError(f"the verifier of {task}, number {index}: {reason_of(error)}")

    return lambda completions: [score(c) for c in completions]


def python_tests(
    field: str = "tests",
    fenced: bool = True,
    with_prompt: bool = False,
    all: bool = False,
    failure: float = 0.0,
    seconds: float = 5.0,
    memory_mb: int = 512,
    workers: int = 0,
    require_landlock: bool = True,
) -> Scorer:
    """The share of the record's tests that the response, run as a Python program in the sandbox, passes.

    Args:
        field: The record's field with the tests: a text, or a list of texts.
        fenced: Run the response's first fenced code block if it has one, instead of the whole response.
        with_prompt: Put the prompt before the code.
        all: 1 if every test passes, else 0, instead of the share.
        failure: The reward of a program that does not reach the end of its tests.
        seconds: Time limit of a program with its tests.
        memory_mb: Address space of a program in MiB.
        workers: Programs at a time; 0: one per CPU.
        require_landlock: Raise SandboxError on kernels where programs could read every file.
    """
    if workers < 0:
        raise ValueError(f"workers = {workers}: must be at least 0 (0: one per CPU)")
    if not math.isfinite(failure):
        raise ValueError(f"failure = {failure:g}: must be a finite number")
    if memory_mb < 64:
        raise ValueError(f"memory_mb = {memory_mb}: must be at least 64")
    limits = Limits(seconds=seconds, memory=memory_mb << 20)
    return PythonTests(field, fenced, with_prompt, all, failure, limits, workers, require_landlock)


BUILTINS: dict[str, Callable[..., Scorer]] = {
    "sentiment": sentiment,
    "regex": regex,
    "exact_match": exact_match,
    "numeric_answer": numeric_answer,
    "python_parses": python_parses,
    "length": length,
    "repetition": repetition,
    "keyword": keyword,
    "instructions": instructions,
    "chrf": chrf,
    "reward_model": RewardModel,
    "reward_ensemble": RewardEnsemble,
    "python_tests": python_tests,
    "reasoning_gym": reasoning_gym,
}


def _units(completion: Completion, unit: str) -> Any:
    """The response as a sequence of token ids, words between white space, or characters."""
    if unit == "tokens":
        return completion.tokens
    return completion.text.split() if unit == "words" else completion.text
