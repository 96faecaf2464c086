"""What an engine is asked for and what it returns: token ids in, token ids and their log-probs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from proxlm.config import RolloutSettings
from proxlm.data.turn_end import TurnEnd
from proxlm.engine.kv_cache import CachedPrefix
from proxlm.engine.sampling import Distribution
from proxlm.engine.text import ResponseText
from proxlm.rl.sampling_mask import SamplingMask
from proxlm.seeds import Stream
from proxlm.types import Finish


@dataclass(frozen=True)
class SampleSeed:
    """The counters that determine the random numbers of one request, all in [0, 2**32); see uniforms.py.

    Attributes:
        seed: of the run.
        stream: what the samples are for: training, evaluation, ... (`proxlm.seeds.Stream`).
        step: of the run.
        prompt_id: id of the prompt.
        sample: which repeat of the prompt in this rollout, from 0.
        position: tokens sampled for this text in earlier requests: 0, but in a later turn of a conversation.
    """

    seed: int = 0
    stream: int = 0
    step: int = 0
    prompt_id: int = 0
    sample: int = 0
    position: int = 0


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are sampled and when it ends.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: keep the k likeliest tokens; 0: all.
        top_p: keep the smallest set of likeliest tokens with this much probability.
        min_p: drop tokens below this share of the likeliest token's probability.
        repetition_penalty: divides the positive logits, and multiplies the negative ones, of tokens that are in the
            prompt or the response (Keskar et al. 2019); an encoder–decoder's prompt does not count. 1: none.
        presence_penalty: subtracted from the logits of tokens that are in the response.
        frequency_penalty: subtracted from the logit of a token once for each time it is in the response.
        bad_words: texts that are never written with the tokens that they are usually written with.
        logit_bias: added to the logits of a token (its id as text), of the last token of several ("13,198") behind
            the others, or of a text, whose keys are no numbers.
        stop: texts that end the response. Their tokens are kept. A text may be, or hold, a special token.
        stop_token_ids: tokens that end the response, in addition to those that end a turn of the model. Kept, too.
        skip_special_tokens: stop texts are looked for in the text without any special token; see `ResponseText`.
        max_new_tokens: most tokens to sample.
        seed: counters of the random numbers.
        logprobs: whether the output holds the log-probs of the sampled tokens.
        keep_mask: whether it holds the sets that the tokens were sampled from, where a filter makes them smaller than
            the vocabulary.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bad_words: tuple[str, ...] = ()
    logit_bias: Mapping[str, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    skip_special_tokens: bool = False
    max_new_tokens: int = 64
    seed: SampleSeed = field(default_factory=SampleSeed)
    logprobs: bool = True
    keep_mask: bool = False

    @staticmethod
    def of(settings: RolloutSettings, seed: SampleSeed, max_new_tokens: int | None = None) -> SamplingParams:
        """The parameters that `settings` describe, for a request with these counters.

        Args:
            settings: the section [rollout].
            seed: counters of the request's random numbers.
            max_new_tokens: a lower limit than the settings'.
        """
        return SamplingParams(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
            presence_penalty=settings.presence_penalty,
            frequency_penalty=settings.frequency_penalty,
            bad_words=tuple(settings.bad_words),
            logit_bias=settings.logit_bias,
            stop=tuple(settings.stop),
            stop_token_ids=tuple(settings.stop_token_ids),
            skip_special_tokens=settings.skip_special_tokens,
            max_new_tokens=settings.max_new_tokens if max_new_tokens is None else max_new_tokens,
            seed=seed,
            # Of what is not trained on, nothing needs them.
            keep_mask=settings.keep_sampling_mask and seed.stream == Stream.TRAINING,
        )

    def response_text(self, tokenizer: Any, end: TurnEnd) -> ResponseText:
        """What makes the text of a response that was sampled with these parameters.

        Args:
            tokenizer: of the model.
            end: what ends a turn of the model.
        """
        return ResponseText(tokenizer, end, self.stop, self.stop_token_ids, self.skip_special_tokens)

    @property
    def changes_logits(self) -> bool:
        """Whether the logits are changed before they are sampled from (logit_processors.py)."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty
        return bool(penalties or self.bad_words or self.logit_bias)

    @property
    def distribution(self) -> Distribution:
        """What turns logits into the distribution that is sampled from."""
        return Distribution(self.temperature, self.top_k, self.top_p, self.min_p)

    @property
    def keeps_mask(self) -> bool:
        """Whether the output holds the sets that the tokens were sampled from."""
        return self.keep_mask and self.distribution.filtered


@dataclass(frozen=True)
class Request:
    """One text to generate.

    Attributes:
        id: returned with the output; unique among an engine's unfinished requests.
        prompt: token ids, at least one.
        params: how to sample.
        written: how many tokens at the end of `prompt` are the response's own first ones, from an earlier request:
            stop texts and penalties see them as that. The limit in `params` is of this request's tokens alone. An
            encoder reads the whole prompt, so its responses cannot be continued.
        prefix: the `RequestOutput.prefix` of an earlier request whose prompt and tokens this prompt begins with: they
            are not read again. None: everything is read.
        keep_prefix: whether the output should hold such a prefix.
        keep_states: whether the output should hold the states behind the model's frozen blocks, if it has any.
    """

    id: int
    prompt: Sequence[int]
    params: SamplingParams
    prefix: CachedPrefix | None = None
    keep_prefix: bool = False
    keep_states: bool = False
    written: int = 0

    @property
    def asked(self) -> Sequence[int]:
        """The prompt without what is written of the response."""
        return self.prompt[: len(self.prompt) - self.written]

    @property
    def begun(self) -> list[int]:
        """What is written of the response."""
        return list(self.prompt[len(self.prompt) - self.written :])


@dataclass(frozen=True)
class RequestOutput:
    """A finished request.

    Attributes:
        id: the request's.
        tokens: sampled token ids, at least one; with the token or the tokens of the stop text that ended it.
        logprobs: natural log of the probability each token was sampled with, temperature and filters applied
            (at temperature 0: its probability at temperature 1); empty if the request asked for none.
        finish: "eos", "stop" or "length".
        prefix: for a request that continues this one, if `keep_prefix` was set and the engine has it.
        mask: the sets that the tokens were sampled from, if `keeps_mask`; None: the whole vocabulary.
        frozen_states: the state of each token of prompt and response behind the blocks of the model that never learn,
            [T, H] on the CPU, if `keep_states` was set and the engine has them.
    """

    id: int
    tokens: list[int]
    logprobs: list[float]
    finish: Finish
    prefix: CachedPrefix | None = None
    mask: SamplingMask | None = None
    frozen_states: Tensor | None = None
