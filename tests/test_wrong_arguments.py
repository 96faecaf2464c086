"""Every public function refuses an argument of the wrong type: which one, what it was, what it should be."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import proxlm
from proxlm.config.signature import checked
from proxlm.errors import LONGEST_MESSAGE, ConfigError, UserError
from small_models import TEXTS
from test_public_api import SMALL, config, lengths

WRONG = [None, 5, -1, "", [], {}, object(), [5], {1: 2}, b"x", float("nan"), lengths]
# What is checked only where it is used: paths that may come to exist, and texts that are names.
LATER = ("tokenizer",)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Arguments with which each public function works."""
    policy = proxlm.new_model(TEXTS * 5, SMALL, proxlm.ModelSettings(device="cpu"))
    settings = config(tmp_path_factory.mktemp("wrong"), steps=1)
    models = proxlm.actor_critic(policy, settings)
    stream = proxlm.prompt_stream(["the cat", "a dog"], policy, settings)
    rollout = proxlm.sample(policy, stream.batch(0), settings)
    scores = proxlm.score(rollout, lengths)
    evaluation = proxlm.EvaluateConfig(rollout=settings.rollout, data=proxlm.DataSettings(eval_count=1))
    return {
        "train_tokenizer": {"texts": TEXTS, "vocabulary": 300, "context": 64},
        "tokenizer_report": {"tokenizer": policy.tokenizer, "texts": TEXTS},
        "new_tokens": {"tokenizer": policy.tokenizer, "texts": TEXTS, "count": 3},
        "extend_vocabulary": {"model": policy, "tokens": ["moonlight"]},
        "NativeEngine": {"model": policy, "settings": settings.rollout},
        "evaluate": {"models": [policy], "prompts": ["the cat"], "reward": lengths, "config": evaluation},
        "compare": {"runs": proxlm.evaluate([policy, policy], ["the cat"], lengths, evaluation)},
        "compress_model": {
            "model": "nowhere", "output": "smaller",
            "config": proxlm.CompressConfig(cost=proxlm.CostSettings(text=["nowhere"])),
        },
        "fit_classifiers": {
            "config": proxlm.ClassifyConfig(
                model="nowhere", data=proxlm.ClassTextSettings(train=["nowhere.jsonl"]), output="fitted"
            ),
        },
        "load_text_classifier": {"folder": "nowhere"},
        "export_model": {"model": policy, "output": "exported"},
        "generate": {"model": policy, "prompts": ["the cat"], "rollout": settings.rollout},
        "actor_critic": {"policy": policy, "config": settings},
        "load_model": {"model": policy},
        "new_model": {"texts": TEXTS, "new": SMALL},
        "prompt_stream": {"prompts": ["a"], "policy": policy, "config": settings},
        "sample": {"policy": policy, "prompts": stream.batch(0), "config": settings},
        "score": {"rollout": rollout, "reward": lengths},
        "save": {"policy": policy, "folder": tmp_path_factory.mktemp("saved") / "model"},
        "ControlTrainer": {"environment": "CartPole-v1"},
        "PPOTrainer": {"model": policy, "reward": lengths, "prompts": ["a"], "config": settings},
        "ValueTrainer": {"model": policy, "reward": lengths, "prompts": ["a"], "config": proxlm.ValueConfig()},
        "PretrainTrainer": {"texts": TEXTS},
        "SFTTrainer": {"model": policy, "train": [{"prompt": "a", "response": "b"}]},
        "DPOTrainer": {"model": policy, "train": [{"prompt": "a", "chosen": "b", "rejected": "c"}]},
        "DistillTrainer": {"teacher": policy, "student": policy, "prompts": ["a", "b"]},
        "RewardTrainer": {"model": policy, "train": [{"prompt": "a", "chosen": "b", "rejected": "c"}]},
        "load_run": {"folder": "nowhere"},
        "search_settings": {
            "base": proxlm.ControlConfig(
                environment=proxlm.GymSettings(id="CartPole-v1", count=1, steps=16),
                ppo=proxlm.ControlPPOSettings(horizon=8, minibatches=1),
            ),
            "space": {"ppo.lam": [0.9]},
            "config": proxlm.SearchConfig(folder="searched", trials=1),
        },
        "build_reward": {"config": proxlm.RewardSettings(), "function": lengths},
        "build_learner": {"models": models, "config": settings},
        "prepare": {
            "models": models, "rollout": rollout, "scores": scores, "config": settings,
        },
        "summarise": {"stats": []},
        "PromptStream": {"prompts": stream.prompts, "batch_size": 2, "seed": 0},
        "load_config": {"job": "ppo"},
        "validate": {"config": proxlm.ControlConfig()},
        "prepare_data": {"config": proxlm.CorpusConfig()},
        "update": {},
    }  # fmt: skip


