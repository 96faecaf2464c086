"""Responses that are written in segments, each with the weights of its moment (partial rollouts).

A segment is an ordinary request: its prompt is the prompt with what is written, its limit the end of the segment. So
no key or value of older weights is used, an engine needs no pause, and what is written is the token ids alone. The
random numbers go by a token's place in the response: with the same weights the segments are the whole response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from proxlm.config import RolloutSettings
from proxlm.engine.generate import mask_of, repeat_numbers, run_requests
from proxlm.engine.protocol import Engine
from proxlm.engine.request import Request, RequestOutput, SampleSeed, SamplingParams
from proxlm.rl.sampling_mask import SamplingMask
from proxlm.seeds import Stream
from proxlm.types import Finish, Progress, Prompt, Rollout, Sequences


@dataclass(frozen=True)
class PartialResponse:
    """A response as far as it is written.

    Attributes:
        tokens: Token ids.
        logprobs: Of the tokens, as `RequestOutput.logprobs`.
        versions: Of the weights that sampled each token.
        finish: How it ended; None: it goes on.
        mask: The sets that the tokens were sampled from, if they are kept.
        trainer_logprobs: As `Rollout.trainer_logprobs`; empty: not computed.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish: Finish | None = None
    mask: SamplingMask | None = None
    trainer_logprobs: list[float] = field(default_factory=list)

    def with_segment(
        self, output: RequestOutput, version: int, limit: int, keeps_mask: bool
    ) -> PartialResponse:
        """The response with a segment behind it.

        Args:
            output: The segment.
            version: Of the weights that sampled it.
            limit: The most tokens of the whole response.
            keeps_mask: Whether the request keeps a sampling mask.
        """
        tokens = self.tokens + output.tokens
        masks = [] if self.mask is None else [self.mask]
        return replace(
            self,
            tokens=tokens,
            logprobs=self.logprobs + output.logprobs,
            versions=self.versions + [version] * len(output.tokens),
            finish=None if output.finish == "length" and len(tokens) < limit else output.finish,
            mask=SamplingMask.join([*masks, mask_of(output)]) if keeps_mask else None,
        )


@dataclass(frozen=True)
class PartialRollout:
    """One response to each prompt, as far as they are written.

    Attributes:
        prompts: The prompts.
        settings: How the responses are sampled.
        counter: The number that the random numbers have for a step.
        responses: To each prompt.
    """

    prompts: list[Prompt]
    settings: RolloutSettings
    counter: int
    responses: list[PartialResponse]

    def params(self, row: int, seed: int, repeat: int, limit: int) -> SamplingParams:
        """How the tokens of a row up to `limit` are sampled; repeat: which of the prompt's it is."""
        written = len(self.responses[row].tokens)
        counters = SampleSeed(seed, Stream.TRAINING, self.counter, self.prompts[row].id, repeat, written)
        return SamplingParams.of(self.settings, counters, limit - written)

    def whole(self, engine: Engine) -> Rollout:
        """The rollout, once every response is finished; engine: whose tokenizer makes the texts."""
        text = self.params(0, 0, 0, 0).response_text(engine.tokenizer, engine.turn_end)
        rows = self.responses
        masks = [row.mask for row in rows if row.mask is not None]
        logprobs, again = (
            torch.tensor([x for row in rows for x in getattr(row, name)], dtype=torch.float32)
            for name in ("logprobs", "trainer_logprobs")
        )
        return Rollout(
            prompts=self.prompts,
            sequences=Sequences.from_lists([p.input_ids for p in self.prompts], [row.tokens for row in rows]),
            action_mask=torch.ones(len(logprobs), dtype=torch.bool),
            logprobs=logprobs,
            finish=[row.finish or "length" for row in rows],
            texts=[text(p.input_ids, row.tokens) for p, row in zip(self.prompts, rows, strict=True)],
            policy_versions=torch.tensor([version for row in rows for version in row.versions]),
            sampling_mask=SamplingMask.join(masks) if masks else None,
            trainer_logprobs=again if len(again) else None,
        )


def write_segments(
    engine: Engine,
    rollouts: Sequence[PartialRollout],
    limits: Sequence[int],
    seed: int,
    on_progress: Progress,
) -> list[PartialRollout]:
    """Write on all responses that are not finished, in one batch, with the engine's present weights.

    Args:
        engine: Has no other requests, and is reset at the end.
        rollouts: What is written.
        limits: How many tokens each rollout's responses may have afterwards.
        seed: Of the run.
        on_progress: Called with the number of finished requests and of all.
    """
    requests: list[Request] = []
    places: list[tuple[int, int]] = []  # of each request: which rollout, which row
    for number, (rollout, limit) in enumerate(zip(rollouts, limits, strict=True)):
        repeats = repeat_numbers(rollout.prompts)
        for row, (prompt, response) in enumerate(zip(rollout.prompts, rollout.responses, strict=True)):
            written = len(response.tokens)
            if response.finish is None and written < limit:
                params = rollout.params(row, seed, repeats[row], limit)
                text = [*prompt.input_ids, *response.tokens]
                requests.append(Request(len(requests), text, params, written=written))
                places.append((number, row))
    if not requests:
        return list(rollouts)
    # Texts of similar length share a batch, so that little of it is padding.
    queue = sorted(requests, key=lambda request: len(request.prompt))
    outputs = run_requests(engine, queue, lambda done: on_progress(len(done), len(requests)))
    found = [list(rollout.responses) for rollout in rollouts]
    for request, (number, row) in zip(requests, places, strict=True):
        most = rollouts[number].settings.max_new_tokens
        found[number][row] = found[number][row].with_segment(
            outputs[request.id], engine.version, most, request.params.keeps_mask
        )
    return [replace(rollout, responses=new) for rollout, new in zip(rollouts, found, strict=True)]
