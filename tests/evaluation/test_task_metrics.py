"""Task metrics by hand: reading an answer, SQuAD's F1, pass@k, calibration, functions; and what is refused."""

from __future__ import annotations

import itertools
import math
import random
import re
import string
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from measuring import means, measured

from proxlm.config import EvaluateConfig, MetricSettings, PPOConfig, RolloutSettings, ValueConfig
from proxlm.config.metrics import TASK_METRICS, metric_problems
from proxlm.errors import LONGEST_MESSAGE, ConfigError, DataError, UserCodeError, UserError
from proxlm.evaluation.bootstrap import Bootstrap
from proxlm.evaluation.intervals import mean_of_rewards
from proxlm.evaluation.task_metrics.answers import reading, right_answers
from proxlm.evaluation.task_metrics.entities import entities_in_json
from proxlm.evaluation.task_metrics.of_right import passes
from proxlm.evaluation.task_metrics.user_metrics import user_metrics
from proxlm.types import Prompt


@pytest.mark.parametrize(
    ("settings", "text", "answer"),
    [
        ({}, " a b \n", "a b"),
        ({"read": "first_line"}, "\n  a \nb", "a"),
        ({"read": "last_line"}, "a\n b\n\n", "b"),
        ({"read": "last_line"}, " \n", None),
        ({"read": "number"}, "1 and 2, so 1,234.50", "2469/2"),
        ({"read": "number"}, "so #### 72 of 100", "72"),
        ({"read": "number"}, "none", None),
        ({"read": "pattern", "pattern": r"<a>(.*?)</a>"}, "<a>x</a> <a> y </a>", "y"),
        ({"read": "pattern", "pattern": r"\d+"}, "1 22", "22"),
        ({"read": "pattern", "pattern": r"a(b)?"}, "a", None),
        ({"read": "label"}, "It is not negative but positive.", "negative"),
        ({"read": "label"}, "nonnegative", None),
        ({"read": "label"}, "very positive", "very positive"),
        ({"read": "label"}, "POSITIVE", None),
        ({"read": "label", "ignore_case": True}, "POSITIVE", "positive"),
        ({"read": "label"}, "这是积极的", "积极"),
    ],
)
def test_the_answer_that_is_read(settings: dict[str, Any], text: str, answer: str | None) -> None:
    labels = ["positive", "very positive", "negative", "积极"]
    assert reading(MetricSettings(**settings), labels)(text) == answer


@pytest.mark.parametrize(
    ("fields", "settings", "right"),
    [
        ({"answer": "a"}, {}, ("a",)),
        ({"answer": ["a", "b", "a"]}, {}, ("a", "b")),
        ({"answer": 7}, {}, ("7",)),
        ({"a": {"text": ["x", "y"]}, "more": "z"}, {"answer_fields": ["a.text", "more"]}, ("x", "y", "z")),
        ({"answer": "5 + 5 = 10 #### 10"}, {"read": "number"}, ("10",)),
        ({"answer": ["1/2", "0.5"]}, {"read": "number"}, ("1/2",)),
        ({"answer": ["B-A", "O"]}, {"use": ["entity_f1"]}, ("B-A O",)),
    ],
)  # fmt: skip
def test_the_right_answers_of_a_record(
    fields: dict[str, Any], settings: dict[str, Any], right: tuple[str, ...]
) -> None:
    assert right_answers(Prompt(0, (1,), "p", fields), MetricSettings(**settings)) == right


@pytest.mark.parametrize(
    ("fields", "settings", "said"),
    [
        ({"text": "a"}, {}, '"answer" is not there in the record of prompt .* The record has text'),
        ({"answer": [1, None]}, {}, '"answer" is not there'),
        ({"answer": {"a": 1}}, {}, "holds a dict"),
        ({"answer": True}, {}, "holds a bool"),
        ({"answer": []}, {}, "empty list"),
        ({"answer": "many"}, {"read": "number"}, "holds no number"),
    ],
)
def test_a_record_without_a_right_answer_is_refused(
    fields: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said) as refused:
        right_answers(Prompt(0, (1,), "p" * 900, fields | {"x" * 200: 1}), MetricSettings(**settings))
    assert len(str(refused.value)) <= LONGEST_MESSAGE


