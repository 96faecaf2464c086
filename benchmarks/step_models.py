"""The models that a PPO step is timed on: random Llamas as folders that any library can read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Work:
    """What one PPO step is: shapes of the models and of the batch.

    ragged: prompts of 8 to 128 tokens, and responses that end by EOS after response / 3 tokens on average; else
    every prompt has `prompt` tokens and every response `response`.
    """

    hidden: int = 256
    layers: int = 4
    vocabulary: int = 4096
    prompt: int = 16
    response: int = 64
    batch: int = 64
    micro_batch: int = 16
    epochs: int = 4
    ragged: bool = False
    intermediate: int = 0
    groups: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """intermediate 0: 8/3 of hidden, to a multiple of 64; groups 0: a key and value head for each query head."""
        if not self.intermediate:
            object.__setattr__(self, "intermediate", -(-int(self.hidden * 8 / 3 + 0.999) // 64) * 64)
        if not self.groups:
            object.__setattr__(self, "groups", self.heads)

    @property
    def heads(self) -> int:
        return max(1, self.hidden // 64)

    @property
    def longest(self) -> int:
        return (128 if self.ragged else self.prompt) + self.response

    def prompts(self, batches: int) -> list[list[int]]:
        """Random token ids from 2 on; the ids of padding and EOS are 0 and 1."""
        draw = torch.Generator().manual_seed(self.seed)
        count = self.batch * batches
        lengths = torch.full((count,), self.prompt)
        if self.ragged:
            lengths = torch.randint(8, 129, (count,), generator=draw)
        return [torch.randint(2, self.vocabulary, (int(n),), generator=draw).tolist() for n in lengths]

    def mean_lengths(self) -> tuple[float, float]:
        """Of a prompt and of a response; of ragged ones as they are drawn, responses cut at the limit."""
        if not self.ragged:
            return self.prompt, self.response
        return 68.0, self.response / 3 * (1 - (1 - 3 / self.response) ** self.response)


PAD, EOS = 0, 1
LORA_ALPHA = 16


def make_models(work: Work, folder: Path) -> None:
    """policy/ (a causal LM) and reward/ (a classifier of one label), with a tokenizer of as many words as tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        AutoModelForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(work.seed)
    words = {{PAD: "<pad>", EOS: "<eos>"}.get(i, f"t{i}"): i for i in range(work.vocabulary)}
    raw = Tokenizer(WordLevel(words, unk_token="t2"))
    raw.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="t2", padding_side="left"
    )
    sizes = {
        "vocab_size": work.vocabulary,
        "hidden_size": work.hidden,
        "intermediate_size": work.intermediate,
        "num_hidden_layers": work.layers,
        "num_attention_heads": work.heads,
        "num_key_value_heads": work.groups,
        "max_position_embeddings": max(256, work.longest),
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    policy = LlamaForCausalLM(LlamaConfig(**sizes))
    with torch.no_grad():
        head, embeddings = policy.lm_head.weight, policy.model.embed_tokens.weight
        # The first number of every state is nearly constant, so that the logits of EOS and padding can be set. Where
        # nothing is to end early that of EOS is far below all others.
        embeddings[:, 0] = 1.0
        head[:, 0] = 0.0
        tokens = torch.randint(2, work.vocabulary, (16, work.prompt + work.response))
        usual = policy.model(tokens).last_hidden_state[..., 0].mean()
        wanted = math.log((work.vocabulary - 1) / (work.response / 3 - 1)) if work.ragged else -40.0
        head[EOS, 0] = wanted / usual
        head[PAD, 0] = -40.0 / usual  # never sampled
    reward = AutoModelForSequenceClassification.from_config(LlamaConfig(**sizes, num_labels=1))
    for name, network in (("policy", policy), ("reward", reward)):
        network.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
