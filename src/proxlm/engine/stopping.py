"""When a request is finished: a token that ends a turn, a stop text, or its limit."""

from __future__ import annotations

from collections.abc import Sequence

from proxlm.data.tokenizer import INCOMPLETE, decode
from proxlm.engine.request import Request, SamplingParams
from proxlm.engine.text import ResponseText
from proxlm.models.language_model import LanguageModel
from proxlm.types import Finish


class StopCheck:
    """Checks the newest token of a request. What is known of single tokens is kept between calls."""

    def __init__(self, model: LanguageModel) -> None:
        self._tokenizer, self._encoder_decoder, self._end = (
            model.tokenizer,
            model.encoder_decoder,
            model.turn_end,
        )
        self._conditions: dict[tuple[object, ...], _StopCondition] = {}

    def finish(self, request: Request, tokens: Sequence[int]) -> Finish | None:
        """Why the request is finished after its newest token, or None if it is not.

        Args:
            request: the request.
            tokens: of the response, those of earlier requests included; at least one of this request.
        """
        token, params = tokens[-1], request.params
        if token in self._end.eos:
            return "eos"
        if params.stop or params.stop_token_ids:
            prompt = () if self._encoder_decoder else request.asked
            if self._condition(params).met(prompt, tokens):
                return "stop"
        if token == self._end.own:
            return "eos"
        return "length" if len(tokens) - request.written >= params.max_new_tokens else None

    def _condition(self, params: SamplingParams) -> _StopCondition:
        key = (params.stop, params.stop_token_ids, params.skip_special_tokens)
        if key not in self._conditions:
            self._conditions[key] = _StopCondition(params.response_text(self._tokenizer, self._end))
        return self._conditions[key]


class _StopCondition:
    """The stop texts and stop tokens of a request."""

    def __init__(self, text: ResponseText) -> None:
        self._text = text
        self._may_stop: dict[int, bool] = {}
        # A character is at most four tokens.
        self._window = 4 * max((len(stop) for stop in text.stop), default=0) + 4

    def met(self, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether the newest token is a stop token, or a stop text ends within it.

        Args:
            prompt: what the response is read after.
            tokens: of the response.
        """
        token = tokens[-1]
        if token in self._text.stop_ids:
            return True
        if not self._text.stop or not self._can_stop(token):
            return False
        begin, left = len(tokens), self._window
        while begin and left:
            begin -= 1
            left -= tokens[begin] not in self._text.hidden
        return self._text.stops_in([*prompt[-8:], *tokens[max(0, begin - 8) : begin]], tokens[begin:])

    def _can_stop(self, token: int) -> bool:
        """Whether a stop text could end within this token: a quick look at the token alone.

        A space may be lost where a token is decoded alone, and part of a character is not shown.
        """
        if token not in self._may_stop:
            text = decode(self._text.tokenizer, [token])
            ends = any(stop[-1] in " " + text for stop in self._text.stop)
            self._may_stop[token] = INCOMPLETE in text or ends
        return self._may_stop[token]
