"""When a request is finished: an EOS token, a stop text, or its limit."""

from __future__ import annotations

from collections.abc import Sequence

from proxlm.engine.request import Request
from proxlm.engine.text import response_text, stop_position
from proxlm.models.language_model import LanguageModel
from proxlm.types import Finish


class StopCheck:
    """Checks the newest token of a request. What is known of single tokens is kept between calls."""

    def __init__(self, model: LanguageModel) -> None:
        self._tokenizer, self._encoder_decoder, self._eos = (
            model.tokenizer,
            model.encoder_decoder,
            model.eos_ids,
        )
        self._may_stop: dict[tuple[str, ...], dict[int, bool]] = {}

    def finish(self, request: Request, tokens: Sequence[int]) -> Finish | None:
        """Why the request is finished after its newest token, or None if it is not.

        Args:
            request: the request.
            tokens: what was sampled for it, at least one token.
        """
        stops = request.params.stop
        if tokens[-1] in self._eos:
            return "eos"
        if stops and self._can_stop(tokens[-1], stops) and self._stop_found(request, tokens):
            return "stop"
        return "length" if len(tokens) >= request.params.max_new_tokens else None

    def _can_stop(self, token: int, stops: tuple[str, ...]) -> bool:
        """Whether a stop text could end within this token: a quick look at the token alone.

        A space may be lost where a token is decoded alone, and part of a character is not shown.
        """
        known = self._may_stop.setdefault(stops, {})
        if token not in known:
            text = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
            known[token] = "\ufffd" in text or any(stop[-1] in " " + text for stop in stops)
        return known[token]

    def _stop_found(self, request: Request, tokens: Sequence[int]) -> bool:
        """Whether the end of the response, as it reads after what is before it, holds a stop text.

        A character is at most four tokens.
        """
        stops = request.params.stop
        count = 4 * max(len(stop) for stop in stops) + 4
        prompt = () if self._encoder_decoder else request.prompt
        before = [*prompt[-8:], *tokens[:-count]][-8:]
        text = response_text(self._tokenizer, before, tokens[-count:])
        return stop_position(text, stops) is not None
