"""Task metrics equal those of scikit-learn, seqeval, sacreBLEU and rouge-score, in 1,000 random cases of texts."""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import sacrebleu
from measuring import Recorded, means, measured
from rouge_score.rouge_scorer import RougeScorer
from seqeval import metrics as seqeval
from sklearn import config_context
from sklearn import metrics as sklearn

from proxlm.evaluation.metrics import words_of

CASES = 1000
LABELS = ("no", "Yes", "may be", "é", "0")
WORDS = ("the", "cat", "sat", "on", "a", "mat", ".", ",", "It's", "7", "ok", "")
CHARACTERS = "春眠不觉晓，处处闻啼鸟。a b"
TAGS = ("O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-a.b")


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """scikit-learn does not check its own arguments, which takes longer than its arithmetic."""
    with config_context(skip_parameter_validation=True, assume_finite=True):
        yield


def close(found: float, expected: float) -> bool:
    return abs(found - expected) <= 1e-9


def drawn(seed: int) -> random.Random:
    return random.Random(seed)


def labels_of(generator: random.Random, most: int = 5) -> tuple[list[str], list[str]]:
    """Right labels and given ones, of which some are none."""
    labels = LABELS[: generator.randint(1, most)]
    n = generator.randint(1, 25)
    right = generator.choices(labels, k=n)
    given = [
        generator.choice([label, generator.choice(labels), generator.choice(["", "other", f" {label}\n"])])
        for label in right
    ]
    return right, given


def sklearns(
    right: list[str], given: list[str], classes: set[str], each_class: bool = True
) -> dict[str, float]:
    """The same by scikit-learn's other functions; a class is there if it is right or given somewhere."""
    there = sorted({*right, *given} & classes)
    options = {"labels": there, "zero_division": 0.0}
    macro = sklearn.precision_recall_fscore_support(right, given, average="macro", **options)
    found = {"accuracy": float(sklearn.accuracy_score(right, given))}
    found |= zip(("precision", "recall", "macro_f1"), map(float, macro[:3]), strict=True)
    if each_class:
        each = sklearn.f1_score(right, given, average=None, **options)
        found |= {f"f1/{label}": float(value) for label, value in zip(there, each, strict=True)}
    return found


def test_classes_equal_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    for case in range(CASES):
        right, given = labels_of(drawn(case))
        classes = set(right) if case % 2 else set(LABELS)
        labels = [] if case % 2 else list(LABELS)  # without any, they are the right answers
        found = measured(given, right, "accuracy", "precision", "recall", "macro_f1", labels=labels)
        stripped = [text.strip() for text in given]
        expected = sklearns(right, stripped, classes, case % 3 == 0)
        got = means(found)
        assert all(close(got[name], value) for name, value in expected.items()), (case, got, expected)
        if case % 10 == 0:  # the same of a bootstrap sample: each response as often as it counts
            generator = np.random.default_rng(case)
            counts = generator.integers(0, 4, len(right))
            counts[0] += 1
            again = recorded.statistics[-1](counts)
            repeated = sklearns(
                [label for label, n in zip(right, counts, strict=True) for _ in range(n)],
                [label for label, n in zip(stripped, counts, strict=True) for _ in range(n)],
                classes,
            )
            names = ("precision", "recall", "macro_f1")
            assert all(close(again[name], repeated[name]) for name in names)
            assert all(close(again[name], value) for name, value in repeated.items() if "/" in name)


def test_confusion_equals_scikit_learns() -> None:
    for case in range(CASES):
        right, given = labels_of(drawn(case))
        found = measured(given, right, "confusion").confusion
        assert found is not None
        labels = sorted(set(right))
        assert found.labels == labels
        named = [text.strip() if text.strip() in labels else "\x00none" for text in given]
        expected = sklearn.confusion_matrix(right, named, labels=[*labels, "\x00none"])
        assert found.counts == expected[:-1].tolist()


def tags_of(generator: random.Random) -> tuple[list[list[str]], list[list[str]]]:
    right, given = [], []
    for _ in range(generator.randint(1, 6)):
        tags = generator.choices(TAGS, k=generator.randint(0, 8))
        right.append(tags)
        given.append([tag if generator.random() < 0.7 else generator.choice(TAGS) for tag in tags])
    if not any(right):
        return tags_of(generator)
    return right, given


