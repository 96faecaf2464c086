"""A step's scored rollout: prompts drawn, answered and scored, and with dynamic filtering drawn again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from proxlm.config import PPOConfig
from proxlm.config.algorithms import advantage_of
from proxlm.data.prompts import PromptStream
from proxlm.engine.generate import Generate, generate
from proxlm.engine.protocol import Engine
from proxlm.errors import RunError
from proxlm.rl.advantages import turn_starts
from proxlm.rl.estimators import group_numbers, varied_groups
from proxlm.rl.shaping import response_rewards
from proxlm.runlog.metric_names import COUNTED
from proxlm.seeds import Stream
from proxlm.train.common.clock import Clock
from proxlm.train.ppo.overlapped_scoring import overlapping
from proxlm.types import Prompt, Rollout, Scores

RewardOfRollout = Callable[[Rollout], Scores]


def no_reward(rollout: Rollout) -> Scores:
    """The scores of a run that learns from a teacher alone: nothing is paid."""
    return Scores(torch.zeros(len(rollout)), rewarded=False)


class EmptyDrawError(RunError):
    """Of the responses to a draw of prompts, none can be used; `unscored` of them have no reward."""

    def __init__(self, message: str, unscored: int = 0) -> None:
        super().__init__(message)
        self.unscored = unscored


class Collected(NamedTuple):
    """A step's scored rollout; draws: how often prompts were drawn for it."""

    rollout: Rollout
    scores: Scores
    draws: int
    metrics: dict[str, float]


def collect(
    engine: Engine,
    prompts: PromptStream,
    reward: RewardOfRollout,
    config: PPOConfig,
    *,
    temperature: float,
    draw: int,
    clock: Clock,
    generate: Generate = generate,
) -> Collected:
    """The responses of one step with their scores.

    With filter_groups, prompts whose responses all got the same reward, or none, are left out and others are drawn,
    up to filter_rounds times; if none is left the last draw with rewards is used as it is, because a step cannot be
    empty.

    Args:
        engine: samples the responses.
        prompts: where prompts are drawn from.
        reward: scores the responses.
        config: the job.
        temperature: of this step.
        draw: number of the first batch of prompts; it also seeds the sampling.
        clock: times the phases.
        generate: samples a rollout.

    Raises:
        RunError: no draw has responses with rewards.
    """
    ppo = config.ppo
    generate, reward = overlapping(generate, reward, config.reward, clock)
    sampling = replace(config.rollout, temperature=temperature)
    counts: Counter[str] = Counter()

    def respond(number: int) -> tuple[Rollout, Scores]:
        """The responses to a draw of prompts that have a reward. Raises EmptyDrawError where none has."""
        batch = [p for p in prompts.batch(number) for _ in range(ppo.samples_per_prompt)]
        seed, progress = config.run.seed, clock.log.progress
        with clock("generate"):
            rollout = generate(engine, batch, sampling, seed=seed, step=number, on_progress=progress)
        rollout, more = _of_conversations(rollout, config, clock)
        counts.update(more)
        with clock("score"):
            scores = reward(rollout)
        rollout, scores, without = with_a_reward(rollout, scores, advantage_of(ppo.advantage).groups)
        if without:
            clock.log.note(f"{without} responses have no reward (it returned None) and are left out")
        counts["unscored"] += without
        return rollout, scores

    if not ppo.filter_groups:
        return Collected(*respond(draw), 1, _counted_metrics(counts))
    kept: list[tuple[Rollout, Scores]] = []
    usable: tuple[Rollout, Scores] | None = None
    empty: EmptyDrawError | None = None
    found = 0
    for draws in range(1, ppo.filter_rounds + 1):
        try:
            rollout, scores = usable = respond(draw + draws - 1)
        except EmptyDrawError as error:
            empty = error
            counts["unscored"] += error.unscored
            clock.log.note(f"a draw without use: {error}")
            continue
        rows, chosen = _varied_rows(rollout, scores, ppo.samples_per_prompt, ppo.batch_size - found)
        if len(rows):
            kept.append((rollout.select(rows), scores.select(rows, rollout.sequences.response_offsets)))
            found += chosen
        if found >= ppo.batch_size:
            break
    metrics = _counted_metrics(counts) | {
        "filter/draws": float(draws),
        "filter/kept_prompts": float(found),
        "filter/drawn_prompts": float(draws * ppo.batch_size),
    }
    if not kept:
        if usable is None:
            assert empty is not None
            raise empty
        return Collected(*usable, draws, metrics)
    rollout = Rollout.join([r for r, _ in kept])
    scores = Scores.join([s for _, s in kept], [len(r.logprobs) for r, _ in kept])
    return Collected(rollout, scores, draws, metrics)


