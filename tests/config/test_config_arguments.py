"""Command-line arguments: how text becomes settings, and the exact text of every error."""

from pathlib import Path
from typing import Any

import pytest

from proxlm.config import PPOConfig, ReportConfig, load_config
from proxlm.config.arguments import read_arguments
from proxlm.errors import ConfigError


def settings(*arguments: str) -> dict[str, Any]:
    """What the arguments set, with dotted keys, as a PPO job reads them."""
    config = load_config(PPOConfig, None, {"model.policy": "m", "data.prompts": "p"}, arguments)
    return {".".join(key): _at(config, key) for key in read_arguments(PPOConfig, arguments)[1]}


def _at(node: Any, key: tuple[str, ...]) -> Any:
    for name in key:
        node = node[name] if isinstance(node, dict) else getattr(node, name)
    return node


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--ppo.kl-coef", "0.1"], {"ppo.kl_coef": 0.1}),
        (["--ppo.kl_coef=0.1"], {"ppo.kl_coef": 0.1}),
        (["--ppo.kl-coef", "1"], {"ppo.kl_coef": 1.0}),
        (["--optim.policy.lr", "3e-5"], {"optim.policy.lr": 3e-5}),
        (
            ["--model.value.low", "-1.5", "--model.value.head", "categorical"],
            {"model.value.low": -1.5, "model.value.head": "categorical"},
        ),
        (["--ppo.steps", "1_000"], {"ppo.steps": 1000}),
        (["--ppo.lam", "0.1", "--ppo.lam", "0.2"], {"ppo.lam": 0.2}),
        (["--run.resume"], {"run.resume": True}),
        (["--resume"], {"run.resume": True}),
        (["--resume", "false"], {"run.resume": False}),
        (["--on-bad-record", "skip"], {"data.on_bad_record": "skip"}),
        (
            ["--run.report=False", "--resume", "--ppo.steps", "3"],
            {"run.report": False, "run.resume": True, "ppo.steps": 3},
        ),
        (["--run.folder", "-x"], {"run.folder": "-x"}),
        (["--run.folder=--x=y"], {"run.folder": "--x=y"}),
        (["--run.folder="], {"run.folder": ""}),
        (["--run.folder", '"quoted"'], {"run.folder": '"quoted"'}),
        (["--run.folder", "1"], {"run.folder": "1"}),
        (["--model.critic", "shared"], {"model.critic": "shared"}),
        (["--rollout.stop", "a b", "--rollout.stop", "\n"], {"rollout.stop": ["a b", "\n"]}),
        (["--rollout.stop", '["a", "b"]'], {"rollout.stop": ["a", "b"]}),
        (["--rollout.stop", '["a", "b"]', "--rollout.stop=c"], {"rollout.stop": ["a", "b", "c"]}),
        (["--rollout.stop", "[]"], {"rollout.stop": []}),
        (["--rollout.stop", "[INST]"], {"rollout.stop": ["[INST]"]}),
        (["--rollout.stop", "1"], {"rollout.stop": ["1"]}),
        (["--reward.args", "{target = 32, words = ['a']}"], {"reward.args": {"target": 32, "words": ["a"]}}),
        (["--reward.args.target", "32"], {"reward.args.target": 32}),
        (["--reward.args.min-words", "0.5"], {"reward.args.min_words": 0.5}),
        (["--reward.args.flag", "true"], {"reward.args.flag": True}),
        (["--reward.args.flag", "-3"], {"reward.args.flag": -3}),
        (["--reward.args.pattern", "[a-z]+"], {"reward.args.pattern": "[a-z]+"}),
        (["--reward.args.pattern", "1\nother = 2"], {"reward.args.pattern": "1\nother = 2"}),
        (["--reward.args.day", "2020-01-01"], {"reward.args.day": "2020-01-01"}),
        (["--reward.args.a.b", "[1]"], {"reward.args.a.b": [1]}),
        (["--reward.weights.my-part", "2"], {"reward.weights.my-part": 2.0}),
        (
            ["--optim.policy.schedule", "staged", "--optim.policy.stages.100", "0.5"],
            {"optim.policy.schedule": "staged", "optim.policy.stages.100": 0.5},
        ),
        (
            ["--reward.args.a", "1", "--reward.args", "{b = 1}", "--reward.args.a", "2"],
            {"reward.args": {"b": 1, "a": 2}, "reward.args.a": 2},
        ),
        (
            ["--reward.args", "{a = 1}", "--reward.args.b", "2"],
            {"reward.args": {"a": 1, "b": 2}, "reward.args.b": 2},
        ),
    ],
)
def test_text_becomes_a_value_of_the_declared_type(arguments: list[str], wanted: dict[str, Any]) -> None:
    found = settings(*arguments)
    assert found == wanted
    assert {key: type(value) for key, value in found.items()} == {k: type(v) for k, v in wanted.items()}


def test_terms_are_set_by_name() -> None:
    arguments = ["--reward.terms.length.use", "length", "--reward.terms.length.weight", "0.1"]
    terms = settings(*arguments, "--reward.terms.x-y", "{use = 'z'}")
    assert terms["reward.terms.length.weight"] == 0.1
    assert terms["reward.terms.x-y"].use == "z"


