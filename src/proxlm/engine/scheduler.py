"""Continuous batching: a finished request frees its slot for a waiting one.

A step admits waiting requests (admission.py), samples one token of each row (sampling.py), finds out which requests
are finished (stopping.py), frees their slots (`Decoder.keep`, kv_cache.py) and runs the model on the tokens of the
others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from proxlm.engine.admission import Admission
from proxlm.engine.decoders import Decoder
from proxlm.engine.logit_processors import LogitProcessor, LogitProcessors
from proxlm.engine.request import Request, RequestOutput
from proxlm.engine.sampling import Distribution, Kept, sample_rows
from proxlm.engine.stopping import StopCheck
from proxlm.engine.uniforms import request_uniforms
from proxlm.errors import ModelError
from proxlm.models.agreement import why_not_finite
from proxlm.models.language_model import LanguageModel
from proxlm.rl.sampling_mask import Piece, SamplingMask
from proxlm.types import Finish


@dataclass(eq=False)
class RunningRequest:
    """A request that has a row in the batch, and what was sampled for it.

    tokens: of the response, those of earlier requests included.
    """

    request: Request
    distribution: Distribution
    processor: LogitProcessor | None
    tokens: list[int]
    logprobs: list[float] = field(default_factory=list)
    sets: list[Piece] = field(default_factory=list)  # pieces of a SamplingMask, if the request keeps one


class Scheduler:
    """Requests that wait, requests that run, and the decoder that runs them.

    Args:
        model: the model of the decoder.
        decoder: one row for each running request, in the same order.
        batch_size: most requests that run at once.
    """

    def __init__(self, model: LanguageModel, decoder: Decoder, batch_size: int) -> None:
        self.model, self.decoder = model, decoder
        self.waiting: deque[Request] = deque()
        self.running: list[RunningRequest] = []
        self._admission = Admission(batch_size)
        self._stop_check = StopCheck(model)
        self._processors = LogitProcessors(model)
        # Of each row: the state after its newest token [b, H], and the numbers that pick its tokens [b, longest
        # limit].
        self._states = self._uniforms = torch.empty(0)
        self._vocabulary = 0  # of the newest logits, where a sampling mask is kept

    def __len__(self) -> int:
        """Unfinished requests."""
        return len(self.running) + len(self.waiting)

    def add(self, requests: Iterable[Request]) -> None:
        """Queue requests, in this order."""
        self.waiting.extend(requests)

    @torch.no_grad()
    def step(self) -> list[RequestOutput]:
        """One token of each running request; returns those that finished with it."""
        if not len(self):
            return []
        with self.model.autocast():
            self._admit()
            tokens = self._sample()
            finished = {
                row: reason
                for row, running in enumerate(self.running)
                if (reason := self._stop_check.finish(running.request, running.tokens)) is not None
            }
            # The states of the last token are wanted too, which no other token follows.
            keeps = self.decoder.keeps_states
            if last := keeps and any(self.running[row].request.keep_states for row in finished):
                self._states = self.decoder.step(tokens)
            outputs = [self._output(row, reason) for row, reason in finished.items()]
            if finished:
                kept = self._free(list(finished))
                tokens, self._states = tokens[kept], self._states[kept]
            if self.running and not last:
                self._states = self.decoder.step(tokens)
        return outputs

    def _admit(self) -> None:
        """Prefill the requests that join the batch now."""
        count = self._admission.count(len(self.waiting), len(self.running), self.decoder.can_join)
        if not count:
            return
        requests = [self.waiting.popleft() for _ in range(count)]
        room = max(request.params.max_new_tokens for request in requests)
        states = self.decoder.add(
            [request.prompt for request in requests], room, [request.prefix for request in requests]
        )
        numbers = request_uniforms([request.params.seed for request in requests], room)
        uniforms = numbers.to(self.model.device)
        if self.running:
            width = max(room, self._uniforms.shape[1])
            states = torch.cat([self._states, states])
            uniforms = torch.cat(
                [F.pad(rows, (0, width - rows.shape[1])) for rows in (self._uniforms, uniforms)]
            )
        self._states, self._uniforms = states, uniforms
        self.running += [
            RunningRequest(
                request,
                request.params.distribution,
                self._processors.of(request.asked, request.params),
                request.begun,
            )
            for request in requests
        ]

    def _sample(self) -> Tensor:
        """Sample and record the next token of each row, [b] int64."""
        positions = torch.tensor([len(row.logprobs) for row in self.running], device=self.model.device)
        uniform = self._uniforms.gather(1, positions[:, None])[:, 0]
        logits = self._processed(self.decoder.logits(self._states))
        keep = [row for row, running in enumerate(self.running) if running.request.params.keeps_mask]
        kept = Kept.empty(len(logits), logits.shape[1], logits.device) if keep else None
        tokens, logprobs = sample_rows(logits, uniform, [row.distribution for row in self.running], kept)
        for row, (token, logprob) in enumerate(zip(tokens.tolist(), logprobs.tolist(), strict=True)):
            if not math.isfinite(logprob):
                raise ModelError(self._not_finite(row))
            self.running[row].tokens.append(token)
            self.running[row].logprobs.append(logprob)
        if kept is not None:
            self._keep_sets(keep, kept)
        return tokens

    def _keep_sets(self, rows: list[int], kept: Kept) -> None:
        """Record what the newest tokens of these rows were sampled from."""
        mask = SamplingMask.of(*(kept if len(rows) == len(kept.mass) else (part[rows] for part in kept)))
        self._vocabulary = mask.vocabulary
        for row, piece in zip(rows, mask.to(torch.device("cpu")).split(), strict=True):
            self.running[row].sets.append(piece)

    def _processed(self, logits: Tensor) -> Tensor:
        """The logits [b, V] as the requests' penalties, biases and bad words change them."""
        if not any(row.processor for row in self.running):
            return logits
        logits = logits.to(torch.float32, copy=True)
        for row, running in zip(logits, self.running, strict=True):
            if running.processor is not None:
                running.processor(row, running.tokens)
        return logits

    def _not_finite(self, row: int) -> str:
        running = self.running[row]
        seed, distribution = running.request.params.seed, running.distribution
        where = f"prompt {seed.prompt_id}, step {seed.step}, response token {len(running.tokens) + 1}"
        if running.processor is not None and bool(self.decoder.logits(self._states)[row].isfinite().all()):
            return (
                f"{self.model.source}: no token is left ({where}): rollout.bad_words and the other settings that"
                " change logits exclude all"
            )
        return (
            f"{self.model.source}: NaN or infinite logits while sampling ({where}, temperature"
            f" {distribution.temperature:g}): {why_not_finite(self.model)}"
        )

    def _output(self, row: int, reason: Finish) -> RequestOutput:
        running = self.running[row]
        request = running.request
        return RequestOutput(
            id=request.id,
            tokens=running.tokens[request.written :],
            logprobs=running.logprobs if request.params.logprobs else [],
            finish=reason,
            prefix=self.decoder.snapshot(row, len(request.asked) + len(running.tokens) - 1)
            if request.keep_prefix
            else None,
            frozen_states=self.decoder.frozen_states(row) if request.keep_states else None,
            mask=SamplingMask.from_pieces(self._vocabulary, running.sets) if running.sets else None,
        )

    def _free(self, finished: list[int]) -> Tensor:
        """Free the rows of finished requests; the last rows move into the holes.

        Returns:
            The former index of each row that is left, [b] int64.
        """
        left = len(self.running) - len(finished)
        rows = list(range(left))
        moved = sorted(set(range(left, len(self.running))) - set(finished))
        for hole, row in zip((row for row in finished if row < left), moved, strict=True):
            rows[hole] = row
        kept = torch.tensor(rows, dtype=torch.int64, device=self.model.device)
        self.decoder.keep(kept)
        self.running, self._uniforms = [self.running[row] for row in rows], self._uniforms[kept]
        return kept
