"""The golden numbers of TRL's PPOTrainer: its own lines on seeded arrays, and its trainer on a tiny model."""

from __future__ import annotations

import inspect
import tempfile
from types import SimpleNamespace
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from peer_code import Names, draw, plain, policy_arrays, run_between, store
from tokenizers import Tokenizer, models
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl.experimental.utils import get_reward

SOURCE = inspect.getsource(ppo_trainer)
PAD, EOS = 0, 1
DEFAULTS: Names = {
    "kl_coef": 0.1, "kl_estimator": "k1", "whiten_rewards": False, "gamma": 1.0, "lam": 0.95, "cliprange": 0.2,
    "cliprange_value": 0.2, "vf_coef": 0.1, "temperature": 1.0, "missing_eos_penalty": None,
}  # fmt: skip


def rollout_stage(responses: list[list[int]], inputs: Names, eos: int, **settings: Any) -> Names:
    """What PPOTrainer.train does between generation and the update, for responses [B, L]. → its variables."""
    t = {name: torch.tensor(value, dtype=torch.float64) for name, value in inputs.items()}
    tokens, args = torch.tensor(responses), SimpleNamespace(**DEFAULTS | settings)
    processing = SimpleNamespace(eos_token_id=eos, pad_token_id=PAD)
    names: Names = dict(vars(ppo_trainer)) | {"args": args, "processing_class": processing}
    names |= {"self": SimpleNamespace(args=args, processing_class=processing, stop_token_id=eos)}
    names |= {"response": tokens, "responses": tokens, "query": torch.full((len(tokens), 1), 9)}
    run_between(SOURCE, "train", "postprocessed_response", "sequence_length", names)
    names |= {"postprocessed_responses": names["postprocessed_response"], "scores": t["scores"].clone()}
    names |= {"sequence_lengths": names["sequence_length"], "values": t["values"]}
    names |= {"logprobs": t["old_logprobs"], "ref_logprobs": t["ref_logprobs"]}
    run_between(SOURCE, "train", "contain_eos_token", "advantages", names)
    names["query_responses"] = torch.cat([names["query"], tokens], 1)
    return names


def update_stage(
    names: Names, new_logprobs: torch.Tensor, new_values: torch.Tensor, rows: list[int]
) -> Names:
    """What it does with one micro-batch, up to the loss and its statistics; the networks' outputs are given."""
    states = torch.cat([new_values, torch.zeros_like(new_values[:, :1])], 1)[rows, :, None]
    logits = torch.zeros(*states.shape[:2], 4)
    names = dict(names) | {"context_length": 1, "micro_batch_inds": rows, "model": None}
    names["forward"] = lambda model, tokens, pad: (SimpleNamespace(logits=logits), states)
    names["selective_log_softmax"] = lambda logits, tokens: new_logprobs[rows]
    run_between(SOURCE, "train", "mb_advantage", "loss", names)
    names |= {name: torch.zeros(1, 1, 1) for name in ("approxkl_stats", "pg_clipfrac_stats")}
    names |= {"ppo_epoch_idx": 0, "minibatch_idx": 0, "gradient_accumulation_idx": 0}
    return run_between(SOURCE, "train", "pg_clipfrac", "approxkl", names)


def leaves(inputs: Names) -> list[torch.Tensor]:
    return [
        torch.tensor(inputs[name], dtype=torch.float64, requires_grad=True)
        for name in ("new_logprobs", "new_values")
    ]


def micro_batches(names: Names, inputs: Names) -> Names:
    """The policy's gradient accumulated over micro-batches of two responses, by Accelerator.backward."""
    new_logprobs, new_values = leaves(inputs)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=3)
    losses = []
    for rows in ([0, 1], [2, 3], [4, 5]):
        losses.append(update_stage(names, new_logprobs, new_values, rows)["pg_loss"])
        accelerator.backward(losses[-1])
    # The fifth response by itself: without a token that counts, the mean over tokens is 0 / 0.
    alone = update_stage(names, new_logprobs, new_values, [4])["pg_loss"]
    return {
        "pg_losses": torch.stack(losses),
        "pg_gradient": new_logprobs.grad,
        "fifth_alone_is_nan": bool(alone.isnan()),
    }


