"""The dataflow: Prompt → Rollout → Experience. A batch of sequences is ragged, never padded.

B sequences; N tokens, prompts and responses together; R response tokens. A ragged tensor is flat, with offsets
[B + 1]: row b is `flat[offsets[b] : offsets[b + 1]]`. Everything per response token is a flat [R] tensor
aligned with the response's own tokens: element t belongs to generated token t.

In an encoder–decoder a row is the same: the encoder reads the prompt, the decoder generates the response.

Worked example, two sequences, "a b → x y z" and "c → u":

    tokens          [a b x y z c u]   [N] = 7
    offsets         [0 5 7]           [B + 1] = 3
    prompt_lengths  [2 1]             [B] = 2
    response_tokens [x y z u]         [R] = 4
    response_offsets [0 3 4]          [B + 1] = 3
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from proxlm.rl.ragged import offsets_of, ragged_index
from proxlm.rl.sampling_mask import SamplingMask

Item = TypeVar("Item")
Finish = Literal["eos", "stop", "length", "done"]
"""How a response ended: at the EOS token, a stop text, a length limit, or the end of its environment's episode."""

# Called with (done, total) during a long operation.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: Its row in the data, the same in every run; it seeds the sampling.
        input_ids: Token ids.
        text: What the model sees.
        fields: The prompt's whole record, for the reward.
        messages: The messages that were rendered as the prompt; none where it is plain text.
        asked: The text without the solved examples that stand before it (few-shot); "": there are none.
    """

    id: int
    input_ids: tuple[int, ...]
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] = ()
    asked: str = ""


@dataclass(frozen=True)
class Completion:
    """One response, as a reward function sees it.

    Attributes:
        prompt: The prompt's text.
        text: The response without what ended it, and without control tokens (`rollout.skip_special_tokens`).
        tokens: All token ids of the response.
        finish: How the response ended.
        fields: The prompt's record, with an answer for instance.
        messages: The whole conversation, the response included, as messages; none where the prompt is plain text.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...] = ()
    finish: Finish = "eos"
    fields: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] = ()


def _joined(tensors: Sequence[Tensor | None], counts: Sequence[int]) -> Tensor | None:
    """The tensors concatenated, with `counts` zeros for each that is None; None if all are None."""
    present = [t for t in tensors if t is not None]
    if not present:
        return None
    zeros = present[0].new_zeros
    return torch.cat([zeros(n) if t is None else t for t, n in zip(tensors, counts, strict=True)])


