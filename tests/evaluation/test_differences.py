"""Differences between the responses of systems: which numbers are compared, how rows meet, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from proxlm.errors import DataError
from proxlm.evaluation.differences import Arm, as_text, differences, values_of
from proxlm.evaluation.paired import bootstrap_difference, sign_flip_p


def row(number: int, reward: float | None, **more: Any) -> dict[str, Any]:
    return {"prompt_id": number, "prompt": f"p{number}", "response": "x", "reward": reward, **more}


def test_every_number_of_a_response_is_compared() -> None:
    found = values_of(
        row(
            0,
            1.5,
            components={"polite": 1.0, "short": None},
            kl=2.0,
            length=7,
            finish="eos",
            metrics={"task/exact_match": True, "choice/accuracy": 0.5},
            greedy={
                "reward": 2.5,
                "components": {"polite": 1.0, "short": 0.5},
                "finish": "length",
                "length": 9,
            },
        )
    )
    assert found == {
        "reward": 1.5, "reward/polite": 1.0, "kl": 2.0, "length": 7.0, "ended_share": 1.0,
        "task/exact_match": 1.0, "choice/accuracy": 0.5,
        "greedy/reward": 2.5, "greedy/reward/polite": 1.0, "greedy/reward/short": 0.5, "greedy/length": 9.0,
        "greedy/ended_share": 0.0,
    }  # fmt: skip
    judged = {"record": "f:1", "prompt": "p", "chosen_score": 1.0, "rejected_score": 3.0}
    assert values_of(judged) == {"accuracy": 0.0, "margin": -2.0}


def test_differences_are_those_of_the_paired_functions_with_holms_correction() -> None:
    one = [row(i, i / 10, kl=0.0, length=5) for i in range(12)]
    other = [row(i, i / 10 + (0.2 if i % 3 else -0.1), kl=1.0 + i, length=5) for i in reversed(range(12))]
    reward, kl, length = differences([Arm("a", [one]), Arm("b", [other])], seed=3)
    leads = [0.2 if i % 3 else -0.1 for i in range(12)]
    assert reward.estimate.mean == pytest.approx(0.1)
    assert reward.estimate.low == pytest.approx(bootstrap_difference(leads, 3).low)
    assert reward.p == pytest.approx(sign_flip_p(leads))
    assert (reward.higher, reward.lower, reward.prompts) == (8, 4, 12)
    assert kl.p == pytest.approx(2 / 2**12)
    # Two tests, for the length differs nowhere: the smaller p times 2, the other as it is.
    assert (kl.adjusted, reward.adjusted) == (pytest.approx(4 / 2**12), reward.p)
    assert (length.p, length.adjusted, length.estimate.mean) == (None, None, 0.0)
    assert "Holm: corrected for the 2 tests" in as_text([reward, kl, length])


def test_a_response_without_a_reward_leaves_its_prompt_out() -> None:
    one, other = [row(i, 1.0) for i in range(4)], [row(i, None if i == 2 else 3.0) for i in range(4)]
    (reward,) = differences([Arm("a", [one]), Arm("b", [other])])
    assert (reward.prompts, reward.estimate.mean) == (3, 2.0)
    assert differences([Arm("a", [one]), Arm("b", [[row(i, None) for i in range(4)]])]) == []
    assert "nothing to compare" in as_text([])


def test_several_responses_to_a_prompt_are_one_prompt() -> None:
    one = [row(i, float(i)) for i in range(4) for _ in range(3)]
    other = [row(i, i + lead) for i in range(4) for lead in (0.0, 1.0)]
    (reward,) = differences([Arm("a", [one]), Arm("b", [other])])
    assert (reward.prompts, reward.estimate.mean, reward.p) == (4, 0.5, 2 / 2**4)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([row(0, 1.0), row(1, 1.0)], "1 of 3 are in the first alone and 0 in the other; a alone has 2"),
        ([row(0, 1.0), row(1, 1.0), row(3, 1.0)], "1 of 3 are in the first alone and 1 in the other"),
        ([{**row(i, 1.0), "prompt": "q"} for i in range(3)], "3 of 3"),  # the same ids, other texts
        (
            [row(i, 1.0) for i in (0, 1, 2, 5)],
            "0 of 3 are in the first alone and 1 in the other; b alone has 5",
        ),
        ([], "no responses"),
        ([{"step": 1, "loss": 2.0}], 'row 1 has no "prompt"'),
    ],
)
def test_other_prompts_are_refused(other: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said) as refused:
        differences([Arm("a", [[row(i, 1.0) for i in range(3)]]), Arm("b", [other])])
    assert len(str(refused.value)) <= 300


def test_arms_of_several_seeds() -> None:
    def seeds(*levels: float) -> list[list[dict[str, Any]]]:
        return [[row(i, level + i) for i in range(20)] for level in levels]

    (reward,) = differences([Arm("a", seeds(0.0, 0.1, 0.2)), Arm("b", seeds(1.0, 1.1, 1.2))])
    assert reward.estimate.mean == pytest.approx(1.0)
    assert reward.p == reward.adjusted == pytest.approx(0.1)  # however far apart they are
    assert reward.seeds is not None
    # Welch: 4 degrees of freedom, t = 2.776, both variances 0.01.
    assert reward.seeds.high - reward.seeds.mean == pytest.approx(2.776 * (2 * 0.01 / 3) ** 0.5, rel=1e-2)
    assert "over seeds" in as_text([reward])


RIGHT = [
    "the cat sat on the mat",
    "a dog ran in the park today",
    "she sells shells by the sea",
    "one two three four",
]


def translated(answers: list[str], **more: Any) -> list[dict[str, Any]]:
    found = []
    for i, text in enumerate(answers):
        said = {"answer": text, "right": [RIGHT[i % 4]], "of_all": {"bleu": "en", "chrf": "en"}}
        found.append(row(i, 0.0, **said, greedy=said) | more)
    return found


def test_bleu_and_chrf_are_compared_by_sacrebleus_own_test() -> None:
    good = [RIGHT[i % 4] if i % 3 else "what is this" for i in range(40)]
    bad = [RIGHT[i % 4] if i % 5 == 0 else "the " + RIGHT[(i + 1) % 4] for i in range(40)]
    found = {
        d.metric: d for d in differences([Arm("bad", [translated(bad)]), Arm("good", [translated(good)])])
    }
    assert {"task/bleu", "task/chrf", "greedy/task/bleu", "greedy/task/chrf"} <= set(found)
    references = [[RIGHT[i % 4] for i in range(40)]]
    for name, metric in (("bleu", BLEU(force=True)), ("chrf", CHRF())):
        one = found[f"task/{name}"]
        lead = metric.corpus_score(good, references).score - metric.corpus_score(bad, references).score
        assert one.estimate.mean == pytest.approx(lead, abs=1e-9)
        assert one.estimate.low < lead < one.estimate.high
        assert one.p is not None
        assert 0 < one.p < 0.01
        assert (one.higher, one.lower, one.prompts) == (None, None, 40)
    assert "–" in as_text([found["task/bleu"]])
    # The same answers differ in nothing, and nothing is tested; other right answers are no pair.
    same = differences([Arm("a", [translated(good)]), Arm("b", [translated(good)])])
    assert [d.p for d in same if d.metric == "task/bleu"] == [None]


@pytest.mark.parametrize(
    "more", [{"right": []}, {"right": None}, {"of_all": {"rm": "en"}}, {"of_all": 3}, {"right": [3]}]
)
def test_rows_that_lack_what_bleu_needs_are_not_compared_by_it(more: dict[str, Any]) -> None:
    arms = [Arm(name, [translated(["the cat", "a dog"], **more)]) for name in "ab"]
    assert not [d for d in differences(arms) if d.metric == "task/bleu"]
