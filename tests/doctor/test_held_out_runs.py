"""The rules over held-out prompts on runs that have the fault themselves: every number is measured by the run."""

from __future__ import annotations

from dataclasses import replace

import torch
from helpers import WORDS, vowels
from ill_runs import likely_eos, longer, run, separate

from proxlm.config import EvaluationSettings
from proxlm.jobs.held_out import HeldOutEvaluations
from proxlm.types import Prompt, Rollout, Scores

HELD_OUT = 1000  # the ids of held-out prompts begin here


@torch.no_grad()
def ends_at_once(made, prompt):
    """Whether the likeliest response to a prompt is EOS."""
    policy = made.models.policy
    logits = policy.network(torch.tensor([prompt.input_ids])).logits[0, -1]
    return int(logits.argmax()) == policy.tokenizer.eos_token_id


def evaluating(tokenizer, *edits, of=lambda _made, _prompt: True):
    """Evaluate on held-out prompts of the same texts, after other edits of the loop; of: on which of them."""
    prompts = [
        Prompt(HELD_OUT + i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(WORDS * 4)
    ]

    def edit(made):
        for other in edits:
            other(made)
        HeldOutEvaluations(made, [prompt for prompt in prompts if of(made, prompt)])

    return edit


def evaluated_every(config, every):
    return replace(config, evaluation=EvaluationSettings(every=every))


def test_a_reward_that_does_not_hold_for_other_prompts(tokenizer, tmp_path):
    """Vowels are good, and in answer to a held-out prompt bad: the proxy rises while what is wanted falls."""

    def proxy(rollout: Rollout) -> Scores:
        signs = torch.tensor([-1.0 if prompt.id >= HELD_OUT else 1.0 for prompt in rollout.prompts])
        return Scores(vowels(rollout).total * signs)

    config = evaluated_every(separate(16, 1e-2, minibatches=2, kl_coef=0.0), 2)
    findings, rows = run(tokenizer, tmp_path, config, proxy, evaluating(tokenizer))
    assert rows[-1]["reward"] > rows[0]["reward"] + rows[0]["reward_std"] / 3
    held_out = [row["evaluation/reward"] for row in rows if "evaluation/reward" in row]
    assert held_out[0] > held_out[-1]
    assert "best/" in "".join(findings["held_out_falls"].advice)
    # And the policy from before the fall is the one that was kept.
    kept = [int(path.name[-8:]) for path in (tmp_path / "best").iterdir()]
    assert 2 * (held_out.index(max(held_out)) + 1) in kept
    assert max(kept) < 16


def test_sampling_that_only_becomes_what_the_likeliest_token_was(tokenizer, tmp_path):
    """To end at once is good, and was the likeliest answer from the start: only samples can become better."""

    def ending(rollout: Rollout) -> Scores:
        return Scores((rollout.sequences.response_lengths == 1).float())

    config = evaluated_every(longer(separate(10, 5e-4, minibatches=2, kl_coef=0.0), 3), 1)
    findings, rows = run(
        tokenizer, tmp_path, config, ending, evaluating(tokenizer, likely_eos(6), of=ends_at_once)
    )
    found = [row for row in rows if "evaluation/reward" in row]
    assert [row["evaluation/greedy/reward"] for row in found] == [1.0] * 10
    assert found[-1]["evaluation/reward"] > found[0]["evaluation/reward"] + 0.2
    assert findings["greedy_unchanged"].severity == "warning"
    assert findings["greedy_unchanged"].advice[0].startswith("if greedy answers earn the highest reward")
    assert "held_out_falls" not in findings
