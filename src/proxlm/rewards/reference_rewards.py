"""Built-in rewards that compare a response with reference texts in its record."""

from __future__ import annotations

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
