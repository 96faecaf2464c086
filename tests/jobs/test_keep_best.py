"""The model of the best step: chosen by what is measured on held-out prompts, kept whole, exact after a kill."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import proxlm
from proxlm.__main__ import main
from proxlm.checkpoint import checkpoints
from proxlm.config.from_run import kept_models
from proxlm.errors import ConfigError
from proxlm.models.save import save_language_model
from small_models import TEXTS, tiny_model

REWARD = "def score(completions):\n    return [sum(c in 'aeiou' for c in x.text) / 20 for x in completions]\n"
QUIET = ["--run.tensorboard", "false", "--run.threads", "1", "--run.report", "false"]
PPO = [
    "ppo", "--model.policy", "model", "--model.critic", "shared", "--model.device", "cpu",
    "--data.prompts", "prompts.jsonl", "--data.eval-count", "6", "--rollout.max-new-tokens", "6",
    "--reward.use", "reward.py:score", "--ppo.batch-size", "8", "--ppo.epochs", "1", "--ppo.minibatches", "2",
    "--optim.policy.lr", "3e-2", "--optim.policy.schedule", "constant", *QUIET,
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("best")
    save_language_model(tiny_model(tokenizer), folder / "model")
    lines = [json.dumps({"prompt": f"{text[:12]} {i}"}) for i in range(5) for text in TEXTS]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    pairs = [{"prompt": text[:6], "response": f"{text[6:16]} {i}"} for i in range(6) for text in TEXTS]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def here(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    return place


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but a model's manifest, which its checkpoint does not have."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.fixture(scope="module")
def whole(place) -> Path:
    """Seven steps, each with an evaluation and a checkpoint, all of which stay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        more = ["--run.save-every", "1", "--run.keep", "9", "--evaluation.every", "1"]
        assert main([*PPO, *more, "--ppo.steps", "7", "--run.folder", "whole"]) == 0
    return place / "whole"


@pytest.mark.parametrize(
    ("settings", "metric", "choose"),
    [
        ([], "evaluation/reward", max),
        (["--run.keep-best", "evaluation/greedy/reward"], "evaluation/greedy/reward", max),
        (["--run.keep-best", "evaluation/kl", "--run.keep-best-is", "lowest"], "evaluation/kl", min),
    ],
)
def test_the_best_step_is_kept_where_no_checkpoint_is_due(here, whole, settings, metric, choose):
    folder = here / "-".join(["few", *settings]).replace("/", "-")
    few = ["--run.save-every", "0", "--evaluation.every", "1", "--ppo.steps", "7"]
    assert main([*PPO, *few, *settings, "--run.folder", str(folder)]) == 0
    assert [path.name for path in checkpoints(folder)] == ["step-00000007"]
    values = [row[metric] for row in rows(folder)]
    best = values.index(choose(values)) + 1
    assert 1 <= best < 7 or choose is max
    assert [path.name for path in kept_models(folder)] == [f"step-{best:08d}"]
    # Byte for byte the policy of that step: of the checkpoint of a run that writes one in each.
    policy = whole / "checkpoints" / f"step-{best:08d}" / "policy"
    assert content(kept_models(folder)[0]) == content(policy)
    run = proxlm.load_run(folder)
    assert run.best_model == folder / "best" / f"step-{best:08d}"
    assert (run.chosen.step, run.chosen.metric, run.chosen.value) == (best, metric, choose(values))
    assert list(run.evaluations) == ["before", "best", "after"]
    assert run.verify() == []


def test_the_best_model_loads_in_plain_transformers_and_earns_what_was_said(here, whole):
    run = proxlm.load_run(whole)
    network = AutoModelForCausalLM.from_pretrained(run.best_model)
    tensors = network.state_dict()
    other = AutoModelForCausalLM.from_pretrained(run.model).state_dict()
    same = all(torch.equal(tensors[name], other[name]) for name in tensors)
    assert same == (run.chosen.step == 7)
    settings = proxlm.load_config("evaluate", whole)
    found = proxlm.evaluate([settings.model.policy, str(run.best_model)], config=settings)[1]
    row = rows(whole)[run.chosen.step - 1]
    assert found.metrics["reward"].mean == pytest.approx(row["evaluation/reward"], abs=1e-6)


