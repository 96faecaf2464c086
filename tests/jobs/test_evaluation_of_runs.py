"""Evaluation during a run, greedy beside sampled, every response in a file; and `evaluate` on every kind of run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import proxlm
from proxlm.__main__ import main
from proxlm.models.save import save_language_model
from proxlm.runlog.text import number
from small_models import TEXTS, tiny_model

REWARD = (
    "def score(completions):\n"
    "    vowels = [sum(c in 'aeiou' for c in x.text) / 20 for x in completions]\n"
    "    return {'vowels': vowels, 'length': [len(x.tokens) / 100 for x in completions]}\n"
)
PPO = [
    "ppo", "--model.policy", "model", "--model.critic", "shared", "--model.device", "cpu",
    "--data.prompts", "prompts.jsonl", "--data.eval-count", "5", "--rollout.max-new-tokens", "6",
    "--reward.use", "reward.py:score", "--ppo.steps", "4", "--ppo.batch-size", "8", "--ppo.epochs", "1",
    "--optim.policy.lr", "1e-2", "--run.tensorboard", "false", "--run.threads", "1", "--run.report", "false",
]  # fmt: skip


@pytest.fixture
def place(tokenizer, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    lines = [json.dumps({"prompt": f"{text[:12]} {i}"}) for i in range(5) for text in TEXTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "reward.py").write_text(REWARD, encoding="utf-8")
    return tmp_path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluated(folder: Path) -> list[dict]:
    found = [
        {name: value for name, value in row.items() if name == "step" or name.startswith("evaluation/")}
        for row in rows(folder / "metrics.jsonl")
    ]
    return [row for row in found if len(row) > 1]


def test_held_out_metrics_during_a_run_end_at_those_after_it(place):
    assert main([*PPO, "--run.folder", "run", "--evaluation.every", "2"]) == 0
    during = evaluated(place / "run")
    assert [row["step"] for row in during] == [2, 4]
    after = json.loads((place / "run" / "evaluation.json").read_text())["models"][-1]["metrics"]
    names = {"reward", "reward/vowels", "kl", "length", "perplexity", "greedy/reward", "greedy/reward/length"}
    assert names <= set(after)
    last = {name.removeprefix("evaluation/"): value for name, value in during[-1].items() if name != "step"}
    assert last == pytest.approx({name: estimate["mean"] for name, estimate in after.items()}, abs=1e-6)
    assert during[0]["evaluation/perplexity"] != during[1]["evaluation/perplexity"]
    assert "time/evaluate" in rows(place / "run" / "metrics.jsonl")[1]


@pytest.mark.parametrize(
    "queue", [[], ["--ppo.max-staleness", "1", "--ppo.staleness-correction.mode", "token_truncate"]]
)
def test_evaluating_changes_nothing_of_the_run(place, queue):
    assert main([*PPO, *queue, "--run.folder", "with", "--evaluation.every", "1"]) == 0
    assert main([*PPO, *queue, "--run.folder", "without"]) == 0
    assert (place / "with" / "samples.jsonl").read_bytes() == (
        place / "without" / "samples.jsonl"
    ).read_bytes()
    weights = [(place / name / "policy" / "model.safetensors").read_bytes() for name in ("with", "without")]
    assert weights[0] == weights[1]
    assert len(evaluated(place / "with")) == 4
    assert evaluated(place / "without") == []


def test_every_response_is_in_a_file_and_adds_up_to_the_metrics(place):
    assert main([*PPO, "--run.folder", "run"]) == 0
    run = proxlm.load_run("run")
    for evaluation in (run.before, run.after):
        assert evaluation is not None
        found = rows(place / "run" / f"evaluation-{evaluation.name}.jsonl")
        assert found == evaluation.responses
        assert len(found) == 5
        for metric, values in {
            "reward": [row["reward"] for row in found],
            "kl": [row["kl"] for row in found],
            "reward/vowels": [row["components"]["vowels"] for row in found],
            "greedy/reward": [row["greedy"]["reward"] for row in found],
        }.items():
            assert sum(values) / 5 == pytest.approx(evaluation.metrics[metric].mean, abs=2e-5)
        for row in found:
            assert row["reward"] == pytest.approx(sum(row["components"].values()), abs=1e-5)


def test_greedy_responses_are_those_of_temperature_0(place):
    assert main([*PPO, "--run.folder", "run"]) == 0
    assert main(["evaluate", "run", "--responses", "sampled.jsonl"]) == 0
    assert main(["evaluate", "run", "--rollout.temperature", "0", "--responses", "zero.jsonl"]) == 0
    sampled, zero = rows(place / "sampled.jsonl"), rows(place / "zero.jsonl")
    assert [row["greedy"]["response"] for row in sampled] == [row["response"] for row in zero]
    assert {row["model"] for row in zero} == {"model", "run/policy"}
    assert not any("greedy" in row for row in zero)
    assert main(["evaluate", "run", "--greedy", "false", "--responses", "plain.jsonl"]) == 0
    assert not any("greedy" in row for row in rows(place / "plain.jsonl"))


def test_a_run_of_conversations_is_evaluated_with_its_environment(place, capsys):
    arguments = [
        "ppo", "--model.policy", "model", "--model.device", "cpu", "--environment.use", "number-game",
        "--environment.max-turns", "3", "--environment.max-tokens", "60", "--environment.tasks", "8",
        "--data.eval-count", "4", "--rollout.max-new-tokens", "4", "--ppo.steps", "1", "--ppo.batch-size", "4",
        "--run.folder", "run", "--run.tensorboard", "false", "--run.threads", "1", "--run.report", "false",
    ]  # fmt: skip
    assert main(arguments) == 0
    of_run = json.loads((place / "run" / "evaluation.json").read_text())["models"]
    assert main(["evaluate", "run", "--output", "again.json"]) == 0
    again = json.loads((place / "again.json").read_text())["models"]
    for old, new in zip(of_run, again, strict=True):
        assert old["samples"] == new["samples"]
        assert old["metrics"]["reward"]["mean"] == pytest.approx(new["metrics"]["reward"]["mean"], abs=1e-6)


def test_runs_of_new_models_are_evaluated_alone(place, capsys):
    (place / "a.txt").write_text("\n".join(TEXTS) * 20, encoding="utf-8")
    assert main([
        "pretrain", "--text.train", "a.txt", "--run.folder", "base", "--new.hidden", "32", "--new.layers", "1",
        "--new.heads", "2", "--new.vocabulary", "290", "--train.block", "16", "--train.batch-tokens", "128",
        "--run.threads", "1", "--model.device", "cpu", "--train.steps", "2",
    ]) == 0  # fmt: skip
    capsys.readouterr()
    prompts = [
        "--data.eval-prompts",
        "prompts.jsonl",
        "--data.eval-count",
        "4",
        "--rollout.max-new-tokens",
        "4",
    ]
    assert main(["evaluate", "base", *prompts]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["metric", "base/policy"]
    records = [json.dumps({"prompt": f"The cat {i}", "response": " sat."}) for i in range(8)]
    (place / "pairs.jsonl").write_text("\n".join(records), encoding="utf-8")
    (place / "held-out.jsonl").write_text("\n".join(records[4:]), encoding="utf-8")
    assert main([
        "sft", "--model.policy", "base/policy", "--text.train", "pairs.jsonl", "--text.validation", "held-out.jsonl",
        "--run.folder", "tuned", "--train.steps", "2", "--train.batch-tokens", "64", "--run.threads", "1",
        "--model.device", "cpu", "--train.validate-every", "1",
    ]) == 0  # fmt: skip
    assert "4 examples are left out: they are also in text.validation" in capsys.readouterr().out
    # Its own validation file, one base model and one tuned model.
    assert main(["evaluate", "tuned", "--data.eval-count", "4", "--rollout.max-new-tokens", "4"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["metric", "base/policy", "tuned/policy"]
    assert "(4 held-out prompts" in printed


def test_evaluation_during_a_run_needs_held_out_prompts(place, capsys):
    assert main([*PPO, "--data.eval-count", "0", "--evaluation.every", "1", "--run.folder", "run"]) == 2
    assert "evaluation.every = 1: there are no held-out prompts" in capsys.readouterr().err
    assert not (place / "run").exists()


def test_the_last_steps_evaluation_is_the_one_after_the_run(place, capsys):
    line = [*PPO, "--run.folder", "run", "--run.report", "true"]
    assert main([*line, "--evaluation.every", "2"]) == 0
    printed = capsys.readouterr().out
    # Two during the run, of which the second is that of the policy that is saved; both are shown.
    assert "(before)" in printed
    assert "(after)" not in printed
    shown = [text for text in printed.splitlines() if text.startswith("evaluation, step ")]
    assert [text.split(":")[0] for text in shown] == ["evaluation, step 2", "evaluation, step 4"]
    last = evaluated(place / "run")[-1]
    for name in ("reward", "greedy/reward", "kl"):
        assert f"{name} {number(last[f'evaluation/{name}'])}" in shown[1]
    responses = rows(place / "run" / "evaluation-after.jsonl")
    after = json.loads((place / "run" / "evaluation.json").read_text())["models"][-1]
    assert (after["name"], after["model"]) == ("after", "run/policy")
    assert after["metrics"]["reward"]["mean"] == pytest.approx(
        sum(r["reward"] for r in responses) / 5, abs=1e-4
    )
    # The same run that evaluates after its last step as well finds the same.
    assert main([*PPO, "--run.folder", "other", "--evaluation.every", "3"]) == 0
    assert "(after)" in capsys.readouterr().out
    assert rows(place / "other" / "evaluation-after.jsonl") == responses


def test_a_finished_run_is_not_evaluated_again(place, capsys):
    line = [*PPO, "--run.folder", "run", "--run.report", "true"]
    assert main(line) == 0
    capsys.readouterr()
    outputs = {
        p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file() and p.name != "config.toml"
    }
    assert main([*line, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "the run is finished: nothing is left to do after step 4\n" in printed
    assert "evaluating" not in printed
    assert {p: p.read_bytes() for p in outputs} == outputs
    # What is missing is made again, and more steps are done.
    (place / "run" / "policy" / "config.json").write_text("{}")
    assert main([*line, "--resume"]) == 0
    assert "(after)" in capsys.readouterr().out
    assert json.loads((place / "run" / "policy" / "config.json").read_text())["model_type"] == "llama"
    assert main([*line, "--resume", "--ppo.steps", "5"]) == 0
    printed = capsys.readouterr().out
    assert "(after)" in printed
    assert "finished" not in printed


def test_models_without_a_policy_are_compared_with_the_first(place, capsys):
    (place / "few.jsonl").write_text('{"prompt": "The"}\n{"prompt": "One"}\n', encoding="utf-8")
    line = [
        "evaluate",
        "--data.eval-prompts",
        "few.jsonl",
        "--rollout.max-new-tokens",
        "4",
        "--output",
        "out.json",
    ]
    assert main([*line, "--models", "model", "--models", str(place / "model")]) == 0
    found = json.loads((place / "out.json").read_text())["models"]
    assert len(found) == 2
    assert found[0]["metrics"]["kl"]["mean"] == found[1]["metrics"]["kl"]["mean"] == 0
    assert found[0]["metrics"]["perplexity"] == found[1]["metrics"]["perplexity"]
    capsys.readouterr()
    assert main(["evaluate", "--data.eval-prompts", "few.jsonl"]) == 2
    assert "model.policy: required, but not given" in capsys.readouterr().err


def test_threads_of_evaluate_and_generate(place, capsys):
    assert main(["generate", "--model.policy", "model", "--prompt", "The cat", "--run.threads", "1"]) == 0
    assert (
        proxlm.load_config(
            "evaluate", arguments=["--model.policy", "m", "--data.prompts", "p", "--run.threads", "1"]
        ).run.threads
        == 1
    )
