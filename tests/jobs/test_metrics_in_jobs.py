"""Task metrics in PPO's own evaluations and in proxlm evaluate: tables, files of responses, what is refused early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import proxlm
from proxlm.__main__ import main
from proxlm.models.save import save_language_model
from small_models import TEXTS, tiny_model

METRIC = (
    "def vowels(completions):\n    return [sum(c in 'aeiou' for c in x.text) / 20 for x in completions]\n"
)
USE = [
    *("--metrics.use", "exact_match", "--metrics.use", "accuracy", "--metrics.use", "confusion"),
    *("--metrics.use", "bleu", "--metrics.use", "pass_at_k", "--metrics.use", "mine.py:vowels"),
    *("--metrics.k", "2", "--metrics.samples-per-prompt", "2", "--metrics.resamples", "50"),
    *("--metrics.answer-fields", "kind", "--metrics.read", "label"),
]
SHORT = ["--model.device", "cpu", "--rollout.max-new-tokens", "6"]


@pytest.fixture
def place(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    records = [{"prompt": f"{text[:12]} {i}", "kind": "ae"[i % 2]} for i in range(4) for text in TEXTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    (tmp_path / "mine.py").write_text(METRIC, encoding="utf-8")
    return tmp_path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_measures_them_before_during_and_after(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [
        *("ppo", "--model.policy", "model", "--model.critic", "shared", *SHORT, "--data.prompts", "prompts.jsonl"),
        *("--data.eval-count", "5", "--reward.use", "mine.py:vowels", "--ppo.steps", "2", "--ppo.batch-size", "4"),
        *("--ppo.epochs", "1", "--run.tensorboard", "false", "--run.threads", "1", *USE, "--run.folder", "run"),
        *("--evaluation.every", "1", "--run.keep-best", "evaluation/greedy/task/vowels"),
    ]  # fmt: skip
    assert main(run) == 0
    shown = capsys.readouterr().out
    found = proxlm.load_run("run").after
    assert found is not None
    for name in ("task/exact_match", "task/accuracy", "task/vowels", "task/bleu", "task/pass@2"):
        assert name in found.metrics
        assert name in shown
        assert (f"greedy/{name}" in found.metrics) == (name != "task/pass@2")
    assert found.metrics["task/vowels"].mean == pytest.approx(found.metrics["reward"].mean, abs=1e-6)
    assert (found.prompts, found.samples_per_prompt, len(found.responses)) == (5, 2, 10)
    for at in ("", "greedy"):
        every = [row[at] if at else row for row in found.responses]
        for name in ("exact_match", "vowels"):
            values = [row["metrics"][f"task/{name}"] for row in every]
            metric = f"greedy/task/{name}" if at else f"task/{name}"
            assert sum(values) / 10 == pytest.approx(found.metrics[metric].mean)
        assert all(row["right"] in (["a"], ["e"]) for row in every)
    assert set(found.confusion) == {"sampled", "greedy"}
    assert sum(map(sum, found.confusion["sampled"].counts)) == 10
    during = [row for row in rows(place / "run" / "metrics.jsonl") if "evaluation/task/bleu" in row]
    assert [row["step"] for row in during] == [1, 2]
    assert (place / "run" / "best").is_dir()
    page = (place / "run" / "report.html").read_text(encoding="utf-8")
    assert "right answers by row" in page
    assert "tok:13a" in page
    # The run's own metrics, without being named again.
    assert main(["evaluate", "run", "--output", "again.md"]) == 0
    text = (place / "again.md").read_text(encoding="utf-8")
    assert "| task/bleu |" in text
    assert "right answers by row" in text


def test_functions_from_python(place: Path) -> None:
    def characters(completions: list[proxlm.Completion]) -> list[float]:
        return [float(len(done.text)) for done in completions]

    config = proxlm.EvaluateConfig(
        rollout=proxlm.RolloutSettings(max_new_tokens=4),
        greedy=False,
        metrics=proxlm.MetricSettings(use=["squad_f1"]),
    )
    (found,) = proxlm.evaluate(
        ["model"], [{"prompt": "The", "answer": "x"}, {"prompt": "A", "answer": ["y", "z"]}], config=config,
        metrics=[characters],
    )  # fmt: skip
    mean = sum(len(row["response"]) for row in found.responses) / 2
    assert found.metrics["task/characters"].mean == pytest.approx(mean)
    assert found.responses[1]["right"] == ["y", "z"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metrics.use", "exact_mach"], "did you mean exact_match"),
        (["--metrics.use", "mine.py:vowel"], 'no "vowel" in mine.py; did you mean vowels'),
        (["--metrics.use", "gone.py:vowels"], 'no file "gone.py"'),
        (["--output", "a.csv"], "must end with .json, .md, .html or .txt"),
        (["--metrics.use", "pass_at_k", "--metrics.right", "reward"], "there is no reward; set reward.use"),
        (["--metrics.use", "bleu", "--choices.field", "c"], "has no effect with choices.field"),
        (["--metrics.read", "number"], "has no effect with metrics.use"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_read(
    place: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's folder is not even there."""
    assert (
        main(["evaluate", "--model.policy", "no model", "--data.eval-prompts", "prompts.jsonl", *arguments])
        == 2
    )
    assert said in capsys.readouterr().err


def test_a_record_without_an_answer_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data.eval-prompts", "prompts.jsonl", "--metrics.use", "bleu", *SHORT]
    assert main(["evaluate", "--model.policy", "model", *arguments]) == 2
    assert '"answer" is not there in the record of prompt' in capsys.readouterr().err
