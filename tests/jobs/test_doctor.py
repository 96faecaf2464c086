"""`proxlm doctor`: what it prints and writes, runs that go on, and one-line errors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from proxlm.__main__ import main
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import save_language_model
from report_runs import edit, ppo_run, sft_run
from small_models import TEXTS, tiny_model

BLOWN_UP = {"approx_kl": 0.9, "ratio_max": 4000.0}


@pytest.fixture
def run(tmp_path) -> Path:
    return ppo_run(tmp_path / "run", steps=40, with_texts=False)


def ill(run: Path, lines: Iterable[int]) -> Path:
    for line in lines:
        edit(run / "metrics.jsonl", line, **BLOWN_UP)
    return run


def test_a_healthy_run(run, capsys):
    assert main(["doctor", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0]
        == f"{run}: 40 steps read, 1 to 40; none of the 11 rules that could judge finds anything wrong"
    )
    # The rows are hand-made, and lack what these look at.
    assert lines[1] == "11 of 20 rules could judge; the others could not:"
    assert "  eos_never, eos_at_once: no number of ended_share" in lines


def test_what_is_printed(run, capsys):
    assert main(["doctor", str(ill(run, range(31, 41)))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run}: 40 steps read, 1 to 40; 1 finding"
    found = lines.index("SERIOUS  learning_rate_too_large, since step 32")
    text = " ".join(line.strip() for line in lines[found + 1 :])
    assert (
        "approx KL of an update is 0.900 (usual: below 0.03), the largest probability ratio is 4,000" in text
    )
    assert "in steps 38–40" in text
    assert "try  lower optim.policy.lr (now 3e-06), three to ten times or   ppo.target_kl = 0.03" in text
    assert max(len(line) for line in lines[1:]) <= 100


@pytest.mark.parametrize(
    ("lines", "when"),
    [
        (range(11, 21), "steps 12 to 21, not since"),
        ((11, 13), "step 13, not since"),
        ((39, 40), "step 40"),
    ],
)
def test_when_it_was_seen(run, capsys, lines, when):
    main(["doctor", str(ill(run, lines))])
    assert f"learning_rate_too_large, {when}\n" in capsys.readouterr().out


def test_json(run, tmp_path, capsys):
    ill(run, range(11, 21))
    edit(run / "metrics.jsonl", 40, reward_failed=7.0)
    file = tmp_path / "findings.json"
    assert main(["doctor", str(run), "--output", str(file)]) == 0
    assert capsys.readouterr().out.endswith(f"\nwritten to {file}\n")
    written = json.loads(file.read_text(encoding="utf-8"))
    assert (written["folder"], written["steps"], written["last_step"]) == (str(run), 40, 40)
    assert (written["rules"], list(written["cannot_judge"])[-2:]) == (20, ["eos_never", "eos_at_once"])
    keys = ("rule", "severity", "first_step", "last_step", "at_the_end")
    assert [tuple(f[k] for k in keys) for f in written["findings"]] == [
        ("learning_rate_too_large", "serious", 12, 21, False),
        ("reward_failed", "warning", 40, 40, True),
    ]
    assert all(isinstance(f["seen"], str) and f["try"] for f in written["findings"])


def test_a_run_that_goes_on_and_is_read_with_a_torn_last_line(run, capsys):
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 41, "time": 99.0, "rew')
    assert main(["doctor", str(run)]) == 0
    assert "40 steps read, 1 to 40" in capsys.readouterr().out


def test_one_step_and_no_others(tmp_path, capsys):
    assert main(["doctor", str(ppo_run(tmp_path / "short", steps=1, with_texts=False))]) == 0
    assert "1 step read, 1 to 1; none" in (printed := capsys.readouterr().out)
    assert "reward_falls: needs 20 steps in which the policy learns, there is 1" in " ".join(printed.split())


def test_samples_are_not_read_and_a_damaged_evaluation_is_named(run, capsys):
    (run / "samples.jsonl").write_text("torn\nlines\n", encoding="utf-8")
    assert main(["doctor", str(run)]) == 0
    (run / "evaluation.json").write_text("{", encoding="utf-8")
    assert main(["doctor", str(run)]) == 2
    assert str(run / "evaluation.json") in capsys.readouterr().err


def tables(run: Path, after: dict[str, tuple[float, float, float]]) -> None:
    """The evaluations of a run of which the policy at the start has 0.7 sampled and 0.8 greedy."""
    before = {"reward": (0.7, 0.66, 0.74), "greedy/reward": (0.8, 0.77, 0.83)}
    models = [
        {
            "name": name,
            "metrics": {
                metric: dict(zip(("mean", "low", "high"), numbers, strict=True))
                for metric, numbers in table.items()
            },
        }
        for name, table in {"before": before, "after": after}.items()
    ]
    (run / "evaluation.json").write_text(json.dumps({"models": models}), encoding="utf-8")


# The errors of two means with intervals of ± 0.04 and ± 0.03 explain a difference of 0.05.
@pytest.mark.parametrize(
    ("sampled", "greedy", "speaks"),
    [
        (0.76, 0.79, True),
        (0.76, 0.81, True),  # 0.01 of 0.06
        (0.76, 0.82, False),  # a third of what the sampled answers gained
        (0.74, 0.79, False),  # within the error
        (0.76, 0.86, False),
    ],
)
def test_evaluations_before_and_after_a_run_say_whether_it_only_sharpened(
    run, capsys, sampled, greedy, speaks
):
    tables(run, {"reward": (sampled, sampled - 0.03, sampled + 0.03), "greedy/reward": (greedy, 0.76, 0.88)})
    assert main(["doctor", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "12 of 20 rules could judge" in printed
    assert ("WARNING  greedy_unchanged, step 40\n  sharpened only:" in printed) == speaks


def test_without_greedy_answers_before_and_after_nobody_knows(run, capsys):
    tables(run, {"reward": (0.76, 0.73, 0.79)})
    assert main(["doctor", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "11 of 20 rules could judge" in printed
    assert "greedy_unchanged: no number of" in printed


def test_settings_of_another_version_do_not_matter(run, capsys):
    text = (run / "config.toml").read_text(encoding="utf-8")
    for other in (
        text.replace("[ppo]", "[ppo]\nanswer = 42"),  # a setting that this version does not know
        text.replace("epochs = 4", 'epochs = "many"'),  # one of another type
        'job = "ppo"\n',  # nothing of what a run needs
    ):
        (run / "config.toml").write_text(other, encoding="utf-8")
        assert main(["doctor", str(run)]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "finds anything wrong note: the settings count as not known: " in printed


def test_settings_that_name_no_job(run, capsys):
    text = (run / "config.toml").read_text(encoding="utf-8")
    for first in ("", "job = 3\n", 'job = "report"\n'):
        (run / "config.toml").write_text(text.replace('job = "ppo"\n', first), encoding="utf-8")
        fails(capsys, [run], str(run), "another job (none named in", "config.toml)")


def fails(capsys, arguments, *wanted):
    assert main(["doctor", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("proxlm: error: ")
    for text in wanted:
        assert text in line


def test_errors_of_folders(run, tmp_path, capsys):
    fails(capsys, [], "folder: required, but not given")
    fails(capsys, [tmp_path / "none"], str(tmp_path / "none"), "no such folder")
    fails(capsys, [tmp_path], "not a run's folder: it holds no config.toml")
    fails(capsys, [run / "metrics.jsonl"], "a file, where a run's folder is needed; did you mean ")
    (run / "config.toml").write_text("[ppo\n", encoding="utf-8")
    fails(capsys, [run], "config.toml", "not valid TOML")


def test_a_run_of_another_job(tmp_path, capsys):
    folder = sft_run(tmp_path / "sft", steps=3)
    fails(capsys, [folder], str(folder), "another job (sft)", "PPO runs only")


def test_errors_of_metrics(run, capsys):
    metrics = run / "metrics.jsonl"
    text = metrics.read_text(encoding="utf-8")
    metrics.write_text(text.replace('"kl": ', '"kl": broken', 1), encoding="utf-8")
    fails(capsys, [run], "metrics.jsonl: line 1: not a row of JSON")
    metrics.write_text(text, encoding="utf-8")
    edit(metrics, 3, reward="high")
    fails(capsys, [run], 'metrics.jsonl: line 3: reward: expected a number, got "high"')
    metrics.write_text("", encoding="utf-8")
    fails(capsys, [run], "metrics.jsonl: no rows: the run has not finished a step yet")
    metrics.unlink()
    fails(capsys, [run], "no metrics.jsonl: the run has not finished a step yet")


def test_output_that_cannot_be_written(run, tmp_path, capsys):
    assert main(["doctor", str(run), "--output", str(tmp_path / "none" / "f.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@torch.no_grad()
def ending_at_once(model: LanguageModel, texts: list[str]) -> list[str]:
    """Make EOS a likely answer to the texts; returns those to which it is the likeliest one."""
    prompts = [torch.tensor([model.tokenizer(text).input_ids]) for text in texts]
    states = torch.stack([model.network.model(ids).last_hidden_state[0, -1] for ids in prompts])
    mean, eos = states.mean(0), model.tokenizer.eos_token_id
    model.network.get_output_embeddings().weight[eos] = 6 * mean / mean.norm() ** 2
    logits = [model.network(ids).logits[0, -1] for ids in prompts]
    return [text for text, row in zip(texts, logits, strict=True) if int(row.argmax()) == eos]


@pytest.mark.parametrize("every", [0, 2])
def test_a_run_that_has_only_sharpened_says_so_at_its_end(tokenizer, tmp_path, monkeypatch, capsys, every):
    """To end at once is good, and was the likeliest answer from the start: only samples can become better."""
    monkeypatch.chdir(tmp_path)
    model = tiny_model(tokenizer)
    texts = ending_at_once(model, [f"{text[:12]} {i}" for i in range(32) for text in TEXTS])
    save_language_model(model, tmp_path / "model")
    prompts = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
    Path("prompts.jsonl").write_text(prompts, encoding="utf-8")
    Path("reward.py").write_text("def score(done):\n    return [float(len(d.tokens) == 1) for d in done]\n")
    assert main([
        "ppo", "--model.policy", "model", "--model.device", "cpu", "--data.prompts", "prompts.jsonl",
        "--data.eval-count", "32", "--reward.use", "reward.py:score", "--rollout.max-new-tokens", "3",
        "--ppo.steps", "8", "--ppo.batch-size", "24", "--ppo.minibatches", "2", "--ppo.kl-coef", "0",
        "--optim.policy.lr", "1e-3", "--evaluation.every", str(every), "--run.folder", "run", "--run.threads", "1",
        "--run.report", "false", "--run.save-every", "0",
    ]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    before, after = (
        {name: known["mean"] for name, known in model["metrics"].items()}
        for model in json.loads(Path("run/evaluation.json").read_text())["models"]
        if model["name"] != "best"
    )
    assert before["greedy/reward"] == after["greedy/reward"] == 1.0
    assert before["reward"] < 0.7 < 0.9 < after["reward"]
    table, _, rest = printed.partition("held-out prompts; ")
    assert "greedy/reward" in table
    assert "doctor, step 8: warning: greedy_unchanged: sharpened only: the held-out reward of sampled" in rest
    assert main(["doctor", "run"]) == 0
    assert "WARNING  greedy_unchanged, step 8" in capsys.readouterr().out
