"""A PPO loop of your own, from proxlm's parts: sample → score → prepare → update.

    python examples/ppo_loop.py

`PPOTrainer` does the same, and checkpoints, evaluates and reports as well. Here every quantity is in sight.
"""

import proxlm

TEXTS = ["the cat sat on the mat and the dog ran to the sea", "a bird in the sun sang to the moon"] * 40
PROMPTS = ["the cat", "a bird", "the dog", "the sun", "a", "the moon", "to the", "in the"]


def vowels(completions):
    """The share of letters that are vowels."""
    return [sum(c in "aeiou" for c in done.text) / max(1, len(done.text)) for done in completions]


config = proxlm.PPOConfig(
    model=proxlm.ModelSettings(critic="shared", device="cpu"),
    rollout=proxlm.RolloutSettings(max_new_tokens=16),
    ppo=proxlm.PPOSettings(batch_size=32, minibatches=2, epochs=2, steps=8, kl_coef=0.01),
    optim=proxlm.OptimisersSettings(
        policy=proxlm.OptimiserSettings(lr=3e-3), critic=proxlm.OptimiserSettings(lr=3e-3)
    ),
)
new = proxlm.NewModelSettings(vocabulary=300, hidden=64, layers=2, heads=2, context=64)
policy = proxlm.new_model(TEXTS, new, config.model)
models = proxlm.actor_critic(policy, config)  # policy, value head, and a frozen copy as the reference
learner = proxlm.build_learner(models, config)  # with an optimiser for the policy, and one for the critic
prompts = proxlm.prompt_stream(PROMPTS, policy, config)

for step in range(config.ppo.steps):
    rollout = proxlm.sample(policy, prompts.batch(step), config, step)
    scores = proxlm.score(rollout, vowels)
    prepared = proxlm.prepare(models, rollout, scores, config, step)
    stats = proxlm.update(learner, prepared)
    metrics = prepared.metrics | proxlm.summarise(stats)
    advantages = prepared.experience.advantages  # one for each token the policy chose, whitened
    print(
        f"step {step + 1}  reward {metrics['reward']:.3f}  KL {metrics['kl']:.3f}"
        f"  first ratio 1 ± {metrics['first_minibatch/ratio_error']:.0e}"
        f"  largest advantage {advantages.max():.2f}"
    )

proxlm.save(policy, "runs/ppo-loop-policy")
