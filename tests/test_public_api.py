"""`import proxlm`: the promised names, and what the trainers accept."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import proxlm
from small_models import TEXTS, WORDS

SMALL = proxlm.NewModelSettings(vocabulary=300, hidden=32, layers=2, heads=2, context=64)


def config(tmp_path: Path, **ppo: Any) -> proxlm.PPOConfig:
    return proxlm.PPOConfig(
        model=proxlm.ModelSettings(device="cpu"),
        data=proxlm.DataSettings(eval_count=2),
        rollout=proxlm.RolloutSettings(max_new_tokens=6),
        ppo=proxlm.PPOSettings(**{"batch_size": 4, "minibatches": 2, "epochs": 1, "steps": 2, **ppo}),
        run=proxlm.RunSettings(folder=str(tmp_path / "run"), tensorboard=False, report=False),
    )


def lengths(completions):
    return [float(len(done.text)) for done in completions]


@pytest.fixture(scope="module")
def model() -> proxlm.LanguageModel:
    return proxlm.new_model(TEXTS * 20, SMALL, proxlm.ModelSettings(device="cpu"), seed=1)


@pytest.fixture
def fresh(model: proxlm.LanguageModel) -> proxlm.LanguageModel:
    """The same weights each time, for trainers train in place."""
    return proxlm.new_model(TEXTS * 20, SMALL, proxlm.ModelSettings(device="cpu"), seed=1)


def test_every_promised_name_is_there_and_type_checkers_see_the_same() -> None:
    for name in proxlm.__all__:
        assert getattr(proxlm, name) is not None
    stub = ast.parse(Path(proxlm.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imported = {
        (node.module, alias.asname)
        for node in ast.walk(stub)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name for _, name in imported} == set(proxlm.__all__) - {"__version__"}
    for module, name in imported:
        assert getattr(sys.modules[module], name) is getattr(proxlm, name)
    assert set(proxlm.__all__) <= set(dir(proxlm))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        proxlm.nonsense  # noqa: B018


def test_prompts_may_be_texts_chats_records_or_any_iterable(fresh, tmp_path) -> None:
    texts = list(WORDS[:6])
    sources: list[Any] = [texts, tuple(texts), (text for text in texts), [{"prompt": text} for text in texts]]
    found = []
    for number, prompts in enumerate(sources):
        settings = config(tmp_path / str(number))
        policy = proxlm.new_model(TEXTS * 20, SMALL, settings.model, seed=1)
        found.append(proxlm.PPOTrainer(policy, lengths, prompts, settings).train().metrics["reward"])
    assert found[1:] == found[:1] * 3


def test_chats_go_through_the_template(fresh, tmp_path) -> None:
    fresh.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}ai: "
    chats = [[{"role": "user", "content": text}] for text in WORDS[:6]]
    seen = []
    proxlm.PPOTrainer(
        fresh, lambda done: seen.extend(c.prompt for c in done) or lengths(done), chats, config(tmp_path)
    ).train()
    assert all(prompt.startswith("user: ") and prompt.endswith("ai: ") for prompt in seen)


class Rows:
    """As a datasets.Dataset: rows are dicts, by number or one after another; no sequence type of Python's."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


def test_a_data_set_gives_its_rows_and_their_fields_reach_the_reward(fresh, tmp_path) -> None:
    rows = Rows([{"prompt": text, "length": len(text)} for text in WORDS[:6]])

    def reward(completions):
        return [float(done.fields["length"]) for done in completions]

    run = proxlm.PPOTrainer(fresh, reward, rows, config(tmp_path)).train()
    assert run.samples[0]["reward"] == len(run.samples[0]["prompt"])


