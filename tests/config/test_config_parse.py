"""Where settings come from, which wins, and the exact text of every error."""

import tomllib
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import proxlm
from proxlm.config import (
    JOBS,
    EvaluateConfig,
    GenerateConfig,
    PlanConfig,
    PPOConfig,
    PPOSettings,
    RewardTerm,
    load_config,
    to_toml,
)
from proxlm.config.other_names import OTHER_NAMES
from proxlm.config.recipe import settings_of_recipe
from proxlm.config.tree import known_keys
from proxlm.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
NEEDED = {"model.policy": "base", "data.prompts": "prompts.jsonl"}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(text: str | bytes, name: str = "x.toml") -> str:
    """Write a recipe that holds what PPO needs, besides `text`, and return its path."""
    data = text if isinstance(text, bytes) else text.encode()
    Path(name).write_bytes(b'model.policy = "base"\ndata.prompts = "prompts.jsonl"\n' + data)
    return name


def error(job: Any = "ppo", *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(job, *args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what wins ---


def test_each_source_wins_over_the_one_before() -> None:
    assert load_config("ppo", overrides=NEEDED).ppo.lam == 0.95
    file = recipe("[ppo]\nlam = 0.1\ngamma = 0.5\nsteps = 7\n")
    assert load_config("ppo", file).ppo.lam == 0.1
    ppo = load_config("ppo", file, {"ppo.lam": 0.2, "ppo.gamma": 0.6}).ppo
    assert (ppo.lam, ppo.gamma, ppo.steps) == (0.2, 0.6, 7)
    ppo = load_config("ppo", file, {"ppo.lam": 0.2, "ppo.gamma": 0.6}, ["--ppo.lam", "0.3"]).ppo
    assert (ppo.lam, ppo.gamma, ppo.steps) == (0.3, 0.6, 7)


def test_what_is_not_given_keeps_the_default_of_the_job_not_of_the_section() -> None:
    config = load_config("ppo", overrides={**NEEDED, "optim.critic.warmup": 3})
    assert config == replace(
        PPOConfig(),
        model=replace(PPOConfig().model, policy="base"),
        data=replace(PPOConfig().data, prompts="prompts.jsonl"),
        optim=replace(PPOConfig().optim, critic=replace(PPOConfig().optim.critic, warmup=3)),
    )
    assert config.optim.critic.lr == 1e-5


def test_a_job_is_named_or_given_as_its_class() -> None:
    assert load_config(PPOConfig, overrides=NEEDED) == load_config("ppo", overrides=NEEDED)


def test_dotted_keys_set_one_entry_of_a_table_and_a_whole_table_replaces_it() -> None:
    file = recipe('[reward]\nuse = "length"\nargs = {low = 1, high = 2}\n')
    assert load_config("ppo", file, {"reward.args.high": 3}).reward.args == {"low": 1, "high": 3}
    assert load_config("ppo", file, {"reward.args": {"high": 3}}).reward.args == {"high": 3}
    assert load_config("ppo", file, {"reward.args.a.b": 1}).reward.args == {
        "low": 1,
        "high": 2,
        "a": {"b": 1},
    }


def test_terms_are_merged_field_by_field() -> None:
    file = recipe(
        '[reward.terms.long]\nuse = "length"\nargs = {target = 4}\n[reward.terms.nice]\nuse = "sentiment"'
    )
    terms = load_config("ppo", file, {"reward.terms.long.weight": 0.1}).reward.terms
    assert terms == {"long": RewardTerm("length", 0.1, {"target": 4}), "nice": RewardTerm("sentiment")}


def test_overrides_take_python_objects_and_copy_them() -> None:
    words = ["a"]
    overrides = {
        **NEEDED,
        "model.policy": PurePosixPath("some/model"),
        "rollout": {"stop": ("x", "y"), "temperature": 2},
        "ppo": PPOSettings(steps=3),
        "reward.terms": {"t": RewardTerm("keyword", 2, {"words": words})},
    }
    config = load_config("ppo", overrides=overrides)
    words.append("b")
    assert config.model.policy == "some/model"
    assert config.rollout.stop == ["x", "y"]
    assert repr(config.rollout.temperature) == "2.0"
    assert config.ppo == PPOSettings(steps=3)
    assert config.reward.terms == {"t": RewardTerm("keyword", 2.0, {"words": ["a"]})}


def test_a_byte_order_mark_is_no_part_of_the_recipe() -> None:
    Path("x.toml").write_bytes(b'\xef\xbb\xbfmodel.policy = "m"\ndata.prompts = "p"\n')
    assert load_config("ppo", "x.toml").model.policy == "m"


# --- a run's folder for evaluate and generate ---

RUN = """
[model]
policy = "base"
critic = "shared"
[data]
prompts = "p.jsonl"
[rollout]
max_new_tokens = 9
[reward]
use = "sentiment"
[ppo]
steps = 3
[optim.policy]
lr = 1.0
[run]
folder = "runs/a"
"""


@pytest.fixture
def run_folder(tmp_path: Path) -> str:
    (tmp_path / "runs/a/policy").mkdir(parents=True)
    (tmp_path / "runs/a/config.toml").write_text(RUN)
    return "runs/a"


def test_evaluate_measures_a_runs_policy_against_its_base(run_folder: str) -> None:
    config = load_config("evaluate", arguments=[run_folder, "--samples", "5"])
    assert (config.model.policy, config.models) == ("base", ["runs/a/policy"])
    assert (config.data.prompts, config.rollout.max_new_tokens) == (str(Path("runs/a/p.jsonl").resolve()), 9)
    assert (config.reward.use, config.samples) == ("sentiment", 5)
    assert config == load_config(EvaluateConfig, Path(run_folder), {"samples": 5})


def test_generate_uses_a_runs_policy(run_folder: str) -> None:
    config = load_config(GenerateConfig, arguments=[run_folder, "--prompt", "Once"])
    assert config.model.policy == "runs/a/policy"
    assert (config.rollout.max_new_tokens, config.prompt) == (9, "Once")
    assert config.model.critic == "separate"  # the default: the run's is about training


def test_a_misspelt_key_in_a_section_that_is_used_is_still_an_error(run_folder: str) -> None:
    Path("runs/a/config.toml").write_text(RUN.replace("max_new_tokens", "max_new_token"))
    assert error("generate", run_folder) == (
        "runs/a/config.toml: rollout.max_new_token: unknown key; did you mean rollout.max_new_tokens?"
    )


@pytest.mark.usefixtures("run_folder")
def test_folders_that_are_no_recipe() -> None:
    assert error("evaluate", "runs") == "runs: not a run's folder: it holds no config.toml"
    assert error("ppo", "runs") == "runs: a folder, but a TOML file is needed"
    assert error("ppo", "runs/a") == (
        "runs/a: a folder, but a TOML file is needed; did you mean runs/a/config.toml?"
    )
    with pytest.raises(ConfigError, match=r"^runs/a: a folder, .* did you mean runs/a/config\.toml"):
        settings_of_recipe(PlanConfig(recipe="runs/a"))  # its line `job` is wanted first


def test_sections_of_another_job_are_not_ignored_in_a_recipe() -> None:
    Path("x.toml").write_text(RUN)
    assert error("generate", "x.toml") == (
        "x.toml: ppo: unknown key; allowed here: model, data, rollout, models, pick, reward, prompt, output, seed,"
        " run"
    )


# --- errors: files ---


def test_files_that_cannot_be_read() -> None:
    assert error("ppo", "no.toml") == "no.toml: no such file"
    Path("plain").write_text("")
    assert error("ppo", "plain/x.toml") == "plain/x.toml: cannot be read: Not a directory"
    assert error("ppo", recipe(b"\n\xff = 1")) == "x.toml: line 4: not UTF-8 text"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[ppo]\nlam = oops\n", "line 4: not valid TOML: Invalid value"),
        ("[ppo]\nlam = 1\nlam = 0\n", "line 5: not valid TOML: Cannot overwrite a value"),
        ("[ppo]\nlam = ", "line 4: not valid TOML: Invalid value"),
        ("a = " + "[" * 5000, "not valid TOML: nested too deeply"),
        ("a = " + "9" * 5000, "line 3: not valid TOML: Exceeds the limit (4300 digits)"),
    ],
)
def test_broken_toml_is_named_with_its_line(text: str, message: str) -> None:
    assert error("ppo", recipe(text)).startswith(f"x.toml: {message}")