def test_the_table_shows_the_best_with_other_random_numbers(here, whole, capsys):
    run = proxlm.load_run(whole)
    chosen_by = rows(whole)[run.chosen.step - 1]
    # A greedy answer is the same again, a sampled one is not.
    greedy = run.best.metrics["greedy/reward"].mean
    assert greedy == pytest.approx(chosen_by["evaluation/greedy/reward"], abs=1e-6)
    assert run.best.metrics["perplexity"].mean != pytest.approx(chosen_by["evaluation/perplexity"])
    text = run.chosen.line()
    assert text.startswith(f"best: step {run.chosen.step}, chosen by the highest evaluation/reward = ")
    assert "too good on average as the best of several; evaluated again with other random numbers" in text
    assert "a greedy answer is the same again" in replace(run.chosen, metric="evaluation/greedy/kl").line()
    assert main(["report", str(whole), "--output", "page.html"]) == 0
    page = Path("page.html").read_text("utf-8")
    assert f"step {run.chosen.step}: evaluation/reward" in page
    assert "chosen by the highest evaluation/reward" in page
    assert len(run.best.responses) == 6


@pytest.mark.parametrize("saved", [2, 4])
def test_a_run_killed_behind_a_checkpoint_ends_the_same(here, whole, saved, capsys):
    """After the checkpoint of some step all later ones are lost; what is in best/ of later steps is not."""
    folder = here / f"killed-{saved}"
    shutil.copytree(whole, folder)
    for path in checkpoints(folder):
        if int(path.name[-8:]) > saved:
            shutil.rmtree(path)
    shutil.rmtree(folder / "policy")
    (folder / "evaluation.json").unlink()
    state = json.loads((folder / "checkpoints" / f"step-{saved:08d}" / "state.json").read_text())
    later = folder / "best" / "step-00000006"
    if not later.exists():
        shutil.copytree(kept_models(folder)[0], later)
    assert main(["ppo", str(folder / "config.toml"), "--resume"]) == 0
    assert content(folder / "best") == content(whole / "best")
    assert content(folder / "policy") == content(whole / "policy")
    ends = [
        json.loads((path / "checkpoints/step-00000007/state.json").read_text()) for path in (folder, whole)
    ]
    assert ends[0]["best_step"] == ends[1]["best_step"] >= state["best_step"] > 0
    assert ends[0]["best_value"] == ends[1]["best_value"]
    models = [json.loads((path / "evaluation.json").read_text())["models"] for path in (folder, whole)]
    assert [m["metrics"] for m in models[0]] == [m["metrics"] for m in models[1]]
    assert proxlm.load_run(folder).verify() == []


def test_harm_to_the_best_model_is_found_and_a_resume_chooses_anew(here, whole, capsys):
    folder = here / "harmed"
    shutil.copytree(whole, folder)
    run = proxlm.load_run(folder)
    best = run.best_model
    size = (best / "config.json").stat().st_size
    (best / "config.json").write_text("{}")
    assert [line for line in run.verify() if "best" in line] == [
        f"{best}: config.json has 2 bytes, written were {size}"
    ]
    assert main(["ppo", str(folder / "config.toml"), "--resume", "--ppo.steps", "9"]) == 0
    said = capsys.readouterr().out
    assert f"note: the best step is chosen again, from here on: {best}: config.json" in said
    assert proxlm.load_run(folder).chosen.step in (8, 9)


def test_verify_names_what_is_missing_and_what_nobody_names(here, whole):
    folder = here / "moved"
    shutil.copytree(whole, folder)
    best = proxlm.load_run(folder).best_model
    best.rename(best.with_name("step-00000099"))
    found = [line for line in proxlm.load_run(folder).verify() if "best" in line]
    assert found == [
        f"{best}: missing",
        f"{best.with_name('step-00000099')}: no checkpoint names it as the best; a resume removes it",
    ]


def test_evaluate_and_generate_can_name_it(here, whole, capsys):
    best = str(proxlm.load_run(whole).best_model)
    assert proxlm.load_config("generate", whole / "best").model.policy == best
    assert proxlm.load_config("evaluate", whole / "best").models == [best]
    both = proxlm.load_config("evaluate", whole).models
    assert both == [str(whole / "policy")] + ([best] if not best.endswith("7") else [])
    assert main(["generate", "whole/best", "--prompt", "the cat", "--rollout.max-new-tokens", "2"]) == 0
    assert main(["ppo", "whole/best"]) == 2
    plain = here / "plain"
    assert main([*PPO, "--ppo.steps", "1", "--run.folder", str(plain)]) == 0
    assert not (plain / "best").exists()
    (plain / "best").mkdir()
    with pytest.raises(ConfigError, match="best: the run has kept no model"):
        proxlm.load_config("generate", plain / "best")