def test_a_transformers_model_is_trained_in_place(model, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    proxlm.save(model, tmp_path / "base")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    run = proxlm.PPOTrainer(network, lengths, list(WORDS[:6]), config(tmp_path), tokenizer=tokenizer).train()
    assert any(not torch.equal(p, before[name]) for name, p in network.named_parameters())
    saved = AutoModelForCausalLM.from_pretrained(run.model)
    for name, p in saved.named_parameters():
        assert torch.equal(p, dict(network.named_parameters())[name])
    path_run = proxlm.PPOTrainer(
        tmp_path / "base", lengths, list(WORDS[:6]), config(tmp_path / "second")
    ).train()
    assert path_run.metrics["reward"] == run.metrics["reward"]


def test_several_rewards_are_added_and_named(fresh, tmp_path) -> None:
    def one(completions):
        return [1.0] * len(completions)

    run = proxlm.PPOTrainer(fresh, [one, lengths], list(WORDS[:6]), config(tmp_path)).train()
    assert run.metrics["reward/one"] == [1.0, 1.0]
    for total, length in zip(run.metrics["reward"], run.metrics["reward/lengths"], strict=True):
        assert total == pytest.approx(1.0 + length)
    assert set(run.after.metrics) >= {"reward", "reward/one", "reward/lengths"}


class Oracle:
    """A reward with a state of its own."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions):
        self.calls += 1
        return lengths(completions)


def test_a_reward_may_be_an_object(fresh, tmp_path) -> None:
    oracle = Oracle()
    proxlm.PPOTrainer(fresh, oracle, list(WORDS[:6]), config(tmp_path)).train()
    assert oracle.calls == 7  # trial, before and after (sampled, greedy), two steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "expected a folder, a name or a transformers model, got int"),
        ({"model": torch.nn.Linear(1, 1)}, "expected a folder"),
        ({"tokenizer": object()}, "only with a transformers model"),
        ({"prompts": {"prompt": "x"}}, "prompts: expected a list of texts, chats or records, got dict"),
        ({"prompts": 5}, "prompts: expected a list"),
        ({"prompts": []}, "prompts: there are no records"),
        ({"reward": []}, "an empty list of functions"),
        ({"reward": [lengths, lengths]}, "two functions have the same name"),
        ({"callbacks": [proxlm.Callback]}, "Callback is not an object of a subclass"),
        (
            {"config": proxlm.PPOConfig(ppo=proxlm.PPOSettings(steps=0))},
            r"ppo\.steps = 0: must be at least 1",
        ),
        (
            {"config": {"ppo": {"steps": 1}}},
            r"config: expected a PPOConfig, got .*write proxlm\.PPOConfig",
        ),
        ({"prompts": "Once upon a time"}, r"prompts: .*no such file; for a text itself, pass a list"),
        ({"prompts": None}, r"data\.prompts: required"),
        ({"model": None}, r"model\.policy: required"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(fresh, tmp_path, arguments, message) -> None:
    given = {"model": fresh, "reward": lengths, "prompts": ["a"], "config": config(tmp_path), **arguments}
    with pytest.raises(proxlm.UserError, match=message):
        proxlm.PPOTrainer(**given)


def test_a_record_of_another_kind_is_named(fresh, tmp_path) -> None:
    with pytest.raises(
        proxlm.DataError, match="prompts:2: expected a text, a list of messages or a mapping, got int"
    ):
        proxlm.PPOTrainer(fresh, lengths, ["a", 5, "b", "c"], config(tmp_path)).train()
    with pytest.raises(proxlm.DataError, match='prompts:1: no field "prompt"'):
        proxlm.PPOTrainer(fresh, lengths, [{"text": "a"}] * 4, config(tmp_path)).train()


def test_half_precision_weights_are_refused(model, tmp_path) -> None:
    import copy

    network = copy.deepcopy(model.network).to(torch.bfloat16)
    trainer = proxlm.PPOTrainer(
        network, lengths, list(WORDS[:6]), config(tmp_path), tokenizer=model.tokenizer
    )
    with pytest.raises(proxlm.ModelError, match="weights in bfloat16"):
        trainer.train()


def test_an_environment_class(fresh, tmp_path) -> None:
    class Echo:
        def reset(self, task):
            return "say >"

        def step(self, reply):
            return "done", float(len(reply)), True

    run = proxlm.PPOTrainer(fresh, config=config(tmp_path), environment=Echo).train()
    assert run.metrics["environment/turns"] == [1.0, 1.0]


def test_a_finished_run_as_columns_frame_and_plot(fresh, tmp_path) -> None:
    run = proxlm.PPOTrainer(fresh, lengths, list(WORDS[:6]), config(tmp_path)).train()
    assert run.job == "ppo"
    assert run.metrics["step"] == [1, 2]
    assert {len(column) for column in run.metrics.values()} == {2}
    assert run.config.ppo.steps == 2
    assert run.before.prompts == run.after.prompts == 2
    frame = run.to_pandas()
    assert list(frame.index) == [1, 2]
    assert list(frame["reward"]) == run.metrics["reward"]
    figure = run.plot("reward", "kl")
    assert [trace.name for trace in figure.data] == ["reward", "kl"]
    assert list(figure.data[0].y) == run.metrics["reward"]
    assert [trace.name for trace in run.plot().data] == ["reward", "kl", "entropy"]
    with pytest.raises(proxlm.RunError, match='no metric "nonsense"'):
        run.plot("nonsense")
    again = proxlm.load_run(tmp_path / "run")
    assert again.metrics == run.metrics
    assert again.after == run.after
    with pytest.raises(proxlm.RunError, match="no such folder"):
        proxlm.load_run(tmp_path / "nothing")


def test_sft_on_records_and_chats_and_pretraining_on_texts(fresh, tmp_path) -> None:
    train = proxlm.SupervisedSettings(steps=4, batch_tokens=128, validate_every=2, block=16)
    run_settings = proxlm.RunSettings(folder=str(tmp_path / "a"), tensorboard=False, report=False)
    pairs = [{"prompt": text[:6], "response": text[6:]} for text in TEXTS * 4]
    run = proxlm.SFTTrainer(fresh, pairs, proxlm.SFTConfig(train=train, run=run_settings)).train()
    assert run.metrics["step"] == [1, 2, 3, 4]
    assert [value is not None for value in run.metrics["validation_loss"]] == [False, True, False, True]
    fresh.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% else %}\\n{% endif %}{% endfor %}"
    )
    chats = [
        [{"role": "user", "content": f"the {word}"}, {"role": "assistant", "content": "sat on the mat"}]
        for word in ("cat", "dog", "bird", "sun") * 4
    ]
    chat_run = proxlm.RunSettings(folder=str(tmp_path / "b"), tensorboard=False, report=False)
    assert proxlm.SFTTrainer(fresh, chats, proxlm.SFTConfig(train=train, run=chat_run)).train().job == "sft"
    text_run = proxlm.RunSettings(folder=str(tmp_path / "c"), tensorboard=False, report=False)
    pretraining = proxlm.PretrainConfig(new=SMALL, train=train, run=text_run)
    run = proxlm.PretrainTrainer(TEXTS * 20, pretraining).train()
    assert proxlm.load_model(run.model).context == 64


def test_generate_and_evaluate(model, tmp_path) -> None:
    sampling = proxlm.RolloutSettings(max_new_tokens=5)
    done = proxlm.generate(model, WORDS[:3], sampling, seed=4)
    assert [c.prompt for c in done] == list(WORDS[:3])
    assert all(1 <= len(c.tokens) <= 5 for c in done)
    small = proxlm.RolloutSettings(max_new_tokens=5, batch_size=1)
    assert [c.tokens for c in proxlm.generate(model, WORDS[:3], small, seed=4)] == [c.tokens for c in done]
    settings = proxlm.EvaluateConfig(rollout=sampling)
    other = proxlm.new_model(TEXTS * 20, SMALL, seed=2)
    first, second = proxlm.evaluate([model, other], list(WORDS[:4]), lengths, settings)
    assert first.prompts == second.prompts == 4
    assert first.metrics["kl"].mean == 0.0
    assert second.metrics["kl"].mean > 0.0
    rewards = [len(c.text) for c in proxlm.generate(model, WORDS[:4], sampling)]
    assert first.metrics["length"].mean == pytest.approx(
        sum(len(c.tokens) for c in proxlm.generate(model, WORDS[:4], sampling)) / 4, abs=5
    )
    assert len(rewards) == 4


def test_training_from_python_leaves_the_process_as_it_was(tmp_path) -> None:
    program = f"""
import sys; sys.path[:0] = {[p for p in sys.path if p]!r}
import torch, proxlm
from transformers.utils import logging
from test_public_api import SMALL, WORDS, TEXTS, config, lengths
from pathlib import Path
def state():
    return torch.get_num_threads(), torch.initial_seed(), torch.get_rng_state().sum().item(), \\
        logging.is_progress_bar_enabled(), logging.get_verbosity(), torch.are_deterministic_algorithms_enabled()
model = proxlm.new_model(TEXTS * 20, SMALL)
before = state()
proxlm.PPOTrainer(model, lengths, list(WORDS[:6]), config(Path({str(tmp_path)!r}))).train()
assert state() == before, (state(), before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_rewards_by_name_and_file_beside_functions_with_weights(fresh, tmp_path) -> None:
    (tmp_path / "mine.py").write_text("def short(completions):\n    return [1.0] * len(completions)\n")
    several = {"length": lengths, "mine": f"{tmp_path / 'mine.py'}:short"}
    made = replace(config(tmp_path), reward=proxlm.RewardSettings(weights={"mine": 10.0}))
    run = proxlm.PPOTrainer(fresh, several, list(WORDS[:6]), made).train()
    assert run.metrics["reward/mine"] == [1.0] * len(run.metrics["reward/mine"])
    for total, length in zip(run.metrics["reward"], run.metrics["reward/length"], strict=True):
        assert total == pytest.approx(length + 10.0)
    with pytest.raises(
        proxlm.ConfigError, match=r"reward\.weights\.other: no such reward; there are length, mine"
    ):
        proxlm.build_reward(proxlm.RewardSettings(weights={"other": 1.0}), several)
    with pytest.raises(
        proxlm.ConfigError, match=r'reward\.use = "sentimant": no such built-in reward; did you mean'
    ):
        proxlm.build_reward(proxlm.RewardSettings(), "sentimant")


def test_a_built_reward_is_a_reward(fresh, tmp_path) -> None:
    built = proxlm.build_reward(proxlm.RewardSettings(), lengths)
    run = proxlm.PPOTrainer(fresh, built, list(WORDS[:6]), config(tmp_path)).train()
    assert min(run.metrics["reward"]) > 0
    assert len(repr(run)) < 300
    assert str(run.after.metrics["reward"]).startswith(f"{run.after.metrics['reward'].mean:.3f}")


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": -1.0}, r"rollout\.temperature = -1"),
        ({"temperature": float("nan")}, r"rollout\.temperature"),
        ({"stop": "the"}, r"rollout\.stop: expected a list"),
        ({"stop": [""]}, r"rollout\.stop = .*an empty text"),
        ({"top_p": 5.0}, r"rollout\.top_p = 5"),
        ({"max_new_tokens": 0}, r"rollout\.max_new_tokens = 0"),
        ({"weights": "foo"}, r"rollout\.weights"),
    ],
)
def test_generate_checks_its_settings(model, sampling, message) -> None:
    with pytest.raises(proxlm.ConfigError, match=message):
        proxlm.generate(model, ["the cat"], proxlm.RolloutSettings(**sampling))


