"""A model type of your own: any transformers causal language model, this library's engine and trainer as they are.

    python examples/custom_model_type.py

Loading checks that the engine's and the trainer's log-probs are the model's own; what cannot be trained is refused.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import proxlm

TEXTS = ["the cat sat on the mat and the dog ran to the sea", "a bird in the sun sang to the moon"] * 40


class SineConfig(LlamaConfig):
    model_type = "sine-llama"


class Sine(torch.nn.Module):
    def forward(self, x):
        return torch.sin(x)


class SineForCausalLM(LlamaForCausalLM):
    """A Llama whose MLPs have a sine instead of SiLU."""

    config_class = SineConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.act_fn = Sine()


AutoConfig.register(
    "sine-llama", SineConfig
)  # so that the saved policy loads again, here and in transformers
AutoModelForCausalLM.register(SineConfig, SineForCausalLM)

tokenizer = proxlm.train_tokenizer(TEXTS, vocabulary=300, context=64)
torch.manual_seed(0)
network = SineForCausalLM(
    SineConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )
)  # fmt: skip


def vowels(completions):
    return [sum(c in "aeiou" for c in done.text) / max(1, len(done.text)) for done in completions]


config = proxlm.PPOConfig(
    data=proxlm.DataSettings(eval_count=2),
    rollout=proxlm.RolloutSettings(max_new_tokens=8),
    ppo=proxlm.PPOSettings(batch_size=8, minibatches=2, steps=2),
)
prompts = ["the cat", "a bird", "the dog", "the sun", "a", "the moon", "to the", "in the", "and", "on the"]
run = proxlm.PPOTrainer(network, vowels, prompts, config, tokenizer=tokenizer).train()
print(f"engine and trainer differ by at most {max(run.metrics['rollout_gap']):.0e} in log-probs")
print("saved as:", type(AutoModelForCausalLM.from_pretrained(run.model)).__name__)