def official_f1(given: str, right: str) -> float:
    """SQuAD 2.0's script: its normalisation in its own order, and its F1."""

    def normalised(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", text).split()

    first, second = normalised(given), normalised(right)
    if len(first) == 0 or len(second) == 0:
        return float(first == second)
    same = sum((Counter(first) & Counter(second)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(first), same / len(second)
    return 2 * precision * recall / (precision + recall)


def test_squads_numbers_are_those_of_its_script() -> None:
    words = ["The", "a", "cat", "Cat,", "an", "U.S.", "--", "1", "2nd", "theory", "", "É", "it's"]
    for case in range(300):
        generator = random.Random(case)
        texts = [" ".join(generator.choices(words, k=generator.randint(0, 5))) for _ in range(16)]
        given, right = texts[:4], [texts[4 + 3 * i : 5 + 3 * i + i % 3] for i in range(4)]
        found = measured(given, right, "squad_f1", "squad_exact")
        f1 = [max(official_f1(g.strip(), one) for one in some) for g, some in zip(given, right, strict=True)]
        assert found.values["squad_f1"] == pytest.approx(f1, abs=1e-12)
        exact = found.values["squad_exact"]
        assert all(value == 0 or f1 == 1 for value, f1 in zip(exact, f1, strict=True))
    assert measured(["The U.S.!"], ["us"], "squad_exact").values["squad_exact"] == [1.0]


def test_squads_f1_of_chinese_is_of_characters() -> None:
    found = measured(["北京，市"], ["北京城"], "squad_f1", language="zh")
    assert found.values["squad_f1"] == [pytest.approx(2 * (2 / 3) * (2 / 3) / (4 / 3))]


def test_exact_match_by_hand() -> None:
    found = measured([" a", "A", "b", "c"], ["a", "a", ["x", "b"], "d"], "exact_match")
    assert found.values["exact_match"] == [1.0, 0.0, 1.0, 0.0]
    assert found.estimates["exact_match"] == mean_of_rewards([1.0, 0.0, 1.0, 0.0])
    assert measured(["A"], ["a"], "exact_match", ignore_case=True).values["exact_match"] == [1.0]
    # No number is no answer, and not the same as another that has none.
    assert measured(["none"], ["0"], "exact_match", read="number").values["exact_match"] == [0.0]


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one() -> None:
    for n in range(1, 8):
        for right in range(n + 1):
            samples = [True] * right + [False] * (n - right)
            for k in range(1, n + 1):
                draws = [any(some) for some in itertools.combinations(samples, k)]
                assert passes(n, right, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)
    assert passes(4000, 1, 1000) == pytest.approx(0.25)


def test_pass_at_k_of_prompts() -> None:
    prompts, texts = [0, 0, 1, 1, 2, 2], ["a", "b", "a", "a", "b", "b"]
    found = measured(
        texts, ["a"] * 6, "exact_match", "pass_at_k", prompts=prompts, k=[1, 2], samples_per_prompt=2
    )
    assert found.estimates["pass@1"] == mean_of_rewards([0.5, 1.0, 0.0])
    assert found.estimates["pass@2"] == mean_of_rewards([1.0, 1.0, 0.0])
    # The reward may say what is right, and prompts with too few responses have no pass@k.
    found = measured(
        texts[:4], ["z"] * 4, "pass_at_k", prompts=[0, 0, 0, 1], rewards=[1.0, 0.0, None, 1.5],
        right="reward", k=[1, 3], samples_per_prompt=3,
    )  # fmt: skip
    assert means(found) == {"pass@1": pytest.approx((1 / 3 + 1) / 2), "pass@3": 1.0}


def test_calibration_error_by_hand() -> None:
    texts = ["a. Confidence: 0.9", "b, confidence is 90%", "a (Confidence = 35 %)", "a", "a. Confidence: 101"]
    found = measured(texts, ["a", "a", "a", "a", "a"], "exact_match", "calibration_error", read="pattern",
                     pattern=r"^\w")  # fmt: skip
    assert found.values["confidence"] == [0.9, 0.9, 0.35, None, None]
    assert found.estimates["confidence"].mean == pytest.approx(2.15 / 3)
    assert found.estimates["confidence_given"].mean == 0.6
    # Two of 0.9, one right: |0.5 − 0.9|; one of 0.35, right: |1 − 0.35|.
    assert found.estimates["calibration_error"].mean == pytest.approx((2 * 0.4 + 0.65) / 3)


def test_calibration_of_probabilities_and_its_interval() -> None:
    """Answers that are right as often as their probability says; and those that never are."""
    texts = ["a"] * 8 + ["b"] * 2
    half = math.log(0.8)
    found = measured(
        texts, ["a"] * 10, "exact_match", "calibration_error", logprobs=[half] * 10, confidence="probability",
        resamples=200,
    )  # fmt: skip
    error = found.estimates["calibration_error"]
    assert error.mean == pytest.approx(0.0, abs=1e-9)
    assert 0.0 <= error.low <= error.mean <= error.high <= 0.8
    wrong = measured(
        ["b"] * 4, ["a"] * 4, "exact_match", "calibration_error", logprobs=[0.0] * 4, confidence="probability"
    )
    assert wrong.estimates["calibration_error"].mean == 1.0


def test_self_bleu_by_hand() -> None:
    same = measured(["a b c d e"] * 3, ["x"] * 3, "self_bleu")
    assert means(same) == {"self_bleu": pytest.approx(100.0)}
    other = measured(["a b c d", "e f g h"], ["x"] * 2, "self_bleu")
    assert other.estimates["self_bleu"].mean < 15  # smoothed
    assert means(measured(["a b"], ["x"], "self_bleu")) == {}
    of_prompts = measured(
        ["a b c d e", "a b c d e", "v w x y z", "v w x y z"], ["x"] * 4, "self_bleu", prompts=[0, 0, 1, 1],
        samples_per_prompt=2,
    )  # fmt: skip
    assert of_prompts.estimates["self_bleu/same_prompt"].mean == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"text": "Ann", "label": "PER"}]', {("PER", "Ann"): 1}),
        ('x {"PER": ["Ann", "Ann"], "LOC": "Rome"} y', {("PER", "Ann"): 2, ("LOC", "Rome"): 1}),
        ('[["Ann", "PER"]]', {("PER", "Ann"): 1}),
        ('{"entity": "Ann", "type": "PER"}', {("PER", "Ann"): 1}),
        ("[]", {}),
        ("none", None),
        ('[{"text": "Ann"}]', None),
        ('[{"text": 5, "label": "PER"}]', None),
        ('[{"text": "Ann", "label": "PER"}', None),
        ("[" * 100_000, None),
        ("[3]", None),
    ],
)
def test_entities_in_json(text: str, found: dict[tuple[str, str], int] | None) -> None:
    assert entities_in_json(text) == found


