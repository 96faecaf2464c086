"""Every metric that a job writes is declared, and every declared one is written."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from proxlm.__main__ import main
from proxlm.models.save import save_language_model
from proxlm.runlog import metric_names
from proxlm.runlog.metric import Metric, MetricFamily
from proxlm.runlog.metric_names import METRICS, declared
from proxlm.runlog.text import SHOWN
from small_models import TEXTS, tiny_model

ROOT = Path(__file__).parents[2]
RUN = ["--run.threads", "1", "--run.tensorboard", "false", "--run.report", "false", "--run.save-every", "0"]
DEVICE = ["--model.device", "cpu"]
SHORT = [
    "--rollout.max-new-tokens", "6", "--ppo.steps", "2", "--ppo.batch-size", "4", "--ppo.epochs", "1",
    "--ppo.minibatches", "2", "--optim.policy.lr", "1e-3",
]  # fmt: skip
REWARD = """
def score(completions):
    vowels = [sum(c in "aeiou" for c in x.text) / 20 for x in completions]
    return {"vowels": vowels, "length": [len(x.text) / 50 for x in completions]}


def some(completions):
    return {name: [None, *values[1:]] for name, values in score(completions).items()}
"""
# Responses of different lengths.
STOPS = [argument for letter in "aeionrst " for argument in ("--rollout.stop", letter)]
CORRECTED = [
    x for cause in ("engine", "staleness") for x in (f"--ppo.{cause}-correction.mode", "token_truncate")
]
NUCLEUS = ["--rollout.top-p", "0.8"]
PPO_RUNS = {
    "plain": ["--shaping.scale", "running", "--reward.use", "reward.py:some", *STOPS],
    "trust-region": ["--ppo.loss", "trpo", "--ppo.minibatches", "1", "--reward.use", "reward.py:score"],
    "evaluation": [
        *("--evaluation.every", "2", "--model.teacher", "model", "--reward.use", "reward.py:score"),
        *("--metrics.use", '["exact_match"]', "--metrics.answer-fields", '["prompt"]'),
    ],
    "groups": [
        "--ppo.filter-groups",
        "--ppo.loss",
        "kl_cov",
        "--ppo.positive-coef",
        "0.1",
        "--ppo.samples-per-prompt",
        "2",
        "--rollout.top-p",
        "0.8",
        "--reward.use",
        "reward.py:score",
    ],
    "overlap": [
        "--reward.overlap",
        "2",
        "--model.value.head",
        "categorical",
        "--model.value.heads",
        "3",
        "--reward.use",
        "reward.py:score",
    ],
    "ahead": ["--ppo.max-staleness", "2", *CORRECTED, "--reward.use", "reward.py:score"],
    "environment": ["--environment.use", "number-game", "--environment.max-turns", "2"],
    "tools": [
        *("--environment.use", "tools", "--environment.args", "{describe = false}"),
        *("--environment.max-turns", "2", "--reward.use", "reward.py:score"),
    ],
}
SUPERVISED = [
    "--train.steps", "2", "--train.batch-tokens", "60", "--train.validate-every", "1", "--train.average", "ema",
]  # fmt: skip
# A mixture of two sources, of which the second one is more.jsonl or more.txt.
MIXED = ["--text.temperature", "2"]
NEW = [
    "--new.vocabulary", "300", "--new.hidden", "16", "--new.layers", "1", "--new.heads", "2", "--new.context", "32",
    "--train.block", "16", "--text.train", "text.txt", "--text.validation-share", "0.3",
]  # fmt: skip
CONTROL = [
    "CartPole-v1", "--environment.steps", "128", "--environment.count", "2", "--ppo.horizon", "32", "--ppo.epochs",
    "1", "--ppo.minibatches", "2", "--model.width", "8",
]  # fmt: skip


@pytest.fixture(scope="module")
def written(tokenizer, tmp_path_factory) -> dict[str, set[str]]:
    """By job, the names of all metrics that its runs wrote."""
    pytest.importorskip("gymnasium")
    place = tmp_path_factory.mktemp("metrics")
    model = place / "model"
    save_language_model(tiny_model(tokenizer), model)
    (place / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{text[:12]} {i}"}) + "\n" for i in range(4) for text in TEXTS),
        "utf-8",
    )
    (place / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": text[:6], "response": text[6:20]}) + "\n" for text in TEXTS * 4),
        "utf-8",
    )
    (place / "comparisons.jsonl").write_text(
        "".join(
            json.dumps(
                {"prompt": f"{text[:6]} {i}", "chosen": text[6:12], "rejected": text[12:20], "kind": "k"}
            )
            + "\n"
            for i in range(4)
            for text in TEXTS
        ),
        "utf-8",
    )
    (place / "text.txt").write_text("\n".join(TEXTS * 8), "utf-8")
    (place / "reward.py").write_text(REWARD, "utf-8")
    found: dict[str, set[str]] = {"evaluate": set()}

    def run(job: str, name: str, *arguments: str) -> None:
        folder = place / name
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            assert main([job, *arguments, "--run.folder", name, *RUN]) == 0
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            found.setdefault(job, set()).update(json.loads(line))
        if (folder / "evaluation.json").exists():
            evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
            by = job if job in ("reward", "value") else "evaluate"
            found[by].update(name for model in evaluation["models"] for name in model["metrics"])

    for name, arguments in PPO_RUNS.items():
        data = [] if name == "environment" else ["--data.prompts", "prompts.jsonl"]
        policy = ["--model.policy", "model", "--data.eval-count", "2"]
        run("ppo", name, *policy, *DEVICE, *data, *SHORT, *arguments)
        if name not in ("trust-region", "evaluation"):
            run("value", f"value {name}", *policy, *DEVICE, *data, *SHORT, *arguments)
    (place / "more.jsonl").write_text((place / "pairs.jsonl").read_text("utf-8"), "utf-8")
    (place / "more.txt").write_text("\n".join(TEXTS * 8), "utf-8")
    run(
        "sft", "sft", "--model.policy", "model", "--text.train", "pairs.jsonl", "--text.train", "more.jsonl", *MIXED,
        *DEVICE, *SUPERVISED,
    )  # fmt: skip
    (place / "four.jsonl").write_text(
        json.dumps({"prompt": "The", "chosen": ["a"], "rejected": ["b", "c", "d"], "kind": "k"}) + "\n",
        "utf-8",
    )
    run(
        "reward", "reward", "--model.policy", "model", "--text.train", "comparisons.jsonl",
        "--text.slice-field", "kind", "--text.validation-share", "0.3", "--test.best-of", "four.jsonl",
        *DEVICE, *SUPERVISED,
    )  # fmt: skip
    run(
        "reward", "ensemble", "--model.policy", "model", "--text.train", "comparisons.jsonl", "--ensemble.size", "2",
        *DEVICE, *SUPERVISED, "--train.average", "none",
    )  # fmt: skip
    labelled = [
        {
            "response": text[i : i + 8],
            "one": float(i + len(text)),
            "two": i % 3,
            "label": i % 2,
            "completions": [text[:4], text[4 + i : 8 + i]],
            "labels": [1, i % 2],
        }
        for text in TEXTS
        for i in range(4)
    ]
    (place / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled), "utf-8")
    for kind, *arguments in (
        ("scores", "--labels.score-fields", '["one"]'),
        ("scores", "--labels.score-fields", '["one", "two"]'),
        ("classes",),
        ("steps", "--labels.separator", "|"),
    ):
        run(
            "reward", f"{kind} {len(str(arguments))}", "--model.policy", "model", "--objective.kind", kind,
            "--text.train", "labelled.jsonl", "--text.validation-share", "0.3", *arguments, *DEVICE, *SUPERVISED,
        )  # fmt: skip
    run("dpo", "dpo", "--model.policy", "model", "--text.train", "comparisons.jsonl", *DEVICE, *SUPERVISED)
    run(
        "distill", "distill", "--model.policy", "model", "--model.teacher", "model", "--data.prompts",
        "prompts.jsonl", "--data.eval-count", "2", "--rollout.max-new-tokens", "6", *DEVICE, *SUPERVISED,
    )  # fmt: skip
    run("pretrain", "pretrain", *DEVICE, *SUPERVISED, *NEW, "--text.train", "more.txt", *MIXED)
    run("control", "control", *CONTROL)
    questions = [{"prompt": text[:6], "choices": [text[6:12], "x"], "answer": 0} for text in TEXTS]
    (place / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions), "utf-8")
    for measured in (
        ("--data.eval-prompts", "questions.jsonl", "--choices.field", "choices"),
        ("--perplexity.text", '["text.txt"]'),
        (
            "--data.eval-prompts", "questions.jsonl", "--pick", '["majority", "reward"]', "--metrics.use",
            '["exact_match"]', "--metrics.answer-fields", '["prompt"]', "--metrics.samples-per-prompt", "2",
            "--reward.use", "length", "--reward.args.target", "4", "--rollout.max-new-tokens", "4",
        ),
    ):  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            arguments = ["--model.policy", "model", *measured, "--output", "found.json", *DEVICE]
            assert main(["evaluate", *arguments]) == 0
        content = json.loads((place / "found.json").read_text(encoding="utf-8"))
        found["evaluate"].update(name for model in content["models"] for name in model["metrics"])
    return found


@pytest.mark.parametrize(
    "job", ["ppo", "value", "sft", "reward", "dpo", "distill", "pretrain", "control", "evaluate"]
)
def test_every_metric_that_a_job_writes_is_declared_for_it(job, written):
    assert written[job]
    for name in written[job]:
        metric = declared(name)
        assert metric is not None, name
        assert job in metric.jobs, name


@pytest.mark.parametrize(
    "job", ["ppo", "value", "sft", "reward", "dpo", "distill", "pretrain", "control", "evaluate"]
)
def test_every_declared_metric_is_written(job, written):
    # Only where a number is not finite, or a tokenizer loses text.
    rare = {metric_names.NOT_FINITE, metric_names.CHANGED_DOCUMENTS}
    if "majority/tokens_written" in written[job]:  # of picked responses alone
        rare.add(metric_names.TOKENS_WRITTEN)
    for metric in METRICS.values():
        if job in metric.jobs and metric not in rare:
            assert any(metric.matches(name) for name in written[job]), metric


def test_a_name_belongs_to_one_metric(written):
    for name in set().union(*written.values()):
        assert sum(metric.matches(name) for metric in METRICS.values()) == 1, name


def test_families_name_their_members():
    lr = metric_names.LR_MODEL
    assert lr("critic") == "lr/critic"
    assert (lr.matches("lr/critic"), lr.matches("lr/reward"), lr.matches("lr")) == (True, False, False)
    assert metric_names.REWARD_COMPONENT("a\nb {c}") == "reward/a\nb {c}"
    assert metric_names.REWARD_COMPONENT.matches("reward/a\nb {c}")
    assert declared("grad_norm/policy_not_finite") is metric_names.GRAD_NORM_MODEL_NOT_FINITE
    assert declared("unheard_of") is None


def test_every_constant_is_in_the_table():
    constants = [value for value in vars(metric_names).values() if isinstance(value, Metric | MetricFamily)]
    assert len(constants) == len(METRICS)
    assert all(metric.meaning and metric.jobs for metric in METRICS.values())


def test_labels_are_of_declared_metrics():
    assert all(declared(name) for name in SHOWN)


def test_the_page_of_metrics_is_up_to_date():
    spec = importlib.util.spec_from_file_location("write_metrics", ROOT / "docs" / "write_metrics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run: python docs/write_metrics.py"