def seqevals(right: list[list[str]], given: list[list[str]]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = seqeval.classification_report(right, given, output_dict=True, zero_division=0)
        found = {
            "entity_precision": seqeval.precision_score(right, given, zero_division=0),
            "entity_recall": seqeval.recall_score(right, given, zero_division=0),
            "entity_f1": seqeval.f1_score(right, given, zero_division=0),
        }
    averages = ("micro avg", "macro avg", "weighted avg")
    return found | {f"entity_f1/{k}": v["f1-score"] for k, v in report.items() if k not in averages}


def test_entities_equal_seqevals(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    for case in range(CASES):
        right, given = tags_of(drawn(case))
        found = means(measured([" ".join(tags) for tags in given], right, "entity_f1"))
        expected = seqevals(right, given)
        del found["entities_read"]
        assert found.keys() == expected.keys()
        assert all(close(found[name], value) for name, value in expected.items()), (case, found, expected)
        if case % 5:
            continue
        counts = np.random.default_rng(case).integers(1, 4, len(right))
        again = recorded.statistics[-1](counts)
        repeated = seqevals(
            [tags for tags, n in zip(right, counts, strict=True) for _ in range(n)],
            [tags for tags, n in zip(given, counts, strict=True) for _ in range(n)],
        )
        assert all(close(again[name], value) for name, value in repeated.items())


def sentence(generator: random.Random, chinese: bool) -> str:
    if chinese:
        return "".join(generator.choices(CHARACTERS, k=generator.randint(0, 12)))
    return " ".join(generator.choices(WORDS, k=generator.randint(0, 12)))


def corpus(generator: random.Random, chinese: bool) -> tuple[list[str], list[list[str]]]:
    """Responses, some empty, and one to three references of each."""
    right = [
        [sentence(generator, chinese) or "x" for _ in range(generator.randint(1, 3))]
        for _ in range(generator.randint(1, 6))
    ]
    given = [generator.choice([texts[0], sentence(generator, chinese), texts[-1][:5], ""]) for texts in right]
    return given, right


def streams(right: list[list[str]]) -> list[list[str | None]]:
    """The references as sacreBLEU takes them."""
    most = max(len(texts) for texts in right)
    return [[texts[i] if i < len(texts) else None for texts in right] for i in range(most)]


@pytest.mark.parametrize("chinese", [False, True])
def test_bleu_and_chrf_equal_sacrebleus(chinese: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    tokenize = "zh" if chinese else "13a"
    for case in range(CASES // 2):
        given, right = corpus(drawn(case), chinese)
        language = "zh" if chinese else "en"
        found = measured(given, right, "bleu", "chrf", "chrf++", language=language)
        texts, references = [text.strip() for text in given], [list(dict.fromkeys(some)) for some in right]

        def expected(texts: list[str], references: list[list[str]]) -> dict[str, float]:
            by = streams(references)
            return {
                "bleu": sacrebleu.corpus_bleu(texts, by, tokenize=tokenize, force=True).score,
                "chrf": sacrebleu.corpus_chrf(texts, by).score,
                "chrf++": sacrebleu.corpus_chrf(texts, by, word_order=2).score,
            }

        got, wanted = means(found), expected(texts, references)
        assert all(close(got[name], value) for name, value in wanted.items()), (case, got, wanted)
        assert f"tok:{tokenize}|" in found.notes["bleu"]
        if case % 10 == 0:
            counts = np.random.default_rng(case).integers(1, 4, len(texts))
            repeated = expected(
                [text for text, n in zip(texts, counts, strict=True) for _ in range(n)],
                [some for some, n in zip(references, counts, strict=True) for _ in range(n)],
            )
            sampled = [statistic(counts) for statistic in recorded.statistics[-3:]]
            assert all(close(value, repeated[name]) for one in sampled for name, value in one.items())


class Characters:
    """Chinese words for rouge-score, written otherwise than in the source."""

    def tokenize(self, text: str) -> list[str]:
        return [word.lower() for word in words_of(text)]


@pytest.mark.parametrize("chinese", [False, True])
def test_rouge_equals_rouge_scores(chinese: bool) -> None:
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, tokenizer=Characters() if chinese else None)
    compared = 0
    for case in range(CASES // 4):
        given, right = corpus(drawn(case), chinese)
        found = measured(given, right, *names, language="zh" if chinese else "en")
        for name in names:
            expected = [
                max(scorer.score(one, text.strip())[name].fmeasure for one in texts)
                for text, texts in zip(given, right, strict=True)
            ]
            compared += len(expected)
            assert np.allclose(found.values[name], expected, rtol=0, atol=1e-9)
            assert close(found.estimates[name].mean, float(np.mean(expected)))
    assert compared > CASES


def test_self_bleu_equals_sacrebleus_against_all_others() -> None:
    compared = 0
    for case in range(CASES // 3):
        generator = drawn(case)
        texts = [sentence(generator, False) for _ in range(generator.randint(2, 6))]
        texts += generator.choices(texts, k=generator.randint(0, 2))
        found = means(measured(texts, [""] * len(texts), "self_bleu"))
        every = [
            sacrebleu.sentence_bleu(text, texts[:i] + texts[i + 1 :], use_effective_order=True).score
            for i, text in enumerate(texts)
        ]
        compared += len(texts)
        assert close(found["self_bleu"], sum(every) / len(every)), case
    assert compared >= CASES


def bag_f1(right: Counter[tuple[str, str]], given: Counter[tuple[str, str]]) -> float:
    both, named = (right & given).total(), right.total() + given.total()
    return 2 * both / named if named else 0.0


def test_entities_of_json_and_lines_are_bags() -> None:
    for case in range(CASES // 4):
        generator = drawn(case)
        names, types = ["Ann", "Bo B", "柏林", "a-b"], ["PER", "LOC", "x-y"]
        bags = [
            [(generator.choice(types), generator.choice(names)) for _ in range(generator.randint(0, 5))]
            for _ in range(2)
        ]
        expected = bag_f1(*(Counter(bag) for bag in bags))
        lines = ["\n".join(f"- {name}: {label}" for label, name in bag) for bag in bags]
        if lines[0]:
            found = measured([lines[1]], [lines[0]], "entity_f1", entities="lines")
            assert close(found.estimates["entity_f1"].mean, expected)
        right = [{"text": name, "label": label} for label, name in bags[0]]
        by_label: dict[str, list[str]] = {}
        for label, name in bags[1]:
            by_label.setdefault(label, []).append(name)
        response = f"Here it is:\n```json\n{json.dumps(by_label)}\n```"
        found = measured([response], [right], "entity_f1", entities="json")
        assert close(found.estimates["entity_f1"].mean, expected)
        assert found.estimates["entities_read"].mean == 1.0
