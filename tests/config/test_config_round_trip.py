"""to_toml writes what load_config reads back: the same object, whatever the settings."""

import dataclasses
import tomllib
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from proxlm.config import (
    JOBS,
    DemoConfig,
    DoctorConfig,
    ModelSettings,
    PPOConfig,
    ReportConfig,
    RewardSettings,
    RewardTerm,
    load_config,
    to_toml,
)
from proxlm.config.no_effect import without_effect
from proxlm.config.problems import OF_TRAINING
from proxlm.config.secrets import secret_settings
from proxlm.config.setting import LARGEST_FLOAT32, Bounds
from proxlm.config.tree import kinds
from proxlm.errors import ConfigError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SOME_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
ANYTHING = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
STAGES = st.dictionaries(
    st.integers(0, 999).map(str), st.floats(0, 9).map(lambda x: round(x, 3)), min_size=1, max_size=3
)

# Settings that depend on others: drawn so that a job has no problems.
DRAWN = {
    "model.policy": SOME_TEXT,
    "data.prompts": SOME_TEXT,
    "text.train": st.lists(SOME_TEXT, min_size=1, max_size=3),
    "folder": SOME_TEXT,
    "distributed.strategy": st.just("ddp"),
    "engine.use": st.just("native"),
    "lr_low": st.floats(1e-9, 1e-6),
    "lr_high": st.floats(1e-3, 9),
    "recipe": SOME_TEXT,
    "base": st.just(""),
    "weights": st.just("float32"),
    "runs": st.lists(SOME_TEXT, min_size=1, max_size=3),
    "reward.use": st.just(""),
    "reward.overlap": st.just(0),
    "use": SOME_TEXT,
    "run.keep_best": st.sampled_from(["auto", "none"]),
    "rollout.temperature": st.floats(0.01, 9),
    "rollout.repetition_penalty": st.just(1.0),
    "rollout.presence_penalty": st.just(0.0),
    "rollout.frequency_penalty": st.just(0.0),
    "rollout.bad_words": st.just([]),
    "rollout.logit_bias": st.just({}),
    "ppo.minibatches": st.just(1),
    "ppo.advantage": st.sampled_from(["gae", "my file.py:advantage"]),
    "ppo.loss": st.sampled_from(["ppo", "gspo", "cispo", "my file.py:loss"]),
    "ppo.critic_lam": st.just(-1.0) | st.floats(0.01, 1),
    "ppo.dual_clip": st.just(0.0) | st.floats(1.1, 9),
    "ppo.kl_estimator": st.sampled_from(["k2", "k3"]),
    "ppo.reference_decay": st.just(1.0),
    "ppo.kl_controller": st.just("fixed"),
    "ppo.filter_groups": st.just(False),
    "ppo.engine_correction.low": st.just(-1.0),
    "ppo.engine_correction.high": st.just(-1.0),
    "ppo.staleness_correction.low": st.just(-1.0),
    "ppo.staleness_correction.high": st.just(-1.0),
    "ppo.covariance.low": st.floats(-9, -1),
    "ppo.covariance.high": st.floats(0.01, 9),
    "model.critic_from": st.just(""),
    "model.value.low": st.floats(-9, -1),
    "model.value.high": st.floats(0.01, 9),
    "model.value.heads": st.integers(2, 99),
    "shaping.overlong_buffer": st.integers(0, 1),
    "ptx.text": st.lists(SOME_TEXT, min_size=1, max_size=2),
    "new.heads": st.just(2),
    "tokens.kind": st.sampled_from(["bpe", "unigram", "characters"]),
    "tokens.special": st.lists(st.sampled_from(["<|a|>", "<b>"]), unique=True),
    "new.tokens.kind": st.sampled_from(["bpe", "unigram", "characters"]),
    "new.tokens.special": st.lists(st.sampled_from(["<|a|>", "<b>"]), unique=True),
    "new.hidden": st.integers(2, 99).map(lambda n: 4 * n),
    "new.embeddings.train": st.just("none"),
    "new.embeddings.std": st.just(0.0),
    "new.embeddings.freeze": st.just(False),
    "environment.id": SOME_TEXT,
    "environment.count": st.integers(1, 9),
    "environment.steps": st.integers(81, 2**40),
    "ppo.horizon": st.integers(1, 9),
    "gif": SOME_TEXT.map(lambda name: f"{name}.gif") | st.just(""),
    "train.block": st.integers(2, 8),
    "text.weights": st.just({}),
    "text.tokens": st.just(""),
    "text.temperature": st.just(1.0),
    "train.early_stopping_metric": st.sampled_from(["validation_loss", "loss"]),
    "perplexity.window": st.integers(99, 999),
    "perplexity.stride": st.integers(0, 98),
    "model.freeze": st.just([]),
    "model.activation_checkpointing": st.just(False),
    "scratch.type": st.just(""),
    "text.completion_fields": st.just(["left", "right"]),
    "text.winner_values": st.just([]),
    "rollout.stop": st.lists(SOME_TEXT, max_size=3),
    "ppo.max_staleness": st.just(0),
    "ppo.partial_rollouts": st.just(False),
    "ppo.old_logprobs": st.just("recomputed"),
    "metrics.use": st.sampled_from(
        [[], ["exact_match"], ["my file.py:metric", "exact_match"], ["exact_match", "pass_at_k"]]
    ),
    "metrics.baseline": st.just(""),
    "metrics.right": st.just("exact_match"),
    "metrics.k": st.just([1]),
    "metrics.labels": st.just([]),
    "metrics.read": st.sampled_from(["whole", "first_line", "number", "pattern"]),
    "metrics.pattern": st.sampled_from(["a+", "(b)$"]),
    "metrics.answer_fields": st.lists(SOME_TEXT, min_size=1, max_size=3),
    "name": st.sampled_from(["adamw", "adam", "nadam", "adagrad", "sgd", "rmsprop", "adafactor", "muon"]),
    "stages": STAGES,
    "rates": st.dictionaries(SOME_TEXT, st.floats(0.01, 9), max_size=2),
    "final": st.floats(0.1, 1),
    "rollout.weights": st.just("policy"),
    "shaping.normalise": st.just("none"),
}
UNTRAINED = {f"model.{name}": st.just(getattr(ModelSettings(), name)) for name in OF_TRAINING}
# The same for one job.
DRAWN_FOR: dict[str, dict[str, Any]] = {
    "data": {
        "input": st.lists(SOME_TEXT, min_size=1, max_size=3),
        "steps": st.sampled_from(
            [
                [
                    "unicode",
                    "html",
                    "chinese",
                    "language",
                    "quality",
                    "exact",
                    "near",
                    "contamination",
                    "pii",
                    "split",
                ],
                ["chat", "stem", "stop_words", "my file.py:step"],
            ]
        ),
        "contamination.against": st.lists(SOME_TEXT, min_size=1, max_size=2),
        "quality.max_units": st.just(0),
        "quality.max_word_length": st.just(0.0),
        "pii.kinds": st.sampled_from([[], ["email"], ["ip", "card"]]),
        "pii.mask": st.sampled_from(["<{kind}>", ""]),
        "split.by": st.sampled_from(["near", "exact", "field", "record"]),
        "split.field": SOME_TEXT,
        "split.validation": st.floats(0.01, 0.4),
        "split.test": st.floats(0, 0.4),
        "split.folds": st.integers(2, 9),
        "output": SOME_TEXT,
    },
    "dpo": {"text.pair": st.just(False), "train.dropout": st.just(0.0)},
    "distill": {
        "model.teacher": SOME_TEXT,
        "data.prompts": st.just(""),
        "distill.mode": st.sampled_from(["logits", "on_policy"]),
        "distill.tokenizer": st.just("teacher"),
        "train.early_stopping_metric": st.just("validation_agreement"),
        "distill.samples_per_prompt": st.just(1),
        "teacher.url": st.just(""),
    },
    "pretrain": {"train.curriculum_steps": st.just(0)},
    "reward": {
        "model.packed": st.just(False),
        "ensemble.save": st.just("members"),
        "train.average": st.just("none"),
        "ensemble.boosting": st.just(False),
        "objective.kind": st.sampled_from(["comparisons", "scores", "classes"]),
        "labels.score_fields": st.lists(SOME_TEXT, min_size=1, max_size=3, unique=True),
        "labels.classes": st.lists(SOME_TEXT, min_size=2, max_size=3, unique=True),
        "labels.separator": SOME_TEXT,
    },
    "generate": {
        **UNTRAINED,
        "model.teacher": st.just(""),
        "pick.by": st.just("majority"),
        "pick.read": st.just("whole"),
        "rollout.temperature": st.floats(0.1, 2),
        "pick.labels": st.just([]),
        "reward.use": st.just(""),
        "reward.terms": st.just({}),
    },
    "evaluate": {
        **UNTRAINED,
        "pick": st.just([]),
        "average": st.just(False),
        "output": st.sampled_from(["", "a.json", "b.md", "c.html", "d.txt"]),
    },
    "export": {"output": SOME_TEXT, "model": SOME_TEXT},
    "classify": {
        "output": SOME_TEXT,
        "model": SOME_TEXT,
        "data.train": st.lists(SOME_TEXT, min_size=1, max_size=2),
        "features.label_texts": st.sampled_from([{}, {"a": " x", "b b": "y"}]),
        "features.template": st.just("A {text}\nB"),
        "use": st.sampled_from([["logistic"], ["boosting", "stacking"]]),
        "choose": st.sampled_from(["auto", "words"]),
        "classifier": st.just(""),
    },
    "compress": {
        "output": SOME_TEXT,
        "method": st.sampled_from(["magnitude", "structured", "blocks"]),
        "magnitude.pattern": st.just("none"),
        "structured.channels": st.floats(0.1, 0.9),
        "calibration.text": st.lists(SOME_TEXT, min_size=1, max_size=2),
        "cost.text": st.lists(SOME_TEXT, min_size=1, max_size=2),
        "recover.recipe": SOME_TEXT,
        "model.policy": SOME_TEXT,
    },
    "compare": {
        "output": st.sampled_from(["", "a.json", "b.md", "c.html", "d.txt"]),
        "greedy": st.just(False),
    },
    "tokenizer": {
        "tokenizer": st.just(""),
        "report.output": st.sampled_from(["", "a.json", "b.md", "c.html", "d.txt"]),
        "extend.tokens": st.lists(SOME_TEXT, min_size=1, max_size=2),
    },
    "search": {
        "space": SOME_TEXT,
        "best_is": st.just([]),
        "objective": st.just(["reward"]),
    },
    "sweep": {"over": st.lists(SOME_TEXT, min_size=1, max_size=2)},
    "value": {
        "ptx.coef": st.just(0.0),
        "ppo.critic_warmup": st.just(0),
        "evaluation.every": st.just(0),
        "metrics.use": st.just([]),
        "model.lora.rank": st.just(0),
        "model.teacher": st.just(""),
        "model.critic": st.sampled_from(["shared", "separate"]),
    },
}