# --- errors: keys and values ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[ppo]\nkl_coeff = 1", "ppo.kl_coeff: unknown key; did you mean ppo.kl_coef?"),
        ("[ppo]\nkl-coef = 1", "ppo.kl-coef: unknown key; did you mean ppo.kl_coef?"),
        ("[pppo]\nkl_coef = 1", "pppo: unknown key; did you mean ppo?"),
        ("kl_coef = 1", "kl_coef: unknown key; did you mean ppo.kl_coef?"),
        ("kl_coeff = 1", "kl_coeff: unknown key; did you mean ppo.kl_coef?"),
        ("[ppo]\ntemperature = 1", "ppo.temperature: unknown key; did you mean rollout.temperature?"),
        ("[optim]\nlr = 1", "optim.lr: unknown key; did you mean optim.policy.lr or optim.critic.lr?"),
        (
            "[reward.terms.a]\nwieght = 1",
            "reward.terms.a.wieght: unknown key; did you mean reward.terms.a.weight?",
        ),
        (
            "[reward.terms.'a.b']\nxyz = 1",
            'reward.terms."a.b".xyz: unknown key; allowed here: use, weight, args, potential',
        ),
        ("[ppo]\nlam = 1.5", "ppo.lam = 1.5: must be at most 1"),
        ("[ppo]\nlam = nan", "ppo.lam = nan: must be at least 0 and at most 1"),
        ("[reward]\nerror_score = inf", "reward.error_score = inf: must be a finite number"),
        ("[ppo]\nsteps = 0", "ppo.steps = 0: must be at least 1"),
        ("[rollout]\ntop_p = 0", "rollout.top_p = 0.0: must be more than 0"),
        ("[rollout]\nmin_p = 1", "rollout.min_p = 1.0: must be less than 1"),
        ('[ppo]\nsteps = "abc"', 'ppo.steps: expected a whole number, got "abc"'),
        ("[ppo]\nsteps = 10.0", "ppo.steps: expected a whole number, got 10.0"),
        ("[ppo]\nsteps = true", "ppo.steps: expected a whole number, got true"),
        ("[ppo]\nlam = true", "ppo.lam: expected a number, got true"),
        ('[ppo]\nlam = "1"', 'ppo.lam: expected a number, got "1"'),
        ("[ppo.lam]\nx = 1", "ppo.lam: expected a number, got {x = 1}"),
        (f"[ppo]\nlam = 1{'0' * 400}", f"ppo.lam: expected a number, got 1{'0' * 78}…"),
        ("[run]\nresume = 1", "run.resume: expected true or false, got 1"),
        ("[run]\nfolder = 1", "run.folder: expected text, got 1"),
        ("[rollout]\nstop = 'a'", 'rollout.stop: expected a list of texts, got "a"'),
        ("[rollout]\nstop = ['a', 1]", 'rollout.stop: expected a list of texts, got ["a", 1]'),
        (
            "model.critic = 'Shared'",
            'model.critic: expected one of "shared", "separate", "adapter", got "Shared"',
        ),
        ("ppo = 3", "ppo = 3: a section of settings; did you mean ppo.steps?"),
        ("reward.args = 3", "reward.args: expected a table such as {name = 1}, got 3"),
        ("reward.terms.a = 3", "reward.terms.a: expected a table of settings, got 3"),
        ("reward.weights.a = 'x'", 'reward.weights.a: expected a number, got "x"'),
        ("reward.weights.a = inf", "reward.weights.a = inf: must be a finite number"),
        ("reward.args.a = [1, nan]", "reward.args.a: expected a finite number, got nan"),
        (
            "reward.args.a = 2020-01-01",
            "reward.args.a: expected text, a number, true, false, a list or a table, "
            "got datetime.date(2020, 1, 1)",
        ),
    ],
)
def test_errors_in_a_recipe(text: str, message: str) -> None:
    assert error("ppo", recipe(text)) == f"x.toml: {message}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"ppo.lam": None}, "ppo.lam: expected a number, got None"),
        ({"ppo.stepz": 1}, "ppo.stepz: unknown key; did you mean ppo.steps?"),
        ({"ppo.lam.x": 1}, "ppo.lam.x: unknown key; ppo.lam is a single value"),
        ({"modle.polcy": "x"}, "modle.polcy: unknown key; did you mean model.policy?"),
        ({"ppo..lam": 1}, "'ppo..lam': not a key; write section.key"),
        ({"run.folder": "\udcff"}, "run.folder: expected UTF-8 text, got '\\udcff'"),
        (
            {"optim.policy.stages": {100: 0.5}},
            "optim.policy.stages: expected a table such as {name = 1}, got {100: 0.5}",
        ),
    ],
)
def test_errors_in_overrides(overrides: dict[str, Any], message: str) -> None:
    assert error("ppo", overrides={**NEEDED, **overrides}) == f"overrides: {message}"