def test_tags_among_words_and_of_another_length() -> None:
    right = ["B-PER", "I-PER", "O", "B-LOC"]
    found = measured(['Ann/B-PER Lee/I-PER, "O" and B-LOC.'], [right], "entity_f1")
    assert found.estimates["entity_f1"].mean == 1.0
    longer = measured(["B-PER I-PER O B-LOC B-LOC"], [right], "entity_f1")
    assert longer.estimates["entity_precision"].mean == pytest.approx(2 / 3)
    assert longer.estimates["entity_recall"].mean == 1.0
    shorter = measured(["B-PER"], [right], "entity_f1")
    assert means(shorter)["entity_f1"] == 0.0
    assert means(measured(["I do not know"], [right], "entity_f1"))["entities_read"] == 0.0


def test_a_response_that_names_no_class_is_wrong_and_no_class() -> None:
    found = measured(["a", "b", "?", "b"], ["a", "a", "a", "b"], "confusion", "macro_f1", "accuracy")
    assert found.confusion is not None
    assert (found.confusion.labels, found.confusion.counts) == (["a", "b"], [[1, 1, 1], [0, 1, 0]])
    assert means(found) == pytest.approx(
        {"accuracy": 0.5, "f1/a": 0.5, "f1/b": 2 / 3, "macro_f1": (0.5 + 2 / 3) / 2}
    )


