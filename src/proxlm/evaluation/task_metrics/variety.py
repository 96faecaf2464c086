"""How like each other responses are: self-BLEU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from proxlm.config.metrics import MetricSettings
from proxlm.evaluation.bootstrap import Bootstrap, mean_over_prompts
from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.task_metrics.answers import Answer
from proxlm.evaluation.task_metrics.measured import Measured, Metric

_ORDER = 4


def self_bleu(metrics: MetricSettings) -> Metric:
    """The mean BLEU of a response against all others (Zhu et al. 2018), 0 to 100; the higher, the more alike.

    It has no interval, for in a bootstrap sample a response stands beside itself. With several responses to a prompt,
    the same among those to one prompt, with an interval over prompts.
    """
    from sacrebleu.metrics.bleu import BLEU

    tokenise = BLEU(tokenize="zh" if metrics.language == "zh" else "13a").tokenizer

    def measure(answers: Sequence[Answer], _: Bootstrap) -> Measured:
        texts = [tokenise(answer.text).split() for answer in answers]
        estimates = {}
        if len(texts) > 1:
            every = self_bleu_of(texts)
            estimates["self_bleu"] = Estimate.exactly(sum(every) / len(every))
        of_prompt: dict[int, list[list[str]]] = {}
        for answer, text in zip(answers, texts, strict=True):
            of_prompt.setdefault(answer.prompt, []).append(text)
        several = {prompt: self_bleu_of(some) for prompt, some in of_prompt.items() if len(some) > 1}
        if several:
            means = [sum(values) / len(values) for values in several.values()]
            estimates["self_bleu/same_prompt"] = mean_over_prompts(means, list(several))
        return Measured(estimates)

    return measure


def self_bleu_of(texts: Sequence[Sequence[str]]) -> list[float]:
    """The BLEU of each text with all others as references, by sacreBLEU's sentence_score (effective order).

    The counts of the others are those of all texts but one: where the text itself has the most of an n-gram, the
    second most of all. So it takes time with the length of the texts, and not with the square of their number.

    Args:
        texts: The words of two texts or more.
    """
    from sacrebleu.metrics.bleu import BLEU

    grams = [
        Counter(tuple(text[i : i + n]) for n in range(1, _ORDER + 1) for i in range(len(text) - n + 1))
        for text in texts
    ]
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}  # the highest count, whose it is, and the second
    for number, counts in enumerate(grams):
        for gram, count in counts.items():
            high, holder, second = most.get(gram, (0, -1, 0))
            most[gram] = (count, number, high) if count > high else (high, holder, max(second, count))
    lengths = Counter(len(text) for text in texts)
    found = []
    for number, (text, counts) in enumerate(zip(texts, grams, strict=True)):
        correct, total = [0] * _ORDER, [0] * _ORDER
        for gram, count in counts.items():
            high, holder, second = most[gram]
            total[len(gram) - 1] += count
            correct[len(gram) - 1] += min(count, second if holder == number else high)
        own = len(text)
        others = lengths - Counter([own])
        nearest = min(others, key=lambda length: (abs(length - own), length))
        score = BLEU.compute_bleu(
            correct, total, own, nearest, smooth_method="exp", effective_order=True, max_ngram_order=_ORDER
        )
        found.append(float(score.score))
    return found
