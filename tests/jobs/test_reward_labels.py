"""`proxlm reward` on scores, classes and steps: what is learnt, saved, judged, resumed and used as a reward."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import proxlm
from proxlm.checkpoint import newest_checkpoint
from proxlm.config import (
    EnsembleSettings,
    LabelSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimiserSettings,
    PreferenceSettings,
    RewardConfig,
    RewardSettings,
    RunSettings,
    SupervisedSettings,
)
from proxlm.errors import ConfigError, DataError
from proxlm.jobs.reward import RewardTrainer
from proxlm.models.save import save_language_model
from proxlm.report.verify import verify_run
from proxlm.rewards.process_reward_model import ProcessRewardModel
from proxlm.rewards.reward import build_reward
from proxlm.rewards.reward_model import RewardModel
from proxlm.types import Completion
from small_models import tiny_model

WORDS = {"good": 1, "fine": 1, "bad": 0, "poor": 0}


def records(count: int) -> list[dict[str, Any]]:
    """The word says the score (around 80, far from 0), the class and which steps are right."""
    made = []
    for i in range(count):
        first, second = list(WORDS)[i % 4], list(WORDS)[(i // 4) % 4]
        made.append(
            {
                "prompt": f"Tea {i}:",
                "response": f" {first}",
                "score": 80.0 + 10 * WORDS[first],
                "length": float(i % 3) if i % 2 else None,
                "label": ("no", "yes")[WORDS[first]],
                "completions": [f" {first}", f"{second}"],
                "labels": [bool(WORDS[first]), bool(WORDS[second])],
            }
        )
    return made


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    save_language_model(tiny_model(tokenizer), folder / "model")
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records(48)), "utf-8")
    return folder


def config(place: Path, folder: Path, kind: Any, steps: int = 30, **more: Any) -> RewardConfig:
    return RewardConfig(
        model=ModelSettings(policy=str(place / "model"), device="cpu", **more.pop("model", {})),
        text=PreferenceSettings(train=[str(place / "records.jsonl")], validation_share=0.25, **more.pop("text", {})),
        objective=ObjectiveSettings(kind=kind, **more.pop("objective", {})),
        labels=LabelSettings(**more.pop("labels", {})),
        ensemble=EnsembleSettings(**more.pop("ensemble", {})),
        train=SupervisedSettings(steps=steps, batch_tokens=600, validate_every=10, patience=0),
        optim=OptimiserSettings(lr=3e-3, schedule="constant", warmup=0),
        test=proxlm.ComparisonTestSettings(baselines=more.pop("baselines", True)),
        run=RunSettings(folder=str(folder), save_every=0, tensorboard=False, **more),
    )  # fmt: skip


@pytest.fixture(scope="module")
def scores(place, tmp_path_factory):
    return RewardTrainer(config=config(place, tmp_path_factory.mktemp("s") / "run", "scores")).train()


@pytest.fixture(scope="module")
def classes(place, tmp_path_factory):
    return RewardTrainer(config=config(place, tmp_path_factory.mktemp("c") / "run", "classes")).train()


@pytest.fixture(scope="module")
def steps(place, tmp_path_factory):
    return RewardTrainer(config=config(place, tmp_path_factory.mktemp("p") / "run", "steps", 60)).train()


def of_words() -> list[Completion]:
    return [Completion("Tea 3:", f" {word}") for word in WORDS]


def test_scores_begin_at_their_mean_and_end_in_their_own_units(scores):
    """The mean is 17 standard deviations from 0 and the head has no bias: at zeros the loss would be 17² = 289."""
    assert scores.metrics["loss"][0] < 60
    found = RewardModel(str(scores.model), device="cpu")(of_words())
    assert found == pytest.approx([90, 90, 80, 80], abs=2.5)
    model = AutoModelForSequenceClassification.from_pretrained(scores.model).eval()
    assert (model.config.problem_type, model.config.id2label) == ("regression", {0: "score"})
    tokenizer = AutoTokenizer.from_pretrained(scores.model)
    with torch.no_grad():
        alone = [float(model(**tokenizer(c.prompt + c.text, return_tensors="pt")).logits) for c in of_words()]
    assert found == pytest.approx(alone, abs=1e-3)
    assert verify_run(scores.folder) == []


def test_scores_are_judged_beside_their_mean(scores):
    rows = [json.loads(line) for line in (scores.folder / "evaluation-model.jsonl").read_text().splitlines()]
    errors = [row["scores"]["score"] - row["labels"]["score"] for row in rows]
    found = scores.evaluations
    assert found["model"].metrics["mse"].mean == pytest.approx(statistics.fmean(e * e for e in errors))
    assert found["model"].metrics["mae"].mean == pytest.approx(statistics.fmean(map(abs, errors)))
    assert found["model"].metrics["pearson"].mean > 0.9
    assert found["constant"].metrics["mse"].mean == pytest.approx(25, rel=0.3)
    assert "pearson" not in found["constant"].metrics
    assert found["model"].metrics["mse"].high < found["constant"].metrics["mse"].low
    assert scores.samples[-1]["expected"] in ("80", "90")


def test_a_trained_model_goes_on_in_its_own_units(scores, place, tmp_path):
    made = config(place, tmp_path / "run", "scores", 1, baselines=False)
    made = replace(made, optim=OptimiserSettings(lr=1e-7))
    again = RewardTrainer(str(scores.model), config=made).train()
    assert again.metrics["loss"][0] < 0.3
    before, after = (RewardModel(str(run.model), device="cpu")(of_words()) for run in (scores, again))
    assert after == pytest.approx(before, abs=0.01)


def test_a_model_that_was_lent_has_its_scores_units_afterwards(scores, place, tmp_path):
    network = AutoModelForSequenceClassification.from_pretrained(scores.model)
    tokenizer = AutoTokenizer.from_pretrained(scores.model)
    before = network.score.weight.detach().clone()
    made = config(place, tmp_path / "run", "scores", 1, baselines=False)
    made = replace(made, optim=OptimiserSettings(lr=1e-7))
    RewardTrainer(network, tokenizer=tokenizer, config=made).train()
    assert torch.allclose(network.score.weight, before, atol=1e-4)


def test_a_critic_begins_with_the_model_of_scores(scores, place):
    settings = proxlm.PPOConfig(
        model=ModelSettings(policy=str(place / "model"), critic_from=str(scores.model), device="cpu")
    )
    models = proxlm.actor_critic(proxlm.load_model(str(place / "model"), settings.model), settings)
    score = AutoModelForSequenceClassification.from_pretrained(scores.model).score.weight
    assert any(
        p.shape == score.shape and torch.equal(p.detach(), score) for _, p in models.critic_parameters()
    )


def test_several_scores_are_components_of_a_reward(place, tmp_path):
    labels = {"score_fields": ["score", "length"]}
    made = config(place, tmp_path / "run", "scores", 20, labels=labels, objective={"score_loss": "huber"})
    run = RewardTrainer(config=made).train()
    assert {"mse/score", "mse/length", "pearson/score"} <= set(run.evaluations["model"].metrics)
    reward = build_reward(
        RewardSettings(
            use="reward_model", args={"path": str(run.model), "device": "cpu"}, weights={"length": 0.0}
        )
    )
    found = reward.score(of_words())
    assert set(found.components) == {"score", "length"}
    assert found.total.tolist() == pytest.approx(found.components["score"], abs=1e-4)
    assert min(found.components["score"]) > 50
    one = RewardModel(str(run.model), device="cpu", label="length")(of_words())
    assert one == pytest.approx(found.components["length"], abs=1e-5)


def test_classes_are_learnt_named_and_judged(classes):
    model = AutoModelForSequenceClassification.from_pretrained(classes.model)
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert classes.metrics["loss"][0] == pytest.approx(math.log(2), abs=1e-6)
    found = classes.evaluations["model"].metrics
    assert found["accuracy"].mean == 1.0
    assert found["accuracy"].low < 0.9
    assert classes.evaluations["constant"].metrics["accuracy"].mean < 0.8
    log, share, logit = (
        RewardModel(str(classes.model), device="cpu", label="yes", **how)(of_words())
        for how in ({}, {"sigmoid": True}, {"logit": True})
    )
    assert [math.exp(value) for value in log] == pytest.approx(share, abs=1e-5)
    assert [value > 0.5 for value in share] == [True, True, False, False]
    other = RewardModel(str(classes.model), device="cpu", label="no", logit=True)(of_words())
    assert [1 / (1 + math.exp(b - a)) for a, b in zip(logit, other, strict=True)] == pytest.approx(
        share, abs=1e-5
    )
    with pytest.raises(ValueError, match="logit"):
        RewardModel(str(classes.model), sigmoid=True, logit=True)


def test_classes_take_the_order_of_a_trained_classifier(classes, place, tmp_path):
    folder = tmp_path / "turned"
    model = AutoModelForSequenceClassification.from_pretrained(classes.model)
    model.score.weight.data = model.score.weight.data.flip(0)
    model.config.id2label, model.config.label2id = {0: "yes", 1: "no"}, {"yes": 0, "no": 1}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(classes.model).save_pretrained(folder)
    made = config(place, tmp_path / "run", "classes", 1, baselines=False)
    again = RewardTrainer(str(folder), config=made).train()
    assert again.metrics["loss"][0] < 0.3
    fixed = config(place, tmp_path / "b", "classes", 1, labels={"classes": ["no", "yes"]})
    with pytest.raises(ConfigError, match=r"labels\.classes: the order"):
        RewardTrainer(str(folder), config=fixed).train()


def test_steps_are_learnt_saved_and_found_again(steps):
    model = AutoModelForTokenClassification.from_pretrained(steps.model).eval()
    assert model.config.architectures == ["LlamaForTokenClassification"]
    assert model.config.id2label == {0: "wrong", 1: "right"}
    assert steps.metrics["loss"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert steps.evaluations["model"].metrics["accuracy"].mean == 1.0
    assert steps.evaluations["model"].metrics["first_error"].mean == 1.0
    asked = [Completion("Tea 3:", " good\nbad"), Completion("Tea 3:", " bad\n\nfine\n")]
    reward = ProcessRewardModel(str(steps.model), device="cpu")
    found = reward.probabilities(asked)
    assert [[p > 0.5 for p in row] for row in found] == [[True, False], [False, True]]  # type: ignore[union-attr]
    tokenizer = AutoTokenizer.from_pretrained(steps.model)
    with torch.no_grad():  # the second step ends with the text, so its token is the last
        alone = model(**tokenizer("Tea 3: good\nbad", return_tensors="pt")).logits[0, -1].softmax(-1)[1]
    assert found[0][1] == pytest.approx(float(alone), abs=1e-5)  # type: ignore[index]


def test_steps_of_a_conversation_are_found_behind_its_template(place, tmp_path):
    """Whatever the template writes around the response, and if it strips it: here with its letters behind it."""
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m.role }} a] {{ m.content | trim }} <end a b>\n{% endfor %}"
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completions": row["completions"],
            "labels": row["labels"],
        }
        for row in records(24)
    ]
    made = config(place, tmp_path / "run", "steps", 1, text={"chat_template": str(template)}, baselines=False)
    run = RewardTrainer(train=rows, config=made).train()
    asked = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": " a\nb "}]
    found = ProcessRewardModel(str(run.model), device="cpu").probabilities(
        [Completion("Tea?", " a\nb ", messages=asked)]
    )[0]
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    model = AutoModelForTokenClassification.from_pretrained(run.model).eval()
    text = "[user a] Tea? <end a b>\n[assistant a] a\nb <end a b>\n"
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_tensors="pt")
    ends = [text.index("a\nb"), text.index("\nb ") + 1]
    spans = read["offset_mapping"][0].tolist()
    places = [next(i for i, (a, b) in enumerate(spans) if a <= end < b) for end in ends]
    with torch.no_grad():
        logits = model(read["input_ids"]).logits[0, places]
    assert found == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-6)


def test_what_is_made_of_the_steps(steps):
    asked = [Completion("Tea 3:", " good\nfine\nbad")]
    one = ProcessRewardModel(str(steps.model), device="cpu").probabilities(asked)[0]
    assert isinstance(one, list)
    wanted = {"min": min(one), "product": math.prod(one), "last": one[-1], "mean": statistics.fmean(one)}
    for combine, value in wanted.items():
        found = ProcessRewardModel(str(steps.model), combine=combine, device="cpu")(asked)  # type: ignore[arg-type]
        assert found == pytest.approx([value], abs=1e-6), combine


def test_a_reward_at_the_steps_ends(steps):
    tokenizer = AutoTokenizer.from_pretrained(steps.model)
    text = " good\nbad 春\n"
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    asked = [Completion("Tea 3:", text, tokens=(*ids, tokenizer.eos_token_id))]
    rewards = ProcessRewardModel(str(steps.model), combine="steps", device="cpu")(asked)[0]
    steps_of = ProcessRewardModel(str(steps.model), device="cpu").probabilities(asked)[0]
    assert isinstance(rewards, list)
    assert len(rewards) == len(ids) + 1
    at = [i for i, value in enumerate(rewards) if value]
    assert [rewards[i] for i in at] == pytest.approx(steps_of)
    assert tokenizer.decode(ids[: at[0] + 1]).strip() == "good"
    assert tokenizer.decode(ids[: at[1] + 1]).strip() == "good\nbad 春"
    foreign = ProcessRewardModel(str(steps.model), combine="steps", device="cpu")(
        [Completion("Tea:", " good", tokens=(5, 6))]
    )
    assert "not those of the process reward model's tokenizer" in str(foreign[0])


@pytest.mark.parametrize("combine", ["min", "steps"])
def test_ppo_runs_against_it(combine, steps, place, tmp_path):
    args = {"path": str(steps.model), "combine": combine, "device": "cpu"}
    settings = proxlm.PPOConfig(
        model=ModelSettings(policy=str(place / "model"), device="cpu"),
        data=proxlm.DataSettings(eval_count=0),
        rollout=proxlm.RolloutSettings(max_new_tokens=6),
        reward=RewardSettings(use="process_reward_model", args=args, on_error="score"),
        ppo=proxlm.PPOSettings(steps=1, batch_size=4, kl_coef=0.0),
        run=RunSettings(folder=str(tmp_path / "ppo"), tensorboard=False),
    )
    done = proxlm.PPOTrainer(prompts=["Tea 1:", "Tea 2:", "Tea 3:", "Tea 4:"], config=settings).train()
    assert 0 < done.metrics["reward"][0] < 6
    rewards = [value for row in done.samples for value in row["per_token"]["reward"]]
    assert sum(value > 0 for value in rewards) >= 2


def test_responses_without_steps_and_models_that_are_none(steps, scores):
    found = ProcessRewardModel(str(steps.model), device="cpu")(
        [Completion("Tea:", " \n"), Completion("Tea:", " good")]
    )
    assert str(found[0]) == "the response has no step"
    assert isinstance(found[1], float)
    with pytest.raises(ValueError, match="needs a trained …ForTokenClassification"):
        ProcessRewardModel(str(scores.model))
    with pytest.raises(ConfigError, match=r"reward\.args\.path"):
        build_reward(RewardSettings(use="process_reward_model", args={"path": str(scores.model)}))
    with pytest.raises(ConfigError):
        build_reward(RewardSettings(use="reward_model", args={"path": str(steps.model)}))


@pytest.mark.parametrize("kind", ["scores", "classes", "steps"])
def test_an_interrupted_run_is_the_same_bit_by_bit(kind, place, tmp_path):
    RewardTrainer(config=config(place, tmp_path / "half", kind, 2, baselines=False)).train()
    more = proxlm.load_config(
        "reward", tmp_path / "half" / "config.toml", {"train.steps": 4, "run.resume": True}
    )
    resumed = RewardTrainer(config=more).train()
    straight = RewardTrainer(config=config(place, tmp_path / "straight", kind, 4, baselines=False)).train()
    assert resumed.metrics["loss"] == straight.metrics["loss"]
    first, second = (newest_checkpoint(r.folder) for r in (resumed, straight))
    names = ["state.json", "manifest.json"]
    files = [p.relative_to(first) for p in first.rglob("*") if p.is_file() and p.name not in names]
    assert Path("reward/model.safetensors") in files
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)


def test_an_ensemble_of_scores(place, tmp_path):
    made = config(place, tmp_path / "run", "scores", 10, ensemble={"size": 2}, baselines=False)
    run = RewardTrainer(config=made).train()
    reward = build_reward(
        RewardSettings(use="reward_ensemble", args={"path": str(run.model), "device": "cpu"})
    )
    assert min(reward.score(of_words()).total.tolist()) > 50
    own = [RewardModel(str(run.model / f"member-{i}"), device="cpu")(of_words()) for i in (1, 2)]
    means = [statistics.fmean(pair) for pair in zip(*own, strict=True)]
    assert reward.score(of_words()).total.tolist() == pytest.approx(means, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("scores", {"labels": {"score_fields": []}}, "labels.score_fields"),
        ("scores", {"labels": {"score_fields": ["a", "a"]}}, "labels.score_fields"),
        ("classes", {"labels": {"classes": ["a"]}}, "labels.classes"),
        ("steps", {"labels": {"separator": ""}}, "labels.separator"),
        ("steps", {"text": {"pair": True}}, "text.pair"),
        ("steps", {"text": {"on_long_text": "truncate"}}, "text.on_long_text"),
        ("steps", {"ensemble": {"size": 2}}, "ensemble.size"),
        ("scores", {"ensemble": {"size": 2, "boosting": True}}, "ensemble.boosting"),
        ("classes", {"objective": {"score_loss": "huber"}}, "objective.score_loss"),
        ("scores", {"objective": {"centring": 0.1}}, "objective.centring"),
    ],
)
def test_settings_that_cannot_be(kind, changed, message, place, tmp_path):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        RewardTrainer(config=config(place, tmp_path / "run", kind, **changed))


def test_records_that_cannot_be(place, tmp_path):
    made = config(place, tmp_path / "run", "scores")
    with pytest.raises(DataError, match=r"train:2: field \"score\" must be a number"):
        RewardTrainer(
            train=[{"response": "a", "score": 1}, {"response": "b", "score": "x"}], config=made
        ).train()
    same = [{"response": f"a {i}", "score": 3} for i in range(8)]
    with pytest.raises(DataError, match=r"\"score\": all are 3 in the training part"):
        RewardTrainer(train=same, config=made).train()
    assert not (tmp_path / "run").exists()
