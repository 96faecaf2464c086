"""Built-in rewards that compare a response with reference texts in its record."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from proxlm.errors import ConfigError, RewardError
from proxlm.rewards.fields import field_of
from proxlm.rewards.scorer import Scorer
from proxlm.types import Completion


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
        raise _missing("chrf", "sacrebleu") from error
    metric = CHRF(word_order=word_order)
    return _scorer(field, lambda text, texts: float(metric.sentence_score(text, texts).score) / 100)


def bleu(
    field: str = "response",
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a",
    max_order: int = 4,
) -> Scorer:
    """BLEU of the response against the field's text, in [0, 1] (Papineni et al. 2002), as sacrebleu's per sentence.

    Exponential smoothing, and only the orders that the response is long enough for (`effective_order`).

    Args:
        field: The record's field: a text, or a list of texts each of which is a right answer.
        tokenize: sacrebleu's tokeniser; "zh" for Chinese, "char" for characters.
        max_order: The longest n-grams.
    """
    if not 1 <= max_order <= 10:
        raise ValueError(f"max_order = {max_order}: must be from 1 to 10")
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise _missing("bleu", "sacrebleu") from error
    metric = BLEU(tokenize=tokenize, max_ngram_order=max_order, effective_order=True)
    return _scorer(field, lambda text, texts: min(1.0, metric.sentence_score(text, texts).score / 100))


def rouge(
    field: str = "response",
    kind: Literal["1", "2", "L"] = "L",
    stem: bool = False,
    unit: Literal["words", "characters"] = "words",
) -> Scorer:
    """ROUGE-1, -2 or -L, the F1 of the response against the field's text, in [0, 1] (Lin 2004), as rouge-score's.

    Args:
        field: The record's field: a text, or a list of texts, of which the best score counts.
        kind: n-grams of one or two words, or the longest common subsequence.
        stem: Whether words are compared by their stems (Porter's, for English).
        unit: Words are runs of a-z and 0-9, lowercased, so that Chinese has none; characters: each but white space.
    """
    if stem and unit == "characters":
        raise ValueError('stem = true: characters have no stems; leave it out or take unit = "words"')
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing("rouge", "rouge-score") from error
    name = f"rouge{kind}"
    metric = RougeScorer([name], use_stemmer=stem, tokenizer=_Characters() if unit == "characters" else None)

    def compare(text: str, texts: list[str]) -> float | RewardError:
        if unit == "words" and not all(re.search("[a-z0-9]", one.lower()) for one in texts):
            return RewardError(f'field "{field}" holds a text without words of a-z; set unit = "characters"')
        return float(metric.score_multi(texts, text)[name].fmeasure)

    return _scorer(field, compare)


class _Characters:
    """A tokeniser for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return [character for character in text.casefold() if not character.isspace()]


def _missing(reward: str, package: str) -> ConfigError:
    return ConfigError(f'reward "{reward}" needs {package}: pip install "proxlm[metrics]"')


def _scorer(field: str, compare: Callable[[str, list[str]], float | RewardError]) -> Scorer:
    """Scores by (response without white space around it, the texts of the record's field) → a number."""

    def score(completion: Completion) -> float | RewardError:
        expected = field_of(completion, field)
        if isinstance(expected, RewardError):
            return expected
        texts = [expected] if isinstance(expected, str) else expected
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
            return RewardError(f'field "{field}" holds no text and no list of texts')
        return compare(completion.text.strip(), texts)

    return lambda completions: [score(c) for c in completions]
