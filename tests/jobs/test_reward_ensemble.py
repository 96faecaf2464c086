"""Ensembles of reward models: how they learn, what they say together, and one model of their mean weights."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import proxlm
from proxlm.checkpoint import newest_checkpoint
from proxlm.config import (
    EnsembleSettings,
    LoraSettings,
    ModelSettings,
    NewModelSettings,
    ObjectiveSettings,
    OptimiserSettings,
    PreferenceSettings,
    RewardConfig,
    RewardSettings,
    RunSettings,
    SupervisedSettings,
    load_config,
)
from proxlm.data.inputs import inputs_of
from proxlm.errors import ConfigError
from proxlm.jobs.reward import RewardTrainer
from proxlm.models.classifier import load_classifier
from proxlm.models.save import save_language_model
from proxlm.models.source import ModelSource
from proxlm.report.verify import verify_run
from proxlm.rewards import build_reward
from proxlm.rewards.reward_ensemble import RewardEnsemble
from proxlm.rewards.reward_model import RewardModel, members_of
from proxlm.rl.preference_losses import bradley_terry_loss
from proxlm.train.supervised.criteria import Comparisons
from proxlm.train.supervised.ensemble_objective import EnsembleObjective, bag
from proxlm.train.supervised.labelled_texts import LabelledTexts, outputs_of
from proxlm.train.supervised.stacking import stacking_weights
from proxlm.types import Completion
from small_models import TEXTS, tiny_model

GOOD, BAD = ["good", "fine", "nice"], ["bad", "poor", "weak"]
ASKED = [
    Completion(TEXTS[i % 4][:8], text) for i, text in enumerate([" good", " bad", " moon 7", "", " a b"])
]


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"{TEXTS[i % 3][: 6 + i % 5]} {i}:",
            "chosen": f" {GOOD[i % 3]}",
            "rejected": f" {BAD[(i // 3) % 3]}",
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    save_language_model(tiny_model(tokenizer), folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs(48)), "utf-8")
    return folder


def config(place: Path, folder: Path, steps: int = 20, **ensemble: Any) -> RewardConfig:
    return RewardConfig(
        model=ModelSettings(policy=str(place / "model"), device="cpu"),
        text=PreferenceSettings(train=[str(place / "pairs.jsonl")], validation_share=0.25),
        ensemble=EnsembleSettings(**{"size": 3, **ensemble}),
        train=SupervisedSettings(steps=steps, batch_tokens=600, validate_every=10, patience=0),
        optim=OptimiserSettings(lr=3e-3, schedule="constant"),
        run=RunSettings(folder=str(folder), save_every=0, tensorboard=False),
    )


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    return RewardTrainer(config=config(place, tmp_path_factory.mktemp("run") / "run")).train()


def test_members_learn_and_differ(run):
    assert run.metrics["loss"][0] == pytest.approx(
        math.log(2), rel=0.4
    )  # × the weights of the batch's comparisons
    assert [value for value in run.metrics["validation_accuracy"] if value is not None][-1] == 1.0
    assert [value for value in run.metrics["validation_spread"] if value is not None][-1] > 0
    folders = members_of(run.model)
    assert [folder.name for folder in folders] == ["member-1", "member-2", "member-3"]
    heads = [load_file(folder / "model.safetensors")["score.weight"] for folder in folders]
    assert not torch.equal(heads[0], heads[1])
    assert verify_run(run.folder) == []
    assert all("spread" in row["components"] for row in run.samples)


def test_the_reward_is_mean_worst_or_cautious_by_hand(run):
    own = [RewardModel(str(folder), device="cpu")(ASKED) for folder in members_of(run.model)]
    rows = [[float(score) for score in scores] for scores in zip(*own, strict=True)]
    wanted = {
        "mean": [statistics.fmean(row) for row in rows],
        "worst": [min(row) for row in rows],
        "cautious": [statistics.fmean(row) - 2 * statistics.pstdev(row) for row in rows],
    }
    for combine, scores in wanted.items():
        found = RewardEnsemble(str(run.model), combine=combine, k=2.0, device="cpu")(ASKED)  # type: ignore[arg-type]
        assert found["score"] == pytest.approx(scores, abs=1e-6), combine
        assert found["spread"] == pytest.approx([statistics.pstdev(row) for row in rows], abs=1e-6)


def test_stacked_weights_are_those_of_the_validation_comparisons(run, tmp_path):
    rows = [json.loads(line) for line in (run.folder / "evaluation-model.jsonl").read_text().splitlines()]
    members = [RewardModel(str(folder), device="cpu") for folder in members_of(run.model)]

    def scores(side: str) -> torch.Tensor:
        asked = [Completion(row["prompt"], row[side]) for row in rows]
        return torch.tensor([member.scores(asked) for member in members]).double()

    weights = json.loads((run.model / "ensemble.json").read_text())["stacked"]
    wanted = stacking_weights((scores("chosen") - scores("rejected")).T)
    assert weights == pytest.approx(wanted.tolist(), rel=1e-4)
    own = [[float(score) for score in member.scores(ASKED)] for member in members]
    found = RewardEnsemble(str(run.model), combine="stacked", device="cpu")(ASKED)["score"]
    sums = [sum(w * s for w, s in zip(weights, row, strict=True)) for row in zip(*own, strict=True)]
    assert found == pytest.approx(sums, abs=1e-5)
    damaged = tmp_path / "damaged"
    shutil.copytree(run.model, damaged)
    for content, message in [
        ('{"boosted": false, "stacked": [1, 2]}', "has no weights of 3 members"),
        ('{"boosted": false, "stacked": [1, -1, 1]}', "has no weights of 3 members"),
        ('{"boosted": false, "stacked": [0, 0, 0]}', "no member was better than chance"),
        ("[" * 10**5, "not valid JSON"),
    ]:
        (damaged / "ensemble.json").write_text(content)
        with pytest.raises(ConfigError, match=message):
            build_reward(
                RewardSettings(use="reward_ensemble", args={"path": str(damaged), "combine": "stacked"})
            )


def test_a_boosted_member_learns_with_the_sum_before_it_and_gives_nothing_back(place):
    """Its gradient is Bradley–Terry's with that sum as a margin of the other sign; the first one's is its own."""
    source = ModelSource(ModelSettings(policy=str(place / "model"), device="cpu"))
    members = [load_classifier(source) for _ in range(2)]
    for i, member in enumerate(members):
        torch.manual_seed(i)
        member.output_layer.weight.data.normal_(0, 0.1)
    rows = [list(members[0].tokenizer(text)["input_ids"]) for text in TEXTS]
    texts = LabelledTexts.of([(rows[:2], (0.0,), ()), (rows[2:], (0.0,), ())], 2)
    criterion = Comparisons(ObjectiveSettings())
    settings = EnsembleSettings(size=2, boosting=True, bagging=False)
    EnsembleObjective(members, texts, texts, criterion, settings, 0, 10**6).gradient([0, 1], 10**6)
    leads = [
        outputs[:, 0, 0] - outputs[:, 1, 0] for outputs in (outputs_of(m, texts, [0, 1]) for m in members)
    ]
    zero = torch.zeros(2)
    for lead, margin, member in zip(leads, (zero, -leads[0].detach()), members, strict=True):
        loss = bradley_terry_loss(lead, zero, margin).mean()
        (wanted,) = torch.autograd.grad(loss, member.output_layer.weight)
        assert torch.allclose(member.output_layer.weight.grad, wanted, atol=1e-7)


def test_a_boosted_reward_is_the_sum(place, tmp_path):
    boosted = RewardTrainer(
        config=config(place, tmp_path / "run", size=2, boosting=True, bagging=False)
    ).train()
    own = [RewardModel(str(folder), device="cpu").scores(ASKED) for folder in members_of(boosted.model)]
    found = RewardEnsemble(str(boosted.model), combine="sum", device="cpu")(ASKED)["score"]
    assert found == pytest.approx([sum(map(float, row)) for row in zip(*own, strict=True)], abs=1e-5)
    best = min(value for value in boosted.metrics["validation_loss"] if value is not None)
    assert boosted.evaluations["model"].metrics["log_loss"].mean == pytest.approx(best, abs=1e-4)
    args = {"path": str(boosted.model), "combine": "cautious"}
    with pytest.raises(ConfigError, match=r"reward\.args\.combine = .*boosted.* set it to sum"):
        build_reward(RewardSettings(use="reward_ensemble", args=args))


def test_too_long_a_text_fails_for_the_whole_ensemble(run):
    found = RewardEnsemble(str(run.model), device="cpu", max_length=12)([Completion("x" * 90, "y"), ASKED[0]])
    assert isinstance(found["score"][0], Exception)
    assert isinstance(found["spread"][0], Exception)
    assert isinstance(found["score"][1], float)


def test_the_files_of_all_members_are_inputs(run):
    settings = proxlm.PPOConfig(reward=RewardSettings(use="reward_ensemble", args={"path": str(run.model)}))
    files = inputs_of(settings).files["reward.args.path"]
    assert {"member-1/model.safetensors", "member-3/config.json"} <= set(files)


@pytest.mark.parametrize("combine", ["mean", "worst"])
def test_ppo_runs_against_it(run, place, tmp_path, combine):
    settings = proxlm.PPOConfig(
        model=ModelSettings(policy=str(place / "model"), device="cpu"),
        data=proxlm.DataSettings(eval_count=0),
        rollout=proxlm.RolloutSettings(max_new_tokens=4),
        reward=RewardSettings(
            use="reward_ensemble", args={"path": str(run.model), "combine": combine, "device": "cpu"}
        ),
        ppo=proxlm.PPOSettings(steps=1, batch_size=4),
        run=RunSettings(folder=str(tmp_path / "ppo"), tensorboard=False),
    )
    done = proxlm.PPOTrainer(prompts=["The cat", "One day", "moon", "a red"], config=settings).train()
    assert done.metrics["reward/score"][0] == pytest.approx(done.metrics["reward"][0], abs=1e-6)
    assert done.metrics["reward/spread"][0] > 0
    assert "spread" in done.samples[0]["components"]


def test_an_interrupted_run_is_the_same_bit_by_bit(place, tmp_path):
    RewardTrainer(config=config(place, tmp_path / "half", steps=2, size=2)).train()
    more = proxlm.load_config(
        "reward", tmp_path / "half" / "config.toml", {"train.steps": 4, "run.resume": True}
    )
    resumed = RewardTrainer(config=more).train()
    straight = RewardTrainer(config=config(place, tmp_path / "straight", steps=4, size=2)).train()
    assert resumed.metrics["loss"] == straight.metrics["loss"]
    first, second = (newest_checkpoint(r.folder) for r in (resumed, straight))
    names = ["state.json", "manifest.json"]
    files = [p.relative_to(first) for p in first.rglob("*") if p.is_file() and p.name not in names]
    assert Path("reward/member-2/model.safetensors") in files
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)


def test_new_models_and_their_resume(tmp_path):
    def settings(steps: int, **run: Any) -> RewardConfig:
        return RewardConfig(
            scratch=NewModelSettings(type="llama", vocabulary=280, hidden=16, layers=1, heads=2, context=64),
            model=ModelSettings(device="cpu"),
            ensemble=EnsembleSettings(size=2, bagging=False),
            train=SupervisedSettings(steps=steps, batch_tokens=600, validate_every=2),
            run=RunSettings(folder=str(tmp_path / "run"), tensorboard=False, **run),
        )

    run = RewardTrainer(train=pairs(24), config=settings(2)).train()
    weights = [load_file(folder / "model.safetensors") for folder in members_of(run.model)]
    assert not torch.equal(weights[0]["model.embed_tokens.weight"], weights[1]["model.embed_tokens.weight"])
    again = RewardTrainer(train=pairs(24), config=settings(3, resume=True)).train()
    assert len(again.metrics["loss"]) == 3


def test_members_that_would_stay_equal_are_refused(place, tmp_path):
    """A decoder's heads begin at 0: without bagging its members are one model, and their spread is 0."""
    with pytest.raises(ConfigError, match=r"ensemble\.bagging = false: .* would stay equal; set it to true"):
        RewardTrainer(config=config(place, tmp_path / "run", size=2, bagging=False)).train()
    assert not (tmp_path / "run").exists()


