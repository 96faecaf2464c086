"""The bytes that one process of a run holds: what is always there, and what each phase adds to it.

Formulas of proxlm's own passes (kernels/unpadded_forward.py, kernels/linear_head.py, engine/kv_cache.py), counted
from what they keep; a test compares each with the tensors of a real model. Not in it: Python and its libraries, what
an allocator loses by fragmentation, and a GPU's context (about half a GiB).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from proxlm.models.forward import GPU_TIMES, LOGIT_BUDGET
from proxlm.planning.shape import Shape
from proxlm.planning.work import Work

# The engine reads new prompts so many tokens at a time, and samples with numbers of 16 bytes for each logit of
# a vocabulary up to 4,096, and of 8 beyond (engine/prefill.py, engine/sampling.py).
PREFILL_TOKENS, SORTED_VOCABULARY = 2048, 4096


@dataclass(frozen=True)
class Share:
    """How a run's processes divide it.

    Attributes:
        ranks: How many train together.
        sharded: Whether blocks that learn are spread over them (FSDP2).
        samples: Whether they write responses themselves; servers do otherwise.
        gpu: Whether they compute on GPUs, where more logits are held at once.
    """

    ranks: int = 1
    sharded: bool = False
    samples: bool = True
    gpu: bool = False


ONE_PROCESS = Share()


@dataclass(frozen=True)
class Memory:
    """Bytes by part. kept: what is always there; phases: what each adds, by its name."""

    kept: dict[str, float]
    phases: dict[str, dict[str, float]]

    @property
    def peak_phase(self) -> str:
        """The phase with the most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> float:
        """The most bytes held."""
        return sum(self.kept.values()) + sum(self.phases[self.peak_phase].values())

    @property
    def parts(self) -> dict[str, float]:
        """Every part of the fullest phase, and of those that are always there."""
        return self.kept | self.phases[self.peak_phase]


def learning_parts(weights: Mapping[str, float], moments: float, reference: float = 0.0) -> dict[str, float]:
    """What a network that learns always has beside its weights: gradients of their size, moments, a frozen reference.

    Args:
        weights: Of what learns, by name.
        moments: Of the optimisers.
        reference: Of the frozen copy, where there is one.
    """
    found = {**weights, "gradients": sum(weights.values()), "optimiser": moments, "reference": reference}
    return {name: size for name, size in found.items() if size}


def memory_of(work: Work, share: Share = ONE_PROCESS) -> Memory:
    """What one process holds of a step."""
    policy, critic = _sharded(work, share, critic=False), _sharded(work, share, critic=True)
    kept = {
        "policy": 4.0 * (work.policy.parameters - work.of_policy if not work.rank else work.policy.parameters)
        + 4.0 * policy,
        "critic": 4.0 * (critic + _frozen_of_critic(work)),
        "moments": 4.0 * (work.moments[0] * policy + work.moments[1] * critic),
    }
    if work.job == "ppo" and not work.rank:
        kept["reference"] = 4.0 * _copied(work)
    if work.ahead:
        kept["older policies"] = 4.0 * work.ahead * work.of_policy
    if work.teacher is not None:
        kept["teacher"] = 4.0 * work.teacher.parameters
    if share.sharded and work.rank:  # the base stays whole in the copy that samples, and is sharded beside it
        trunks = 1 + (work.critic == "separate" and work.critic_shape is work.policy)
        kept["sharded base"] = 4.0 * trunks * work.policy.blocks / share.ranks
    if share.sharded:  # of texts on rank 0 alone
        name = "sampling copy" if work.job == "ppo" else "whole copy"
        kept[name] = 4.0 * (work.of_policy if work.rank else work.policy.parameters)
    phases = {"update": update_parts(work, share, policy, critic)}
    if work.job == "ppo":
        if share.samples:
            phases["generate"] = generate_parts(work, share)
        phases["score"] = score_parts(work, share, critic)
    if share.sharded:
        phases["save"] = {"gathered for a checkpoint": _saved(work, share, policy, critic)}
    return Memory({name: size for name, size in kept.items() if size}, phases)


def _copied(work: Work) -> int:
    """Parameters of a deep copy of the policy: what never learns is there once."""
    return work.of_policy if work.top else work.policy.parameters


def _frozen_of_critic(work: Work) -> int:
    """The critic's own parameters that do not learn: of a model that is not the policy's."""
    if work.critic_shape is work.policy or work.critic in ("none", "shared"):
        return 0
    return work.critic_shape.trunk + work.critic_shape.hidden + 1 - work.of_critic


