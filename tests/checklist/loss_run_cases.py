"""Cases and small helpers of the tests beside it."""

from __future__ import annotations

from helpers import START, trainer, vowels

from proxlm.engine.native import generate
from proxlm.train.ppo.algorithms import build_algorithm
from proxlm.train.ppo.prepare import prepare
from proxlm.train.ppo.update import plan_pass


def prepared(tokenizer, config, change=None):
    """A trainer, and the experience its first step would learn from; change: what to do to the rollout first."""
    made = trainer(tokenizer, config, None)  # type: ignore[arg-type]
    batch = [p for p in made.prompts.batch(0) for _ in range(config.ppo.samples_per_prompt)]
    rollout = generate(made.models.policy, batch, config.rollout, seed=0, step=0)
    scores = vowels(rollout)
    if change is not None:
        rollout = change(rollout)
    layout = [m for mb in plan_pass(rollout.sequences.lengths, config.ppo, 0, 0, 0) for m in mb]
    algorithm = build_algorithm(config.ppo)
    experience, _ = prepare(made.models, rollout, scores, config, algorithm, START, layout)
    return made, rollout, experience