def test_an_unknown_job_names_the_nearest() -> None:
    assert error("pretrian") == '"pretrian": unknown job; did you mean pretrain?'
    assert error("zzz") == f'"zzz": unknown job; the jobs are {", ".join(JOBS)}'


# --- errors: between settings ---


def test_what_is_needed_and_not_given_says_how_to_give_it() -> None:
    assert (
        error(arguments=[])
        == "model.policy: required, but not given (set it in a recipe, or with --model.policy)"
    )
    for job in ("report", "doctor", "verify"):
        assert error(job, arguments=[]) == f"folder: required, but not given (write proxlm {job} FOLDER)"
    assert (
        error("control", arguments=[])
        == "environment.id: required, but not given (write proxlm control ENVIRONMENT_ID)"
    )
    for job in ("evaluate", "generate"):
        assert error(job, arguments=[]) == (
            "model.policy: required, but not given (set it in a recipe, or with --model.policy, or write proxlm"
            f" {job} RUN, a run's folder)"
        )
    assert error("ppo", overrides={**NEEDED, "reward.terms.a.weight": 1}, arguments=[]) == (
        "reward.terms.a.use: required, but not given (set it in a recipe, or with --reward.terms.a.use)"
    )


def test_python_is_not_told_of_the_command_line() -> None:
    how = 'set it in the file or the mapping, or pass overrides={"model.policy": ...}'
    for found in (
        error(),
        error("ppo", {"ppo": {"steps": 3}}),
        error("evaluate", {"data": {"prompts": "x"}}),
    ):
        assert found == f"model.policy: required, but not given ({how})"
    for call, wanted in (
        (
            lambda: proxlm.PPOTrainer(prompts=["a"]),
            "PPOConfig: model.policy: required, but not given (pass model=",
        ),
        (
            lambda: proxlm.PPOTrainer("m"),
            "PPOConfig: data.prompts: required, but not given (pass prompts=...,",
        ),
        (lambda: proxlm.SFTTrainer("m"), "SFTConfig: text.train: required, but not given (pass train=...,"),
        (proxlm.PretrainTrainer, "PretrainConfig: text.train: required, but not given (pass texts=...,"),
        (
            proxlm.ControlTrainer,
            "environment.id: required, but not given (set it in the ControlConfig)",
        ),
        (lambda: proxlm.evaluate(prompts=["a"]), "model.policy: required, but not given (pass models=...,"),
        (
            lambda: proxlm.evaluate("m"),
            "data.eval_prompts: required: a file of prompts to evaluate on (pass",
        ),
        (lambda: proxlm.evaluate([], ["a"]), "models: an empty list"),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert wanted in str(caught.value)
        assert "--" not in str(caught.value)


def test_a_clash_names_where_the_setting_came_from() -> None:
    file = recipe("[ppo]\nminibatches = 9\nbatch_size = 8\n")
    message = "ppo.minibatches = 9: more minibatches than responses in a step"
    assert error("ppo", file) == f"x.toml: {message}"
    assert error("ppo", file, {"ppo.minibatches": 9}) == f"overrides: {message}"
    assert error("ppo", file, {"ppo.minibatches": 1}, ["--ppo.minibatches=9"]) == f"command line: {message}"
    assert load_config("ppo", file, {"ppo.minibatches": 1}).ppo.minibatches == 1


def test_a_clash_with_a_default_says_so() -> None:
    overrides = {"text.train": ["a.txt"], "new.heads": 3}
    assert error("pretrain", overrides=overrides) == (
        "new.hidden = 256 (the default): must be a multiple of new.heads = 3"
    )


def test_a_clash_inside_tables_finds_the_latest_source_below() -> None:
    file = recipe('[optim.policy]\nschedule = "staged"\nstages = {ten = 0.5}\n')
    message = 'optim.policy.stages = {ten = 0.5}: "ten" is not a step number'
    assert error("ppo", file) == f"x.toml: {message}"
    assert error("ppo", file, {"optim.policy.stages.5": 1}).startswith(
        "overrides: optim.policy.stages = {ten = "
    )
    assert error("ppo", file, {"optim.policy.stages": {}}) == (
        'overrides: optim.policy.stages = {}: required with schedule = "staged"'
    )


def test_a_term_whose_name_has_a_dot_is_found() -> None:
    file = recipe("[reward.terms.'a.b']\nuse = ''\n")
    assert error("ppo", file) == 'x.toml: reward.terms.a.b.use = "": required, but not given'


# --- the recipes ---


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_valid(path: Path) -> None:
    """It says which job it is for."""
    load_config(tomllib.loads(path.read_text(encoding="utf-8"))["job"], path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ppo", 3), "file: expected a path or a mapping, got 3"),
        (("ppo", ["a.toml"]), 'file: expected a path or a mapping, got ["a.toml"]'),
        (("ppo", None, "ppo.steps=3"), 'overrides: expected a mapping, got "ppo.steps=3"'),
    ],
)
def test_what_is_neither_a_path_nor_a_mapping(arguments, message) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments)
    assert str(caught.value) == message


