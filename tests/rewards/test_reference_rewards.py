"""BLEU and ROUGE of responses: equal to the libraries on random texts, and by hand."""

import random
import sys
from typing import Any

import pytest

from proxlm.errors import ConfigError, RewardError
from proxlm.rewards.reference_rewards import bleu, rouge
from proxlm.types import Completion

WORDS = [
    "the",
    "cat",
    "a",
    "dog",
    "sat",
    "on",
    "mat,",
    "runs",
    "running",
    "fast.",
    "42",
    "don't",
    "你好",
    "世界。",
]


def cases(count: int, seed: int) -> list[Completion]:
    """Random responses, each with one to three references."""
    draw = random.Random(seed)

    def text(least: int) -> str:
        return " ".join(draw.choices(WORDS[: draw.randint(3, len(WORDS))], k=draw.randint(least, 14)))

    return [
        Completion("", text(0), fields={"response": ["the " + text(1) for _ in range(draw.randint(1, 3))]})
        for _ in range(count)
    ]


@pytest.mark.parametrize("tokenize", ["13a", "zh", "char"])
@pytest.mark.parametrize("order", [2, 4])
def test_bleu_is_sacrebleus(tokenize: Any, order: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    completions = cases(300, order)
    library = sacrebleu.BLEU(tokenize=tokenize, max_ngram_order=order, effective_order=True)
    wanted = [library.sentence_score(c.text, c.fields["response"]).score / 100 for c in completions]
    found = bleu(tokenize=tokenize, max_order=order)(completions)
    assert found == pytest.approx(wanted, abs=1e-9)
    assert len(set(found)) > 100
    assert min(found) >= 0
    assert max(found) <= 1


@pytest.mark.parametrize("kind", ["1", "2", "L"])
@pytest.mark.parametrize("stem", [False, True])
def test_rouge_is_rouge_scores(kind: Any, stem: bool) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    completions = cases(300, 7)
    library = scorer.RougeScorer([f"rouge{kind}"], use_stemmer=stem)
    wanted = [
        max(library.score(one, c.text)[f"rouge{kind}"].fmeasure for one in c.fields["response"])
        for c in completions
    ]
    found = rouge(kind=kind, stem=stem)(completions)
    assert found == pytest.approx(wanted, abs=1e-9)
    assert len(set(found)) > 20


def test_by_hand() -> None:
    """BLEU: the brevity penalty exp(1 − 6/5), precisions 5/5, 4/4, 3/3, 2/2. ROUGE-L: 4 of 5 and of 4."""
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    one = [Completion("", "the cat sat on the", fields={"response": "the cat sat on the mat"})]
    assert bleu()(one) == [pytest.approx(2.718281828459045 ** (1 - 6 / 5), abs=1e-9)]
    one = [Completion("", "今天天气好", fields={"response": "今天天好"})]
    assert rouge(unit="characters")(one) == [pytest.approx(2 * (4 / 5) * 1 / (4 / 5 + 1), abs=1e-12)]
    (error,) = rouge()(one)
    assert isinstance(error, RewardError)
    assert str(error) == 'field "response" holds a text without words of a-z; set unit = "characters"'


@pytest.mark.parametrize(
    ("factory", "module", "package"),
    [(bleu, "sacrebleu.metrics.bleu", "sacrebleu"), (rouge, "rouge_score.rouge_scorer", "rouge-score")],
)
def test_wrong_arguments_and_a_missing_package(
    factory: Any, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"^max_order = 0"):
        bleu(max_order=0)
    with pytest.raises(ValueError, match=r"^stem = true"):
        rouge(stem=True, unit="characters")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f'needs {package}: pip install "proxlm.metrics.'):
        factory()
