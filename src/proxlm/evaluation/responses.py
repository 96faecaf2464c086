"""The responses of one evaluation, sampled or greedy: what they earned, and what metrics say of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from proxlm.data.tokenizer import decode
from proxlm.data.turn_end import special_ids
from proxlm.evaluation.bootstrap import mean_over_prompts
from proxlm.evaluation.intervals import Estimate, mean_with_interval
from proxlm.evaluation.task_metrics.answers import Answer
from proxlm.evaluation.task_metrics.measured import Measured
from proxlm.evaluation.task_metrics.task_metrics import TaskMetrics
from proxlm.rl.ragged import segment_sum
from proxlm.rl.shaping import response_rewards
from proxlm.runlog import metric_names as names
from proxlm.text import shown
from proxlm.types import Prompt, Rollout, Scores

# Of a record's fields, what a row of a response holds.
MOST_FIELDS, LONGEST_FIELD = 16, 80


@dataclass(frozen=True)
class Responses:
    """A rollout with what is known of its responses.

    Attributes:
        rollout: The responses.
        texts: What the policy itself wrote in each.
        scores: Their scores; None: there is no reward.
        rewards: What each earned in all, NaN where it has none; without a reward none.
        lengths: The tokens that the policy wrote in each.
        measured: The task metrics.
        measured_rows: What they say of each response.
        answers: The responses as metrics see them; without metrics none.
    """

    rollout: Rollout
    texts: list[str]
    scores: Scores | None
    rewards: list[float]
    lengths: list[float]
    measured: Measured
    measured_rows: list[dict[str, Any]]
    answers: list[Answer] = field(default_factory=list)

    @staticmethod
    def of(
        rollout: Rollout,
        reward: Callable[[Rollout], Scores] | None,
        metrics: TaskMetrics | None,
        tokenizer: Any,
        logprobs: Callable[[Rollout], Sequence[float]],
    ) -> Responses:
        """The rollout, scored and measured.

        Args:
            rollout: The responses.
            reward: Of the responses; None: there is none.
            metrics: Of the responses; None: there are none.
            tokenizer: Decodes what the policy wrote in a conversation.
            logprobs: The log-probability of each response, for metrics that need it.
        """
        texts, rewards = own_texts(rollout, tokenizer), []
        scores = None if reward is None else reward(rollout)
        if scores is not None and not scores.rewarded:
            scores = None
        if scores is not None:
            offsets = rollout.sequences.response_offsets
            rewards = response_rewards(scores.total, scores.per_token, offsets).tolist()
        measured = Measured()
        rows: list[dict[str, Any]] = [{} for _ in texts]
        answers: list[Answer] = []
        if metrics is not None:
            earned = [None if math.isnan(r) else r for r in rewards] or [None] * len(texts)
            answers = metrics.answers(
                rollout.prompts,
                rollout.completions(),
                texts,
                earned,
                logprobs(rollout) if metrics.needs_logprobs else [None] * len(texts),
            )
            measured = metrics(answers)
            rows = metrics.rows(answers, measured)
        lengths = segment_sum(rollout.action_mask.float(), rollout.sequences.response_offsets).tolist()
        return Responses(rollout, texts, scores, rewards, lengths, measured, rows, answers)

    def select(self, rows: Tensor, metrics: TaskMetrics | None) -> Responses:
        """The responses of these rows, measured by themselves; rows [b] int64."""
        chosen, answers, measured = rows.tolist(), list[Answer](), Measured()
        if metrics is not None:
            answers = [self.answers[b] for b in chosen]
            measured = metrics(answers)
        return Responses(
            self.rollout.select(rows),
            [self.texts[b] for b in chosen],
            None
            if self.scores is None
            else self.scores.select(rows, self.rollout.sequences.response_offsets),
            [self.rewards[b] for b in chosen] if self.rewards else [],
            [self.lengths[b] for b in chosen],
            measured,
            [] if metrics is None else metrics.rows(answers, measured),
            answers,
        )

    def over_prompts(self, values: Sequence[float]) -> Estimate:
        """The mean of a value of each response, over prompts."""
        return mean_over_prompts(values, [prompt.id for prompt in self.rollout.prompts], mean_with_interval)

    def reward_metrics(self) -> dict[str, Estimate]:
        """Reward and its components."""
        if self.scores is None:
            return {}
        values = {names.REWARD: self.rewards}
        components = self.scores.components
        if len(components) > 1:
            values |= {names.REWARD_COMPONENT(key): v for key, v in components.items()}
        prompts = [prompt.id for prompt in self.rollout.prompts]
        found: dict[str, Estimate] = {}
        for key, every in values.items():
            given = [(v, prompt) for v, prompt in zip(every, prompts, strict=True) if not math.isnan(v)]
            if given:
                found[key] = mean_over_prompts([v for v, _ in given], [prompt for _, prompt in given])
        return found

    def task_metrics(self) -> dict[str, Estimate]:
        """The metrics of the section [metrics]."""
        return {names.TASK(key): estimate for key, estimate in self.measured.estimates.items()}

    def response_metrics(self) -> dict[str, Estimate]:
        """Length and the share that ended."""
        rollout = self.rollout
        prompts = [prompt.id for prompt in rollout.prompts]
        return {
            names.LENGTH: self.over_prompts(self.lengths),
            names.ENDED_SHARE: mean_over_prompts([float(f != "length") for f in rollout.finish], prompts),
        }

    def row(self, b: int) -> dict[str, Any]:
        """Response b as a row."""
        row: dict[str, Any] = {
            "response": self.rollout.texts[b],
            "finish": self.rollout.finish[b],
            "length": int(self.lengths[b]),
            "reward": None,
        }
        if self.scores is not None:
            reward = self.rewards[b]
            row["reward"] = None if math.isnan(reward) else round(reward, 5)
            components = {key: values[b] for key, values in self.scores.components.items()}
            row["components"] = {key: None if math.isnan(v) else v for key, v in components.items()}
        return row | self.measured_rows[b]


def of_prompt(prompt: Prompt) -> dict[str, Any]:
    """What a row says of its prompt: which it is, without solved examples, and the record's short fields.

    With examples, "read" is what the model saw; "prompt" is then the same as without, so that rows can be paired.
    """
    row: dict[str, Any] = {"prompt_id": prompt.id, "prompt": prompt.asked or prompt.text}
    if prompt.asked:
        row["read"] = prompt.text
    fields = {shown(key, LONGEST_FIELD): value for key, value in prompt.fields.items() if _is_short(value)}
    return {**row, "fields": dict(list(fields.items())[:MOST_FIELDS])} if fields else row


def _is_short(value: Any) -> bool:
    """Whether a field can name a slice: a number, or a text that is no essay."""
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= LONGEST_FIELD)


def own_texts(rollout: Rollout, tokenizer: Any) -> list[str]:
    """What the policy wrote: the responses' texts, and of conversations its turns without the environment's
    messages.
    """
    if rollout.rewards is None:
        return rollout.texts
    tokens, lengths = rollout.sequences.response_tokens, rollout.sequences.response_lengths.tolist()
    rows = zip(tokens.split(lengths), rollout.action_mask.split(lengths), strict=True)
    hidden = special_ids(tokenizer)
    return [decode(tokenizer, [t for t in row[chosen].tolist() if t not in hidden]) for row, chosen in rows]