def test_settings_from_python_are_nested_within_bounds() -> None:
    """As those of a recipe are: deeper ones would end in a RecursionError where they are written."""
    needed = {"model.policy": "m", "data.prompts": "p.txt", "reward.use": "length"}
    loop: list[object] = []
    loop.append(loop)
    for depth, fine in ((60, True), (70, False), (5000, False), (0, False)):
        value: object = 1 if depth else loop
        for _ in range(depth):
            value = [value]
        if fine:
            assert "[" * depth in to_toml(load_config("ppo", {**needed, "reward.args": {"a": value}}))
            continue
        for key in ("reward.args", "run.seed"):
            with pytest.raises(ConfigError, match=f"{key}: nested too deeply: more than 64 lists and tables"):
                load_config("ppo", {**needed, key: {"a": value} if key == "reward.args" else value})


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("ppo.gae_lambda", "ppo.lam"),
        ("ppo.beta", "ppo.kl_coef"),
        ("ppo.cliprange", "ppo.clip_low or ppo.clip_high"),
        ("ppo.mini_batch_size", "ppo.minibatches"),
        ("rollout.num_generations", "ppo.samples_per_prompt"),
        ("max_steps", "ppo.steps"),
        ("learning_rate", "optim.policy.lr"),
        ("lora.r", "model.lora.rank"),
        ("run.output_dir", "run.folder"),
        ("model.dtype", "model.precision"),
    ],
)
def test_names_of_other_libraries_are_understood(key: str, names: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("ppo", overrides={key: 1})
    assert str(caught.value).endswith(f"unknown key; did you mean {names}?")


@pytest.mark.parametrize("key", ["train.dropout", "model.resid_pdrop"])
def test_ppo_says_why_it_has_no_dropout(key: str) -> None:
    with pytest.raises(
        ConfigError, match="PPO has no dropout: its ratio compares the log-probs of two passes"
    ):
        load_config("ppo", overrides={key: 0.1})
    with pytest.raises(ConfigError, match=r"model.resid_pdrop: unknown key; did you mean train.dropout\?"):
        load_config("sft", overrides={"model.resid_pdrop": 0.1})


def test_every_other_name_is_of_settings_that_exist() -> None:
    known = {".".join(key) for job in JOBS.values() for key in known_keys(job)}
    assert {name for names in OTHER_NAMES.values() for name in names} <= known


def test_a_models_folder_and_an_unfinished_run_are_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    assert error("generate", "model") == "model: a model, not a run; write --model.policy model"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.toml").write_text(RUN)
    assert error("evaluate", "run").startswith(
        "run: the run has no policy/ yet, for it is not finished: resume it"
    )


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("evaluate", {"data.eval_prompts": "h.jsonl", "responses": "h.jsonl"}),
        ("evaluate", {"data.eval_prompts": "h.jsonl", "responses": "a.json", "output": "./a.json"}),
        ("generate", {"data.prompts": "h.jsonl", "output": "h.jsonl"}),
    ],
)
def test_no_file_of_a_command_is_written_over(command: str, given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="is another file of this command"):
        load_config(command, None, {"model.policy": "m", **given})