def _of_conversations(rollout: Rollout, config: PPOConfig, clock: Clock) -> tuple[Rollout, dict[str, int]]:
    """With an environment: the counts of conversations, turns and lost conversations; notes why the first was lost.

    Where the advantage compares the responses to a prompt, one whose others were all lost has nothing to be compared
    with, and is left out, too.
    """
    if rollout.rewards is None:
        return rollout, {}
    lost, count = len(rollout.lost), len(rollout)
    if lost:
        clock.log.note(f"{lost} conversations lost; the first one: {rollout.lost[0]}")
        if advantage_of(config.ppo.advantage).groups:
            groups = group_numbers(torch.tensor([p.id for p in rollout.prompts]))
            rows = (torch.bincount(groups)[groups] > 1).nonzero()[:, 0]
            if not len(rows):
                raise EmptyDrawError(
                    f"{lost} conversations lost, and no prompt has two left; the first: {rollout.lost[0]}"
                )
            rollout = rollout.select(rows)
    turns = turn_starts(rollout.action_mask, rollout.sequences.response_offsets).sum()
    left_alone = count - len(rollout)
    return rollout, {
        "conversations": len(rollout),
        "turns": int(turns),
        "lost": lost,
        "left_alone": left_alone,
        **_counted(rollout),
    }


def _counted(rollout: Rollout) -> Counter[str]:
    """The sums of what the environments have counted, by the names of their metrics."""
    counted: Counter[str] = Counter()
    for row in rollout.counts or []:
        counted.update({COUNTED(name): count for name, count in row.items()})  # unlike +, it keeps zeros
    return counted


def with_a_reward(rollout: Rollout, scores: Scores, groups: bool = False) -> tuple[Rollout, Scores, int]:
    """The rows that have a reward, and how many have none because the reward function returned None for them.

    Args:
        rollout: The responses.
        scores: What they are worth.
        groups: Whether the responses to a prompt are compared: then one that is left alone is left out, too.

    Raises:
        EmptyDrawError: No row is left.
    """
    kept = scores.scored
    without = len(kept) - int(kept.sum())
    if not without:
        return rollout, scores, 0
    if groups:
        numbers = group_numbers(torch.tensor([p.id for p in rollout.prompts]))
        kept = kept & (torch.bincount(numbers[kept], minlength=len(rollout))[numbers] > 1)
    rows = kept.nonzero()[:, 0]
    if not len(rows):
        alone = ", and no prompt has two others" if groups else ""
        raise EmptyDrawError(
            f"the reward returned None, which is no reward, for {without} of {len(rollout)} responses{alone}; a step"
            " needs some",
            unscored=without,
        )
    return rollout.select(rows), scores.select(rows, rollout.sequences.response_offsets), without


def _counted_metrics(counts: Counter[str]) -> dict[str, float]:
    """The metrics of all draws of a step together: of responses without a reward, and of conversations."""
    found = {"reward_none": float(counts["unscored"])} if counts["unscored"] else {}
    if counts["conversations"]:
        found |= {
            "environment/turns": counts["turns"] / counts["conversations"],
            "environment/lost": float(counts["lost"]),
            "environment/left_alone": float(counts["left_alone"]),
            **{name: counts[name] / counts["conversations"] for name in counts if COUNTED.matches(name)},
        }
    return found


def _varied_rows(rollout: Rollout, scores: Scores, samples: int, wanted: int) -> tuple[Tensor, int]:
    """The rows of the first `wanted` prompts drawn whose `samples` responses differ in reward, and how many prompts.

    A prompt that stands twice in a batch is two draws, so that a step never has more rows than it asks for.
    """
    drawn = _draws_of([p.id for p in rollout.prompts], samples)
    rewards = response_rewards(scores.total, scores.per_token, rollout.sequences.response_offsets)
    varied = varied_groups(rewards, drawn)
    first = torch.unique(drawn[varied])[:wanted]
    return (varied & torch.isin(drawn, first)).nonzero()[:, 0], len(first)


def _draws_of(ids: list[int], samples: int) -> Tensor:
    """Which draw each row is of, [B]: rows of one prompt that stand together, at most `samples` of them."""
    draws: list[int] = []
    here = 0
    for i, prompt in enumerate(ids):
        here = here + 1 if i and prompt == ids[i - 1] and here < samples else 1
        draws.append(draws[-1] + (here == 1) if draws else 0)
    return torch.tensor(draws)


def reference_rewards(
    engine: Engine,
    prompts: PromptStream,
    reward: RewardOfRollout,
    config: PPOConfig,
    generate: Generate = generate,
) -> Tensor:
    """Rewards of `shaping.reference_samples` responses of the initial policy, [n] (Ziegler et al. 2019)."""
    count = config.shaping.reference_samples
    batches = -(-count // prompts.batch_size)
    drawn: list[Prompt] = [p for i in range(batches) for p in prompts.batch(i)][:count]
    rollout = generate(engine, drawn, config.rollout, seed=config.run.seed, step=0, stream=Stream.REFERENCE)
    rollout, scores, _ = with_a_reward(rollout, reward(rollout))
    return response_rewards(scores.total, scores.per_token, rollout.sequences.response_offsets)