# They are called in rewards and reports with what other functions return, and check nothing.
UNCHECKED = (
    "diagnose", "facts_of", "kept", "share_kept", "wording", "python_parse_report", "run_programs", "run_python",
)  # fmt: skip


def functions() -> Iterator[str]:
    """The public names that are called with arguments that are not records: functions, trainers, engines."""
    for name in proxlm.__all__:
        found = getattr(proxlm, name)
        if name in UNCHECKED:
            continue
        if inspect.isfunction(found) or name.endswith("Trainer") or name in ("NativeEngine", "PromptStream"):
            yield name


@pytest.mark.parametrize("name", [name for name in functions() if name != "update"])
def test_a_wrong_argument_is_an_error_of_ours(good: Any, name: str, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    function = getattr(proxlm, name)
    for parameter in inspect.signature(function).parameters:
        if parameter in LATER:
            continue
        messages = []
        for wrong in WRONG:
            if parameter == "on_progress" and wrong is lengths:  # a function is one, whatever it takes
                continue
            try:
                function(**{**good[name], parameter: wrong})
            except UserError as error:
                messages.append(str(error))
        assert len(messages) >= 5, f"{name}({parameter})"
        assert all(len(message) <= LONGEST_MESSAGE and "\n" not in message for message in messages)


@pytest.mark.parametrize(
    ("name", "argument", "wrong", "message"),
    [
        ("PPOTrainer", "environment", 5, "environment: expected a function or None, got 5"),
        ("PPOTrainer", "reward", {1: lengths}, "reward: expected a function or text or a list"),
        ("PPOTrainer", "advantage", "gae", "advantage: expected a function or None, got"),
        ("ControlTrainer", "environment", 5, "environment: expected text or a function or None, got 5"),
        ("evaluate", "models", [], "models: an empty list; there is nothing to evaluate"),
        ("new_model", "texts", 5, "texts: expected a list of texts, got 5"),
        ("new_model", "texts", "one", 'texts: expected a list of texts, got "one"'),
        ("new_model", "seed", 1.5, "seed: expected a whole number, got 1.5"),
        ("new_model", "new", {"hidden": 8}, "new: expected a NewModelSettings or None, got {hidden = 8}"),
        ("prepare", "config", {}, "config: expected a PPOConfig, got {}"),
        ("sample", "prompts", ["a"], "prompts: expected a list of Prompt objects, got"),
        ("sample", "step", -1, "step: steps are counted from 0, got -1"),
        ("save", "folder", "", 'folder: expected the path of a new folder, got ""'),
        ("load_run", "folder", 5, "folder: expected text or a path, got 5"),
    ],
)
def test_the_message_names_argument_value_and_what_it_should_be(
    good: Any, name: str, argument: str, wrong: Any, message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        getattr(proxlm, name)(**{**good[name], argument: wrong})
    assert str(raised.value).startswith(message)


def test_update_names_its_arguments() -> None:
    with pytest.raises(ConfigError, match=r"learner: expected a Learner, got 5"):
        proxlm.update(5, None)  # type: ignore[arg-type]


def test_what_fits_is_passed_on_as_it_is() -> None:
    import numpy

    @checked("own")
    def function(
        count: int, share: float = 0.5, *more: Any, own: Any = None, names: list[str] | None = None
    ) -> Any:
        return count, share, own, names

    assert function(numpy.int64(3), 1, own=5, names=["a"]) == (3, 1, 5, ["a"])  # type: ignore[arg-type]
    for wrong in (True, 1.5, "1"):
        with pytest.raises(ConfigError, match="count: expected a whole number"):
            function(wrong)
    with pytest.raises(ConfigError, match="names: expected a list of texts or None"):
        function(1, names="ab")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'count'"):
        function()