def test_a_list_on_the_command_line_replaces_the_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "x.toml"
    recipe.write_text("model.policy = 'm'\ndata.prompts = 'p'\nrollout.stop = ['a']\n")
    config = load_config("ppo", arguments=["--rollout.stop", "b", str(recipe), "--resume"])
    assert (config.rollout.stop, config.run.resume, config.model.policy) == (["b"], True, "m")


def test_a_flag_does_not_swallow_the_recipe() -> None:
    assert read_arguments(PPOConfig, ["--resume", "x.toml"]) == (["x.toml"], {("run", "resume"): True})


def test_a_jobs_own_bare_argument() -> None:
    assert load_config(ReportConfig, arguments=["runs/a", "--output", "b.html"]) == ReportConfig(
        "runs/a", "b.html"
    )
    assert load_config(ReportConfig, arguments=["--folder", "runs/b", "runs/a"]).folder == "runs/b"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ppo.kl-coeff", "1"], "ppo.kl-coeff: unknown key; did you mean ppo.kl_coef?"),
        (["--lam", "1"], "lam: unknown key; did you mean ppo.lam?"),
        (
            ["--zzz"],
            "zzz: unknown key; allowed here: model, data, rollout, engine, environment, reward, shaping, ppo,"
            " evaluation, metrics, ptx, optim, distributed, run",
        ),
        (["--ppo.lam.x", "1"], "ppo.lam.x: unknown key; ppo.lam is a single value"),
        (["--ppo.lam", "1.5"], "ppo.lam = 1.5: must be at most 1"),
        (["--ppo.lam", "-1"], "ppo.lam = -1.0: must be at least 0"),
        (["--ppo.lam", "high"], 'ppo.lam: expected a number, got "high"'),
        (["--ppo.lam="], 'ppo.lam: expected a number, got ""'),
        (["--ppo.steps", "1e3"], 'ppo.steps: expected a whole number, got "1e3"'),
        (["--run.resume", "yes"], 'run.resume: expected true or false, got "yes"'),
        (
            ["--model.critic", "none"],
            'model.critic: expected one of "shared", "separate", "adapter", got "none"',
        ),
        (
            ["--model.critic", '"shared"'],
            'model.critic: expected one of "shared", "separate", "adapter"; leave out the quotes inside',
        ),
        (["--rollout.stop", "[1]"], "rollout.stop: expected a list of texts, got [1]"),
        (["--reward.args", "target"], 'reward.args: expected a table such as {name = 1}, got "target"'),
        (["--ppo", "3"], 'ppo = "3": a section of settings; did you mean ppo.steps?'),
        (["--model", "X"], 'model = "X": a section of settings; did you mean model.policy?'),
        (
            ["--model", "--ppo.steps", "3"],
            "model: no value given; write --model.policy VALUE, or --model.policy=VALUE if it begins with --",
        ),
        (["--model.lora", "8"], 'model.lora = "8": a section of settings; did you mean model.lora.rank?'),
        (["--optim=sgd"], 'optim = "sgd": a section of settings; did you mean optim.policy.name?'),
        (["--data", "p.jsonl"], 'data = "p.jsonl": a section of settings; did you mean data.prompts?'),
        (
            ["--environment", "number_game"],
            'environment = "number_game": a section of settings; did you mean environment.use?',
        ),
        (["--ppo.trpo", "x"], 'ppo.trpo: expected a table of settings, got "x"'),
        (["--run.folder", "\udcff"], "run.folder: expected UTF-8 text, got '\\udcff'"),
        (["--reward.args.\udcff", "1"], "'reward.args.\\udcff': not a key; write section.key"),
        (["--ppo."], "'ppo.': not a key; write section.key"),
        (["--"], "'--': not an argument; write --section.key value"),
        (["-x"], "'-x': not an argument; write --section.key value"),
        (["a.toml", "b.toml"], '"b.toml": one argument too many'),
        (
            ["--ppo.lam"],
            "ppo.lam: no value given; write --ppo.lam VALUE, or --ppo.lam=VALUE if it begins with --",
        ),
        (
            ["--run.folder", "--resume"],
            "run.folder: no value given; write --run.folder VALUE, "
            "or --run.folder=VALUE if it begins with --",
        ),
    ],
)
def test_errors(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("ppo", None, {"model.policy": "m", "data.prompts": "p"}, arguments)
    assert str(caught.value) == f"command line: {message}"


def test_one_file_only() -> None:
    with pytest.raises(ConfigError, match=r'^command line: "b\.toml": one argument too many$'):
        load_config("ppo", "a.toml", arguments=["b.toml"])
    with pytest.raises(ConfigError, match=r'^command line: "b": one argument too many$'):
        load_config("report", arguments=["a", "b"])


def test_resume_is_short_for_nothing_where_there_is_no_run() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("demo", arguments=["--resume"])
    assert str(caught.value) == (
        "command line: run.resume: unknown key; allowed here: folder, chat, seed, minutes, ppo_steps, eval_count"
    )
