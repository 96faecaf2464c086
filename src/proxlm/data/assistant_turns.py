"""The assistant's turns in a rendered conversation: where they are, and their tokens as a rollout samples them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from proxlm.data.chat import ChatFormat, encode_rendered
from proxlm.data.formats import Conversation
from proxlm.data.messages import Message
from proxlm.data.tokenizer import encode_continuation
from proxlm.data.turn_end import PROBE, TurnEnd
from proxlm.errors import BadRecordError


@dataclass(frozen=True)
class AssistantTurns:
    """A conversation as text, up to the end of the assistant's last turn.

    Attributes:
        text: What the template makes of it.
        spans: First character and end of each turn: what the model generates, the end of the turn included.
        learnt: Whether each is trained on.
        as_sampled: Whether the first turn stands behind the template's generation prompt, as in a rollout.
    """

    text: str
    spans: list[tuple[int, int]]
    learnt: list[bool]
    as_sampled: bool


def find_turns(content: Conversation, chat: ChatFormat, end: TurnEnd, where: str) -> AssistantTurns:
    """Render a conversation and find the assistant's turns in it.

    Where the template marks them with `{% generation %}`, they are what it marks. Otherwise they are found by
    rendering the conversation up to each turn, without it and with it; or, where the template renders a turn
    differently once others follow (as Qwen3's does, without its reasoning), by putting another text in its place.

    Raises:
        BadRecordError: There is no turn of the assistant, or it cannot be found in what the template makes of it.
    """
    messages = content.messages
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise BadRecordError(f"{where}: the conversation has no turn of the assistant", "malformed messages")
    if turns[0] == 0:
        reason = f"{where}: the conversation begins with the assistant, so there is no prompt"
        raise BadRecordError(reason, "malformed messages")
    finder = _Finder(messages[: turns[-1] + 1], content, chat, end, where)
    learnt = [content.weights[turn] == 1 for turn in turns]
    marked = chat.generation_spans(finder.messages, where, extras=content.extras)
    if marked:
        if len(marked) != len(turns) and not all(learnt):
            reason = f"{where}: a weight of 0 needs a template with one {{% generation %}} for each turn"
            raise BadRecordError(reason, "refused by the chat template")
        learnt = learnt if len(marked) == len(turns) else [True] * len(marked)
        spans = [finder.with_end(*span) for span in marked]
    else:
        spans = [finder.span(turn) for turn in turns]
    if any(after[0] < before[1] for before, after in pairwise(spans)):
        raise finder.not_found(turns[0])
    first = finder.prompt(turns[0])
    return AssistantTurns(finder.text, spans, learnt, finder.text[: spans[0][0]] == first)


@dataclass(frozen=True)
class TurnTokens:
    """A prompt and what follows it, as tokens; `learnt` is aligned with response."""

    prompt: list[int]
    response: list[int]
    learnt: list[bool]


def encode_turns(turns: AssistantTurns, chat: ChatFormat, end: TurnEnd) -> TurnTokens:
    """The tokens of a conversation, with those to learn marked.

    The tokens before a turn are those of the text before it, as in a rollout. Where a token of the whole text would
    reach into the turn, the turn is tokenised by itself, because that is what a policy samples behind that prompt.
    """
    tokenizer, text = chat.tokenizer, turns.text
    ids = encode_rendered(tokenizer, text[: turns.spans[0][0]])
    prompt_length = len(ids)
    learnt: list[bool] = []
    begin, kept, done = (
        0,
        0,
        turns.spans[0][0],
    )  # text from `begin` on is tokenised in one, behind `kept` tokens

    def extend(until: int, flag: bool) -> None:
        nonlocal ids, begin, kept, done
        if until == done:
            return
        encode = encode_continuation if kept else encode_rendered
        whole = [*ids[:kept], *encode(tokenizer, text[begin:until])]
        if whole[: len(ids)] != ids:
            begin, kept = done, len(ids)
            whole = [*ids, *encode_continuation(tokenizer, text[begin:until])]
        learnt.extend([flag] * (len(whole) - len(ids)))
        ids, done = whole, until

    for (first, last), flag in zip(turns.spans, turns.learnt, strict=True):
        extend(first, False)
        extend(last, flag)
    if ids[-1] not in end.tokens or len(ids) == prompt_length:
        ids, learnt = [*ids, end.default], [*learnt, turns.learnt[-1]]
    return TurnTokens(ids[:prompt_length], ids[prompt_length:], learnt)


class _Finder:
    """Finds single turns in the text of a whole conversation."""

    def __init__(
        self, messages: Sequence[Message], content: Conversation, chat: ChatFormat, end: TurnEnd, where: str
    ) -> None:
        self.messages, self.where = messages, where
        self._chat, self._extras = chat, content.extras
        # The ends of a turn as they are spelled: the template's own, and EOS.
        ids = [[] if end.own is None else [end.own], sorted(end.tokens - {end.own})]
        self._ends = [[str(n) for n in chat.tokenizer.convert_ids_to_tokens(part)] for part in ids]
        self._first = (-1, "")
        self.text = self.rendered(len(messages))

    def rendered(self, count: int) -> str:
        """The first `count` messages."""
        return self._render(self.messages[:count])

    def prompt(self, turn: int) -> str:
        """What a policy sees before message number `turn`."""
        if turn == self._first[0]:
            return self._first[1]
        text = self._render(self.messages[:turn], add_generation_prompt=True)
        if not self._first[1]:
            self._first = (turn, text)  # the only one that is asked for twice
        return text

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        return self._chat.render(
            messages, self.where, add_generation_prompt=add_generation_prompt, extras=self._extras
        )

    def span(self, turn: int) -> tuple[int, int]:
        """Where message number `turn` is in the text, from behind the generation prompt to the end of the turn."""
        before = self.prompt(turn)
        follows = self.text.startswith(before)
        until = self.text if turn == len(self.messages) - 1 else self.rendered(turn + 1)
        same = _shared(until, self.text)
        if follows and same >= len(before):
            finish = self._end(until, len(before), last=True)
            if finish is not None and finish <= same:
                return len(before), finish
            if finish is None:
                return self.with_end(len(before), same)
        return self._by_probe(turn, len(before) if follows else None)

    def with_end(self, first: int, last: int) -> tuple[int, int]:
        """The span, longer by the end of the turn where that stands behind it."""
        names = [name for names in self._ends for name in names]
        rest = self.text[last:]
        space = len(rest) - len(rest.lstrip())
        found = next((name for name in names if rest.startswith(name, space)), None)
        ended = self.text.endswith(tuple(names), first, last)
        return first, last if ended or found is None else last + space + len(found)

    def _by_probe(self, turn: int, start: int | None) -> tuple[int, int]:
        probed = [*self.messages]
        probed[turn] = {**probed[turn], "content": PROBE}
        other = self._render(probed)
        head, _, tail = other.partition(PROBE)
        content_end = len(self.text) - len(tail)
        if other.count(PROBE) != 1 or not self.text.startswith(head) or not self.text.endswith(tail):
            raise self.not_found(turn)
        if content_end < len(head):
            raise self.not_found(turn)
        first = len(head) if start is None else start
        span = self.with_end(first, content_end)
        if span[1] > content_end:
            return span
        # The end stands behind other words of the turn, which the template writes whether others follow or not.
        alone = self._render(probed[: turn + 1]).partition(PROBE)[2]
        finish = self._end(self.text[: content_end + _shared(alone, tail)], content_end, last=False)
        return first, content_end if finish is None else finish

    def _end(self, text: str, start: int, *, last: bool) -> int | None:
        """Behind the last or first end of a turn in the text from `start` on; the template's own goes before EOS."""
        for names in self._ends:
            places = {name: text.rfind(name, start) if last else text.find(name, start) for name in names}
            found = [place + len(name) for name, place in places.items() if place >= 0]
            if found:
                return max(found) if last else min(found)
        return None

    def not_found(self, turn: int) -> BadRecordError:
        """The error for a turn whose tokens cannot be told from the others."""
        return BadRecordError(
            f"{self.where}: the chat template renders what comes before message {turn + 1} differently"
            " without it, so the message's own tokens cannot be identified; use another chat_template",
            "refused by the chat template",
        )


def _shared(a: str, b: str) -> int:
    """How many characters two texts begin with together."""
    if b.startswith(a):
        return len(a)
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low
