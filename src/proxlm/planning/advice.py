"""Settings that make a step fit where it does not, each tried on the plan itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from proxlm.planning.machine import Machine
from proxlm.planning.split import Split, splits
from proxlm.planning.work import Work


@dataclass(frozen=True)
class Change:
    """A setting to change: its key and value, the step with it, and its best way to run."""

    key: str
    value: str
    work: Work
    best: Split


def changes(work: Work, gpus: int, memory: float, machine: Machine) -> list[Change]:
    """Single settings that make a step fit that does not; if none does alone, several one after another, of which the
    last makes it fit. Empty where nothing helps.

    Args:
        work: The step.
        gpus: How many there are.
        memory: Bytes of each.
        machine: One of them.
    """

    def tried(key: str, value: str, changed: Work) -> Change:
        return Change(key, value, changed, splits(changed, gpus, memory, machine)[0])

    alone = [tried(key, value, change(work)) for key, value, change in _candidates(work)]
    if fitting := [change for change in alone if change.best.fits]:
        return fitting
    found = list[Change]()
    for key, value, change in _candidates(work):
        before = found[-1].work if found else work
        found.append(tried(key, value, change(before)))
        if found[-1].best.fits:
            return found
    return []


def _candidates(work: Work) -> Iterator[tuple[str, str, Callable[[Work], Work]]]:
    """Settings in the order in which they cost least: a key, its value, and the step with it."""
    key = "ppo.micro_batch_tokens" if work.job == "ppo" else "train.micro_batch_tokens"
    row = int(work.tokens) if work.tokens == int(work.tokens) else int(work.tokens) + 1
    tokens = work.pass_tokens // 2
    while tokens >= row:
        yield key, str(tokens), partial(replace, pass_tokens=tokens)
        tokens //= 4
    if work.pass_tokens > row:
        yield key, str(row), partial(replace, pass_tokens=row)
    if work.job == "ppo" and work.slots > 1:
        few = max(1, work.slots // 4)
        yield "rollout.batch_size", str(few), partial(replace, slots=few)
    if not work.bfloat16:
        yield "model.precision", "bfloat16", lambda w: replace(w, bfloat16=True, decode=min(2.0, w.decode))
    if work.policy.known and not work.checkpointing:
        yield "model.activation_checkpointing", "true", partial(replace, checkpointing=True)
    if work.critic == "separate" and not work.rank:
        yield (
            "model.critic",
            "shared",
            lambda w: replace(w, critic="shared", critic_shape=w.policy),
        )
    if not work.rank:
        yield "model.lora.rank", "16", lambda w: replace(w, rank=16, critic_shape=w.policy)