def test_the_average_is_one_model_of_the_mean_weights(place, tmp_path):
    members = RewardTrainer(config=config(place, tmp_path / "members", steps=10)).train()
    average = RewardTrainer(config=config(place, tmp_path / "average", steps=10, save="average")).train()
    own = [load_file(folder / "model.safetensors") for folder in members_of(members.model)]
    found = load_file(average.model / "model.safetensors")
    for name, tensor in found.items():
        assert torch.allclose(tensor, torch.stack([one[name] for one in own]).mean(0), atol=1e-6), name
    assert RewardModel(str(average.model), device="cpu")(ASKED)[0] != 0


def test_a_sample_has_as_many_comparisons_as_there_are():
    first, second = bag(1000, 0, 0), bag(1000, 0, 1)
    assert first.sum() == second.sum() == 1000
    assert not torch.equal(first, second)
    assert torch.equal(first, bag(1000, 0, 0))
    assert float((first == 0).float().mean()) == pytest.approx(math.exp(-1), abs=0.05)


def test_what_cannot_be(place, tmp_path, run):
    made = config(place, tmp_path / "run", save="average")
    with pytest.raises(ConfigError, match=r"ensemble\.save = \"average\": adapters have no mean"):
        RewardTrainer(config=replace(made, model=replace(made.model, lora=LoraSettings(rank=2))))
    with pytest.raises(ConfigError, match=r"ensemble\.size: a loaded model is only one"):
        RewardTrainer(proxlm.load_model(str(place / "model")), config=made)
    with pytest.raises(ConfigError, match=r"reward\.args\.path = .*needs two models or more"):
        build_reward(RewardSettings(use="reward_ensemble", args={"path": str(place / "model")}))
    with pytest.raises(ConfigError, match=r"reward\.args\.k = -1"):
        build_reward(RewardSettings(use="reward_ensemble", args={"path": str(run.model), "k": -1.0}))


def test_an_ensembles_folder_as_one_model_says_what_to_write(place, run):
    whole, one = str(run.model), str(run.model / "member-1")
    for path in (whole, str(run.folder)):
        with pytest.raises(ConfigError) as caught:
            build_reward(RewardSettings(use="reward_model", args={"path": path}))
        said = str(caught.value)
        assert "holds an ensemble of 3; write use = " in said
        assert one in said or "…" in said  # a long path loses the middle of the line
    with pytest.raises(ConfigError, match=r"needs two models or more.*; they are in"):
        build_reward(RewardSettings(use="reward_ensemble", args={"path": str(run.folder)}))
    build_reward(RewardSettings(use="reward_ensemble", args={"path": whole}))
    with pytest.raises(ConfigError, match=r"ensemble\.size = 65: must be at most 64"):
        load_config("reward", {"ensemble.size": 65})
