"""Every recipe that trains here, shortened to two steps, from its file to its report."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from proxlm.__main__ import main
from proxlm.config import load_config
from proxlm.data.reasoning_gym import read_tasks
from story_model import ARITHMETIC

ROOT = Path(__file__).parents[1]
SHORT = [
    "--ppo.steps", "2", "--ppo.batch-size", "8", "--ppo.epochs", "1", "--ppo.minibatches", "2", "--data.eval-count",
    "6", "--rollout.max-new-tokens", "12", "--run.tensorboard", "false", "--model.device", "cpu",
]  # fmt: skip


# Both recipes expect a pretrained model beside the checkout, and gsm8k its data: material of the tests stands in.
@pytest.mark.parametrize("name", ["stories-sentiment", "gsm8k"])
def test_recipe_runs_from_any_directory(name, tmp_path, monkeypatch, story_model):
    monkeypatch.chdir(tmp_path)
    options = ["--model.policy", str(story_model), *SHORT]
    if name == "gsm8k":
        problems = ARITHMETIC.read_text(encoding="utf-8").splitlines(keepends=True)
        for option, rows in {"--data.prompts": problems[:40], "--data.eval-prompts": problems[40:]}.items():
            file = tmp_path / f"{option.removeprefix('--')}.jsonl"
            file.write_text("".join(rows), encoding="utf-8")
            options += [option, str(file)]
    assert main(["ppo", str(ROOT / "recipes" / f"{name}.toml"), *options, "--run.folder", "run"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert rows[0]["first_minibatch/ratio_error"] == 0.0
    assert (tmp_path / "run" / "report.html").exists()
    if name == "gsm8k":
        assert {"reward/answer", "reward/format"} <= set(rows[0])
        prompt = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])["prompt"]
        assert prompt.startswith("<s>System: Reason step by step.")
        assert prompt.endswith("\nAssistant:")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_names_its_job_and_fits_it(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = tomllib.loads(path.read_text(encoding="utf-8"))["job"]
    config = load_config(job, path)
    assert config.problems() == []
    if job == "ppo":
        shipped = [config.data.prompts, config.data.eval_prompts, config.data.chat_template]
        ours = [name for name in shipped if Path(name).is_relative_to(ROOT / "recipes")]
        assert all(Path(name).is_file() for name in ours)
        assert Path(config.model.policy).is_absolute()


def test_a_recipe_of_another_job_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = ROOT / "recipes" / "stories-sentiment.toml"
    assert main(["sft", str(recipe)]) == 2
    assert capsys.readouterr().err == (
        f'proxlm: error: {recipe}: job = "ppo": these are the settings of proxlm ppo, not of proxlm sft\n'
    )


def test_the_translation_recipes_fit_each_other():
    sft = load_config("sft", ROOT / "recipes" / "translate-sft.toml")
    ppo = load_config("ppo", ROOT / "recipes" / "translate-ppo.toml")
    assert sft.problems() == ppo.problems() == []
    assert sft.scratch.type == "t5"
    assert ppo.model.policy == str(ROOT / sft.run.folder / "policy")


def test_the_recipes_of_reasoning_gym_fit_each_other():
    pytest.importorskip("reasoning_gym")
    sft = load_config("sft", ROOT / "recipes" / "gym-sft.toml")
    ppo = load_config("ppo", ROOT / "recipes" / "gym-ppo.toml")
    assert ppo.model.policy == str(ROOT / sft.run.folder / "policy")
    # Both jobs leave the held-out questions out of what they train on.
    assert sft.text.validation == [ppo.data.eval_prompts]
    (examples,) = sft.text.train
    sources = [[record.fields for record in read_tasks(name)] for name in (examples, ppo.data.eval_prompts)]
    assert all(row["prompt"].endswith(row["response"][::-1]) for rows in sources for row in rows)
    assert len({row["prompt"] for row in sources[1]}) > 480


def test_the_film_recipes_fit_each_other():
    sft = load_config("sft", ROOT / "recipes" / "film-sft.toml")
    ppo = load_config("ppo", ROOT / "recipes" / "film-ppo.toml")
    assert ppo.model.policy == str(ROOT / sft.run.folder / "policy")
    assert Path(ppo.data.prompts).parent == Path(sft.text.train[0]).parent


def test_held_out_openings_are_held_out():
    config = load_config("ppo", ROOT / "recipes" / "stories-sentiment.toml")
    train, held_out = (
        Path(path).read_text(encoding="utf-8").splitlines()
        for path in (config.data.prompts, config.data.eval_prompts)
    )
    assert (len(set(train)), len(set(held_out))) == (320, 96)
    assert not set(train) & set(held_out)
