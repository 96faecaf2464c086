"""Tasks of reasoning-gym as records, and the verifier of each as a reward."""

import sys
from importlib.util import find_spec

import pytest

from proxlm.config import RewardSettings
from proxlm.data.records import iter_records
from proxlm.errors import DataError, RewardError
from proxlm.rewards.gym_reward import reasoning_gym
from proxlm.types import Completion

SUM = "reasoning-gym:chain_sum?size=5&seed=1&min_terms=2&max_terms=2"

needs_package = pytest.mark.skipif(
    find_spec("reasoning_gym") is None, reason="the package reasoning-gym is not installed"
)


def completion(text: str, **fields: object) -> Completion:
    return Completion("", text, fields=fields)


@needs_package
def test_a_name_stands_for_the_same_questions_each_time():
    first, again = (list(iter_records(SUM)) for _ in range(2))
    assert [record.fields for record in first] == [record.fields for record in again]
    assert [record.fields["index"] for record in first] == [0, 1, 2, 3, 4]
    other = list(iter_records(SUM.replace("seed=1", "seed=2")))
    assert [r.fields["prompt"] for r in other] != [r.fields["prompt"] for r in first]
    # What is asked can be computed from the question itself.
    for record in first:
        terms = record.fields["prompt"].split(":")[1].removesuffix("=").split()
        left, sign, right = int(terms[0]), terms[1], int(terms[2])
        assert record.fields["response"] == str(left + right if sign == "+" else left - right)


@needs_package
def test_the_verifier_scores_the_answer():
    score = reasoning_gym()
    records = [record.fields for record in iter_records(SUM)]
    right = [completion(f" {fields['response']}\n", **fields) for fields in records]
    wrong = [completion(f"{int(fields['response']) + 1}", **fields) for fields in records]
    assert score(right) == [1.0] * 5
    assert max(score(wrong)) < 0.1
    # A record belongs to its own question.
    moved = dict(records[0], index=1)
    assert score([completion(records[0]["response"], **moved)])[0] < 0.1


@needs_package
@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<answer>{}</answer>", True),
        ("I think 3. <answer> {} </answer> So.", True),
        ("<answer>0.5</answer> no: <answer>{}</answer>", True),
        ("<answer>{}</answer> no: <answer>0.5</answer>", False),
        ("<answer> <answer>{}</answer>", True),
        ("{}", False),
        ("<answer>{}", False),
        ("", False),
    ],
)
def test_with_a_tag_the_last_one_counts(text, right):
    fields = next(iter_records(SUM)).fields
    [value] = reasoning_gym(answer_tag="answer")([completion(text.format(fields["response"]), **fields)])
    assert (value == 1.0) is right


@needs_package
def test_what_no_task_is_named_by_is_counted_as_failed():
    score = reasoning_gym()
    for fields in (
        {"task": SUM},
        {"task": "chain_sum", "index": 0},
        {"task": SUM, "index": "0"},
        {"task": SUM, "index": True},
        {"task": SUM, "index": 99},
        {"task": "reasoning-gym:nothing", "index": 0},
    ):
        [value] = score([completion("1", **fields)])
        assert isinstance(value, RewardError), fields


@needs_package
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reasoning-gym:chain_sums", r"no such task; did you mean chain_sum\?"),
        ("reasoning-gym:", "no such task"),
        ("reasoning-gym:chain_sum?size=0", "size = 0: must be a whole number from 1"),
        ("reasoning-gym:chain_sum?size=many", "size = 'many'"),
        ("reasoning-gym:chain_sum?size", "after the . stand arguments"),
        ("reasoning-gym:chain_sum?terms=2", "unexpected keyword argument 'terms'"),
        ("reasoning-gym:chain_sum?min_terms=-1", "min_terms must be positive"),
    ],
)
def test_a_wrong_name_is_one_line(name, message):
    with pytest.raises(DataError, match=message) as caught:
        next(iter_records(name))
    assert str(caught.value).startswith(name)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(DataError, match=r'pip install "proxlm\[tasks\]"'):
        next(iter_records("reasoning-gym:chain_sum?size=7"))


def test_a_name_is_no_path(tmp_path, monkeypatch):
    """A recipe's folder is not put in front of it."""
    from proxlm.config import load_config

    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[model]\npolicy = "m"\n[data]\nprompts = "{SUM}"\n[reward]\nuse = "reasoning_gym"\n')
    config = load_config("ppo", recipe)
    assert config.data.prompts == SUM
    assert isinstance(config.reward, RewardSettings)
