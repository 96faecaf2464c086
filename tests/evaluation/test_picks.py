"""One response of several: by majority and by reward; and what it costs."""

from __future__ import annotations

import json
import math
import re
from contextlib import closing

import pytest

from proxlm import EvaluateConfig, evaluate
from proxlm.__main__ import main
from proxlm.config import DataSettings, MetricSettings, ModelSettings, RolloutSettings
from proxlm.data.tokenizer import encode_prompt
from proxlm.engine.generate import generate as generate_rollout
from proxlm.engine.native import NativeEngine
from proxlm.errors import ConfigError
from proxlm.evaluation.picks import best, majority
from proxlm.models.save import save_language_model
from proxlm.types import Prompt
from small_models import tiny_model


@pytest.mark.parametrize(
    ("answers", "row"),
    [
        (["7", "8", "8", "7", "8"], 1),
        (["7", "8"], 0),  # a tie: the one that came first
        ([None, None, "9"], 2),
        ([None, None], 0),
        (["a"], 0),
    ],
)
def test_the_majority_of_answers(answers, row):
    assert majority(answers) == row


@pytest.mark.parametrize(
    ("rewards", "row"), [([0.1, 0.9, 0.9], 1), ([math.nan, -5.0], 1), ([math.nan, math.nan], 0), ([2.0], 0)]
)
def test_the_highest_reward(rewards, row):
    assert best(rewards) == row


def test_picks_are_the_best_and_the_commonest_of_the_samples(tokenizer):
    """Against the rows of the same evaluation: the greatest reward, and the answer that most responses have."""
    model = tiny_model(tokenizer)
    config = EvaluateConfig(
        model=ModelSettings(device="cpu"),
        data=DataSettings(),
        rollout=RolloutSettings(max_new_tokens=6),
        metrics=MetricSettings(samples_per_prompt=4, use=["exact_match"], read="pattern", pattern="([a-z])"),
        pick=["majority", "reward"],
    )
    prompts = [{"prompt": text, "answer": "t"} for text in ("The cat", "One day", "A dog")]
    (found,) = evaluate(
        model, prompts, lambda completions: [float(len(one.text)) for one in completions], config
    )
    by_prompt = {}
    for row in found.responses:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    assert [len(rows) for rows in by_prompt.values()] == [4, 4, 4]
    highest = [max(row["reward"] for row in rows) for rows in by_prompt.values()]
    metrics = found.metrics
    assert metrics["best_by_reward/reward"].mean == pytest.approx(sum(highest) / 3)
    assert metrics["best_by_reward/reward"].mean > metrics["reward"].mean
    right = []
    for rows in by_prompt.values():
        answers = [row["answer"] for row in rows if row["answer"] is not None]
        right.append(
            bool(answers) and max(answers, key=lambda a: (answers.count(a), -answers.index(a))) == "t"
        )
    assert metrics["majority/task/exact_match"].mean == pytest.approx(sum(right) / 3)
    written = sum(row["length"] for row in found.responses) / 3
    for way in ("majority", "best_by_reward"):
        assert metrics[f"{way}/tokens_written"].mean == pytest.approx(written)
    assert "greedy/reward" in metrics


