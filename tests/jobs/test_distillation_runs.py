"""Runs with a teacher: a student that has half learnt comes nearer to it, with a reward or without one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from proxlm.__main__ import main
from proxlm.config import (
    DataSettings,
    EvaluateConfig,
    EvaluationSettings,
    ModelSettings,
    NewModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    PPOConfig,
    PPOSettings,
    RewardSettings,
    RolloutSettings,
    RunSettings,
    ShapingSettings,
)
from proxlm.config.ppo import CorrectionSettings
from proxlm.data.tokenizer import encode_documents, load_tokenizer
from proxlm.doctor import facts_of
from proxlm.errors import ConfigError, ModelError, RunError
from proxlm.jobs.doctor import examine
from proxlm.jobs.evaluate import evaluate
from proxlm.jobs.ppo import PPOTrainer
from proxlm.models.load import build_language_model
from proxlm.models.save import save_language_model
from proxlm.report.verify import verify_run
from small_models import tiny_model
from story_model import STORIES

pytestmark = pytest.mark.checklist(46)
ALONE = {"advantage": "reinforce++", "kl_coef": 0.0}


@pytest.fixture(scope="module")
def place(story_model, tmp_path_factory):
    """teacher: knows the stories; student: smaller, has read them 25 times; prompts.txt: how they may begin."""
    folder = tmp_path_factory.mktemp("distillation")
    shutil.copytree(story_model, folder / "teacher")
    tokenizer = load_tokenizer(str(story_model))
    torch.manual_seed(0)
    small = NewModelSettings(type="llama", hidden=32, layers=1, heads=2, context=128)
    student = build_language_model(small, tokenizer, ModelSettings(device="cpu"))
    rows = [torch.tensor(ids) for ids in encode_documents(tokenizer, STORIES)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    optimiser = torch.optim.AdamW(student.network.parameters(), lr=1e-2)
    for _ in range(25):
        loss = student.network(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    save_language_model(student, folder / "student")
    beginnings = sorted({" ".join(story.split()[:k]) for story in STORIES for k in range(1, 40)})
    (folder / "prompts.txt").write_text("\n".join(beginnings) + "\n", "utf-8")
    return folder


def config(place, folder, steps=2, **ppo):
    optimiser = OptimiserSettings(lr=5e-3, final=0.1)
    return PPOConfig(
        model=ModelSettings(
            str(place / "student"), critic="shared", teacher=str(place / "teacher"), device="cpu"
        ),
        data=DataSettings(prompts=str(place / "prompts.txt"), eval_count=24),
        rollout=RolloutSettings(max_new_tokens=8),
        ppo=PPOSettings(**{"steps": steps, "batch_size": 16, "epochs": 1, **ALONE, **ppo}),
        optim=OptimisersSettings(optimiser, optimiser),
        run=RunSettings(folder=str(folder), save_every=0, tensorboard=False, report=False, threads=1),
    )


@pytest.fixture(scope="module")
def distilled(place):
    """The run of 28 steps, from the teacher alone."""
    settings = config(place, place / "run", steps=28, batch_size=64, epochs=2, minibatches=2)
    settings = replace(
        settings,
        evaluation=EvaluationSettings(every=14),
        run=replace(settings.run, report=True),
    )
    return PPOTrainer(config=settings).train()


def test_the_student_comes_nearer_to_its_teacher_on_held_out_prompts(distilled):
    """From 3.6 nats a token to 2.5 or so, within the interval of 24 prompts."""
    before, after = distilled.before.metrics["teacher/kl"], distilled.after.metrics["teacher/kl"]
    assert before.low > 22
    assert after.mean < 0.8 * before.mean
    column = distilled.metrics["teacher/kl"]
    assert sum(column[-5:]) < 0.75 * sum(column[:3]) * 5 / 3
    during = [value for value in distilled.metrics["evaluation/teacher/kl"] if value is not None]
    assert during[-1] == pytest.approx(after.mean, abs=1e-6)
    assert (distilled.config.run.keep_best, distilled.config.run.keep_best_is) == (
        "evaluation/teacher/kl",
        "lowest",
    )
    kept = distilled.evaluations["best"]
    assert kept.metrics["teacher/kl"].mean < 0.8 * before.mean
    assert distilled.before.metrics["kl"].mean == 0.0 < distilled.after.metrics["kl"].mean


def test_a_run_without_a_reward_reports_none(distilled):
    assert not [
        name for name in distilled.metrics if name.startswith(("reward", "value", "evaluation/reward"))
    ]
    assert not [name for name in distilled.after.metrics if "reward" in name]
    assert {row["reward"] for row in distilled.samples} == {None}
    assert {"teacher_kl", "kl", "advantage"} <= set(distilled.samples[0]["per_token"])
    page = (distilled.folder / "report.html").read_text("utf-8")
    assert "KL to the teacher" in page
    found = examine(distilled.folder)
    assert not {"reward_without_variance", "kl_blow_up"} & {finding.rule for finding in found.findings}
    assert facts_of(distilled.config).leaves_reference


def test_the_teacher_is_an_input_of_the_run_and_in_no_checkpoint(place, distilled):
    inputs = json.loads((distilled.folder / "inputs.json").read_text("utf-8"))["inputs"]["model.teacher"]
    assert inputs["path"] == str(place / "teacher")
    assert len(inputs["files"]["model.safetensors"]["sha256"]) == 64
    assert verify_run(distilled.folder) == []
    for file in distilled.folder.glob("checkpoints/*/*.safetensors"):
        names = load_file(file)
        assert names
        assert not [name for name in names if "teacher" in name]
    assert not list(distilled.folder.rglob("*teacher*"))


def test_evaluating_the_run_again_finds_the_same_kl_to_the_teacher(distilled, capsys):
    assert main(["evaluate", str(distilled.folder), "--samples", "0"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("teacher/kl"))
    assert line.split()[1] == f"{distilled.before.metrics['teacher/kl'].mean:.3f}"
    assert f"{distilled.after.metrics['teacher/kl'].mean:.3f}" in line


def test_a_teacher_has_no_kl_to_itself(place):
    model = ModelSettings(str(place / "teacher"), teacher=str(place / "teacher"), device="cpu")
    data = DataSettings(eval_prompts=str(place / "prompts.txt"))
    (found,) = evaluate(
        config=EvaluateConfig(model=model, data=data, rollout=RolloutSettings(max_new_tokens=4))
    )
    assert found.metrics["teacher/kl"].mean == 0.0


# ---- resume


def test_a_resume_is_exact_and_takes_no_other_teacher(place, tmp_path):
    whole = PPOTrainer(config=config(place, tmp_path / "whole", steps=4)).train()
    teacher = tmp_path / "teacher"
    shutil.copytree(place / "teacher", teacher)
    first = config(place, tmp_path / "parts")
    first = replace(first, model=replace(first.model, teacher=str(teacher)))
    PPOTrainer(config=first).train()
    resumed = replace(first, ppo=replace(first.ppo, steps=4), run=replace(first.run, resume=True))
    other = replace(resumed, model=replace(resumed.model, teacher=str(place / "student")))
    with pytest.raises(RunError, match=r"made with model\.teacher = "):
        PPOTrainer(config=other).train()
    saved = (teacher / "model.safetensors").read_bytes()
    changed = bytearray(saved)
    changed[-1] ^= 1
    (teacher / "model.safetensors").write_bytes(changed)
    assert any("model.teacher: model.safetensors changed" in line for line in verify_run(tmp_path / "parts"))
    with pytest.raises(RunError, match=r"model\.teacher: model\.safetensors changed"):
        PPOTrainer(config=resumed).train()
    (teacher / "model.safetensors").write_bytes(saved)
    run = PPOTrainer(config=resumed).train()
    assert run.metrics["teacher/kl"] == whole.metrics["teacher/kl"]
    assert (run.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()


# ---- beside a reward, and what a run without one cannot have


@pytest.mark.parametrize(
    "more",
    [
        {"ppo": {"advantage": "gae", "kl_coef": 0.05}},
        {"ppo": {"max_staleness": 1, "staleness_correction": CorrectionSettings(mode="token_truncate")}},
        {"reward": RewardSettings(use="length", args={"target": 5}, overlap=4)},
        {"rollout": RolloutSettings(max_new_tokens=8, top_p=0.9)},
        {"shaping": ShapingSettings(missing_eos="subtract"), "ppo": {"advantage": "gae"}},
    ],
    ids=str,
)
def test_runs_with_everything_beside_it(place, tmp_path, more):
    more = dict(more)
    settings = replace(config(place, tmp_path / "run", **more.pop("ppo", {})), **more)
    run = PPOTrainer(config=settings).train()
    assert run.metrics["first_minibatch/ratio_error"] == [0.0, 0.0]
    assert ("reward" in run.metrics) == ("reward" in more)
    assert all(value > 0 for value in run.metrics["teacher/kl"])


def test_a_reward_from_python_and_the_teacher_are_both_learnt_from(place, tmp_path):
    run = PPOTrainer(
        reward=lambda xs: [len(x.tokens) for x in xs], config=config(place, tmp_path / "run")
    ).train()
    assert run.metrics["reward"][0] > 0
    assert {"reward", "teacher/kl"} <= set(run.after.metrics)


@pytest.mark.parametrize(
    ("ppo", "shaping", "says"),
    [
        (
            {"advantage": "gae"},
            {},
            r"ppo\.advantage: the run has no reward, so a critic has nothing to predict",
        ),
        ({"advantage": "gae", "kl_coef": 0.1, "kl_in": "advantage"}, {}, r"ppo\.advantage: the run has no"),
        ({"filter_groups": True, "samples_per_prompt": 2}, {}, r"ppo\.filter_groups: the run has no reward"),
        ({"positive_coef": 0.1}, {}, r"ppo\.positive_coef: the run has no reward"),
        ({}, {"scale": "running"}, r"shaping\.scale: the run has no reward"),
        ({}, {"normalise": "batch"}, r"shaping\.normalise: the run has no reward"),
        ({"teacher_coef": 0.0}, {}, r"reward\.use: required"),
    ],
)
def test_what_needs_a_reward_says_so(place, tmp_path, ppo, shaping, says):
    settings = replace(config(place, tmp_path / "run", **ppo), shaping=ShapingSettings(**shaping))
    with pytest.raises(ConfigError, match=says):
        PPOTrainer(config=settings)
    if "teacher_coef" not in ppo:  # with a reward there is nothing to say
        PPOTrainer(reward=lambda xs: {"a": [0.0 for _ in xs]}, config=settings)


def test_without_a_teacher_a_reward_is_required(place, tmp_path):
    settings = config(place, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"reward\.use: required"):
        PPOTrainer(config=replace(settings, model=replace(settings.model, teacher="")))


def test_a_teacher_of_other_tokens_ends_the_run_before_any_weights_are_read(place, tmp_path, tokenizer):
    save_language_model(tiny_model(tokenizer), tmp_path / "other")
    shutil.copytree(place / "student", tmp_path / "student")
    (tmp_path / "student" / "model.safetensors").unlink()
    settings = config(place, tmp_path / "run")
    model = replace(settings.model, policy=str(tmp_path / "student"), teacher=str(tmp_path / "other"))
    with pytest.raises(ModelError, match=r"its token 0 is '<\|bos\|>', the policy's '<unk>' \(") as raised:
        PPOTrainer(config=replace(settings, model=model)).train()
    assert len(str(raised.value)) <= 300
    assert not (tmp_path / "run").exists()
