"""LoRA: adapters learn, the base stays frozen and is the reference at the same time. Needs proxlm[lora].

    python examples/lora.py [MODEL]

With critic = "adapter" the critic is a second set of adapters on the same base: one copy of the weights in all.
"""

import sys

import proxlm

TEXTS = ["the cat sat on the mat and the dog ran to the sea", "a bird in the sun sang to the moon"] * 40


def vowels(completions):
    return [sum(c in "aeiou" for c in done.text) / max(1, len(done.text)) for done in completions]


model = sys.argv[1] if len(sys.argv) > 1 else None
if model is None:
    pretraining = proxlm.PretrainConfig(
        new=proxlm.NewModelSettings(vocabulary=300, hidden=32, layers=2, heads=2, context=64),
        train=proxlm.SupervisedSettings(steps=40, batch_tokens=512, block=32, validate_every=20),
        run=proxlm.RunSettings(report=False, save_every=0),
    )
    model = proxlm.PretrainTrainer(TEXTS, pretraining).train().model

config = proxlm.PPOConfig(
    model=proxlm.ModelSettings(lora=proxlm.LoraSettings(rank=8, alpha=16), critic="adapter"),
    data=proxlm.DataSettings(eval_count=2),
    rollout=proxlm.RolloutSettings(max_new_tokens=12),
    ppo=proxlm.PPOSettings(batch_size=16, minibatches=2, steps=4),
    optim=proxlm.OptimisersSettings(
        policy=proxlm.OptimiserSettings(lr=1e-2), critic=proxlm.OptimiserSettings(lr=1e-2)
    ),
)
prompts = ["the cat", "a bird", "the dog", "the sun", "a", "the moon", "to the", "in the", "and", "on the"]
run = proxlm.PPOTrainer(model, vowels, prompts, config).train()
print("KL of the first step:", run.metrics["kl"][0])
print("reward by step:", [round(value, 3) for value in run.metrics["reward"]])
print("an ordinary model, adapters folded in:", run.model)
