"""A setting that does nothing beside the others is refused, or told in a note where algorithms are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxlm.config import (
    JOBS,
    DataSettings,
    DemoConfig,
    ModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    PPOConfig,
    PPOSettings,
    RewardSettings,
    load_config,
    validate,
)
from proxlm.config.no_effect import SWITCHES, unused_by_algorithm, without_effect
from proxlm.config.tree import known_keys
from proxlm.errors import ConfigError

NEEDED = {
    "ppo": {"model.policy": "m", "data.prompts": "p"},
    "sft": {"model.policy": "m", "text.train": ["t"]},
    "pretrain": {"text.train": ["t"]},
    "reward": {"model.policy": "m", "text.train": ["t"]},
    "evaluate": {"models": ["m"], "data.eval_prompts": "p"},
    "generate": {"model.policy": "m"},
    "control": {"environment.id": "CartPole-v1"},
    "demo": {},
}
LORA, VALUE = "model.lora.", "model.value."
# Job, what is given, the setting that needs another one, that one, and a value with which all is well.
CASES = [
    ("ppo", {LORA + "alpha": 8.0}, LORA + "alpha", LORA + "rank", 2),
    ("ppo", {LORA + "targets": ["q_proj"]}, LORA + "targets", LORA + "rank", 2),
    ("sft", {LORA + "variant": "dora"}, LORA + "variant", LORA + "rank", 2),
    ("pretrain", {"model.policy": "m", LORA + "alpha": 1.0}, LORA + "alpha", LORA + "rank", 2),
    ("ppo", {VALUE + "low": -1.0}, VALUE + "low", VALUE + "head", "categorical"),
    ("ppo", {VALUE + "sigma": 0.0}, VALUE + "sigma", VALUE + "head", "categorical"),
    ("pretrain", {"model.policy": "m", "new.hidden": 32}, "new.hidden", "model.policy", ""),
    ("ppo", {"environment.max_turns": 2}, "environment.max_turns", "environment.use", "number_game"),
    ("evaluate", {"environment.args": {"a": 1}}, "environment.args", "environment.use", "number_game"),
    ("ppo", {"reward.error_score": -1.0}, "reward.error_score", "reward.on_error", "score"),
    ("evaluate", {"reward.memory_gb": 1.0}, "reward.memory_gb", "reward.isolate", True),
    ("ppo", {"shaping.reference_samples": 8}, "shaping.reference_samples", "shaping.scale", "reference"),
    ("ppo", {"shaping.missing_eos_penalty": 2.0}, "shaping.missing_eos_penalty", "shaping.missing_eos", "replace"),
    ("ppo", {"shaping.overlong_penalty": 2.0}, "shaping.overlong_penalty", "shaping.overlong_buffer", 4),
    ("ppo", {"ppo.kl_target": 1.0}, "ppo.kl_target", "ppo.kl_controller", "adaptive"),
    ("ppo", {"ppo.kl_coef": 0.0, "ppo.kl_controller": "adaptive"}, "ppo.kl_controller", "ppo.kl_coef", 0.1),
    ("ppo", {"ppo.kl_lam": 0.5}, "ppo.kl_lam", "ppo.kl_in", "advantage"),
    ("ppo", {"ppo.entropy_floor": 0.5}, "ppo.entropy_floor", "ppo.entropy_coef", 0.1),
    ("ppo", {"ppo.positive_threshold": 0.5}, "ppo.positive_threshold", "ppo.positive_coef", 0.1),
    (
        "ppo",
        {"ppo": {"positive_coef": 0.1, "samples_per_prompt": 2, "positive_threshold": 0.5, "positive": "best"}},
        "ppo.positive_threshold",
        "ppo.positive",
        "threshold",
    ),
    ("ppo", {"ppo.samples_per_prompt": 2, "ppo.filter_rounds": 9}, "ppo.filter_rounds", "ppo.filter_groups", True),
    ("ppo", {"ppo.covariance.share": 0.1}, "ppo.covariance.share", "ppo.loss", "clip_cov"),
    ("ppo", {"ppo.covariance.low": 0.1, "ppo.loss": "kl_cov"}, "ppo.covariance.low", "ppo.loss", "clip_cov"),
    ("ppo", {"ppo.covariance.kl_factor": 2.0}, "ppo.covariance.kl_factor", "ppo.loss", "kl_cov"),
    ("ppo", {"ppo.trpo.delta": 0.1}, "ppo.trpo.delta", "ppo.loss", "trpo"),
    ("ppo", {"ptx.text": ["t"]}, "ptx.text", "ptx.coef", 0.1),
    (
        "ppo",
        {"run.keep_best_is": "lowest", "run.keep_best": "none"},
        "run.keep_best_is",
        "run.keep_best",
        "kl",
    ),
    ("control", {"run.watchdog_stop": True, "run.watchdog": 0.0}, "run.watchdog_stop", "run.watchdog", 1.0),
    ("sft", {"run.accept_changes": True}, "run.accept_changes", "run.resume", True),
    (
        "sft",
        {"text.validation": ["v"], "text.validation_share": 0.5},
        "text.validation_share",
        "text.validation",
        [],
    ),
    ("sft", {"optim.half_life": 5.0}, "optim.half_life", "optim.schedule", "inverse-time"),
    (
        "ppo",
        {"optim.critic.final": 0.5, "optim.critic.schedule": "constant"},
        "optim.critic.final",
        "optim.critic.schedule",
        "cosine",
    ),
    ("control", {"optim.policy.stages": {"3": 0.5}}, "optim.policy.stages", "optim.policy.schedule", "staged"),
    ("reward", {"labels.classes": ["a", "b"]}, "labels.classes", "objective.kind", "classes"),
    ("reward", {"labels.separator": "|"}, "labels.separator", "objective.kind", "steps"),
    ("reward", {"labels.score_fields": ["a"]}, "labels.score_fields", "objective.kind", "scores"),
    (
        "reward",
        {"text.chosen_field": "a", "objective.kind": "steps"},
        "text.chosen_field",
        "objective.kind",
        "comparisons",
    ),
    ("reward", {"text.slice_field": "a", "objective.kind": "steps"}, "text.slice_field", "objective.kind", "classes"),
    (
        "reward",
        {"objective.huber_delta": 2.0, "objective.kind": "scores"},
        "objective.huber_delta",
        "objective.score_loss",
        "huber",
    ),
    ("reward", {"ensemble.boosting": True}, "ensemble.boosting", "ensemble.size", 2),
    ("reward", {"ensemble.bagging": False}, "ensemble.bagging", "ensemble.size", 2),
    ("reward", {"ensemble.save": "average"}, "ensemble.save", "ensemble.size", 2),
    *(
        ("evaluate", {key: value, "perplexity.text": ["t"], **more}, key, "perplexity.text", [])
        for key, value, more in (
            ("rollout.max_new_tokens", 7, {}),
            ("rollout.stop", ["x"], {}),
            ("data.eval_prompts", "nowhere.jsonl", {}),
            ("data.eval_count", 3, {"data.eval_prompts": ""}),
            ("greedy", False, {"data.eval_prompts": ""}),
            ("model.teacher", "t", {"data.eval_prompts": ""}),
        )
    ),
    *(
        ("evaluate", {key: value, "choices.field": "c"}, key, "choices.field", "")
        for key, value in (("rollout.temperature", 0.5), ("greedy", False), ("model.teacher", "t"))
    ),
    ("generate", {"data.prompts": "p", "output": "o", "prompt": "x"}, "output", "prompt", ""),
    ("demo", {"minutes": 3.0, "chat": True}, "minutes", "chat", False),
]  # fmt: skip

# What is needed besides.
AND: dict[tuple[str, str], dict[str, Any]] = {
    (key, "perplexity.text"): {"data.eval_prompts": "p"}
    for key in ("data.eval_count", "greedy", "model.teacher")
} | {("ensemble.save", "ensemble.size"): {"model.lora.rank": 0}}


@pytest.mark.parametrize(("job", "given", "key", "needs", "value"), CASES)
def test_it_is_refused_by_name_and_taken_with_what_it_needs(
    job: str, given: dict[str, Any], key: str, needs: str, value: Any
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(job, None, NEEDED[job] | given)
    message = str(caught.value)
    assert message.startswith(f"overrides: {key} = "), message
    assert f"has no effect with {needs} = " in message
    assert "leave it out, or set that to " in message
    assert len(message) <= 300
    load_config(job, None, NEEDED[job] | given | {needs: value, **AND.get((key, needs), {})})


def test_a_new_models_sizes_need_its_type() -> None:
    for given in ({"scratch.layers": 2}, {"scratch": {"context": 64, "tie_embeddings": False}}):
        with pytest.raises(ConfigError, match=r'has no effect with scratch\.type = ""; leave it out'):
            load_config("sft", None, NEEDED["sft"] | given)
        load_config("sft", None, NEEDED["sft"] | given | {"scratch.type": "llama", "model.policy": ""})


ADAPTIVE = """
[model]
policy = "m"
[data]
prompts = "p"
[ppo]
kl_coef = 0.03
kl_controller = "adaptive"
kl_target = 3.0
kl_horizon = 512
"""


def recipe(folder: Path, text: str = ADAPTIVE) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text, "utf-8")
    return file


@pytest.mark.parametrize("by", ["arguments", "overrides"])
def test_a_switch_is_turned_off_over_a_recipe_and_what_needed_it_has_its_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    file = recipe(tmp_path)
    off = (
        {"arguments": ["--ppo.kl_controller", "fixed"]}
        if by == "arguments"
        else {"overrides": {"ppo.kl_controller": "fixed"}}
    )
    found = load_config("ppo", file, **off).ppo
    assert (found.kl_controller, found.kl_coef) == ("fixed", 0.03)
    assert (found.kl_target, found.kl_horizon) == (PPOSettings().kl_target, PPOSettings().kl_horizon)
    captured = capsys.readouterr()
    assert captured.out == ""
    line = 'left out, as it has no effect with ppo.kl_controller = "fixed": ppo.kl_target, ppo.kl_horizon'
    assert captured.err == f"note: {file}: {line}\n"


def test_what_a_left_out_setting_switches_is_left_out_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load_config("ppo", recipe(tmp_path), arguments=["--ppo.kl_coef", "0"]).ppo
    assert (found.kl_coef, found.kl_controller, found.kl_target) == (0.0, "fixed", PPOSettings().kl_target)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines] == [
        "ppo.kl_controller",
        "ppo.kl_target, ppo.kl_horizon",
    ]


def test_what_the_same_source_says_is_still_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--ppo.kl_controller", "fixed", "--ppo.kl_target", "4"]
    with pytest.raises(ConfigError, match=r"command line: ppo\.kl_target = 4\.0: has no effect with"):
        load_config("ppo", recipe(tmp_path), arguments=given)
    # A recipe whose settings do nothing by themselves is wrong, whatever else the command line says.
    idle = ADAPTIVE.replace('"adaptive"', '"fixed"')
    for more in ([], ["--ppo.steps", "3"], ["--ppo.kl_target", "3"]):
        with pytest.raises(ConfigError, match=r"ppo\.kl_target = 3\.0: has no effect with"):
            load_config("ppo", recipe(tmp_path, idle), arguments=more)
    capsys.readouterr()
    load_config("ppo", recipe(tmp_path), arguments=["--ppo.kl_target", "4"])
    load_config("ppo", recipe(tmp_path), arguments=["--ppo.kl_controller", "adaptive"])
    assert capsys.readouterr().err == ""


def test_a_table_of_a_recipe_is_left_out_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '[environment]\nuse = "number_game"\nmax_turns = 3\n[environment.args]\nhighest = 4\n'
    off = {**NEEDED["ppo"], "environment.use": "", "reward.use": "length"}
    found = load_config("ppo", recipe(tmp_path, text), off)
    assert (found.environment.args, found.environment.max_turns) == ({}, type(found.environment)().max_turns)
    assert "environment.args" in capsys.readouterr().err
    mapping = {"environment": {"use": "number_game", "args": {"highest": 4}}}
    assert load_config("ppo", mapping, off).environment.args == {}
    assert capsys.readouterr().err.startswith("note: the settings given: left out")


def test_every_switch_is_one_of_a_job() -> None:
    """A renamed setting would be a rule that never speaks."""
    known = {".".join(key) for kind in JOBS.values() for key in known_keys(kind)}
    for switch in SWITCHES:
        assert switch.key in known
        for name in switch.settings.split():
            assert f"{switch.section}.{name}".removeprefix(".") in known


@pytest.mark.parametrize("job", JOBS)
def test_defaults_are_not_given(job: str) -> None:
    assert without_effect(JOBS[job]()) == []


def test_the_default_of_a_section_is_not_given_either() -> None:
    """A job's optimiser falls to final = 0.1; one that is made in Python has 0."""
    constant = OptimiserSettings(lr=1e-3)
    assert without_effect(PPOConfig(optim=OptimisersSettings(constant, constant))) == []


