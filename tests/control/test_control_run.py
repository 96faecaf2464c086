"""Item 41: `proxlm control` from the command line to the run's folder, and what is wrong in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from helpers import SilentLog
from toys import Signs, job, trainer

from proxlm.__main__ import main
from proxlm.config import describe, load_config
from proxlm.control.policy import load_policy, play, save_policy
from proxlm.control.spaces import make_environment, spaces_of
from proxlm.doctor import Facts, diagnose, facts_of
from proxlm.errors import ConfigError, RunError

pytestmark = pytest.mark.checklist(41)

ROOT = Path(__file__).parents[2]
SHORT = [
    "--environment.steps", "96", "--environment.count", "2", "--ppo.horizon", "16", "--ppo.epochs", "1",
    "--ppo.minibatches", "2",
    "--model.width", "8", "--run.tensorboard", "false",
]  # fmt: skip
NAMES = {
    "step", "environment_steps", "reward", "reward_std", "episode_return", "episode_length", "approx_kl",
    "clip_fraction",
    "entropy", "explained_variance", "value_loss", "policy_loss", "lr/policy", "lr/critic", "grad_norm/policy",
    "ratio_max", "rollout_gap", "steps_per_second",
}  # fmt: skip


def test_a_run_has_the_folder_of_any_run(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["control", "CartPole-v1", *SHORT, "--run.folder", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "mean return of the newest 100 episodes" in said
    assert str(folder / "report.html") in said
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["environment_steps"] for row in rows] == [32, 64, 96]
    assert set(rows[-1]) >= NAMES
    assert "policy for CartPole-v1" in (folder / "report.html").read_text(encoding="utf-8")
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000003"]
    assert {p.name for p in (folder / "policy").iterdir()} == {"policy.json", "policy.safetensors"}
    assert main(["doctor", str(folder)]) == 0
    assert "3 steps read" in capsys.readouterr().out
    more = ["--environment.steps", "160", "--resume"]
    assert main(["control", str(folder / "config.toml"), *more]) == 0
    assert "resumed from" in capsys.readouterr().out
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 5


def test_what_stands_first_is_the_environment_or_a_recipe():
    config = load_config("control", arguments=["Acrobot-v1", str(ROOT / "recipes" / "control-cartpole.toml")])
    assert (config.environment.id, config.environment.steps) == ("Acrobot-v1", 500_000)
    assert "[ENVIRONMENT_ID] [RECIPE.toml]" in describe("control")
    for name, env in (("cartpole", "CartPole-v1"), ("acrobot", "Acrobot-v1"), ("pendulum", "Pendulum-v1")):
        assert (
            load_config("control", arguments=[str(ROOT / "recipes" / f"control-{name}.toml")]).environment.id
            == env
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "environment.id: required, but not given"),
        (
            ["CartPole-v1", "--environment.steps", "10"],
            "fewer than environment.count · ppo.horizon = 1024, one PPO step",
        ),
        (["CartPole-v1", "--ppo.minibatches", "2000"], "more than a PPO step has steps"),
        (["CartPole-v1", "--model.lstm", "8", "--ppo.minibatches", "9"], "more than a PPO step has steps"),
        (["CartPole-v1", "--ppo.dual-clip", "0.5"], "must be more than 1, or 0 for off"),
        (["CartPole-v1", "--gif", "out.png"], "must end with .gif"),
        (["CartPole-v1", "--ppo.gamma", "1.5"], "must be at most 1"),
        (["CartPole-v1", "--ppo.kl-coef", "1"], "ppo.kl-coef: unknown key"),
        (["CartPole-v1", "x.toml", "more"], '"more": one argument too many'),
        (["NoSuchThing-v1"], "environment.id = NoSuchThing-v1: cannot be made: "),
        (["no_such_module:Thing-v0"], "environment.id = no_such_module:Thing-v0: cannot be made: "),
        (
            ["CartPole-v1", "--environment.args", "{wrong = 1}"],
            "environment.id = CartPole-v1: cannot be made: ",
        ),
    ],
)
def test_what_is_wrong_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["control", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("proxlm: error: ")
    assert said.count("\n") == 1
    assert message in said
    assert list(tmp_path.iterdir()) == []


def test_the_extra_is_named_where_gymnasium_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(
        ConfigError, match=r"gymnasium, which is not installed: pip install proxlm\[control\]"
    ):
        make_environment(load_config("control", arguments=["CartPole-v1"]).environment)


class Spaced(gymnasium.Env):
    def __init__(self, seen, done):
        self.observation_space, self.action_space = seen, done


def test_spaces_that_are_not_known():
    box = Box(-1.0, 1.0, (2, 3))
    for seen, done, named in (
        (Dict(a=box), Discrete(2), "observations are Dict"),
        (box, MultiDiscrete([2, 2]), "actions are MultiDiscrete"),
        (Discrete(3, start=1), Discrete(2), "must begin at 0"),
    ):
        with pytest.raises(ConfigError, match=named):
            spaces_of(Spaced(seen, done), "toy")
    spaces = spaces_of(Spaced(box, box), "toy")
    assert (spaces.observation, spaces.action, spaces.continuous) == (6, 6, True)
    assert spaces.to_environment(np.zeros((4, 6), np.float32))[0].shape == (2, 3)
    one_hot = spaces_of(Spaced(Discrete(4), Discrete(2)), "toy")
    assert one_hot.flat_observation(np.int64(2)).tolist() == [0, 0, 1, 0]


def test_a_time_limit_truncates():
    config = load_config("control", arguments=["Pendulum-v1", "--environment.time-limit", "7"])
    env = make_environment(config.environment)
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(7)]
    assert ends == [(False, False)] * 6 + [(False, True)]


def test_a_saved_policy_acts_as_the_trained_one(tmp_path):
    made = trainer(job(steps=2), Signs)
    made.step(SilentLog())
    made.save_model(tmp_path / "policy")
    agent, scale = load_policy(tmp_path / "policy", made.spaces)
    x = torch.randn(5, 1)
    assert torch.equal(agent.act(scale(x), None)[0].outputs, made.agent.act(scale(x), None)[0].outputs)
    assert play(agent, scale, Signs(), made.spaces, seed=3) == play(
        made.agent, scale, Signs(), made.spaces, seed=3
    )
    with pytest.raises(RunError, match="not a policy for this environment"):
        load_policy(tmp_path / "policy", spaces_of(Signs(continuous=True), "toy"))
    save_policy(tmp_path / "raw", made.agent, made.observation_statistics._replace(n=0.0), made.config)
    assert load_policy(tmp_path / "raw", made.spaces)[1] is None


def test_gif_of_a_policy(tmp_path, monkeypatch, capsys):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    file = tmp_path / "out.gif"
    given = [*SHORT, "--run.folder", str(tmp_path / "run"), "--run.report", "false", "--gif", str(file)]
    assert main(["control", "CartPole-v1", *given]) == 0
    assert f"gif     {file}" in capsys.readouterr().out
    with image.open(file) as picture:
        assert picture.size == (300, 200)
        assert picture.n_frames > 2
    again = [*given, "--run.folder", str(tmp_path / "again")]
    assert main(["control", "CartPole-v1", *again]) == 0  # its own is replaced
    image.new("L", (4, 4)).save(file)
    somebodys = file.read_bytes()
    assert main(["control", "CartPole-v1", *given, "--run.folder", str(tmp_path / "third")]) == 2
    assert f"{file}: is there already, and proxlm control did not write it" in capsys.readouterr().err
    assert file.read_bytes() == somebodys
    assert not (tmp_path / "third").exists()


def test_a_gif_that_cannot_be_written_is_refused_before_the_training(tmp_path, capsys):
    (tmp_path / "file").write_text("of somebody")
    file, run = tmp_path / "file" / "out.gif", tmp_path / "run"
    assert main(["control", "CartPole-v1", *SHORT, "--run.folder", str(run), "--gif", str(file)]) == 2
    assert f"{file}: cannot be written: " in capsys.readouterr().err
    assert not run.exists()


def test_no_gif_without_the_packages_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pygame", None)
    file = tmp_path / "out.gif"
    given = [*SHORT, "--run.folder", str(tmp_path / "run"), "--run.report", "false", "--gif", str(file)]
    assert main(["control", "CartPole-v1", *given]) == 0
    said = capsys.readouterr().out
    assert f"note: no {file}: " in said
    assert "proxlm[control]" in said
    assert not file.exists()


def sure(step: int, **more: float) -> dict[str, float]:
    """A row of a run whose policy has become sure of itself."""
    reward = 20.0 + 40 * min(step, 12)
    return {
        "step": step, "reward": reward, "reward_std": 10.0 if step < 20 else 1.0,
        "entropy": 0.69 if step < 5 else 0.04, "explained_variance": -0.9, "advantage_std": 0.02,
        "advantage_mean": 0.0, "return_mean": 3.0, "value_mean": 3.0, **more,
    }  # fmt: skip


def test_the_doctor_lets_a_good_policy_be_sure_of_itself():
    facts = facts_of(load_config("control", arguments=["CartPole-v1"]))
    assert facts.control
    rows = [sure(step) for step in range(1, 41)]
    assert [f.rule for f in diagnose(rows, facts)] == []
    assert {f.rule for f in diagnose(rows, Facts())} == {"entropy_collapse", "critic_worse_than_mean"}
    solved = [sure(step, reward_std=0.0 if step > 12 else 10.0) for step in range(1, 41)]
    assert [f.rule for f in diagnose(solved, facts)] == []
    assert "reward_without_variance" in {f.rule for f in diagnose(solved, Facts())}
    bad = [sure(step, reward=20.0 + step % 3, advantage_std=1.0) for step in range(1, 41)]
    assert {f.rule for f in diagnose(bad, facts)} == {"entropy_collapse", "critic_worse_than_mean"}