@dataclass(frozen=True)
class Sequences:
    """B token sequences, each a prompt of at least one token and a response of at least one.

    tokens [N] int64, offsets [B+1] int64, prompt_lengths [B] int64.

    frozen_states [N, H]: the state of each token behind the blocks of the model that never learn, where passes start;
    None: not known, so that they start at the tokens.
    """

    tokens: Tensor
    offsets: Tensor
    prompt_lengths: Tensor
    frozen_states: Tensor | None = None

    @staticmethod
    def from_lists(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Sequences:
        """Join prompts and responses, row by row."""
        rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
        return Sequences(
            torch.tensor([t for row in rows for t in row], dtype=torch.int64),
            offsets_of(torch.tensor([len(row) for row in rows], dtype=torch.int64)),
            torch.tensor([len(p) for p in prompts], dtype=torch.int64),
        )

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> Tensor:
        """Tokens in each sequence, prompt and response, [B]."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def response_lengths(self) -> Tensor:
        """[B]."""
        return self.lengths - self.prompt_lengths

    @property
    def response_offsets(self) -> Tensor:
        """Offsets of the rows in every flat [R] tensor, [B+1]."""
        return offsets_of(self.response_lengths)

    @property
    def row_and_position(self) -> tuple[Tensor, Tensor]:
        """The row of each token and its position in that row, from 0; both [N] int64."""
        row = torch.repeat_interleave(torch.arange(len(self), device=self.offsets.device), self.lengths)
        return row, torch.arange(len(self.tokens), device=self.offsets.device) - self.offsets[:-1][row]

    @property
    def response_index(self) -> Tensor:
        """The index in `tokens` of each response token, [R]."""
        row, position = self.row_and_position
        return (position >= self.prompt_lengths[row]).nonzero().squeeze(-1)

    @property
    def response_tokens(self) -> Tensor:
        """[R] int64."""
        return self.tokens[self.response_index]

    def select(self, rows: Tensor) -> Sequences:
        """The rows with these indices, in that order. rows [b] int64."""
        at = ragged_index(self.offsets, rows)
        return Sequences(
            self.tokens[at],
            offsets_of(self.lengths[rows]),
            self.prompt_lengths[rows],
            None if self.frozen_states is None else self.frozen_states[at],
        )

    @staticmethod
    def join(parts: Sequence[Sequences]) -> Sequences:
        """The parts concatenated; `frozen_states` only where all have them."""
        states = [part.frozen_states for part in parts if part.frozen_states is not None]
        return Sequences(
            torch.cat([part.tokens for part in parts]),
            offsets_of(torch.cat([part.lengths for part in parts])),
            torch.cat([part.prompt_lengths for part in parts]),
            torch.cat(states) if len(states) == len(parts) else None,
        )

    def to(self, device: torch.device) -> Sequences:
        """A copy on `device`."""
        states = None if self.frozen_states is None else self.frozen_states.to(device)
        return Sequences(
            self.tokens.to(device), self.offsets.to(device), self.prompt_lengths.to(device), states
        )


def _of_all_or_none(name: str, parts: Sequence[Rollout]) -> list[Any]:
    """The parts' attribute of this name; empty if none has it. Raises ValueError if only some have it."""
    present = [value for part in parts if (value := getattr(part, name)) is not None]
    if 0 < len(present) < len(parts):
        raise ValueError(f"Rollout.{name}: {len(present)} of {len(parts)} parts have it; all must, or none")
    return present


def _of_all(parts: Sequence[list[Item] | None]) -> list[Item] | None:
    """The lists as one; None if one is None."""
    return None if None in parts else [item for part in parts if part for item in part]


@dataclass(frozen=True)
class Rollout:
    """B sampled responses with the log-probs they were sampled with.

    A completion is never re-tokenised.

    Attributes:
        prompts: The prompts, [B].
        sequences: The tokens.
        action_mask: [R] bool, True where the policy chose the token.
        logprobs: [R] float32, natural log of the behaviour policy's probability (temperature and filters applied).
        finish: How each response ended, [B].
        texts: The responses' texts, [B].
        policy_versions: [R] int64, of the policy that sampled each token: how many updates it had seen.
        rewards: Of conversations with an environment: [R] float32, its rewards, on the last token of each turn.
        lost: Of conversations: for each that failed and so has no row, why.
        conversations: Of conversations with an environment: each one's messages, [B]; none without a chat template.
        answers: Of conversations: what a reward judges, [B]; None: the whole of it.
        counts: Of conversations: what the environment has counted, by name, [B].
        sampling_mask: The set that each token [R] was sampled from, under top-k, top-p or min-p; None: all tokens.
        trainer_logprobs: [R] float32, log-probs under the weights that sampled as the trainer's passes compute them,
            where `logprobs` are another engine's and the rollout is stale; None: not computed.
    """

    prompts: list[Prompt]
    sequences: Sequences
    action_mask: Tensor
    logprobs: Tensor
    finish: list[Finish]
    texts: list[str]
    policy_versions: Tensor
    rewards: Tensor | None = None
    lost: list[str] = field(default_factory=list)
    conversations: list[list[dict[str, Any]]] | None = None
    answers: list[str | None] | None = None
    counts: list[dict[str, int]] | None = None
    sampling_mask: SamplingMask | None = None
    trainer_logprobs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def ended(self) -> Tensor:
        """False where a response was cut at the length limit. [B] bool."""
        return torch.tensor([finish != "length" for finish in self.finish])

    def select(self, rows: Tensor) -> Rollout:
        """The rows with these indices, in that order. rows [b] int64."""
        at, chosen = ragged_index(self.sequences.response_offsets, rows), rows.tolist()
        return Rollout(
            prompts=[self.prompts[b] for b in chosen],
            sequences=self.sequences.select(rows),
            action_mask=self.action_mask[at],
            logprobs=self.logprobs[at],
            finish=[self.finish[b] for b in chosen],
            texts=[self.texts[b] for b in chosen],
            policy_versions=self.policy_versions[at],
            rewards=None if self.rewards is None else self.rewards[at],
            lost=self.lost,
            conversations=None if self.conversations is None else [self.conversations[b] for b in chosen],
            answers=None if self.answers is None else [self.answers[b] for b in chosen],
            counts=None if self.counts is None else [self.counts[b] for b in chosen],
            sampling_mask=None if self.sampling_mask is None else self.sampling_mask.select(at),
            trainer_logprobs=None if self.trainer_logprobs is None else self.trainer_logprobs[at],
        )

    @staticmethod
    def join(parts: Sequence[Rollout]) -> Rollout:
        """The parts concatenated.

        Raises:
            ValueError: Only some are of conversations, or have a sampling mask or the trainer's log-probs.
        """
        rewards, masks, again = (
            _of_all_or_none(name, parts) for name in ("rewards", "sampling_mask", "trainer_logprobs")
        )
        return Rollout(
            prompts=[p for part in parts for p in part.prompts],
            sequences=Sequences.join([part.sequences for part in parts]),
            action_mask=torch.cat([part.action_mask for part in parts]),
            logprobs=torch.cat([part.logprobs for part in parts]),
            finish=[f for part in parts for f in part.finish],
            texts=[t for part in parts for t in part.texts],
            policy_versions=torch.cat([part.policy_versions for part in parts]),
            rewards=torch.cat(rewards) if rewards else None,
            lost=[why for part in parts for why in part.lost],
            conversations=_of_all([part.conversations for part in parts]),
            answers=_of_all([part.answers for part in parts]),
            counts=_of_all([part.counts for part in parts]),
            sampling_mask=SamplingMask.join(masks) if masks else None,
            trainer_logprobs=torch.cat(again) if again else None,
        )

    def completions(self) -> list[Completion]:
        """The responses as a reward function sees them."""
        offsets = self.sequences.response_offsets.tolist()
        tokens = self.sequences.response_tokens.tolist()
        return [
            Completion(
                p.text,
                self._judged(b),
                tuple(tokens[offsets[b] : offsets[b + 1]]),
                finish,
                p.fields,
                self._messages(b),
            )
            for b, (p, finish) in enumerate(zip(self.prompts, self.finish, strict=True))
        ]

    def _judged(self, b: int) -> str:
        """The text of row b for a reward function."""
        answer = self.answers[b] if self.answers is not None else None
        return self.texts[b] if answer is None else answer

    def _messages(self, b: int) -> Sequence[Mapping[str, Any]]:
        """The conversation of row b, the response included."""
        if self.conversations is not None:
            return tuple(self.conversations[b])
        asked = self.prompts[b].messages
        return (*asked, {"role": "assistant", "content": self.texts[b]}) if asked else ()


@dataclass(frozen=True)
class Scores:
    """The rewards of B responses.

    Attributes:
        total: [B] float32, the weighted sum for the whole response. NaN: the reward gave None, so there is none, and
            the response is left out of the step.
        per_token: [R] float32 or None, rewards of single tokens, in addition to total.
        components: Each named part before weighting, [B] floats; NaN where the part is None.
        failed: The number of responses that got error_score because the reward failed.
        potentials: [R] float32 or None, potentials of the states after the tokens: hints that are not part of the
            reward.
        weights: The factor in total of each component that is a part of it.
        rewarded: False: the run has no reward, and learns from a teacher alone; total is 0, and is reported nowhere.
    """

    total: Tensor
    per_token: Tensor | None = None
    components: dict[str, list[float]] = field(default_factory=dict)
    failed: int = 0
    potentials: Tensor | None = None
    weights: dict[str, float] = field(default_factory=dict)
    rewarded: bool = True

    @property
    def scored(self) -> Tensor:
        """Which responses have a reward, [B] bool."""
        return ~self.total.isnan()

    def select(self, rows: Tensor, offsets: Tensor) -> Scores:
        """The rows with these indices, in that order. rows [b] int64; offsets: the responses', [B+1]."""
        at = ragged_index(offsets, rows)
        return Scores(
            self.total[rows],
            None if self.per_token is None else self.per_token[at],
            {name: [values[b] for b in rows.tolist()] for name, values in self.components.items()},
            self.failed,
            None if self.potentials is None else self.potentials[at],
            self.weights,
            self.rewarded,
        )

    @staticmethod
    def join(parts: Sequence[Scores], tokens: Sequence[int]) -> Scores:
        """The parts, all of the same reward, concatenated.

        A part without per_token or potentials gets zeros if another part has them.

        Args:
            parts: The scores.
            tokens: The number of response tokens of each part.

        Raises:
            ValueError: Two parts have different components.
        """
        if odd := {n for part in parts for n in parts[0].components.keys() ^ part.components.keys()}:
            raise ValueError(f"Scores.components: {', '.join(sorted(odd))}: all parts must have it, or none")
        return Scores(
            torch.cat([part.total for part in parts]),
            _joined([part.per_token for part in parts], tokens),
            {name: [v for part in parts for v in part.components[name]] for name in parts[0].components},
            sum(part.failed for part in parts),
            _joined([part.potentials for part in parts], tokens),
            {name: weight for part in parts for name, weight in part.weights.items()},
            parts[0].rewarded,
        )


@dataclass(frozen=True)
class Experience:
    """A rollout with everything that the update needs; every tensor is [R, …], aligned with the response tokens.

    Attributes:
        sequences: The tokens.
        action_mask: bool, True where the policy chose the token.
        old_logprobs: float32, the policy's log-probs before the update.
        ref_logprobs: float32, the reference's log-probs.
        teacher_logprobs: float32, the teacher's log-probs; None: without a teacher.
        values: float32, V of the state before the token; 0 without a critic.
        rewards: float32, KL penalty and score.
        advantages: float32, whitened and clipped if the settings say so.
        returns: float32, the critic's targets.
        correction: float32, factor of the token's policy loss: the weights of engine and staleness, multiplied.
        sampling_mask: The sets that the policy is renormalised over, the rollout's; None: the whole vocabulary.
        covariant: bool, the tokens that Clip-Cov and KL-Cov treat apart; None: with other losses.
        positive: bool, the chosen tokens of positive responses, for the extra loss on them; None: without it.
        values_of_heads: [R, K] float32, V of each of several value heads; None: there is one.
        head_factors: [R, K] float32, what the token counts in the loss of each value head; None: 1.
    """

    sequences: Sequences
    action_mask: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    correction: Tensor
    sampling_mask: SamplingMask | None = None
    covariant: Tensor | None = None
    positive: Tensor | None = None
    values_of_heads: Tensor | None = None
    head_factors: Tensor | None = None
    teacher_logprobs: Tensor | None = None

    def select(self, rows: Tensor) -> Experience:
        """The rows with these indices, in that order. rows [b] int64."""
        at = ragged_index(self.sequences.response_offsets, rows)
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value[at] for name, value in given.items() if isinstance(value, Tensor)}
        mask = None if self.sampling_mask is None else self.sampling_mask.select(at)
        return Experience(self.sequences.select(rows), **tensors, sampling_mask=mask)