def test_python_is_told_as_well() -> None:
    settings = PPOConfig(
        model=ModelSettings(policy="m"),
        data=DataSettings(prompts="p"),
        reward=RewardSettings(use="length", error_score=1.0),
    )
    with pytest.raises(ConfigError, match=r"PPOConfig: reward\.error_score = 1\.0: has no effect with"):
        validate(settings, {"model.policy": "model"})
    assert without_effect(DemoConfig(minutes=3.0)) == []


@pytest.mark.parametrize("job", ["evaluate", "generate"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.critic", "shared"),
        ("model.critic_from", "c"),
        ("model.value.heads", 2),
        ("model.lora.rank", 4),
        ("model.train_layers", 1),
        ("model.freeze", ["*"]),
    ],
)
def test_what_trains_a_model_is_refused_where_none_is_trained(job: str, key: str, value: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.\w+ = .*is about training, and this command trains nothing"
    ):
        load_config(job, None, NEEDED[job] | {key: value})


@pytest.mark.parametrize(
    ("settings", "notes"),
    [
        ({"lam": 0.9}, []),
        ({"advantage": "grpo"}, []),
        (
            {"advantage": "grpo", "lam": 0.9, "value_coef": 1.0},
            [("ppo.lam, ppo.value_coef", "advantage = grpo")],
        ),
        ({"advantage": "retrace", "trace_rho": 2.0}, [("ppo.trace_rho", "advantage = retrace")]),
        ({"loss": "dppo", "clip_low": 0.1}, [("ppo.clip_low", "loss = dppo")]),
        (
            {"advantage": "reinforce", "group_std": False, "loss": "pg", "dual_clip": 3.0},
            [("ppo.group_std", "advantage = reinforce"), ("ppo.dual_clip", "loss = pg")],
        ),
        ({"advantage": "mine.py:f", "loss": "mine.py:f", "group_std": False, "clip_low": 0.1}, []),
    ],
)
def test_what_an_algorithm_does_not_use_is_a_note(
    settings: dict[str, Any], notes: list[tuple[str, str]]
) -> None:
    found = list(unused_by_algorithm(PPOSettings(**settings)))
    assert found == [f"{names}: no effect with ppo.{algorithm}" for names, algorithm in notes]
