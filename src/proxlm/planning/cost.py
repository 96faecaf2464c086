"""What the phases of a step cost: operations of matrix products, bytes moved, calls of operators, and exchanges.

Products are counted as 2 operations for each number of a matrix and row, attention's for the half of its square that
a causal model needs. A backward pass has twice a forward pass's products, and once where the matrix is frozen.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from proxlm.planning.memory import ONE_PROCESS, Share, activations, logit_bytes, rows_of_a_rank
from proxlm.planning.shape import Shape
from proxlm.planning.work import Work

# Operators that a block calls, views left out, as counted on a Llama: decoding, in a pass without and with gradients,
# and in the backward pass.
DECODE_CALLS, FORWARD_CALLS, GRADIENT_CALLS, BACKWARD_CALLS = 45, 34, 40, 65
# And beside the blocks: of a pass, of a token that is sampled, and of a step's rewards and advantages.
PASS_CALLS, TOKEN_CALLS, STEP_CALLS = 80, 80, 600
# What is read and written for each byte that a pass keeps, forward and backward.
MOVED_FORWARD, MOVED_BACKWARD = 3.0, 4.0
# Reads and writes of a learning parameter in an optimiser step: AdamW 7, clipping 3, clearing 1, adding gradients 2.
MOVED_BY_STEP = 13
# Times that logits are read or written to become log-probs, or a sampled token; and in the backward pass.
MOVED_LOGITS, MOVED_LOGITS_BACK = 6, 4


@dataclass(frozen=True)
class Cost:
    """What one rank does.

    Attributes:
        flops: Operations of matrix products.
        moved: Bytes read and written besides.
        calls: Of operators, one after another.
        sent: Bytes sent to other ranks; as many are received.
        exchanges: Collective operations, one after another.
    """

    flops: float = 0.0
    moved: float = 0.0
    calls: float = 0.0
    sent: float = 0.0
    exchanges: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Cost(*(one + two for one, two in pairs))

    def __mul__(self, times: float) -> Cost:
        return Cost(*(one * times for one in astuple(self)))


def trunk_flops(shape: Shape, rows: float, prompt: float, response: float, own: bool = True) -> float:
    """Operations of a forward pass through the blocks, without the output head.

    own: in proxlm's own pass the last block's queries, and what follows, are computed for the states that predict a
    response's tokens, and for each row's last, alone.
    """
    length = prompt + response
    products = 2.0 * shape.layers * shape.matrix * rows * length
    attention = 2.0 * shape.layers * shape.queries * rows * length * (length + 1)
    if own and shape.known:
        later = 2.0 * (shape.matrix - 2 * shape.hidden * shape.keys)
        products -= later * rows * (length - min(length, response + 1))
    return products + attention


def head_flops(shape: Shape, states: float) -> float:
    """Operations of the output head on so many states."""
    return 2.0 * shape.head * states


def phases_of(work: Work, share: Share = ONE_PROCESS) -> dict[str, Cost]:
    """The cost of each phase of a step on one rank, whose share of the rows is even."""
    if work.job == "texts":
        return {"update": _update(work, share)}
    found = {"score": _score(work, share), "update": _update(work, share)}
    # Beside an update rank 0 writes alone.
    workers = 1 if work.ahead else share.ranks
    return ({"generate": generate_cost(work, workers)} if share.samples else {}) | found


def generate_cost(work: Work, workers: int, graphs: bool = False) -> Cost:
    """Writing one worker's share of the responses, as many at once as there is room for.

    graphs: a token's operators are launched as one (vLLM's CUDA graphs).
    """
    shape, rows = work.policy, math.ceil(work.responses / workers)
    slots = min(work.slots, rows)
    prompts = math.ceil(work.prompts / workers)
    reading = Cost(trunk_flops(shape, prompts, work.prompt, 0, own=False))
    reading += Cost(
        0.0, MOVED_FORWARD * prompts * work.prompt * _kept_of_token(work), FORWARD_CALLS * shape.layers
    )
    # A slot is filled again when its response ends; the last ones of a step end one after another.
    tokens = max(rows * work.response / slots, float(work.limit))
    mean = work.prompt + work.response / 2
    filled = rows * work.response / tokens
    each = Cost(
        2.0 * (shape.layers * shape.matrix + shape.head) * filled
        + 4.0 * shape.layers * shape.queries * mean * filled,
        work.decode * (shape.layers * shape.matrix + shape.head)
        + 2.0 * shape.layers * shape.keys * mean * filled * (2.0 if work.decode <= 2 else 4.0)
        + MOVED_LOGITS * 4.0 * shape.vocabulary * filled
        + MOVED_FORWARD * filled * _kept_of_token(work),
        2.0 if graphs else DECODE_CALLS * shape.layers + TOKEN_CALLS,
    )
    return reading + each * tokens


def _kept_of_token(work: Work) -> float:
    """Bytes that the blocks of the policy would keep of one token."""
    return activations(work.policy, work, 1, own=False) / max(1.0, work.tokens)


def _passes(work: Work, share: Share) -> tuple[int, float]:
    """Passes over a rank's rows, and how many rows each has."""
    own = work.responses / share.ranks
    return math.ceil(own / rows_of_a_rank(work, share)), own


