"""Direct preference optimisation: a language model learns comparisons, held to its start (Rafailov et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxlm.config import DPOSettings, PreferenceSettings
from proxlm.data.chat import NO_EXTRAS, ChatFormat
from proxlm.data.formats import Conversation
from proxlm.data.preferences import Comparison, comparisons
from proxlm.data.records import Source
from proxlm.data.skipped import Skipped
from proxlm.data.supervised import ExampleMaker, SFTExample
from proxlm.data.turn_end import turn_end_of
from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.errors import BadRecordError
from proxlm.models.forward import token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import save_language_model
from proxlm.rl.preference_losses import bradley_terry_loss, implicit_rewards, share_preferred
from proxlm.rl.ragged import segment_sum
from proxlm.runlog import metric_names as names
from proxlm.runlog.folder import JsonRow
from proxlm.train.common.memory import failing_together
from proxlm.train.common.passes import passes
from proxlm.train.supervised.completion_tokens import LONG
from proxlm.train.supervised.examples import Examples
from proxlm.types import Completion

_NO_LIMIT = 2**31


def comparison_examples(
    model: LanguageModel,
    text: PreferenceSettings,
    sources: Sequence[Source],
    skipped: Skipped,
    eos: Sequence[int],
) -> Iterator[tuple[Comparison, tuple[SFTExample, SFTExample]]]:
    """Comparisons as prompts with responses, as fine-tuning reads them: the chosen one and the rejected one.

    Args:
        model: The policy.
        text: The section [text].
        sources: The files.
        skipped: Receives what cannot be used.
        eos: EOS tokens of the model's generation config.

    Raises:
        DataError: See `comparisons`; or a text is too long, and `text.on_long_text` is fail.
    """
    chat = ChatFormat.of(model.tokenizer, text)
    make = ExampleMaker(chat, turn_end_of(chat, list(eos)), _NO_LIMIT, model.encoder_decoder)
    limit = min(limit for limit in (model.context, text.max_tokens, _NO_LIMIT) if limit)
    for record, found in comparisons(text, sources, skipped):
        pair: list[SFTExample] = []
        with skipped.judging(record):
            examples = [make(_content(side, text), record.where) for side in found.sides]
            examples = [_shortened(example, limit, text, model) for example in examples]
            longest = max(_length(example, model) for example in examples)
            if longest <= limit:
                pair = examples
            elif text.on_long_text == "skip":
                skipped.leave_out(record, LONG, f"{longest} tokens with the prompt, the limit is {limit}")
            else:
                raise BadRecordError(
                    f"{record.where}: {longest} tokens with the prompt, the limit is {limit}; shorten it, or set"
                    ' text.on_long_text to "truncate" (of the prompt) or "skip"',
                    LONG,
                )
        if pair:
            yield found, (pair[0], pair[1])


def _content(side: Completion, text: PreferenceSettings) -> tuple[str, str] | Conversation:
    """A completion as fine-tuning reads it: of a conversation only the last message is learnt."""
    if not side.messages:
        return side.prompt, side.text
    weights = (*(0 for _ in side.messages[:-1]), 1)
    return Conversation([dict(message) for message in side.messages], weights, NO_EXTRAS, text.chosen_field)


def _length(example: SFTExample, model: LanguageModel) -> int:
    if model.encoder_decoder:  # the start token stands before the response
        return max(len(example.prompt_ids), len(example.response_ids) + 1)
    return len(example.prompt_ids) + len(example.response_ids)


def _shortened(example: SFTExample, limit: int, text: PreferenceSettings, model: LanguageModel) -> SFTExample:
    """The example without the beginning of its prompt, if that is wanted and enough; BOS stays."""
    room = limit if model.encoder_decoder else limit - len(example.response_ids)
    ids = example.prompt_ids
    if text.on_long_text != "truncate" or len(ids) <= room or room < 2:
        return example
    begins = int(ids[0] == model.tokenizer.bos_token_id)
    return replace(example, prompt_ids=(*ids[:begins], *ids[len(ids) - room + begins :]))


class DPOObjective:
    """The mean of −log σ(β (log-ratio of the chosen − log-ratio of the rejected) − margin), in nats.

    The reference is the model as it is when the objective is made. Only its log-probs of the responses are kept.

    Args:
        model: The policy, at its start.
        training: Rows 2i and 2i + 1 are the chosen and the rejected response of comparison i.
        validation: The same.
        margins: Of the comparisons of both, [n].
        settings: The section [dpo].
        micro_batch_tokens: Most tokens in a pass of the reference.
        ranks: They share these passes.
    """

    def __init__(
        self,
        model: LanguageModel,
        training: Examples,
        validation: Examples,
        margins: tuple[Tensor, Tensor],
        settings: DPOSettings,
        micro_batch_tokens: int,
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        self.model, self.training, self.validation, self.settings = model, training, validation, settings
        self.margins = margins
        self.references = tuple(
            response_logprobs(model, part, micro_batch_tokens, ranks) for part in (training, validation)
        )

    @property
    def lengths(self) -> Tensor:
        return _pair_lengths(self.training)

    @property
    def validation_lengths(self) -> Tensor:
        return _pair_lengths(self.validation)

    def trainable(self) -> Sequence[tuple[str, nn.Parameter]]:
        return self.model.trainable()

    def begin_step(self, step: int) -> None:
        """Nothing here is random."""

    def gradient(
        self, rows: Sequence[int], micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS
    ) -> tuple[float, int]:
        loss, chosen = 0.0, torch.tensor(rows)
        for micro, weight in passes(self.lengths[chosen], micro_batch_tokens, ranks):
            part = chosen[micro]
            logprobs = _logprobs(self.model, self.training, _texts(part).tolist())
            share = weight * self._losses(0, part, logprobs.view(-1, 2)).sum() / len(rows)
            share.backward()
            loss += float(share.detach())
        return loss, int(self.training.lengths[_texts(chosen)].sum())

    def validate(self, micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS) -> dict[str, float]:
        logprobs = response_logprobs(self.model, self.validation, micro_batch_tokens, ranks)
        rows = torch.arange(len(logprobs))
        rewards = self._rewards(1, rows, logprobs).double()
        leads = rewards[:, 0] - rewards[:, 1]
        return {
            names.VALIDATION_LOSS: float(self._losses(1, rows, logprobs).double().mean()),
            names.VALIDATION_ACCURACY: float(share_preferred(leads).mean()),
            names.VALIDATION_MARGIN: float(leads.mean()),
            names.VALIDATION_CHOSEN: float(rewards[:, 0].mean() / self.settings.beta),
        }

    def _rewards(self, part: int, rows: Tensor, logprobs: Tensor) -> Tensor:
        """β log(π / π_ref) of both responses of the given comparisons, [n, 2]; part: 0 training, 1 validation."""
        reference = self.references[part][rows].to(logprobs.device)
        return implicit_rewards(logprobs, reference, self.settings.beta)

    def _losses(self, part: int, rows: Tensor, logprobs: Tensor) -> Tensor:
        rewards, margins = self._rewards(part, rows, logprobs), self.margins[part][rows].to(logprobs.device)
        return bradley_terry_loss(rewards[:, 0], rewards[:, 1], margins, self.settings.label_smoothing)

    @torch.no_grad()
    def samples(self, count: int) -> list[JsonRow]:
        """Both responses of a comparison, with β log(π / π_ref) as their reward."""
        rows = torch.arange(min(count, len(self.margins[1])))
        if not len(rows):
            return []
        logprobs = _logprobs(self.model, self.validation, _texts(rows).tolist()).view(-1, 2)
        rewards = self._rewards(1, rows, logprobs).tolist()
        return [
            {
                "prompt_id": i,
                "kind": kind,
                **self._texts_of(self.validation, 2 * i + k),
                "reward": rewards[i][k],
            }
            for i in rows.tolist()
            for k, kind in enumerate(("chosen", "rejected"))
        ]

    def save(self, folder: Path) -> None:
        save_language_model(self.model, folder)

    def describe(self, rows: Sequence[int]) -> list[JsonRow]:
        return [
            {"row": row, "kind": kind, **self._texts_of(self.training, 2 * row + k)}
            for row in rows
            for k, kind in enumerate(("chosen", "rejected"))
        ]

    def _texts_of(self, part: Examples, text: int) -> JsonRow:
        sequence, _ = part.batch([text])
        prompt, response = sequence.tokens.tensor_split(sequence.prompt_lengths.cpu())
        decode: Any = self.model.tokenizer.decode
        return {"prompt": decode(prompt), "response": decode(response)}


def _texts(rows: Tensor) -> Tensor:
    """The rows of both responses of comparisons, [2n]."""
    return torch.stack([2 * rows, 2 * rows + 1], 1).flatten()


def _pair_lengths(part: Examples) -> Tensor:
    """Tokens that a pass reads of each comparison, [n]."""
    return 2 * part.lengths.view(-1, 2).amax(1)


def _logprobs(model: LanguageModel, part: Examples, texts: Sequence[int]) -> Tensor:
    """log π of the learnt tokens of whole responses, [len(texts)]."""
    sequences, mask = part.batch(texts)
    sequences = sequences.to(model.device)
    logprobs = token_outputs(model, sequences).logprobs
    return segment_sum(logprobs.where(mask.to(model.device), 0.0), sequences.response_offsets)


@torch.no_grad()
def response_logprobs(
    model: LanguageModel, part: Examples, micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS
) -> Tensor:
    """log π of both responses of every comparison, [n, 2], on the CPU; ranks: they share the passes."""

    def own() -> Tensor:
        found = torch.zeros(len(part.lengths) // 2, 2)
        for rows, weight in passes(_pair_lengths(part), micro_batch_tokens, ranks):
            found[rows] += weight * _logprobs(model, part, _texts(rows).tolist()).cpu().view(-1, 2)
        return found

    return ranks.sum(failing_together(ranks, own))


def as_examples(
    pairs: Iterable[tuple[Comparison, tuple[SFTExample, SFTExample]]], noted: list[Comparison]
) -> Examples:
    """The rows of comparisons, which are noted without their texts."""

    def rows() -> Iterator[SFTExample]:
        for found, pair in pairs:
            noted.append(found)
            yield from pair

    return Examples.from_rows(rows())
