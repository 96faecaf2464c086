"""PPO on conversations: the first minibatch, repeating a run, what a step tells of its conversations."""

from __future__ import annotations

import pytest
import torch
from helpers import SilentLog, job, parameters, trainer
from test_converse import Counts

from proxlm.config import ConversationConfig
from proxlm.environments.converse import Conversations
from proxlm.environments.resolve import with_environment
from proxlm.environments.words import PlainWords


@pytest.mark.checklist(15)
def test_ppo_on_conversations_begins_at_ratio_1_and_its_parts_add_up(tokenizer, tmp_path):
    config = job(steps=2, gae_steps="turn")
    results = []
    for folder in ("a", "b"):
        made = trainer(tokenizer, config, tmp_path / folder, reward=with_environment(None))
        settings = ConversationConfig(use="x", max_turns=3)
        made.generate = Conversations(Counts, PlainWords(tokenizer), settings)
        log = SilentLog()
        made.train(log)
        results.append(parameters(made))
    assert [r["first_minibatch/ratio_error"] for r in log.rows] == [0.0, 0.0]
    assert [r["environment/turns"] for r in log.rows] == [3.0, 3.0]
    assert [r["reward"] for r in log.rows] == [12.0, 12.0]
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


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
    converse = Conversations(Fragile, PlainWords(tokenizer), ConversationConfig(use="x", max_turns=3))
    drawn = []

    def generate(*arguments, **named):
        drawn.append(converse(*arguments, **named))
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
