"""Evaluation of a small model: the KL of a model to itself, to another, and what the table says."""

from __future__ import annotations

import math

import pytest
import torch

from proxlm.config import RolloutSettings
from proxlm.engine.native import NativeEngine
from proxlm.evaluation.evaluate import evaluate_model
from proxlm.evaluation.results import as_json
from proxlm.evaluation.tables import as_table
from proxlm.models.forward import token_outputs
from proxlm.types import Prompt, Scores
from small_models import tiny_model


def lengths_as_reward(rollout):
    values = rollout.sequences.response_lengths.float()
    return Scores(values, components={"a": values.tolist(), "b": [1.0] * len(values)}, failed=1)


def evaluate(tokenizer, model, reference, count=12, reward=lengths_as_reward, **settings):
    prompts = [Prompt(i, tuple(tokenizer(f"The cat {i}").input_ids), f"The cat {i}") for i in range(count)]
    sampling = RolloutSettings(max_new_tokens=10)
    return evaluate_model(
        "it",
        model,
        NativeEngine(model, sampling),
        lambda s, t: token_outputs(reference, s, t).logprobs,
        prompts,
        reward,
        sampling,
        seed=1,
        **settings,
    )


def test_a_model_against_itself(tokenizer):
    model = tiny_model(tokenizer)
    got = evaluate(tokenizer, model, model, samples=5)
    assert got.metrics["kl"].mean == 0.0
    assert got.metrics["reward"].mean == got.metrics["length"].mean
    assert got.metrics["reward/b"].mean == 1.0
    assert got.failed == 1
    assert len(got.samples) == 5


def test_kl_is_the_mean_log_ratio_and_perplexity_the_references(tokenizer):
    model, reference = tiny_model(tokenizer), tiny_model(tokenizer, seed=1)
    got = evaluate(tokenizer, model, reference, reward=None, micro_batch_tokens=40)
    assert got.metrics["kl"].mean > 1.0
    assert "reward" not in got.metrics
    # A reference that knows nothing gives every token 1 / V.
    with torch.no_grad():
        reference.network.get_output_embeddings().weight.zero_()
    uniform = evaluate(tokenizer, model, reference)
    assert uniform.metrics["perplexity"].mean == pytest.approx(len(tokenizer), rel=1e-4)


def test_kl_is_taken_at_the_sampling_temperature(tokenizer):
    """Scaling the logits by 2 and sampling at temperature 2 is the same policy: KL 0 against the plain model."""
    model, doubled = tiny_model(tokenizer), tiny_model(tokenizer)
    with torch.no_grad():
        doubled.network.model.norm.weight.mul_(2.0)  # the last norm: it scales the logits
    prompts = [Prompt(i, tuple(tokenizer(f"A dog {i}").input_ids), "") for i in range(6)]

    def kl(temperature):
        sampling = RolloutSettings(max_new_tokens=8, temperature=temperature)
        got = evaluate_model(
            "it",
            doubled,
            NativeEngine(doubled, sampling),
            lambda s, t: token_outputs(model, s, t / 2).logprobs,
            prompts,
            None,
            sampling,
            seed=0,
        )
        return got.metrics["kl"].mean

    assert kl(2.0) == pytest.approx(0.0, abs=1e-4)


def test_every_model_gets_the_same_random_numbers(tokenizer):
    model = tiny_model(tokenizer)
    one, two = evaluate(tokenizer, model, model), evaluate(tokenizer, model, model)
    assert one.samples == two.samples


def test_table_and_json(tokenizer):
    model = tiny_model(tokenizer)
    got = evaluate(tokenizer, model, model)
    table = as_table([got, got])
    lines = table.splitlines()
    assert lines[0].split() == ["metric", "it", "it"]
    assert lines[-1].startswith("(12 held-out prompts")
    kl = next(line for line in lines if line.startswith("kl"))
    assert kl.split() == ["kl", "0.000", "0.000"]
    value = as_json([got], 1)
    assert value["models"][0]["metrics"]["length"]["mean"] == got.metrics["length"].mean
    assert set(value["models"][0]["metrics"]) >= {"reward", "kl", "length", "distinct_1", "perplexity"}
    assert math.isfinite(value["models"][0]["metrics"]["perplexity"]["mean"])


def test_responses_without_a_reward_are_in_no_mean_of_it(tokenizer):
    def every_second(rollout):
        values = [math.nan if b % 2 else float(b) for b in range(len(rollout))]
        return Scores(torch.tensor(values), components={"a": values, "b": [math.nan] * len(values)})

    model = tiny_model(tokenizer)
    got = evaluate(tokenizer, model, model, reward=every_second)
    assert got.metrics["reward"].mean == got.metrics["reward/a"].mean == 5.0
    assert "reward/b" not in got.metrics
    assert got.without_reward == 6
    assert [row["reward"] for row in got.samples[:3]] == [0.0, None, 2.0]
    assert "6 responses of it without a reward" in as_table([got])
