"""Partial rollouts: responses that go on over the updates, each segment with the newest weights there are.

With `ppo.partial_rollouts` and `ppo.max_staleness` = k a response has k segments of equally many tokens. Segment i,
from 0, of step j's rollout is sampled by the policy that has seen max(0, j − k + i) updates. So one version writes a
segment of each of the next k rollouts, all in one batch, beside the update that makes the next version; the rollout
that is whole then is scored. Like the rule of whole rollouts it knows steps and tokens, and nothing of time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from proxlm.checkpoint.read import with_prefix
from proxlm.config import PPOConfig, RolloutSettings
from proxlm.data.prompts import PromptStream
from proxlm.engine.protocol import Engine
from proxlm.engine.segments import PartialResponse, PartialRollout, write_segments
from proxlm.errors import ConfigError, RunError
from proxlm.models.language_model import LanguageModel
from proxlm.rl.sampling_mask import SamplingMask
from proxlm.seeds import Stream
from proxlm.train.common.schedules import temperature_at
from proxlm.train.ppo.behaviour import trainer_logprobs
from proxlm.train.ppo.rollout_queue import CopyEngine, RolloutQueue
from proxlm.types import Finish, Progress, Prompt, Rollout, Sequences

PREFIX = "partial-"  # of the names of a rollout's tensors in a checkpoint; the step follows
FINISHES: tuple[Finish | None, ...] = (None, "eos", "stop", "length")


class PartialRollouts:
    """The rollouts that are being written; called in the order of the steps, as `generate`, for each of them.

    A step draws prompts once, so the number of its batch is its own.

    Args:
        prompts: Where each step's prompts come from.
        config: The job.
    """

    def __init__(self, prompts: PromptStream, config: PPOConfig) -> None:
        self._prompts, self._config, self._parts = prompts, config, config.ppo.max_staleness
        # By step: the rollouts of this step and later ones as they are before its call. Those of the newest call
        # stay, for a step that is collected again and for a checkpoint.
        self._begun: dict[int, dict[int, PartialRollout]] = {}

    def __call__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],  # noqa: ARG002 (they are those of the stream)
        settings: RolloutSettings,  # noqa: ARG002
        *,
        seed: int,
        step: int,
        stream: Stream = Stream.TRAINING,  # noqa: ARG002
        on_progress: Progress | None = None,
    ) -> Rollout:
        """The rollout of a step: the last segment is written now, and one of each rollout that is begun."""
        history = self._begun
        # Step 0 waits for its rollout, so that one is written alone.
        steps = range(step, step + self._parts) if step else range(1)
        begun = history[step] if step else {}
        before = [begun.get(later) or self._begin(later) for later in steps]
        limits = [self._limit(self._parts - (later - step)) for later in steps]
        progress = on_progress or (lambda _done, _total: None)
        written = write_segments(engine, before, limits, seed, progress)
        if self._config.ppo.engine_correction.mode != "none" and engine.version != step:
            assert isinstance(engine, CopyEngine)
            written = [
                self._with_trainer_logprobs(old, new, engine.model)
                for old, new in zip(before, written, strict=True)
            ]
        whole, *others = written
        history[step + 1] = dict(zip(steps[1:], others, strict=True))
        for old in [number for number in history if number < step]:
            del history[old]
        return whole.whole(engine)

    def tensors(self, step: int) -> dict[str, Tensor]:
        """What is written before a step's call, for a checkpoint."""
        return {
            f"{PREFIX}{later}.{name}": tensor
            for later, rollout in self._begun.get(step, {}).items()
            for name, tensor in (_prompt_tensors(rollout) | _as_tensors(rollout.responses)).items()
        }

    def resume(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned. What was begun for other prompts, as when their file has changed, is
        begun again, by the weights of now.

        Raises:
            ValueError: It is not what such a run has written.
        """
        begun = {}
        for later in range(step, step + self._parts - 1) if step > 1 else ():
            rollout = self._begin(later)
            saved = with_prefix(tensors, f"{PREFIX}{later}.")
            found = _from_tensors(saved)
            if any(not saved[name].equal(tensor) for name, tensor in _prompt_tensors(rollout).items()):
                found = rollout.responses
            if len(found) != len(rollout.responses):
                raise ValueError(f"{len(found)} responses of {len(rollout.responses)}")
            begun[later] = replace(rollout, responses=found)
        self._begun = {step: begun}

    def _begin(self, step: int) -> PartialRollout:
        """The rollout of a step, of which nothing is written."""
        config, last = self._config, self._config.ppo.steps - 1
        prompts = [p for p in self._prompts.batch(step) for _ in range(config.ppo.samples_per_prompt)]
        temperature = temperature_at(config.rollout, min(step, last), config.ppo.steps)
        settings = replace(config.rollout, temperature=temperature)
        return PartialRollout(prompts, settings, step, [PartialResponse()] * len(prompts))

    def _limit(self, segments: int) -> int:
        """How many tokens so many segments have."""
        return self._config.rollout.max_new_tokens * segments // self._parts

    def _with_trainer_logprobs(
        self, old: PartialRollout, new: PartialRollout, model: LanguageModel
    ) -> PartialRollout:
        """The rollout with the trainer's log-probs of its newest segment."""
        before = [len(response.tokens) for response in old.responses]
        rows = [row for row, response in enumerate(new.responses) if len(response.tokens) > before[row]]
        if not rows:
            return new
        responses = list(new.responses)
        texts = [[*new.prompts[row].input_ids, *old.responses[row].tokens] for row in rows]
        segments = [responses[row].tokens[before[row] :] for row in rows]
        masks = [
            mask.select(torch.arange(before[row], len(mask)))
            for row in rows
            if (mask := responses[row].mask) is not None
        ]
        found = trainer_logprobs(
            Sequences.from_lists(texts, segments),
            SamplingMask.join(masks) if masks else None,
            model,
            new.settings.temperature,
            self._config.ppo.micro_batch_tokens,
        )
        for row, segment in zip(rows, found.split([len(segment) for segment in segments]), strict=True):
            known = responses[row].trainer_logprobs + segment.tolist()
            responses[row] = replace(responses[row], trainer_logprobs=known)
        return replace(new, responses=responses)


class PartialRolloutQueue(RolloutQueue):
    """The queue of partial rollouts: one step ahead, with one copy of the policy, which writes on what is begun.

    Args:
        policy: What learns.
        steps: Of the whole run.
        make_engine: The engine on a copy of the policy.
        rollouts: What is begun.

    Raises:
        ConfigError: The policy is an encoder–decoder, or as `RolloutQueue` says.
    """

    def __init__(
        self,
        policy: LanguageModel,
        steps: int,
        make_engine: Callable[[LanguageModel], CopyEngine],
        rollouts: PartialRollouts,
    ) -> None:
        if policy.encoder_decoder:
            raise ConfigError(
                "ppo.partial_rollouts: an encoder–decoder's response cannot be continued; set it to false"
            )
        super().__init__(policy, 1, steps, make_engine)
        self._rollouts = rollouts

    def tensors(self) -> dict[str, Tensor]:
        """The copy that writes next, and what the ones before it have written."""
        return super().tensors() | self._rollouts.tensors(max(self.copies, default=-1) + 1)

    def resume(self, checkpoint: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Take over the copy and the responses in the checkpoint."""
        copies = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
        super().resume(checkpoint, step, copies)
        try:
            self._rollouts.resume(step, tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise RunError(
                f"{checkpoint}: does not hold the responses that later steps have begun, which ppo.partial_rollouts"
                " needs; remove it, and the one before it is used"
            ) from error


def _prompt_tensors(rollout: PartialRollout) -> dict[str, Tensor]:
    """What the responses were written for."""
    rows = [prompt.input_ids for prompt in rollout.prompts]
    return {
        "prompts.lengths": torch.tensor([len(row) for row in rows]),
        "prompts.tokens": torch.tensor([token for row in rows for token in row]),
    }


def _as_tensors(responses: Sequence[PartialResponse]) -> dict[str, Tensor]:
    """What is written of responses, row after row."""
    found = {
        "lengths": torch.tensor([len(row.tokens) for row in responses]),
        "finish": torch.tensor([FINISHES.index(row.finish) for row in responses]),
        "tokens": torch.tensor([x for row in responses for x in row.tokens]),
        "versions": torch.tensor([x for row in responses for x in row.versions]),
        "logprobs": torch.tensor([x for row in responses for x in row.logprobs]),
        "trainer_logprobs": torch.tensor([x for row in responses for x in row.trainer_logprobs]),
    }
    if masks := [row.mask for row in responses if row.mask is not None]:
        mask = SamplingMask.join(masks)
        found |= {f"mask.{name}": getattr(mask, name) for name in ("data", "offsets", "mass")}
        found["mask.vocabulary"] = torch.tensor(mask.vocabulary)
    return found


def _from_tensors(tensors: Mapping[str, Tensor]) -> list[PartialResponse]:
    """The responses again. Raises KeyError, ValueError or RuntimeError where the tensors do not fit together."""
    lengths: list[int] = tensors["lengths"].tolist()
    known = lengths if len(tensors["trainer_logprobs"]) else [0] * len(lengths)
    tokens, versions, logprobs, again = (
        [part.tolist() for part in tensors[name].split(sizes)]
        for name, sizes in (
            ("tokens", lengths),
            ("versions", lengths),
            ("logprobs", lengths),
            ("trainer_logprobs", known),
        )
    )
    masks: list[SamplingMask | None] = [None] * len(lengths)
    if "mask.data" in tensors:
        mask = SamplingMask(
            int(tensors["mask.vocabulary"]), *(tensors[f"mask.{n}"] for n in ("data", "offsets", "mass"))
        )
        masks = [mask.select(at) for at in torch.arange(len(mask)).split(lengths)]
    finishes = [FINISHES[number] for number in tensors["finish"].tolist()]
    rows = zip(tokens, logprobs, versions, finishes, masks, again, strict=True)
    return [PartialResponse(*row) for row in rows]
