"""Cases and small helpers of the tests beside it."""

from __future__ import annotations

from helpers import prepared_by, trainer, vowels

from proxlm.engine.generate import generate


def prepared(tokenizer, config, change=None):
    """A trainer, a rollout, and what its first step would learn from; change: what to do to the rollout first."""
    made = trainer(tokenizer, config, None)  # type: ignore[arg-type]
    batch = [p for p in made.prompts.batch(0) for _ in range(config.ppo.samples_per_prompt)]
    rollout = generate(made.engine, batch, config.rollout, seed=0, step=0)
    scores = vowels(rollout)
    if change is not None:
        rollout = change(rollout)
    return made, rollout, prepared_by(made, rollout, scores)