def test_average_and_picks_from_the_command_line(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        save_language_model(tiny_model(tokenizer, seed=seed), tmp_path / f"m{seed}")
    (tmp_path / "p.jsonl").write_text('{"prompt": "The cat"}\n{"prompt": "One day"}\n', encoding="utf-8")
    shared = ["--model.device", "cpu", "--run.threads", "1", "--rollout.max-new-tokens", "4"]
    arguments = [
        "evaluate", "--model.policy", "m0", "--models", '["m1"]', "--average", "--data.eval-prompts", "p.jsonl",
        "--reward.use", "length", "--reward.args.target", "3", "--pick", '["reward"]',
        "--metrics.samples-per-prompt", "3",
        "--output", "out.json", *shared,
    ]  # fmt: skip
    assert main(arguments) == 0
    models = json.loads((tmp_path / "out.json").read_text())["models"]
    assert [one["name"] for one in models] == ["m0", "m1", "average of 2 models"]
    for one in models:
        metrics = one["metrics"]
        assert metrics["best_by_reward/reward"]["mean"] >= metrics["reward"]["mean"]
    assert models[0]["metrics"]["kl"]["mean"] == pytest.approx(0, abs=1e-4)
    capsys.readouterr()
    generate = ["generate", "--model.policy", "m0", "--models", '["m1"]', "--prompt", "The cat", *shared]
    assert main(generate) == 0
    once = capsys.readouterr()
    assert "2 models, so each token costs 2 passes" in once.err
    assert main(generate) == 0
    assert capsys.readouterr().out == once.out


def test_what_cannot_be_picked_is_refused(tokenizer):
    model = tiny_model(tokenizer)

    def refused(message, reward=None, **settings):
        config = EvaluateConfig(model=ModelSettings(device="cpu"), **settings)
        with pytest.raises(ConfigError, match=message):
            evaluate(model, ["The cat"], reward, config)

    twice = MetricSettings(samples_per_prompt=2)
    refused("not one of majority and reward", pick=["best"], metrics=twice)
    refused("must be 2 or more for pick", pick=["majority"])
    refused("there is no reward", pick=["reward"], metrics=twice)
    refused("there is one model", average=True)


def test_generate_writes_the_picked_response(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = tiny_model(tokenizer)
    save_language_model(model, tmp_path / "m")
    (tmp_path / "prompts.txt").write_text("The cat\nmoon\n", encoding="utf-8")
    code = "def vowels(completions):\n    return [float(sum(c in 'aeiou' for c in x.text)) for x in completions]\n"
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    shared = ["generate", "--model.policy", "m", "--model.device", "cpu", "--rollout.max-new-tokens", "4"]
    several = [
        *shared,
        "--data.prompts",
        "prompts.txt",
        "--pick.count",
        "6",
        "--output",
        "o.jsonl",
        "--pick.by",
    ]

    settings = RolloutSettings(max_new_tokens=4)
    prompts = [
        Prompt(i, tuple(encode_prompt(tokenizer, text)), text) for i, text in enumerate(["The cat", "moon"])
    ]
    with closing(NativeEngine(model, settings)) as engine:
        repeated = [prompt for prompt in prompts for _ in range(6)]
        texts = generate_rollout(engine, repeated, settings, seed=0, step=0).texts

    def rows(way, *more):
        assert main([*several, way, *more]) == 0
        return [json.loads(line) for line in (tmp_path / "o.jsonl").read_text("utf-8").splitlines()]

    found = rows("reward", "--reward.use", "mine.py:vowels")
    for row, some in zip(found, (texts[:6], texts[6:]), strict=True):
        earned = [sum(c in "aeiou" for c in text) for text in some]
        assert (row["response"], row["reward"], row["of"]) == (some[best(earned)], max(earned), 6)
    found = rows(
        "majority", "--pick.read", "pattern", "--pick.pattern", "[a-z]", "--pick.ignore-case", "true"
    )
    for row, some in zip(found, (texts[:6], texts[6:]), strict=True):
        answers = [letters[-1] if (letters := re.findall("[a-z]", text)) else None for text in some]
        assert row["response"] == some[majority(answers)]
        assert row["answer"] == answers[majority(answers)]
        assert row["votes"] == answers.count(row["answer"])
    capsys.readouterr()
    assert main([*shared, "--prompt", "The cat", "--pick.by", "majority", "--pick.count", "6"]) == 0
    assert capsys.readouterr().out.removesuffix("\n") == texts[majority([text.strip() for text in texts[:6]])]
    for more, message in (
        (["--pick.by", "reward"], "required with pick.by = reward"),
        (["--reward.use", "mine.py:vowels"], "is for pick.by = reward"),
        (["--pick.by", "majority", "--pick.read", "label"], "required with pick.read = label"),
        (["--pick.by", "majority", "--pick.read", "pattern"], "pick.pattern"),
        (["--pick.by", "majority", "--rollout.temperature", "0"], "greedy responses are all the same"),
        (["--pick.count", "3"], "has no effect with pick.by"),
    ):
        assert main([*shared, "--prompt", "The cat", *more]) == 2
        assert message in capsys.readouterr().err
    found = rows("majority", "--pick.read", "pattern", "--pick.pattern", "no answer")
    assert [(row["response"], row["answer"], row["votes"], row["of"]) for row in found] == [
        (texts[0], None, 0, 6), (texts[6], None, 0, 6),
    ]  # fmt: skip