def values(kind: Any, bounds: Bounds) -> st.SearchStrategy[Any]:
    """Values of a declared type within its bounds."""
    if kind is int:
        highest = int(bounds.lt or 2**63) - 1 if bounds.le is None else int(bounds.le)
        return st.integers(int(bounds.ge or 0), highest)
    if kind is float:
        lowest = bounds.ge if bounds.ge is not None else bounds.gt
        highest = bounds.le if bounds.le is not None else bounds.lt
        drawn = st.floats(
            -LARGEST_FLOAT32 if lowest is None else lowest,
            LARGEST_FLOAT32 if highest is None else highest,
            exclude_min=bounds.gt is not None,
            exclude_max=bounds.lt is not None,
        )
        return drawn.filter(lambda number: bounds.problem(number) is None)
    if kind == list[str]:
        return st.lists(TEXT, max_size=3)
    if kind == list[int]:
        return st.lists(values(int, bounds), max_size=3)
    if get_origin(kind) is dict:
        element = get_args(kind)[1]
        return st.dictionaries(TEXT, values(element, bounds), max_size=3)
    if dataclasses.is_dataclass(kind):
        return trees(kind, "")
    simple = {str: TEXT, bool: st.booleans(), Any: ANYTHING}
    return simple[kind] if kind in simple else st.sampled_from(get_args(kind))