@pytest.mark.parametrize(
    ("answers", "settings", "said"),
    [
        ([["a", "b"]], {}, "2 right answers; a class is a single one"),
        (["c"], {"labels": ["a", "b"]}, "'c', which is none of a, b"),
        ([" "], {}, "empty text"),
        ([str(i) for i in range(201)], {}, "201 different right answers are no classes"),
    ],
)
def test_records_that_have_no_class_are_refused(
    answers: list[Any], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        measured(["a"] * len(answers), answers, "accuracy", **settings)


@pytest.mark.parametrize("name", ["bleu", "squad_f1", "rouge1", "rouge2", "rougeL"])
def test_chinese_right_answers_need_the_language(name: str) -> None:
    with pytest.raises(
        DataError, match=f"{name} finds no words in the right answer '北京'; set it to zh"
    ) as refused:
        measured(["北京", "上海"], ["北京", "上海"], name)
    assert len(str(refused.value)) <= LONGEST_MESSAGE
    assert means(measured(["北京"], ["北京"], name, language="zh")).keys() == {name}
    assert means(measured(["7", "it", "?"], ["7", "it", "?"], name)).keys() == {name}
    mixed = measured(["北京", "it"], ["北京 City", "it"], name)
    assert means(mixed).keys() == {name}


def test_the_page_has_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    named = {
        name
        for line in page.splitlines()
        if line.startswith("| `")
        for name in line.split("|")[1].split(", ")
    }
    assert {f"`{name}`" for name in TASK_METRICS} <= {name.strip() for name in named}


# --- functions ---


def length(completions: list[Any]) -> list[float | None]:
    return [len(done.text) if done.text else None for done in completions]


def test_functions_of_completions() -> None:
    def parts(completions: list[Any]) -> dict[str, list[bool]]:
        return {"right": [done.text == done.fields["answer"] for done in completions]}

    def whole(completions: list[Any]) -> float:
        return len(completions) / 2

    found = measured(["ab", "", "abcd"], ["ab", "x", "y"], functions=[length, parts, whole])
    assert found.values == {"length": [2.0, None, 4.0], "parts/right": [1.0, 0.0, 0.0]}
    assert means(found) == pytest.approx({"length": 3.0, "parts/right": 1 / 3, "whole": 1.5})


def test_a_function_cannot_change_the_record() -> None:
    def spoils(completions: list[Any]) -> list[float]:
        for done in completions:
            done.fields["answer"] = "b"
        return [0.0] * len(completions)

    found = measured(["b"], ["a"], "exact_match", functions=[spoils, length])
    assert found.values["exact_match"] == [0.0]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ([1.0], "returned 1 score for 2 completions"),
        ("ab", "returned a str"),
        (None, "returned None"),
        ([1.0, math.inf], "returned inf for completion 1"),
        ([1.0, "a"], "returned a str"),
        (math.nan, "returned a float"),
        ({}, "returned a dict without components"),
    ],
)
def test_results_of_functions_that_cannot_be_used(result: Any, said: str) -> None:
    def mine(completions: list[Any]) -> Any:
        return result

    with pytest.raises(UserCodeError, match=f"metric mine {said}"):
        measured(["a", "b"], ["a", "b"], functions=[mine])


def test_a_function_that_fails_says_where() -> None:
    def fails(completions: list[Any]) -> Any:
        raise KeyError("x")

    with pytest.raises(UserCodeError, match=r"metric fails raised KeyError.* at .*test_task_metrics.py:\d+"):
        measured(["a"], ["a"], functions=[fails])


