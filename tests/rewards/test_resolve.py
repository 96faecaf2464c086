import functools
from pathlib import Path
from typing import Any

import pytest
from reward_helpers import own_folder, refused, totals, write

from proxlm.config.schema import RewardSettings, RewardTerm
from proxlm.errors import ConfigError
from proxlm.rewards import build_reward
from proxlm.rewards.builtin import BUILTINS
from proxlm.types import Completion


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_folder(tmp_path, monkeypatch)


def test_a_function_takes_the_place_of_use() -> None:
    def score(completions: list[Completion], bonus: float = 0.0) -> list[float]:
        return [len(c.text) + bonus for c in completions]

    assert totals(build_reward(RewardSettings(use="sentiment"), score)) == [1, 2, 3]
    assert totals(build_reward(RewardSettings(args={"bonus": 1.0}), score)) == [2, 3, 4]
    assert totals(build_reward(RewardSettings(), functools.partial(score, bonus=2))) == [3, 4, 5]
    assert totals(build_reward(RewardSettings(), lambda cs: [0.5] * len(cs))) == [0.5] * 3


def test_callable_objects_and_bound_methods_are_functions() -> None:
    class Scale:
        def __call__(self, completions: list[Completion]) -> list[float]:
            return [1.0] * len(completions)

        async def later(self, completions: list[Completion], by: float) -> list[float]:
            return [by] * len(completions)

    assert totals(build_reward(RewardSettings(), Scale())) == [1, 1, 1]
    assert totals(build_reward(RewardSettings(args={"by": 3.0}), Scale().later)) == [3, 3, 3]


def test_built_in_rewards_take_their_arguments() -> None:
    assert totals(build_reward(RewardSettings(use="regex", args={"pattern": "^.b"}))) == [0, 1, 0]
    config = RewardSettings(use="length", args={"target": 2, "unit": "characters", "tolerance": 2})
    assert totals(build_reward(config)) == [0.5, 1, 0.5]


def test_nothing_to_use() -> None:
    message = refused(ConfigError, RewardSettings())
    first, more = ", ".join(list(BUILTINS)[:8]), len(BUILTINS) - 8
    assert message == (
        "reward.use: required: a built-in reward, path/to/file.py:function, or reward.terms;"
        f" built in are {first} and {more} more (docs/rewards.md)"
    )
    assert {"sentiment", "regex", "reward_model", "reward_ensemble"} <= set(BUILTINS)


def test_two_things_to_use() -> None:
    terms = {"a": RewardTerm(use="sentiment")}
    assert "not both" in refused(ConfigError, RewardSettings(use="sentiment", terms=terms))
    assert "not both" in refused(ConfigError, RewardSettings(terms=terms), lambda cs: [0.0] * len(cs))
    message = refused(ConfigError, RewardSettings(terms=terms, weights={"a": 2.0}))
    assert message == "reward.weights: with terms, the weights are reward.terms.NAME.weight"


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list() -> None:
    message = refused(ConfigError, RewardSettings(use="sentimnet"))
    assert message.startswith(
        'reward.use = "sentimnet": no such built-in reward; did you mean sentiment? built'
    )
    assert "one of your own is path/to/file.py:function" in message
    assert "did you mean" not in refused(ConfigError, RewardSettings(use="xyz"))
    message = refused(ConfigError, RewardSettings(terms={"style": RewardTerm(use="regexp")}))
    assert message.startswith(
        'reward.terms.style.use = "regexp": no such built-in reward; did you mean regex?'
    )


@pytest.mark.parametrize(
    ("use", "args", "message"),
    [
        ("regex", {}, "reward.args.pattern: required by regex; it takes pattern, full"),
        (
            "regex",
            {"patern": "a"},
            "reward.args.patern: regex has no such argument; did you mean pattern? it takes pattern, full",
        ),
        (
            "sentiment",
            {"zzz": 1},
            "reward.args.zzz: sentiment has no such argument; it takes of",
        ),
        ("regex", {"pattern": 3}, "reward.args.pattern = 3: regex needs str here"),
        ("regex", {"pattern": "a", "full": 1}, "reward.args.full = 1: regex needs bool here"),
        ("length", {"target": True}, "reward.args.target = True: length needs int here"),
        ("length", {"target": 2.5}, "reward.args.target = 2.5: length needs int here"),
        (
            "length",
            {"target": 2, "tolerance": "1"},
            "reward.args.tolerance = '1': length needs float | None here",
        ),
        ("length", {"target": 0}, "reward.args.target = 0: must be at least 1"),
        (
            "length",
            {"target": 2, "unit": "bytes"},
            "reward.args.unit = 'bytes': length needs one of tokens, words, characters here",
        ),
        ("keyword", {"words": "cat"}, "reward.args.words = 'cat': keyword needs list[str] here"),
        ("keyword", {"words": ["cat", 3]}, "reward.args.words = ['cat', 3]: keyword needs list[str] here"),
        (
            "regex",
            {"pattern": "(a"},
            'reward.args.pattern = "(a": not a regular expression: '
            "missing ), unterminated subpattern at position 0",
        ),
        ("reward_model", {"path": "/no/such"}, 'reward.args.path = "/no/such": no such folder'),
    ],
)
def test_wrong_arguments_of_a_built_in_reward(use: str, args: dict[str, Any], message: str) -> None:
    assert refused(ConfigError, RewardSettings(use=use, args=args)) == message


