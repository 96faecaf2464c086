"""Distillation: a student learns its teacher's distribution at each token, or the teacher's texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from proxlm.config import DistillSettings, RolloutSettings
from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.models.forward import logit_chunk, micro_batches, response_states
from proxlm.models.language_model import LanguageModel
from proxlm.rl.distillation import distillation_loss, forward_kl, reverse_kl, soft_targets
from proxlm.rl.logprobs import spans
from proxlm.rl.ragged import ragged_index
from proxlm.runlog import metric_names as names
from proxlm.seeds import Purpose, Stream, derive_seed
from proxlm.train.common.memory import failing_together
from proxlm.train.common.passes import passes
from proxlm.train.supervised.dropout import NO_DROPOUT, Dropout
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.objective import LanguageModelObjective
from proxlm.train.supervised.teacher_reading import KeptReading, Said, Teacher, over_chunks
from proxlm.types import Prompt, Sequences


@dataclass(frozen=True)
class _Part:
    """Texts of a batch: sequences, which response tokens count [R], and what is kept of the teacher's reading."""

    sequences: Sequences
    mask: Tensor
    rows: Tensor
    kept: KeptReading | None = None

    def said(self, teacher: Teacher, chosen: Tensor, sequences: Sequences, counted: Tensor) -> Said:
        """What the teacher says of the counted tokens of the chosen texts, which are `sequences` on its device."""
        if self.kept is not None:
            return self.kept.said(self.rows[chosen])
        return teacher.said(sequences, counted)