def make_case(seed: int, eos: int, **settings: Any) -> Names:
    """Six responses of at most 7 tokens: EOS in the middle, last, last but one, nowhere, first, second."""
    rng = np.random.default_rng(30 + seed)
    responses = rng.integers(3, 20, (6, 7))
    for row, place in enumerate([3, 6, 5, None, 0, 1]):
        if place is not None:
            responses[row, place] = eos
            responses[row, place + 1 :] = PAD
    inputs: Names = policy_arrays(rng, (6, 7))
    inputs["ref_logprobs"] = np.round(inputs["old_logprobs"] + draw(rng, (6, 7), 0.4), 4)
    inputs["scores"] = draw(rng, (6,))
    new_logprobs, new_values = leaves(inputs)
    names = rollout_stage(responses.tolist(), inputs, eos, **settings)
    names = update_stage(names, new_logprobs, new_values, list(range(6)))
    kept = "padding_mask padding_mask_p1 sequence_lengths scores kl rewards returns advantages values"
    outputs = {name: names[name] for name in (kept + " pg_loss vf_loss pg_clipfrac approxkl").split()}
    outputs["ratio_mean"] = names["ratio"].mean()
    outputs["pg_gradient"] = torch.autograd.grad(names["pg_loss"], new_logprobs)[0]
    outputs["vf_gradient"] = torch.autograd.grad(names["vf_loss"], new_values)[0]
    outputs["micro_batches"] = micro_batches(names, inputs)
    given = {"eos": eos, "pad": PAD, **DEFAULTS, **settings}
    return plain(
        {"seed": 30 + seed, "settings": given, "responses": responses, "inputs": inputs, "outputs": outputs}
    )


def scored_at(responses: list[list[int]]) -> list[int]:
    """Where in the response get_reward reads the score: by a model whose score is the position itself."""

    def backbone(input_ids: torch.Tensor, **_: Any) -> Any:
        position = torch.arange(input_ids.shape[1], dtype=torch.float64).expand(input_ids.shape)
        return SimpleNamespace(hidden_states=[position[..., None]])

    model = SimpleNamespace(base_model_prefix="backbone", backbone=backbone, score=lambda hidden: hidden)
    query_responses = torch.cat([torch.full((len(responses), 1), 9), torch.tensor(responses)], 1)
    _, where, _ = get_reward(model, query_responses, PAD, 1)  # type: ignore[arg-type]
    return [int(place) - 1 for place in where]


def make_example(title: str, response: list[int], eos: int) -> Names:
    """One response with a score of 1, a KL of 0.1, 0.2, 0.3, … on its tokens, β = 0.5, γ = 1, λ = 0.95."""
    length = len(response)
    inputs = {"values": np.array([[0.5, 0.4, 0.3, 0.2, 0.1]])[:, :length], "scores": np.array([1.0])}
    inputs |= {
        "old_logprobs": np.full((1, length), -1.0),
        "ref_logprobs": -1.0 - 0.1 * np.arange(1, length + 1)[None],
    }
    names = rollout_stage([response], inputs, eos, kl_coef=0.5)
    raw = names["returns"] - names["values"]
    outputs = {
        "trained": ~names["padding_mask"],
        "value_trained": ~names["padding_mask_p1"],
        "advantages": raw,
    }
    outputs |= {name: names[name] for name in ("rewards", "contain_eos_token", "returns")}
    outputs["scored_at"] = scored_at([response])
    given = {"name": title, "response": response, "eos": eos, "kl_coef": 0.5, "gamma": 1.0, "lam": 0.95}
    return plain({**given, "inputs": inputs, "outputs": outputs})


def extreme() -> Names:
    """The policy loss of two tokens at log-ratio 25, A = −1 and 1."""
    inputs = {
        "old_logprobs": [[-30.0, -30.0]],
        "ref_logprobs": [[-30.0, -30.0]],
        "values": [[0.0, 0.0]],
        "scores": [0.0],
    }
    names = rollout_stage([[5, 6]], inputs, EOS) | {
        "advantages": torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    }
    new_logprobs, new_values = leaves({"new_logprobs": [[-5.0, -5.0]], "new_values": [[0.0, 0.0]]})
    loss = update_stage(names, new_logprobs, new_values, [0])["pg_loss"]
    return plain(
        {"log_ratio": 25.0, "pg_loss": loss, "pg_gradient": torch.autograd.grad(loss, new_logprobs)[0]}
    )


class Recording(torch.optim.SGD):
    """Keeps the norm of the gradient at each of its steps."""

    norms: list[float]

    def step(self, closure: Any = None) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        return super().step(closure)


