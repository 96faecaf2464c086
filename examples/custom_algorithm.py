"""An algorithm of your own: an advantage and a loss as plain functions of tensors.

    python examples/custom_algorithm.py

Here: the reward of a response minus the mean of its prompt's responses, and a loss that is clipped on the log-ratio.
"""

import torch

import proxlm

TEXTS = ["the cat sat on the mat and the dog ran to the sea", "a bird in the sun sang to the moon"] * 40


def group_mean_advantage(inputs: proxlm.AdvantageInputs) -> torch.Tensor:
    """A_t = R − mean of R over the responses to the same prompt, for every token of the response. [R]"""
    lengths = inputs.offsets[1:] - inputs.offsets[:-1]
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    total = torch.zeros(len(lengths)).index_add_(0, row, inputs.rewards)
    count = torch.bincount(inputs.groups)
    mean = torch.zeros(len(count)).index_add_(0, inputs.groups, total) / count
    return (total - mean[inputs.groups])[row]


def log_ratio_loss(inputs: proxlm.LossInputs) -> torch.Tensor:
    """−A · log ρ where |log ρ| ≤ 0.2, without gradient beyond it. [R]"""
    log_ratio = inputs.logprobs - inputs.old_logprobs
    return -inputs.advantages * torch.clamp(log_ratio, -0.2, 0.2)


def vowels(completions):
    return [sum(c in "aeiou" for c in done.text) / max(1, len(done.text)) for done in completions]


config = proxlm.PPOConfig(
    data=proxlm.DataSettings(eval_count=2),
    rollout=proxlm.RolloutSettings(max_new_tokens=12),
    ppo=proxlm.PPOSettings(batch_size=8, samples_per_prompt=4, minibatches=2, steps=5),
    optim=proxlm.OptimisersSettings(policy=proxlm.OptimiserSettings(lr=3e-3)),
)
new = proxlm.NewModelSettings(vocabulary=300, hidden=32, layers=2, heads=2, context=64)
prompts = ["the cat", "a bird", "the dog", "the sun", "a", "the moon", "to the", "in the", "and", "on the"]
run = proxlm.PPOTrainer(
    proxlm.new_model(TEXTS, new), vowels, prompts, config, advantage=group_mean_advantage, loss=log_ratio_loss
).train()
print("reward by step:", [round(value, 3) for value in run.metrics["reward"]])