class DistillObjective(LanguageModelObjective):
    """The mean over counted tokens of the loss of `rl/distillation.py`; in mode sequence, of the cross-entropy.

    Args:
        model: The student.
        teacher: Reads the student's tokens; None: it cannot, and only texts are learnt.
        training: Texts with what counts of them.
        validation: The same, held out.
        settings: The section [distill].
        longest_sample: Most tokens of a response that the student samples.
        seed: Of the run.
        kept: What the teacher says of the training and of the validation texts; None: they are read when needed.
        dropout: In the student's passes on what it learns; its samples are drawn without.
    """

    def __init__(
        self,
        model: LanguageModel,
        teacher: Teacher | None,
        training: Examples,
        validation: Examples,
        settings: DistillSettings,
        longest_sample: int,
        seed: int,
        kept: tuple[KeptReading | None, KeptReading | None] = (None, None),
        dropout: Dropout = NO_DROPOUT,
    ) -> None:
        super().__init__(model, training, validation, dropout=dropout)
        self.teacher, self.settings, self.seed, self.kept = teacher, settings, seed, kept
        self.sampling = RolloutSettings(
            max_new_tokens=longest_sample, temperature=settings.student_temperature
        )
        self._step = 0
        self._sampled: tuple[int, list[int], Sequences] | None = None

    def begin_step(self, step: int) -> None:
        """The step, from 0, whose batch comes next: the student's samples and its dropout depend on it."""
        super().begin_step(step)
        self._step = step

    def share_samples(self, rows: Sequence[int], ranks: Ranks) -> None:
        """Have several ranks sample together, before `gradient`, what the student samples for a step's rows."""
        own = self._own_rows(rows)
        if ranks.size > 1 and own:
            self._sampled = (self._step, own, self._sampled_together(own, ranks))

    def gradient(
        self, rows: Sequence[int], micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS
    ) -> tuple[float, int]:
        if self.settings.mode == "sequence" or self.teacher is None:
            return super().gradient(rows, micro_batch_tokens, ranks)
        parts = list(self._parts(rows))
        total = max(1, sum(int(part.mask.sum()) for part in parts))
        loss = sum(
            self._part_gradient(self.teacher, part, micro_batch_tokens, total, ranks) for part in parts
        )
        return loss, sum(len(part.sequences.tokens) for part in parts)

    def _part_gradient(
        self, teacher: Teacher, part: _Part, micro_batch_tokens: int, total: int, ranks: Ranks
    ) -> float:
        loss, settings, offsets = 0.0, self.settings, part.sequences.response_offsets
        for micro, weight in passes(part.sequences.lengths, micro_batch_tokens, ranks):
            sequences = part.sequences.select(micro).to(self.model.device)
            counted = part.mask[ragged_index(offsets, micro)].to(self.model.device)
            said = part.said(teacher, micro, sequences, counted)
            with self.dropout.on(part.rows[micro], sequences.lengths if self.model.packed else None):
                states = response_states(self.model, sequences)[0]
            tokens = sequences.response_tokens[counted]

            def chunk_loss(
                span: slice,
                logits: Tensor,
                said: Said = said,
                tokens: Tensor = tokens,
                weight: float = weight,
            ) -> Tensor:
                losses = distillation_loss(
                    said.targets(span),
                    logits,
                    tokens[span],
                    settings.divergence,
                    beta=settings.beta,
                    temperature=settings.temperature,
                    cross_entropy=settings.cross_entropy,
                )
                return weight * losses.sum() / total

            share, of_counted = over_chunks(self.model, states[counted], chunk_loss)
            gradient = torch.zeros_like(states)
            gradient[counted] = of_counted
            states.backward(gradient)
            loss += share
        return loss

    def _parts(self, rows: Sequence[int]) -> Iterator[_Part]:
        """The batch: given texts, and on_policy the student's own responses to the prompts of some rows."""
        own = self._own_rows(rows)
        given = [row for row in rows if row not in own]
        if given:
            yield _Part(*self.training.batch(given), torch.tensor(given), self.kept[0])
        if own:
            sequences = self._samples_of(own)
            yield _Part(
                sequences, torch.ones(len(sequences.response_tokens), dtype=torch.bool), torch.tensor(own)
            )

    def _own_rows(self, rows: Sequence[int]) -> list[int]:
        """The rows whose response the student samples: a share λ of them, drawn by the step."""
        if self.settings.mode != "on_policy":
            return []
        seed = derive_seed(self.seed, Purpose.ON_POLICY, self._step)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        return [rows[i] for i in sorted(order[: max(1, round(self.settings.student_share * len(rows)))])]

    def _samples_of(self, rows: list[int]) -> Sequences:
        """The student's responses to the prompts of these rows, sampled once in a step."""
        if self._sampled is None or self._sampled[:2] != (self._step, rows):
            self._sampled = (self._step, rows, self._sample(rows))
        return self._sampled[2]

    def _sampled_together(self, rows: list[int], ranks: Ranks) -> Sequences:
        """The responses of these rows, of which each rank samples about equally many; repeats of a row together."""
        place = {row: i % ranks.size for i, row in enumerate(dict.fromkeys(rows))}
        by_rank = [[i for i, row in enumerate(rows) if place[row] == rank] for rank in range(ranks.size)]
        own = [rows[i] for i in by_rank[ranks.rank]]
        parts = ranks.gather(lambda: self._sample(own) if own else None)

        def joined() -> Sequences:
            whole = Sequences.join([part for part in parts if part is not None])
            return whole.select(torch.tensor([i for share in by_rank for i in share]).argsort())

        return ranks.broadcast(joined)

    def _sample(self, rows: list[int]) -> Sequences:
        prompts = prompts_of(self.training, rows)
        return sampled(self.model, prompts, self.sampling, self.seed, self._step, Stream.TRAINING)

    @torch.no_grad()
    def validate(self, micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS) -> dict[str, float]:
        if self.teacher is None:
            found = super().validate(micro_batch_tokens, ranks)
            return found | {names.VALIDATION_CROSS_ENTROPY: found[names.VALIDATION_LOSS]}
        found = self._against_teacher(self.teacher, micro_batch_tokens, ranks)
        if (count := self.settings.eval_samples) > 0:
            teacher = self.teacher
            found[names.VALIDATION_REVERSE_KL] = ranks.broadcast(
                lambda: self._reverse_kl(teacher, count, micro_batch_tokens)
            )
        return found

    def _against_teacher(self, teacher: Teacher, micro_batch_tokens: int, ranks: Ranks) -> dict[str, float]:
        """Loss, cross-entropy, forward KL and greedy agreement on the held-out texts."""
        sums = ranks.sum(failing_together(ranks, partial(self._own_sums, teacher, micro_batch_tokens, ranks)))
        *means, _ = (sums / sums[-1].clamp(min=1)).tolist()
        loss, cross_entropy, kl, agreement = means
        return {
            names.VALIDATION_LOSS: cross_entropy if self.settings.mode == "sequence" else loss,
            names.VALIDATION_CROSS_ENTROPY: cross_entropy,
            names.VALIDATION_FORWARD_KL: kl,
            names.VALIDATION_AGREEMENT: agreement,
        }

    def _own_sums(self, teacher: Teacher, micro_batch_tokens: int, ranks: Ranks) -> Tensor:
        """This rank's sums of these four over its tokens, and how many tokens, [5] float64."""
        sums = torch.zeros(5, dtype=torch.float64)
        for rows, weight in passes(self.validation.lengths, micro_batch_tokens, ranks):
            sequences, mask = self.validation.batch(rows.tolist())
            part = _Part(sequences, mask, rows, self.kept[1])
            sequences, mask = sequences.to(self.model.device), mask.to(self.model.device)
            said = part.said(teacher, torch.arange(len(rows)), sequences, mask)
            states = response_states(self.model, sequences)[0][mask]
            tokens = sequences.response_tokens[mask]
            sums[-1] += weight * len(tokens)
            for span in spans(len(tokens), logit_chunk(self.model, entropy=True)):
                logits = self.model.logits(states[span]).float()
                sums[:-1] += weight * self._sums(teacher, said, logits, tokens, span)
        return sums

    def _sums(self, teacher: Teacher, said: Said, logits: Tensor, tokens: Tensor, span: slice) -> Tensor:
        """Loss, cross-entropy, forward KL and agreement, summed over the tokens of a span, [4] float64."""
        assert said.states is not None
        settings, of_teacher = self.settings, teacher.logits(said.states[span])
        targets = soft_targets(of_teacher, settings.temperature, settings.top_k)
        loss = distillation_loss(
            targets,
            logits,
            tokens[span],
            settings.divergence,
            beta=settings.beta,
            temperature=settings.temperature,
            cross_entropy=settings.cross_entropy,
        )
        logprobs = logits.log_softmax(-1)
        kl = forward_kl(of_teacher.log_softmax(-1), logprobs)
        cross_entropy = -logprobs.gather(-1, tokens[span, None])[:, 0]
        agreement = logits.argmax(-1) == of_teacher.argmax(-1)
        return torch.stack([x.double().sum() for x in (loss, cross_entropy, kl, agreement)]).cpu()

    def _reverse_kl(self, teacher: Teacher, count: int, micro_batch_tokens: int) -> float:
        """KL(student ‖ teacher) at each token of the student's samples to held-out prompts, in nats a token."""
        rows = list(range(min(count, len(self.validation))))
        prompts, settings = prompts_of(self.validation, rows), replace(self.sampling, temperature=1.0)
        samples = sampled(self.model, prompts, settings, self.seed, 0, Stream.EVALUATION)
        total = 0.0
        for micro in micro_batches(samples.lengths, micro_batch_tokens):
            sequences = samples.select(micro).to(self.model.device)
            states, of_teacher = response_states(self.model, sequences)[0], teacher.states(sequences)
            for span in spans(len(states), logit_chunk(self.model, entropy=True)):
                first = teacher.logits(of_teacher[span]).log_softmax(-1)
                second = self.model.logits(states[span]).float().log_softmax(-1)
                total += float(reverse_kl(first, second).double().sum())
        return total / max(1, len(samples.response_tokens))


def prompts_of(examples: Examples, rows: Sequence[int]) -> list[Prompt]:
    """The prompts of some rows; a prompt's id is its row."""
    starts, lengths = examples.starts[list(rows)].tolist(), examples.prompt_lengths[list(rows)].tolist()
    return [
        Prompt(row, tuple(examples.tokens[start : start + length].tolist()), "")
        for row, start, length in zip(rows, starts, lengths, strict=True)
    ]


def sampled(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    seed: int,
    step: int,
    stream: Stream,
) -> Sequences:
    """A model's responses to prompts, as texts that any other model can read."""
    with closing(NativeEngine(model, settings)) as engine:
        found = generate(engine, prompts, settings, seed=seed, step=step, stream=stream)
    return replace(found.sequences, frozen_states=None)