@pytest.mark.parametrize("seed", [-1, 2**64, "x", 1.5])
def test_generate_checks_its_seed(model, seed) -> None:
    with pytest.raises(proxlm.ConfigError, match="seed"):
        proxlm.generate(model, ["the cat"], seed=seed)


def test_adapters_are_not_forgotten_for_a_loaded_language_model(fresh, tmp_path) -> None:
    wanted = replace(config(tmp_path), model=proxlm.ModelSettings(lora=proxlm.LoraSettings(rank=2)))
    with pytest.raises(
        proxlm.ConfigError, match=r"model\.lora\.rank = 2: a LanguageModel is trained as it is"
    ):
        proxlm.PPOTrainer(fresh, lengths, list(WORDS[:6]), wanted)


def test_a_resume_needs_the_model_as_it_was_at_the_start(fresh, tmp_path) -> None:
    """A loaded model is trained in place; its weights at the start are the reference."""
    at_the_start = copy.deepcopy(fresh)

    short = replace(config(tmp_path), run=replace(config(tmp_path).run, save_every=1))
    with pytest.raises(KeyError):
        proxlm.PPOTrainer(fresh, lengths, list(WORDS[:6]), short, callbacks=[Interrupt()]).train()
    again = replace(short, run=replace(short.run, resume=True))
    with pytest.raises(proxlm.RunError, match=r"model\.policy: .*changed"):
        proxlm.PPOTrainer(fresh, lengths, list(WORDS[:6]), again).train()
    run = proxlm.PPOTrainer(at_the_start, lengths, list(WORDS[:6]), again).train()
    assert run.metrics["step"] == [1, 2]