def trees(section: Any, at: str, special: dict[str, Any] | None = None) -> st.SearchStrategy[Any]:
    """Whole sections, every setting drawn."""
    drawn, chosen = {}, DRAWN if special is None else special
    for field in dataclasses.fields(section):
        kind, key = kinds(section)[field.name], f"{at}{field.name}"
        if dataclasses.is_dataclass(kind):
            drawn[field.name] = chosen[key] if key in chosen else trees(kind, f"{key}.", chosen)
        else:
            name = key if key in chosen else field.name
            short = at.startswith("optim.") or section in (RewardTerm, ReportConfig, DoctorConfig, DemoConfig)
            if name in chosen and (name == key or short):
                drawn[field.name] = chosen[name]
            else:
                drawn[field.name] = values(kind, field.metadata["bounds"])
        if path := field.metadata["path"]:
            drawn[field.name] = drawn[field.name].map(partial(absolute, path))
    return st.builds(section, **drawn)


def absolute(path: str, value: Any) -> Any:
    """Paths as a run's config.toml has them: relative ones are relative to the file that they stand in."""
    if isinstance(value, list):
        return [absolute(path, item) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if path == "function" and ":" not in value and not value.startswith("~"):
        return value  # the name of a built-in one
    return "/p" + value.replace("/", "_")


def jobs(kind: Any) -> st.SearchStrategy[Any]:
    """A job's whole tree; what has no effect beside the rest is left at its default."""
    name = next(name for name, known in JOBS.items() if known is kind)
    drawn = trees(kind, "", DRAWN | DRAWN_FOR.get(name, {}))
    return drawn.map(partial(with_effect, kind()))


def with_effect(default: Any, config: Any) -> Any:
    """The settings with the default of each that would do nothing."""
    while found := without_effect(config):
        for key, _ in found:
            config = with_default(config, default, key.split("."))
    return config


def with_default(node: Any, default: Any, key: list[str]) -> Any:
    """The settings with the default of one."""
    name, *below = key
    value = getattr(default, name)
    if below:
        value = with_default(getattr(node, name), value, below)
    return dataclasses.replace(node, **{name: value})


@pytest.mark.parametrize("job", JOBS)
@given(data=st.data())
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_job_comes_back_equal(job: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    config = data.draw(jobs(JOBS[job]))
    assume(not config.problems() and not list(secret_settings(config)))
    file = tmp_path_factory.getbasetemp() / "round-trip.toml"
    file.write_bytes(to_toml(config).encode())
    assert load_config(job, file) == config


def test_the_drawn_settings_have_no_problems() -> None:
    """So that the test above does not pass by assuming everything away."""
    for kind in JOBS.values():
        config = st_example(jobs(kind))
        assert config.problems() == []


def st_example(strategy: st.SearchStrategy[Any]) -> Any:
    found: list[Any] = []

    @given(strategy)
    @hypothesis_settings(max_examples=1, database=None, deadline=None)
    def draw(value: Any) -> None:
        found.append(value)

    draw()
    return found[0]


def test_the_text_is_plain_toml_in_the_order_of_the_settings() -> None:
    assert to_toml(DemoConfig()) == (
        'job = "demo"\nfolder = ""\nchat = false\nseed = 0\nminutes = 1.25\nppo_steps = 0\neval_count = 0\n'
    )
    text = to_toml(PPOConfig())
    headers = [line for line in text.splitlines() if line.startswith("[")]
    assert headers == [
        "[model]",
        "[model.value]",
        "[model.lora]",
        "[data]",
        "[rollout]",
        "[engine]",
        "[environment]",
        "[reward]",
        "[shaping]",
        "[ppo]",
        "[ppo.engine_correction]",
        "[ppo.staleness_correction]",
        "[ppo.covariance]",
        "[ppo.trpo]",
        "[evaluation]",
        "[metrics]",
        "[ptx]",
        "[optim.policy]",
        "[optim.critic]",
        "[distributed]",
        "[run]",
    ]
    table = tomllib.loads(text)
    assert table["optim"]["critic"]["lr"] == 1e-5
    assert table["reward"]["terms"] == {}


def test_hard_texts_and_numbers(tmp_path: Path) -> None:
    args = {
        "quotes \"'\\": "a\nb\r\n\t\"c\" 'd' \\u0041 \x00\x1f\x7f\x85\u2028 中文 🙂",
        "": [],
        "a.b": {"c": [1, 1.0, 1e300, 5e-324, -0.0, True, {"d": []}]},
    }
    overrides = {"model.policy": "m", "data.prompts": "/p", "reward.args": args}
    config = load_config("ppo", overrides=overrides)
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    back = load_config("ppo", file)
    assert back == config
    assert repr(back.reward.args) == repr(args)  # 1 stays 1, and 1.0 stays 1.0


def test_words_and_biases_of_generation(tmp_path: Path) -> None:
    rollout = {"bad_words": [" a\n", "#"], "logit_bias": {"13": 1.0, "13,198": -100.0, "the moon.": 0.5}}
    config = load_config("generate", overrides={"model.policy": "m", "rollout": rollout})
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert load_config("generate", file) == config
    line = ["--model.policy", "m", "--rollout.bad-words", '[" a\\n", "#"]', "--rollout.logit-bias.13", "1"]
    line += ["--rollout.logit-bias.13,198", "-100"]
    found = load_config("generate", arguments=line).rollout
    assert (found.bad_words, found.logit_bias) == ([" a\n", "#"], {"13": 1.0, "13,198": -100.0})


def test_what_toml_cannot_hold_is_named() -> None:
    config = PPOConfig(reward=RewardSettings(use="x", args={"f": None}))
    with pytest.raises(ConfigError) as caught:
        to_toml(config)
    assert str(caught.value) == "reward.args = {'f': None}: cannot be written as TOML"
