"""Two rewards of your own, added: one number a response, and one number a token.

    python examples/custom_reward.py [MODEL]

A reward gets all completions of a step at once. The fields of a prompt's record are there as `completion.fields`.
"""

import sys

import proxlm


def mentions_animal(completions):
    """1 for a response that names the animal of its record."""
    return [float(done.fields["animal"] in done.text) for done in completions]


def small_ids(completions):
    """A small reward for each token whose id is below 200: a list for each response, one number a token."""
    return [[0.02 if token < 200 else 0.0 for token in done.tokens] for done in completions]


records = [{"prompt": f"the {animal} sat", "animal": animal} for animal in ("cat", "dog", "bird", "fish")] * 4
config = proxlm.PPOConfig(
    data=proxlm.DataSettings(eval_count=2),
    rollout=proxlm.RolloutSettings(max_new_tokens=8),
    ppo=proxlm.PPOSettings(batch_size=8, minibatches=2, steps=3),
)
if len(sys.argv) > 1:
    model = sys.argv[1]
else:
    texts = ["the cat sat on the mat", "the dog sat by the bird", "a fish swam in the sea"] * 40
    model = proxlm.new_model(
        texts, proxlm.NewModelSettings(vocabulary=300, hidden=32, layers=2, heads=2, context=64)
    )

trainer = proxlm.PPOTrainer(model, [mentions_animal, small_ids], records, config)
run = trainer.train()
print("reward by step:", [round(value, 3) for value in run.metrics["reward"]])
print("parts:", [name for name in run.metrics if name.startswith("reward/")])