def test_functions_of_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f(completions):\n    return [2.0] * len(completions)\nexact_match = f\nx = 3\n")
    assert user_metrics(MetricSettings(use=[f"{file}:f"]))[0].name == "f"
    for name, said in (
        ("g", 'no "g"'),
        ("exact_match", "two metrics are called exact_match"),
        ("x", "x is no function"),
    ):
        with pytest.raises(ConfigError, match=said):
            user_metrics(MetricSettings(use=[f"{file}:{name}"]))


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "key", "said"),
    [
        ({"use": ["exact_mach"]}, "use", "did you mean exact_match"),
        ({"use": ["mine.py"]}, "use", "mine.py:FUNCTION"),
        ({"use": ["bleu", "bleu"]}, "use", "bleu more than once"),
        ({"use": ["bleu"], "answer_fields": []}, "answer_fields", "empty"),
        ({"use": ["bleu"], "read": "pattern"}, "pattern", "required"),
        ({"use": ["bleu"], "read": "pattern", "pattern": "("}, "pattern", "no regular expression"),
        ({"use": ["bleu"], "read": "pattern", "pattern": "a" * 1001}, "pattern", "at most 1000"),
        ({"use": ["accuracy"], "labels": ["a", "A"], "ignore_case": True}, "labels", "two are the same"),
        ({"use": ["accuracy"], "labels": [" "]}, "labels", "empty"),
        ({"use": ["bleu"], "labels": ["a"]}, "labels", "classes"),
        ({"use": ["pass_at_k"]}, "right", "add exact_match to metrics.use"),
        ({"use": ["pass_at_k", "bleu"], "right": "bleu"}, "right", "in use are reward"),
        ({"use": ["pass_at_k"], "right": "reward", "k": [1, 5]}, "samples_per_prompt", "5 or more"),
        ({"use": ["pass_at_k"], "right": "reward", "k": []}, "k", "empty"),
        ({"use": ["calibration_error"], "right": "reward", "confidence_pattern": "x"}, "confidence_pattern", "group"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(settings: dict[str, Any], key: str, said: str) -> None:
    found = metric_problems(MetricSettings(**settings))
    assert [(f"metrics.{key}", True)] == [(name, said in reason) for name, reason in found], found


def test_each_metric_is_refused_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxlm.config.metrics.find_spec", lambda name: None)
    for name, needs in TASK_METRICS.items():
        found = [reason for _, reason in metric_problems(MetricSettings(use=[name], right="reward"))]
        assert found == (
            [f'{name} needs {needs.package}: pip install "proxlm[metrics]"'] if needs.package else []
        )


def test_jobs_check_the_metrics() -> None:
    wrong = MetricSettings(use=["nothing"])
    for job in (EvaluateConfig(metrics=wrong), PPOConfig(metrics=wrong)):
        assert "metrics.use" in dict(job.problems())
    right = MetricSettings(use=["exact_match"])
    assert "metrics.use" not in dict(PPOConfig(metrics=right).problems())
    several = EvaluateConfig(
        metrics=MetricSettings(samples_per_prompt=2), rollout=RolloutSettings(temperature=0.0)
    )
    assert "all the same" in dict(several.problems())["metrics.samples_per_prompt"]
    assert "metrics.use" in dict(ValueConfig(metrics=right).problems())


def test_hostile_responses_do_no_harm() -> None:
    texts = ["\x00\ud800" * 50, "9" * 100_000, "{" * 50_000, "a " * 20_000, "\u202e", ""]
    for settings in ({"read": "number"}, {"read": "label"}, {"read": "last_line"}):
        names = [name for name in TASK_METRICS if name not in ("entity_f1", "self_bleu", "rougeL")]
        try:
            found = measured(texts, ["7"] * 6, *names, **settings)
        except UserError:
            continue
        assert all(math.isfinite(value) for value in means(found).values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_is_no_right_answer(value: float) -> None:
    with pytest.raises(DataError, match=rf'"answer" is {value} in the record of prompt'):
        measured(["nan"], [value], "exact_match")


def test_a_function_that_hangs_is_ended_after_the_rewards_time_limit() -> None:
    forever = threading.Event()

    def hangs(completions: list[Any]) -> list[float]:
        forever.wait(60)
        return [0.0] * len(completions)

    metric = user_metrics(MetricSettings(), [hangs], timeout=0.2)[0]
    with pytest.raises(UserCodeError, match=r"metric hangs took longer than 0\.2 s \(reward\.timeout\)"):
        metric([], Bootstrap([], 1, 0))
    forever.set()