class Interrupt(proxlm.Callback):
    """Ends a run after its first checkpoint, as an error of a user's would."""

    def on_checkpoint(self, step, folder):
        raise KeyError(step)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("step", 7.0, "metric 'step': not a name"),
        ("user/x", "hello", "metric 'user/x': expected a number, got str"),
        ("user/x", 1e308, r"metric 'user/x' = 1e\+308: larger than"),
        ("", 1.0, "metric '': not a name"),
    ],
)
def test_a_callbacks_metric_that_a_row_cannot_hold(fresh, tmp_path, name, value, message) -> None:
    class Adds(proxlm.Callback):
        def on_step(self, step, metrics):
            metrics[name] = value

    with pytest.raises(proxlm.RunError, match=message):
        proxlm.PPOTrainer(fresh, lengths, list(WORDS[:6]), config(tmp_path), callbacks=[Adds()]).train()


def test_a_callbacks_metric_may_be_a_tensor(fresh, tmp_path) -> None:
    class Adds(proxlm.Callback):
        def on_step(self, step, metrics):
            metrics["user/x"] = torch.tensor(step / 2)

    run = proxlm.PPOTrainer(fresh, lengths, list(WORDS[:6]), config(tmp_path), callbacks=[Adds()]).train()
    assert run.metrics["user/x"] == [0.5, 1.0]