@pytest.mark.parametrize(
    ("job", "settings", "said"),
    [
        (
            "ppo",
            {"run.keep_best": "evaluation/reward"},
            "is not measured during the run: evaluation.every = 0",
        ),
        (
            "ppo",
            {"run.keep_best": "evaluation/greedy/kl", "evaluation.every": 2, "evaluation.greedy": False},
            "is not measured: evaluation.greedy = false",
        ),
        ("value", {"run.keep_best": "evaluation/kl"}, "is not measured during the run: evaluation.every = 0"),
        ("ppo", {"run.keep_best_is": "best"}, "run.keep_best_is"),
        ("sft", {"run.keep_best": "validation_loss"}, "always is the one with the best validation loss"),
        ("pretrain", {"run.keep_best": "loss"}, "always is the one with the best validation loss"),
    ],
)
def test_what_cannot_be_the_best_is_refused(job, settings, said):
    given = {
        "model.policy": "nowhere",
        "reward.use": "length",
        "data.prompts": "no.txt",
        "text.train": ["no.txt"],
    }
    needed = {key: value for key, value in given.items() if job in ("ppo", "value") or key[0] in "mt"}
    needed = {
        key: value for key, value in needed.items() if key != "text.train" or job in ("sft", "pretrain")
    }
    with pytest.raises(ConfigError, match=said):
        proxlm.load_config(job, overrides={**needed, **settings})


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("evaluation/rewrd", "did you mean evaluation/reward?"),
        ("evaluation/greedy/rewrd", "did you mean evaluation/greedy/reward?"),
        ("rewrd", "did you mean reward?"),
        ("validation_loss", "proxlm ppo has no metric validation_loss"),
        ("evaluation/step", "proxlm ppo has no metric evaluation/step"),
    ],
)
def test_a_metric_that_no_step_has_is_refused_before_a_model_is_loaded(metric, said, tmp_path):
    config = proxlm.PPOConfig(
        model=proxlm.ModelSettings(policy=str(tmp_path / "nowhere")),
        data=proxlm.DataSettings(prompts=str(tmp_path / "no.txt")),
        evaluation=proxlm.EvaluationSettings(every=2),
        run=proxlm.RunSettings(keep_best=metric),
    )
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        proxlm.PPOTrainer(reward=len, config=config)

    class Own(proxlm.Callback):
        def on_step(self, step, metrics):
            metrics["rewrd"] = 1.0

    proxlm.PPOTrainer(reward=len, config=config, callbacks=[Own()])  # it may add any metric


def test_other_jobs_keep_their_best_steps_as_well(here):
    """The critic of `proxlm value`, the policy of `proxlm control`; in SFT policy/ is the best validation's."""
    value = ["value", *PPO[1:], "--ppo.steps", "3", "--run.save-every", "0", "--run.folder", "value"]
    assert main([*value, "--run.keep-best", "value_loss", "--run.keep-best-is", "lowest"]) == 0
    losses = [row["value_loss"] for row in rows(here / "value")]
    assert [path.name for path in kept_models(here / "value")] == [
        f"step-{losses.index(min(losses)) + 1:08d}"
    ]
    control = [
        "control", "--environment.id", "CartPole-v1", "--environment.count", "2", "--environment.steps", "128",
        "--ppo.horizon", "16", "--ppo.epochs", "1", "--ppo.minibatches", "2", "--model.width", "8", *QUIET,
        "--run.save-every", "0", "--run.folder", "control", "--run.keep-best", "entropy",
    ]  # fmt: skip
    assert main([*control, "--run.keep-best-is", "lowest"]) == 0
    entropies = [row["entropy"] for row in rows(here / "control")]
    best = kept_models(here / "control")[-1]
    assert best.name == f"step-{entropies.index(min(entropies)) + 1:08d}"
    assert {"policy.json", "policy.safetensors"} <= {path.name for path in best.iterdir()}
    assert proxlm.load_run(here / "control").verify() == []
    sft = ["sft", "--model.policy", "model", "--model.device", "cpu", "--text.train", "pairs.jsonl", *QUIET]
    steps = ["--train.steps", "3", "--train.batch-tokens", "60", "--train.validate-every", "1"]
    assert main([*sft, *steps, "--run.save-every", "1", "--run.folder", "sft"]) == 0
    losses = [row["validation_loss"] for row in rows(here / "sft")]
    state = json.loads((checkpoints(here / "sft")[-1] / "state.json").read_text())
    assert (state["best_step"], state["best_value"]) == (losses.index(min(losses)) + 1, min(losses))
    assert not (here / "sft" / "best").exists()
