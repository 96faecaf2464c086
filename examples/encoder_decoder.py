"""An encoder–decoder from nothing: fine-tune a small T5 on pairs, then PPO on a score of its output.

    python examples/encoder_decoder.py

The task is to say a number's digits backwards; the reward is the share of right digits.
"""

import random

import proxlm

draw = random.Random(0)
numbers = sorted({str(draw.randint(100, 9999)) for _ in range(400)})
pairs = [{"prompt": " ".join(number), "response": " ".join(reversed(number))} for number in numbers]

tuning = proxlm.SFTConfig(
    scratch=proxlm.NewModelSettings(type="t5", vocabulary=280, hidden=48, layers=2, heads=2, context=32),
    train=proxlm.SupervisedSettings(steps=200, batch_tokens=1024, validate_every=50),
    optim=proxlm.OptimiserSettings(lr=5e-3),
    run=proxlm.RunSettings(report=False, save_every=0),
)
base = proxlm.SFTTrainer(train=pairs, config=tuning).train().model


def right_digits(completions):
    """The share of places with the right digit."""
    scores = []
    for done in completions:
        wanted, found = done.fields["response"].split(), done.text.split()
        same = sum(a == b for a, b in zip(wanted, found, strict=False))
        scores.append(same / max(len(wanted), len(found)))
    return scores


config = proxlm.PPOConfig(
    data=proxlm.DataSettings(eval_count=64),
    rollout=proxlm.RolloutSettings(max_new_tokens=12),
    ppo=proxlm.PPOSettings(batch_size=32, minibatches=2, steps=6),
    optim=proxlm.OptimisersSettings(policy=proxlm.OptimiserSettings(lr=1e-4)),
)
run = proxlm.PPOTrainer(base, right_digits, pairs, config).train()
for name, evaluation in run.evaluations.items():
    reward = evaluation.metrics["reward"]
    print(
        f"{name}: {reward.mean:.3f} of the digits right, 95% interval {reward.low:.3f} to {reward.high:.3f}"
    )