def _sharded(work: Work, share: Share, critic: bool) -> float:
    """Parameters that learn and that this rank holds."""
    count = work.of_critic if critic else work.of_policy
    if not share.sharded or (critic and work.critic in ("none", "shared")):
        return float(count)
    shape = work.critic_shape if critic else work.policy
    inside = count - (shape.hidden + 1 if critic else 0) if work.rank or work.top else shape.blocks
    return count - inside + inside / share.ranks


def _saved(work: Work, share: Share, policy: float, critic: float) -> float:
    """Bytes of a checkpoint's whole tensors on rank 0, gathered one by one; of a GPU they leave it at once."""
    if share.gpu:
        return 4.0 * work.policy.largest + _gathered(work.policy, work) / 2
    sharded = [
        (count - own) * share.ranks / (share.ranks - 1) * (1 + moments) if share.ranks > 1 else 0.0
        for count, own, moments in zip(
            (work.of_policy, work.of_critic), (policy, critic), work.moments, strict=True
        )
    ]
    return 4.0 * sum(sharded) + _gathered(work.policy, work) / 2


def rows_of_a_rank(work: Work, share: Share) -> int:
    """Rows in one pass of a rank, all as long as a row is on average, as even as `micro_batches` makes them."""
    own = max(1, math.ceil(work.responses / max(1, work.minibatches) / share.ranks))
    at_most = max(1, int(work.pass_tokens // work.tokens))
    return math.ceil(own / math.ceil(own / at_most))


def logit_bytes(shape: Shape, states: float, entropy: bool, gpu: bool = False) -> float:
    """Bytes of the logits that exist at once, and of their log-probs where entropies are asked for."""
    buffers = 2 if entropy else 1
    chunk = max(1, LOGIT_BUDGET * (GPU_TIMES if gpu else 1) // (shape.vocabulary * buffers))
    return 4.0 * min(chunk, states) * shape.vocabulary * buffers


def kv_bytes(shape: Shape, rows: int, length: int, number: float = 4.0) -> float:
    """Bytes of the keys and values of rows of so many tokens."""
    return 2.0 * shape.layers * rows * shape.keys * length * number


def block_activations(shape: Shape, work: Work, own: bool) -> float:
    """Bytes that a block keeps of one token for its backward pass.

    Residual stream and norms are float32, what products read follows the precision. own: proxlm's own pass; else
    transformers', whose norms keep the normalised states as well, and whose gate its own input.
    """
    wide, low = 4.0, 2.0 if work.bfloat16 else 4.0
    inner = (3 if own else 4) * shape.inner if shape.gated else 6 * shape.inner
    streams = 2 * shape.hidden * wide + 2 * shape.hidden * low + (0 if own else 2 * shape.hidden * wide)
    heads = (2 * shape.queries + 2 * shape.keys) * low + shape.heads * 4.0
    numbers = 2 * 4.0
    # A product's adapter keeps its input's low-rank image.
    adapters = len(shape.sides) * work.rank * low
    return streams + heads + inner * low + numbers + adapters


def activations(shape: Shape, work: Work, rows: int, own: bool) -> float:
    """Bytes that a pass of so many rows keeps for its backward pass.

    In proxlm's own pass the last block's queries, and what follows, are computed for the states that predict a
    response's tokens alone, and for each row's last.
    """
    tokens, asked = rows * work.tokens, rows * (work.response + 1)
    blocks = work.top or shape.layers
    each = block_activations(shape, work, own)
    ends = (asked if own else 4 * tokens) * shape.hidden * 4.0
    if work.checkpointing:
        return blocks * tokens * shape.hidden * 4.0 + tokens * each + ends
    if not own:
        return blocks * tokens * each + ends
    low = 2.0 if work.bfloat16 else 4.0
    # Of the last block: what keys and values need of all tokens, queries in rows, the rest of the states asked for.
    whole = shape.hidden * (4.0 + low) + (2 * shape.keys + 2 * shape.queries) * low + shape.heads * 4.0 + 4.0
    last = each - shape.hidden * 4.0 - (2 * shape.keys + shape.queries) * low - shape.heads * 4.0
    return (blocks - 1) * tokens * each + tokens * whole + asked * last + 2 * ends


def forward_bytes(shape: Shape, work: Work, rows: int) -> float:
    """The most that a pass without gradients holds at once: a block's states, its gate, and the rest of the MLP."""
    low = 2.0 if work.bfloat16 else 4.0
    return rows * work.tokens * (3 * shape.hidden * 4.0 + (3 if shape.gated else 2) * shape.inner * low)


def weight_casts(work: Work, shape: Shape, sharded: bool) -> float:
    """Bytes of the rounded weights that autocast keeps during a pass with gradients; sharded ones come rounded."""
    if not work.bfloat16:
        return 0.0
    whole = shape.layers - (work.top or shape.layers) if sharded else shape.layers
    return 2.0 * (whole * shape.matrix + shape.head)


def backward_bytes(shape: Shape, work: Work, rows: int, kept: float, own: bool) -> float:
    """The most that a backward pass holds beside what the pass has kept, of which it frees block by block.

    Of an MLP: the gradients of its product, of gate and of up, while what they were made from is still there; or one
    matrix's gradient before it is added to the others.
    """
    low, inner = 2.0 if work.bfloat16 else 4.0, (3 if shape.gated else 4) * shape.inner
    states = rows * (work.response + 1) if own else rows * work.tokens
    last = states * (inner * low + shape.hidden * 4.0)
    before = rows * work.tokens * (inner * low + 2 * shape.hidden * 4.0) - kept / (work.top or shape.layers)
    matrix = 0.0 if work.rank else 4.0 * shape.largest + states * shape.hidden * 4.0
    return max(last, before, matrix)


def update_parts(work: Work, share: Share, policy: float, critic: float) -> dict[str, float]:
    """What learning adds: gradients, what a pass keeps, logits."""
    own, rows = work.policy.known and not share.sharded, rows_of_a_rank(work, share)
    states = rows * work.response
    kept = activations(work.policy, work, rows, own)
    head = logit_bytes(work.policy, states, work.entropy, share.gpu) + 2 * states * work.policy.hidden * 4.0
    if work.bfloat16:  # logits as their product gives them, and the gradient of the weight
        head += logit_bytes(work.policy, states, False, share.gpu) / 2
        head += 0.0 if work.rank or work.top else 2.0 * work.policy.head
    if work.job == "texts" and not work.rank and not work.top:
        head += 4.0 * work.policy.head  # its gradient, before it is added to the weight's
    found = {
        "gradients": 4.0 * (policy + critic),
        "activations": kept + weight_casts(work, work.policy, share.sharded),
        "logits, or the backward pass": max(head, backward_bytes(work.policy, work, rows, kept, own)),
        "gathered weights": _gathered(work.policy, work) if share.sharded else 0.0,
    }
    return {name: size for name, size in found.items() if size}


def score_parts(work: Work, share: Share, critic: float) -> dict[str, float]:
    """What reading log-probs and values adds; a critic of its own learns from the pass that reads its values."""
    rows, shape = rows_of_a_rank(work, share), work.critic_shape
    reading = {
        "activations": forward_bytes(work.policy, work, rows),
        "logits, or the backward pass": logit_bytes(work.policy, rows * work.response, True, share.gpu),
    }
    if work.critic in ("none", "shared"):
        return reading
    own = shape.known and not share.sharded
    kept = activations(shape, work, rows, own)
    learning = {
        "gradients": 4.0 * critic,
        "activations": kept + weight_casts(work, shape, share.sharded),
        "logits, or the backward pass": backward_bytes(shape, work, rows, kept, own),
    }
    if share.sharded:
        learning["gathered weights"] = _gathered(shape, work)
    return max(learning, reading, key=lambda parts: sum(parts.values()))


def _gathered(shape: Shape, work: Work) -> float:
    """Bytes of two blocks' whole weights and gradients: the one that runs, and the one that is gathered next.

    In bf16 both are half as large, and of one block there are the gradients that are added up, in float32, as well.
    Under adapters these matrices have no gradients.
    """
    weights, gradients = (4.0, 4.0 + 4.0) if work.bfloat16 else (8.0, 8.0)
    return (weights if work.rank else weights + gradients) * shape.blocks / shape.layers


def generate_parts(work: Work, share: Share) -> dict[str, float]:
    """What writing adds: the engine's copy of the weights, keys and values, the logits of a token of each row."""
    shape, slots = work.policy, max(1, math.ceil(work.slots / share.ranks))
    low = 2.0 if work.decode <= 2 else 4.0
    prefill = min(PREFILL_TOKENS, slots * work.prompt) * (3 * shape.hidden + 3 * shape.inner) * low
    sampling = slots * shape.vocabulary * (16.0 if shape.vocabulary <= SORTED_VOCABULARY else 12.0)
    return {
        "engine's weights": work.decode * (shape.layers * shape.matrix + shape.head),
        "keys and values": kv_bytes(shape, slots, work.prompt + work.limit, low),
        "logits of a token": max(prefill, sampling),
    }
