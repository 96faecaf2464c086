"""PPO on conversations: the first minibatch, repeating a run, the metrics of a step's conversations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, job, parameters, trainer
from test_multi_turn import Counts

from proxlm.config import EnvironmentSettings, RolloutSettings
from proxlm.engine.native import NativeEngine
from proxlm.environments.message_tokens import PlainMessageTokens
from proxlm.environments.multi_turn import MultiTurn
from proxlm.environments.resolve import with_environment
from proxlm.evaluation.evaluate import evaluate_model
from proxlm.models.forward import token_outputs
from proxlm.seeds import Stream
from proxlm.types import Prompt
from small_models import tiny_model


@pytest.mark.checklist(15)
def test_ppo_on_conversations_begins_at_ratio_1_and_its_parts_add_up(tokenizer, tmp_path):
    config = job(steps=2, gae_steps="turn")
    results = []
    for folder in ("a", "b"):
        made = trainer(tokenizer, config, tmp_path / folder, reward=with_environment(None))
        settings = EnvironmentSettings(use="x", max_turns=3)
        made.generate = MultiTurn(Counts, PlainMessageTokens(tokenizer), settings)
        log = SilentLog()
        made.train(log)
        results.append(parameters(made))
    assert [r["first_minibatch/ratio_error"] for r in log.rows] == [0.0, 0.0]
    assert [r["environment/turns"] for r in log.rows] == [3.0, 3.0]
    assert [r["reward"] for r in log.rows] == [12.0, 12.0]
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


@pytest.mark.checklist(34)
@pytest.mark.parametrize("batch_size", [2, 64])
def test_turns_keep_the_sets_they_were_sampled_from(tokenizer, tmp_path, batch_size):
    """The environment's words have none: they could have been anything."""
    config = job(steps=2, gae_steps="turn")
    config = replace(config, rollout=replace(config.rollout, top_k=4, batch_size=batch_size))
    made = trainer(tokenizer, config, tmp_path, reward=with_environment(None))
    talk = MultiTurn(Counts, PlainMessageTokens(tokenizer), EnvironmentSettings(use="x", max_turns=3))
    rollouts = []

    def kept(*given, **named):
        rollouts.append(talk(*given, **named))
        return rollouts[-1]

    made.generate = kept
    log = SilentLog()
    made.train(log)
    assert [r["first_minibatch/ratio_error"] for r in log.rows] == [0.0, 0.0]
    assert all(r["rollout_gap"] < 1e-4 for r in log.rows)
    for rollout in rollouts:
        counts, chosen = rollout.sampling_mask.counts(), rollout.action_mask
        assert (counts[chosen] == 4).all()
        assert (counts[~chosen] == rollout.sampling_mask.vocabulary).all()
        assert 0 < int(chosen.sum()) < len(chosen)
        could = ~rollout.sampling_mask.dropped()
        assert could.gather(-1, rollout.sequences.response_tokens[:, None]).all()


class Fragile(Counts):
    """Breaks in some conversations; the others are all worth the same."""

    def step(self, reply):
        if self.task.chance % 3 == 0:
            raise OSError("the line is dead")
        return super().step(reply)

    def reset(self, task):
        self.task = task
        return super().reset(task)


def test_a_step_that_drew_several_times_tells_of_all_its_conversations(tokenizer, tmp_path):
    config = job(
        steps=1, batch_size=4, samples_per_prompt=3, advantage="rloo", filter_groups=True, filter_rounds=3
    )
    made = trainer(tokenizer, config, tmp_path / "run", reward=with_environment(None))
    multi_turn = MultiTurn(Fragile, PlainMessageTokens(tokenizer), EnvironmentSettings(use="x", max_turns=3))
    drawn = []

    def generate(*arguments, **named):
        drawn.append(multi_turn(*arguments, **named))
        return drawn[-1]

    made.generate, log = generate, SilentLog()
    made.train(log)
    lost = [len(rollout.lost) for rollout in drawn]
    assert len(lost) == 3
    assert min(lost) > 0
    row = log.rows[0]
    assert row["environment/lost"] == sum(lost)
    assert row["environment/turns"] == 3.0
    assert 0 < row["environment/left_alone"] < 36 - sum(lost)


def test_an_evaluation_is_of_the_policys_own_words(tokenizer):
    """KL, length, perplexity and variety leave out what the environment said, here and under another model."""
    model, other = tiny_model(tokenizer), tiny_model(tokenizer, seed=1)
    asked = [Prompt(i, (), "") for i in range(6)]
    found = []
    for words in (" and then?", " a", ""):
        multi_turn = MultiTurn(
            lambda w=words: Counts(words=w),
            PlainMessageTokens(tokenizer),
            EnvironmentSettings(use="x", max_turns=3),
        )
        sampling = RolloutSettings(max_new_tokens=5)
        engine = NativeEngine(model, sampling)
        rollout = multi_turn(engine, asked, sampling, seed=0, step=0, stream=Stream.EVALUATION)
        evaluation = evaluate_model(
            "x",
            model,
            engine,
            lambda s, t: token_outputs(other, s, t).logprobs,
            asked,
            with_environment(None),
            sampling,
            seed=0,
            generate=multi_turn,
        )
        mask, offsets = rollout.action_mask, rollout.sequences.response_offsets
        ours = token_outputs(model, rollout.sequences).logprobs.detach()[mask]
        theirs = token_outputs(other, rollout.sequences).logprobs.detach()[mask]
        metrics = {name: estimate.mean for name, estimate in evaluation.metrics.items()}
        assert metrics["kl"] == pytest.approx(float((ours - theirs).sum()) / 6, abs=1e-4)
        assert metrics["length"] == pytest.approx(int(mask.sum()) / 6)
        assert metrics["perplexity"] == pytest.approx(float((-theirs.mean()).exp()), rel=1e-4)
        assert (int(offsets[-1]) > int(mask.sum())) == bool(words)
        found.append(metrics["distinct_1"])
    assert min(found) > 0.2  # "and then?" again and again would be far less varied
