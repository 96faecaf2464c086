"""Runs of which prompts came from Python, and names of folders that look like secrets."""

from __future__ import annotations

import pytest

import proxlm
from proxlm.__main__ import main
from proxlm.errors import ConfigError
from small_models import TEXTS
from test_public_api import SMALL, config, lengths

PROMPTS = ["the cat", "a dog", "a bird", "the sun"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    policy = proxlm.new_model(TEXTS * 5, SMALL, proxlm.ModelSettings(device="cpu"))
    settings = config(tmp_path_factory.mktemp("runs"), steps=1)
    return proxlm.PPOTrainer(policy, lengths, PROMPTS, settings).train()


def test_evaluating_a_run_whose_prompts_came_from_python_says_so(run, tmp_path, capsys) -> None:
    assert main(["evaluate", str(run.folder)]) == 2
    assert (
        "data.prompts: the run's prompts were passed from Python and are in no file"
        in capsys.readouterr().err
    )
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\na dog\n")
    output = tmp_path / "found.json"
    assert (
        main(["evaluate", str(run.folder), "--data.eval-prompts", str(prompts), "--output", str(output)]) == 0
    )
    assert str(run.folder / "policy") in output.read_text()
    settings = proxlm.load_config("evaluate", run.folder)
    (found,) = proxlm.evaluate(None, PROMPTS[:2], lengths, settings)
    assert found.metrics["reward"].mean > 0


@pytest.mark.parametrize("name", ["sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD", "hf_" + "aB3" * 12])
def test_a_folder_whose_name_looks_like_a_secret_is_refused_with_what_helps(tmp_path, name) -> None:
    with pytest.raises(
        ConfigError, match=r"run\.folder: looks like a secret, .*: choose another name"
    ) as raised:
        proxlm.load_config("sft", overrides={"run.folder": str(tmp_path / name)})
    assert name not in str(raised.value)
    with pytest.raises(ConfigError, match=r"reward\.args.*: looks like a secret, .* write env:NAME"):
        proxlm.load_config("ppo", overrides={"reward.args": {"key": name}})
