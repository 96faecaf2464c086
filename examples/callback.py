"""Callbacks: watch a run, add metrics of your own, and stop when the policy has moved far enough.

python examples/callback.py
"""

import proxlm

TEXTS = ["the cat sat on the mat and the dog ran to the sea", "a bird in the sun sang to the moon"] * 40


class StopAtKL(proxlm.Callback):
    """Ends the run when the KL to the reference passes a limit, and logs how many responses are unique."""

    def __init__(self, limit):
        self.limit, self.unique = limit, 0.0

    def on_rollout(self, step, rollout):
        self.unique = len(set(rollout.texts)) / len(rollout)

    def on_step(self, step, metrics):
        metrics["user/unique_responses"] = self.unique
        print(f"step {step}: KL {metrics['kl']:.3f}, {self.unique:.0%} of the responses unique")
        if metrics["kl"] > self.limit:
            raise proxlm.StopTraining(f"the KL is over {self.limit}")

    def on_evaluation(self, step, name, metrics):
        print(f"held-out reward {name}: {metrics['reward']:.3f}")


def length(completions):
    return [len(done.text) / 50 for done in completions]


config = proxlm.PPOConfig(
    data=proxlm.DataSettings(eval_count=2),
    rollout=proxlm.RolloutSettings(max_new_tokens=12),
    ppo=proxlm.PPOSettings(batch_size=16, minibatches=2, steps=30, kl_coef=0.0),
    optim=proxlm.OptimisersSettings(policy=proxlm.OptimiserSettings(lr=3e-3)),
)
new = proxlm.NewModelSettings(vocabulary=300, hidden=32, layers=2, heads=2, context=64)
prompts = ["the cat", "a bird", "the dog", "the sun", "a", "the moon", "to the", "in the"]
run = proxlm.PPOTrainer(
    proxlm.new_model(TEXTS, new), length, prompts, config, callbacks=[StopAtKL(limit=0.2)]
).train()
print(f"stopped after step {run.metrics['step'][-1]}; the model is in {run.model}")