def _forward(shape: Shape, work: Work, share: Share, head: bool = True, gradients: bool = False) -> Cost:
    """One pass over all of a rank's rows."""
    own = shape.known and not share.sharded
    passes, rows = _passes(work, share)
    states = rows * work.response if head else 0.0
    kept = activations(shape, work, 1, own) * rows
    calls = (GRADIENT_CALLS if gradients else FORWARD_CALLS) * shape.layers + PASS_CALLS
    spans = states * shape.vocabulary * 4.0 / max(1.0, logit_bytes(shape, 1e9, False, share.gpu))
    return Cost(
        trunk_flops(shape, rows, work.prompt, work.response, own) + head_flops(shape, states),
        MOVED_FORWARD * kept
        + 4.0 * passes * shape.layers * shape.matrix
        + MOVED_LOGITS * 4.0 * states * shape.vocabulary,
        passes * calls + 20 * spans,
    )


def _backward(shape: Shape, work: Work, share: Share, head: bool = True) -> Cost:
    """The backward pass over all of a rank's rows; blocks that never learn have none."""
    own = shape.known and not share.sharded
    passes, rows = _passes(work, share)
    states = rows * work.response if head else 0.0
    learning = (work.top or shape.layers) / shape.layers
    again = trunk_flops(shape, rows, work.prompt, work.response, own) * learning
    times = (1.0 if work.rank else 2.0) + (1.0 if work.checkpointing else 0.0)
    of_head = 1.0 if work.rank or work.top else 2.0
    if work.job == "texts":
        of_head += 1.0  # logits are computed a second time
    beside = 3 * 2.0 * rows * work.tokens * work.of_policy if work.rank else 0.0
    return Cost(
        again * times + head_flops(shape, states) * of_head + beside,
        MOVED_BACKWARD * activations(shape, work, 1, own) * rows * learning
        + 3 * 4.0 * passes * shape.layers * shape.matrix * learning
        + MOVED_LOGITS_BACK * 4.0 * states * shape.vocabulary,
        passes * (BACKWARD_CALLS * shape.layers * learning + PASS_CALLS),
    )


def _score(work: Work, share: Share) -> Cost:
    """Log-probs of policy, reference and teacher; a critic of its own takes its first step on the way."""
    found = _forward(work.policy, work, share) + Cost(calls=STEP_CALLS)  # the reference
    if not work.known_logprobs:
        found += _forward(work.policy, work, share)
    if work.teacher is not None:
        found += _forward(work.teacher, work, share)
    if work.critic in ("separate", "adapter"):
        found += _forward(work.critic_shape, work, share, head=False, gradients=True)
        found += _backward(work.critic_shape, work, share, head=False) * (1 / work.minibatches)
    return found


def _update(work: Work, share: Share) -> Cost:
    """Passes there and back in every epoch, and the optimiser steps."""
    one = _forward(work.policy, work, share, gradients=True) + _backward(work.policy, work, share)
    found = one * work.epochs
    steps = work.epochs * work.minibatches
    if work.critic in ("separate", "adapter"):
        two = _forward(work.critic_shape, work, share, head=False, gradients=True)
        two += _backward(work.critic_shape, work, share, head=False)
        found += two * (work.epochs - 1 / work.minibatches)
    ranks = share.ranks if share.sharded else 1
    learning = work.of_policy + work.of_critic
    return found + Cost(0.0, MOVED_BY_STEP * 4.0 * learning / ranks, 200.0) * steps


def exchange_cost(work: Work, share: Share) -> Cost:
    """What a rank exchanges with the others in a step.

    ddp: each gradient, once for each optimiser step, which a ring sends and receives nearly twice. fsdp: of each pass
    with gradients a block's weights twice and its gradients once (float32), of one without them the weights once; and
    what the policy learns, for its copy that samples. Of texts there are passes with gradients alone.
    """
    if share.ranks == 1:
        return Cost()
    others = (share.ranks - 1) / share.ranks
    steps = work.epochs * work.minibatches
    of_block = 7 * (2 if work.rank else 1)  # matrices, or pairs of adapters
    if not share.sharded:
        learning = 4.0 * (work.of_policy + work.of_critic)
        tensors = of_block * work.policy.layers * _networks(work)
        return Cost(sent=2 * others * learning * steps, exchanges=tensors * steps)
    passes = math.ceil(work.responses / share.ranks * work.tokens / work.pass_tokens)
    layers = (work.top or work.policy.layers) * _networks(work)
    blocks = work.policy.blocks * layers / work.policy.layers
    gathered = 2.0 if work.bfloat16 else 4.0
    sent = blocks * passes * work.epochs * (2 * gathered + 4.0)
    exchanges = 3.0 * layers * passes * work.epochs
    if work.job == "ppo":
        sent += blocks * passes * gathered + 4.0 * work.of_policy
        exchanges += layers * passes + of_block * (work.top or work.policy.layers)
    return Cost(sent=others * sent, exchanges=exchanges)


def _networks(work: Work) -> int:
    """How many trunks learn."""
    return 2 if work.critic == "separate" else 1
