"""Built-in rewards that compare a response's answer with the one in its record."""

from __future__ import annotations

from decimal import Decimal
from importlib.util import find_spec
from math import isfinite

from proxlm.errors import ConfigError, RewardError
from proxlm.rewards.fields import answer_of, field_of
from proxlm.rewards.numeric import is_marked, last_number, marked_number, to_number
from proxlm.rewards.scorer import Scorer
from proxlm.sandbox.verifier import Verifier
from proxlm.types import Completion


def exact_match(field: str = "answer", ignore_case: bool = False, strip: bool = True) -> Scorer:
    """1 if the response equals the text in the record's field, else 0; strip: surrounding white space is ignored."""

    def normal(text: str) -> str:
        text = text.strip() if strip else text
        return text.casefold() if ignore_case else text

    def score(completion: Completion) -> float | RewardError:
        expected = answer_of(completion, field)
        if isinstance(expected, RewardError):
            return expected
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


def math_answer(
    field: str = "answer", boxed: bool = False, seconds: float = 3.0, memory_mb: int = 1024
) -> Scorer:
    r"""1 if the response's mathematical answer equals the field's as math-verify reads and compares them, else 0.

    An answer that the package does not judge within its limits is an error for that completion.

    Args:
        field: The record's field: a number, an expression, or a text with one in $…$ or \boxed{…} or after ####.
        boxed: Only the content of the response's last \boxed{…} is its answer.
        seconds: Limit of one answer, in seconds of CPU time.
        memory_mb: What an answer may need in MiB, beyond what its process has at its start.
    """
    if find_spec("math_verify") is None:
        raise ConfigError('reward "math_answer" needs math-verify: pip install "proxlm[math]"')
    verifier = Verifier("proxlm.sandbox.mathematics", seconds, memory_mb)

    def score(completion: Completion) -> float | RewardError:
        expected = answer_of(completion, field)
        if isinstance(expected, RewardError):
            return expected
        if isinstance(expected, float):  # 1e-07 would be read as e - 7
            expected = f"{Decimal(repr(expected)):f}" if isfinite(expected) else ""
        try:
            result = verifier.check({"expected": str(expected), "response": completion.text, "boxed": boxed})
        except RewardError as error:
            return RewardError(f"math-verify {error}")
        if result is None:
            return RewardError(
                f'field "{field}" holds nothing that math-verify reads: {str(expected)[-40:]!r}'
            )
        return float(result)

    return lambda completions: [score(c) for c in completions]
