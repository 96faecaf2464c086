"""What a reward model reads: its own tokens of a completion, through its own chat template."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from proxlm.data.chat import ChatFormat, encode_rendered
from proxlm.data.messages import read_messages
from proxlm.data.tokenizer import encode_source
from proxlm.errors import BadRecordError, DataError, RewardError
from proxlm.types import Completion

_log = logging.getLogger(__name__)
_ANOTHER = "\ue000"  # a content that no response begins with


class Reader:
    """From completions to the token ids of a reward model.

    Args:
        chat: Its tokenizer and chat template.
        pair: Prompt and response are two texts, which the tokenizer separates.
        name: Of the model, for messages.
    """

    def __init__(self, chat: ChatFormat, pair: bool, name: str) -> None:
        self.chat, self.pair, self.name = chat, pair, name
        self._tokenizer: Any = chat.tokenizer
        self._tokenizer.truncation_side = "left"
        self._warned = False

    def tokens(self, completion: Completion) -> list[int]:
        """Token ids of prompt and response. Raises RewardError if the chat template refuses the messages."""
        messages = _messages(completion)
        if self.pair:
            return list(self._tokenizer(*self._two_texts(completion, messages))["input_ids"])
        if not messages:
            return encode_source(self._tokenizer, completion.prompt + completion.text)
        if self.chat.template is None and not self._tokenizer.chat_template:
            self._warn()
            return encode_source(self._tokenizer, completion.prompt + completion.text)
        return encode_rendered(self._tokenizer, self._rendered(messages))

    def tokens_at(self, completion: Completion, ends: Sequence[int]) -> tuple[list[int], list[int]]:
        """As `tokens`, and which of them holds the last character before each position of the response's text.

        Raises:
            RewardError: The tokenizer cannot say, or the chat template does not show the response as it is.
        """
        messages, special = _messages(completion), True
        text, start = completion.prompt + completion.text, len(completion.prompt)
        if messages and (self.chat.template is not None or self._tokenizer.chat_template):
            text, special = self._rendered(messages), False
            start = self._start_of_response(messages, text, completion.text)
        elif messages:
            self._warn()
        if not self._tokenizer.is_fast:
            raise RewardError(f"{self.name}: its tokenizer does not say which characters a token holds")
        found = self._tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        ids, spans = list(found["input_ids"]), list(found["offset_mapping"])
        if special and len(ids) > 1 and ids[0] == ids[1] == self._tokenizer.bos_token_id:
            ids, spans = ids[1:], spans[1:]
        places = [_token_at(start + end - 1, spans) for end in ends]
        if None in places:
            raise RewardError("a step's last character is in no token")
        return ids, [place for place in places if place is not None]

    def _start_of_response(self, messages: Sequence[Mapping[str, Any]], text: str, response: str) -> int:
        """Where the last message's content is in a rendered conversation: where another one makes a difference."""
        other = self._rendered([*messages[:-1], {**messages[-1], "content": _ANOTHER}])
        pairs, stripped = enumerate(zip(text, other, strict=False)), response.strip()
        start = next((i for i, (a, b) in pairs if a != b), 0)
        if text.startswith(response, start):
            return start
        if text.startswith(stripped, start):  # templates may strip it
            return start - response.find(stripped)
        raise RewardError("the chat template changes the response, so its steps cannot be found")

    def _rendered(self, messages: Sequence[Mapping[str, Any]]) -> str:
        try:
            return self.chat.render([dict(message) for message in messages], f"reward model {self.name}")
        except DataError as error:
            raise RewardError(str(error)) from error

    def truncated(self, completion: Completion, length: int) -> list[int]:
        """The last `length` tokens (of a pair, the prompt is cut first), with the special tokens at their place."""
        if self.pair:
            prompt, response = self._two_texts(completion, _messages(completion))
            if len(self._tokenizer("", response)["input_ids"]) < length:
                cut = self._tokenizer(prompt, response, truncation="only_first", max_length=length)
            else:  # nothing of the prompt has room
                cut = self._tokenizer("", response, truncation="only_second", max_length=length)
            return list(cut["input_ids"])
        ids = self.tokens(completion)
        # An encoder's classifier reads the state at its first token.
        begins = int(ids[0] in (self._tokenizer.bos_token_id, self._tokenizer.cls_token_id))
        return [*ids[:begins], *ids[len(ids) - length + begins :]]

    def _two_texts(self, completion: Completion, messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
        """Prompt and response; of messages the contents, for a pair has no chat template."""
        asked = "\n".join(str(message.get("content") or "") for message in messages[:-1])
        return (asked if messages else completion.prompt), completion.text

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "reward model %s: its tokenizer has no chat template, so it reads prompts as the policy's template"
                " writes them; set chat_template in its arguments to the one it was trained with",
                self.name,
            )


def _token_at(character: int, spans: Sequence[tuple[int, int]]) -> int | None:
    """The last token that holds a character; None: it is in none."""
    return next((i for i in reversed(range(len(spans))) if spans[i][0] <= character < spans[i][1]), None)


def _messages(completion: Completion) -> Sequence[Mapping[str, Any]]:
    """The whole conversation; of a completion that no rollout made, the messages in its record and the response."""
    if completion.messages:
        return completion.messages
    for name in ("prompt", "messages"):
        if isinstance(asked := completion.fields.get(name), list):
            try:
                return [*read_messages(asked, name), {"role": "assistant", "content": completion.text}]
            except BadRecordError:
                continue
    return ()