def test_wrong_arguments_of_a_term_are_found_under_its_key() -> None:
    terms = {"good": RewardTerm(use="sentiment"), "bad": RewardTerm(use="length", args={"goal": 3})}
    message = refused(ConfigError, RewardSettings(terms=terms))
    assert message.startswith(
        "reward.terms.bad.args.goal: length has no such argument; it takes target, unit"
    )


def test_wrong_arguments_of_a_users_function() -> None:
    use = write("my.py", "def score(completions, scale, *, power=1): return [0.0] * len(completions)")
    config = RewardSettings(use=f"{use}:score", args={"scal": 2})
    assert refused(ConfigError, config) == (
        "reward.args.scal: my.py:score has no such argument; did you mean scale? it takes scale, power"
    )
    message = refused(ConfigError, RewardSettings(use=f"{use}:score", args={"power": 2}))
    assert message.startswith(
        "reward.args.scale: required by my.py:score; it takes scale, power; a record's fields"
    )
    config = RewardSettings(use=f"{use}:score", args={"scale": 2, "completions": 3})
    assert refused(ConfigError, config).startswith(
        "reward.args.completions: my.py:score has no such argument;"
    )


def test_a_function_with_keywords_takes_any_argument_but_the_completions() -> None:
    def score(completions: list[Completion], **more: float) -> list[float]:
        return [sum(more.values())] * len(completions)

    assert totals(build_reward(RewardSettings(args={"a": 1, "b": 2}), score)) == [3, 3, 3]
    message = refused(ConfigError, RewardSettings(args={"completions": []}), score)
    assert message.startswith("reward.args.completions:")


def no_argument() -> list[float]:
    return []


def keyword_only(*, completions: list[Completion]) -> list[float]:
    return [0.0 for _ in completions]


def two_by_position(completions: list[Completion], answers: list[str], /) -> list[float]:
    return [0.0 for _ in zip(completions, answers, strict=True)]


@pytest.mark.parametrize("function", [no_argument, keyword_only])
def test_a_function_that_takes_no_completions(function: Any) -> None:
    message = refused(ConfigError, RewardSettings(), function)
    assert message.startswith(f"reward.use: {function.__name__}(")
    assert message.endswith(" must take the list of completions as its first argument")


def test_a_function_that_needs_more_by_position() -> None:
    assert 'needs "answers" by position' in refused(ConfigError, RewardSettings(), two_by_position)


def test_what_is_no_function() -> None:
    use = write("my.py", "LIMIT = 3\nclass Helper: ...")
    message = refused(ConfigError, RewardSettings(use=f"{use}:LIMIT"))
    assert message == "reward.use: my.py:LIMIT is of type int, not a function"
    assert "is a class, not a function" in refused(ConfigError, RewardSettings(use=f"{use}:Helper"))
    assert refused(ConfigError, RewardSettings(), 3) == "reward.use: int is of type int, not a function"


def test_an_unknown_error_policy() -> None:
    config = RewardSettings(use="sentiment", on_error="ignore")  # type: ignore[arg-type]
    assert refused(ConfigError, config) == 'reward.on_error = "ignore": must be fail or score'


def trl(prompts: list[str], completions: list[str], **columns: list[str]) -> list[float]:
    return [float(len(c)) for c, _ in zip(completions, prompts, strict=True) if columns is not None]


def trl_with_ids(prompts, completions, completion_ids, answer, **more):  # type: ignore[no-untyped-def]
    return [0.0 for _ in completions]


@pytest.mark.parametrize("function", [trl, trl_with_ids])
def test_the_signature_of_another_library_is_named(function: Any) -> None:
    message = refused(ConfigError, RewardSettings(), function)
    assert message.startswith(
        f"reward.use: {function.__name__} has the signature of TRL's rewards; here it gets"
    )
    assert len(message) <= 300


def test_columns_as_arguments_are_explained() -> None:
    def score(completions: list[str], answer: list[str]) -> list[float]:
        return [0.0 for _ in zip(completions, answer, strict=True)]

    assert "a record's fields are in completion.fields" in refused(ConfigError, RewardSettings(), score)