def tiny_models() -> tuple[Names, Recording]:
    """The arguments of PPOTrainer that are networks, random and of one layer; and their optimiser."""
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=PAD, bos_token_id=EOS, eos_token_id=EOS,
    )  # fmt: skip
    policy, reference = (transformers.LlamaForCausalLM(config) for _ in range(2))
    critic, reward = (transformers.LlamaForSequenceClassification(config) for _ in range(2))
    reference.load_state_dict(policy.state_dict())
    with torch.no_grad():
        reward.score.weight.mul_(1000)  # scores far from 0, so that gradients are large
    optimiser = Recording([*policy.parameters(), *critic.parameters()], lr=1e-6)
    optimiser.norms = []
    return {"model": policy, "ref_model": reference, "value_model": critic, "reward_model": reward}, optimiser


def train_tiny(minibatches: int, rows: int, episodes: int) -> Names:
    """PPOTrainer itself, 2 passes over 4 micro-batches of 2 responses: which optimiser steps it takes."""
    torch.manual_seed(0)
    np.random.seed(0)  # the trainer shuffles with it
    vocabulary = {"<pad>": PAD, "<eos>": EOS, **{f"w{i}": i + 2 for i in range(14)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
    )
    networks, optimiser = tiny_models()
    logged: list[Names] = []
    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(
            output_dir=folder, per_device_train_batch_size=2, gradient_accumulation_steps=4, num_ppo_epochs=2,
            num_mini_batches=minibatches, total_episodes=episodes, response_length=6, stop_token="eos", bf16=False,
            use_cpu=True, report_to="none", save_strategy="no", num_sample_generations=0, disable_tqdm=True,
            gradient_checkpointing=False, logging_steps=1, max_grad_norm=1.0,
        )  # fmt: skip
        trainer = PPOTrainer(
            args=args,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"input_ids": [[2, 3, 4 + i % 3] for i in range(rows)]}),
            optimizers=(optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)),
            **networks,
        )
        trainer.log = lambda metrics, *_, **__: logged.append(metrics)
        trainer.train()
    return {
        "num_mini_batches": minibatches, "dataset_rows": rows, "updates": episodes // 8, "num_ppo_epochs": 2,
        "gradient_accumulation_steps": 4, "optimiser_steps": len(optimiser.norms), "max_grad_norm": 1.0,
        "largest_norm": round(max(optimiser.norms), 1),
        "logged_ratio": round(float(np.mean([m["val/ratio"] for m in logged])), 3),
    }  # fmt: skip


def make_trl() -> None:
    cases = [
        make_case(0, EOS, missing_eos_penalty=1.0),
        make_case(1, EOS, kl_estimator="k3", whiten_rewards=True, gamma=0.97, lam=0.9),
        make_case(2, PAD, gamma=0.99, lam=1.0),
    ]
    examples = [
        make_example("EOS, then padding", [5, 6, EOS, PAD, PAD], EOS),
        make_example("EOS is the last token", [5, 6, EOS], EOS),
        make_example("EOS is PAD", [5, 6, PAD, PAD, PAD], PAD),
        make_example("PAD sampled before EOS", [5, PAD, 6, EOS, PAD], EOS),
    ]
    x, mask = (
        draw(np.random.default_rng(40), (4, 6), 2.0, 1.0),
        np.random.default_rng(41).random((4, 6)) < 0.6,
    )
    whiten = {"x": x, "mask": mask}
    for name, shift in (("shifted", True), ("kept", False)):
        whiten[name] = ppo_trainer.masked_whiten(torch.tensor(x), torch.tensor(mask), shift)
    runs = [
        train_tiny(n, rows, episodes) for n in (1, 2, 4) for rows, episodes in ((64, 8), (8, 8), (16, 32))
    ]
    content = {"cases": cases, "examples": examples, "whiten": whiten, "extreme": extreme(), "runs": runs}
    provenance = {
        "package": "trl", "version": trl.__version__, "file": "trl/experimental/ppo/ppo_trainer.py",
        "with": f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"accelerate {accelerate.__version__}",
        "how": "statements of PPOTrainer.train executed in float64 (cases, examples, extreme); masked_whiten and "
        "get_reward called; PPOTrainer run on a random Llama of one layer (runs)",
    }  # fmt: skip
    store("trl", provenance, content)
