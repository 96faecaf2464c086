"""A rollout of single responses: prompts → requests → `Rollout`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from proxlm.config import RolloutSettings
from proxlm.engine.protocol import Engine
from proxlm.engine.request import Request, RequestOutput, SampleSeed, SamplingParams
from proxlm.engine.text import ResponseText
from proxlm.errors import ModelError
from proxlm.rl.sampling_mask import SamplingMask
from proxlm.seeds import Stream
from proxlm.types import Progress, Prompt, Rollout, Sequences


class Generate(Protocol):
    """Samples a rollout: `generate`, or a `MultiTurn` for conversations with an environment."""

    def __call__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        settings: RolloutSettings,
        *,
        seed: int,
        step: int,
        stream: Stream = ...,
        on_progress: Progress | None = ...,
    ) -> Rollout: ...


class RolloutListener(Protocol):
    """Receives parts of a rollout while the others are generated, in the generating thread.

    What it raises ends the rollout.
    """

    @property
    def size(self) -> int:
        """How many responses it receives at a time, at least 1."""

    def on_token(self) -> None:
        """Every running response is one token longer."""

    def on_group(self, rows: list[int], part: Rollout) -> None:
        """A group of responses is finished.

        Args:
            rows: which prompts: the next `size` in the order of prompt lengths; in the last group, those left.
            part: their rollout.
        """


def generate(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    *,
    seed: int,
    step: int,
    stream: Stream = Stream.TRAINING,
    on_progress: Progress | None = None,
    listener: RolloutListener | None = None,
) -> Rollout:
    """Sample one response to each prompt (repeat a prompt for more).

    What is sampled depends on (seed, stream, step, prompt id, which repeat of it, position) and the weights, not on
    the order or the engine's batch size. A response ends with a token that ends the model's turns, which it keeps; at
    a stop token or a stop text, whose tokens it keeps while `texts` is cut before it; or after max_new_tokens.

    Args:
        engine: generates; it must have no other requests, and is reset at the end.
        prompts: one response each.
        settings: temperature, filters, stop texts and limit of all responses.
        seed: of the run.
        step: of the run.
        stream: what the samples are for.
        on_progress: called after each token with the number of finished responses and of all.
        listener: receives groups of finished responses while others are generated. Which responses are in a group
            depends on the prompts alone.

    Returns:
        CPU tensors, rows in the order of the prompts; without prompts, a rollout without rows.
    """
    text = SamplingParams.of(settings, SampleSeed()).response_text(engine.tokenizer, engine.turn_end)
    if not prompts:
        return _rollout(engine, [], {}, [], text)
    repeats = repeat_numbers(prompts)
    keeps_mask = SamplingParams.of(settings, SampleSeed(stream=stream)).keeps_mask
    # Prompts of similar length share a batch, so that little of it is padding.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].input_ids))
    size = len(order) if listener is None else listener.size
    groups = deque(order[i : i + size] for i in range(0, len(order), size))
    parts: list[Rollout] = []

    def on_step(outputs: Mapping[int, RequestOutput]) -> None:
        if on_progress is not None:
            on_progress(len(outputs), len(prompts))
        while groups and all(row in outputs for row in groups[0]):
            rows = groups.popleft()
            parts.append(_rollout(engine, prompts, outputs, rows, text, keeps_mask))
            if listener is not None:
                listener.on_group(rows, parts[-1])
        if listener is not None:
            listener.on_token()

    requests = (
        Request(
            row,
            prompts[row].input_ids,
            SamplingParams.of(settings, SampleSeed(seed, stream, step, prompts[row].id, repeats[row])),
            keep_states=stream == Stream.TRAINING,
        )
        for row in order
    )
    run_requests(engine, requests, on_step)
    return Rollout.join(parts).select(torch.tensor(order).argsort())


def run_requests(
    engine: Engine, requests: Iterable[Request], on_step: Callable[[Mapping[int, RequestOutput]], None]
) -> Mapping[int, RequestOutput]:
    """The outputs of requests by their ids, once all are finished; the engine is reset, whatever happens.

    Args:
        engine: has no other requests.
        requests: in the order in which they are queued.
        on_step: called after each step of the engine with the outputs that there are.
    """
    outputs: dict[int, RequestOutput] = {}
    try:
        engine.submit(requests)
        while len(engine):
            outputs |= {output.id: output for output in engine.step()}
            on_step(outputs)
    finally:
        engine.reset()
    return outputs


def repeat_numbers(prompts: Sequence[Prompt]) -> list[int]:
    """Which repeat of its prompt id each prompt is, from 0."""
    seen: dict[int, int] = {}
    repeats = []
    for prompt in prompts:
        repeats.append(seen.get(prompt.id, 0))
        seen[prompt.id] = repeats[-1] + 1
    return repeats


def mask_of(output: RequestOutput) -> SamplingMask:
    """The sets that an output's tokens were sampled from, of a request that keeps them.

    Raises:
        ModelError: The engine has not given them.
    """
    if output.mask is None:
        raise ModelError(
            "this engine does not give the sets that tokens are sampled from under top_k, top_p and min_p; set"
            " rollout.keep_sampling_mask = false, and ppo.engine_correction for the bias"
        )
    return output.mask


def with_states(sequences: Sequences, states: Sequence[Tensor | None]) -> Sequences:
    """The sequences with the states that an engine has kept of each; without them unless it has kept all."""
    known = [state for state in states if state is not None]
    return (
        replace(sequences, frozen_states=torch.cat(known))
        if known and len(known) == len(states)
        else sequences
    )


def _rollout(
    engine: Engine,
    prompts: Sequence[Prompt],
    outputs: Mapping[int, RequestOutput],
    rows: Sequence[int],
    text: ResponseText,
    keeps_mask: bool = False,
) -> Rollout:
    """The rollout of some prompts, whose requests are finished; keeps_mask: whether they keep a sampling mask."""
    asked, finished = [prompts[row] for row in rows], [outputs[row] for row in rows]
    logprobs = torch.tensor([x for output in finished for x in output.logprobs], dtype=torch.float32)
    sequences = Sequences.from_lists(
        [prompt.input_ids for prompt in asked], [output.tokens for output in finished]
    )
    return Rollout(
        prompts=asked,
        sequences=with_states(sequences, [output.frozen_states for output in finished]),
        action_mask=torch.ones(len(logprobs), dtype=torch.bool),
        logprobs=logprobs,
        sampling_mask=SamplingMask.join([mask_of(output) for output in finished]) if keeps_mask else None,
        finish=[output.finish for output in finished],
        texts=[
            text(() if engine.encoder_decoder else prompt.input_ids, output.tokens)
            for prompt, output in zip(asked, finished, strict=True)
        ],
        policy_versions=torch.full((len(logprobs),), engine.version),
    )
