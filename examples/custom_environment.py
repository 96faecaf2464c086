"""An environment of your own: a conversation of several turns with anything that has reset and step.

    python examples/custom_environment.py

The model first learns transcripts of the game, so that it can play at all, and then to play better.
"""

import random

import proxlm

CODES = ["red", "blue", "green"]


class Colours:
    """Guess a colour within three turns: 1 for the right one, −0.1 for each wrong one."""

    def reset(self, task):
        self.secret, self.turns = random.Random(task.seed).choice(CODES), 0
        return "guess >"

    def step(self, reply):
        self.turns += 1
        if reply.strip() == self.secret:
            return "right", 1.0, True
        return "no >", -0.1, self.turns == 3


draw = random.Random(0)
transcripts = []
for _ in range(300):
    secret, guesses = draw.choice(CODES), [draw.choice(CODES) for _ in range(3)]
    transcripts.append("guess >" + "no >".join(f" {guess}\n" for guess in guesses))

pretraining = proxlm.PretrainConfig(
    new=proxlm.NewModelSettings(vocabulary=280, hidden=32, layers=2, heads=2, context=96),
    train=proxlm.SupervisedSettings(steps=120, batch_tokens=512, block=48, validate_every=60),
    optim=proxlm.OptimiserSettings(lr=5e-3),
    run=proxlm.RunSettings(report=False, save_every=0),
)
base = proxlm.PretrainTrainer(transcripts, pretraining).train().model

config = proxlm.PPOConfig(
    data=proxlm.DataSettings(eval_count=16),
    rollout=proxlm.RolloutSettings(max_new_tokens=8, stop=["\n"]),
    environment=proxlm.EnvironmentSettings(tasks=64, max_turns=3, max_tokens=64),
    ppo=proxlm.PPOSettings(batch_size=32, minibatches=2, steps=4),
    optim=proxlm.OptimisersSettings(policy=proxlm.OptimiserSettings(lr=1e-3)),
)
run = proxlm.PPOTrainer(base, config=config, environment=Colours).train()
print("return by step:", [round(value, 3) for value in run.metrics["reward"]])
print("turns by step:", [round(value, 2) for value in run.metrics["environment/turns"]])
