"""Cases and small helpers of the tests beside it."""

from __future__ import annotations

from helpers import SilentLog, trainer, vowels

from proxlm.rl.moments import Moments
from proxlm.rollout.native import generate
from proxlm.train.algorithms import build_algorithm
from proxlm.train.prepare import StepNumbers, prepare
from proxlm.train.update import Learner, plan_pass

START = StepNumbers(temperature=1.0, kl_coef=0.05, moments=Moments(), warmup=False)


def run(made):
    log = SilentLog()
    made.train(log)
    return log.rows


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


def learner_of(made, **more):
    ppo = made.config.ppo
    return Learner(
        made.models, made.optimisers, ppo, made.algorithm.loss, 1.0, limit=12, seed=0, step=0, **more
    )
