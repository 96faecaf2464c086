"""From completions to the tokens that a reward model reads of them: the same as when it scores responses later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from proxlm.config import PreferenceSettings
from proxlm.data.chat import ChatFormat
from proxlm.data.labelled import step_ends
from proxlm.data.skipped import Record, Skipped
from proxlm.errors import BadRecordError, DataError, RewardError
from proxlm.models.classifier import Classifier
from proxlm.rewards.reading import Reader
from proxlm.types import Completion

LONG = "over the length limit"


class HasCompletions(Protocol):
    """A comparison, or a labelled response."""

    @property
    def sides(self) -> Sequence[Completion]: ...


E = TypeVar("E", bound=HasCompletions)


class Tokenised(NamedTuple):
    """texts: The tokens of each completion of an example; places: the last token of each step of the first one."""

    texts: list[list[int]]
    places: list[int]


class CompletionTokens:
    """Reads completions as `RewardModel` reads them.

    Args:
        model: The reward model.
        text: The section [text].
        skipped: Receives what cannot be used.
        separator: Between two steps, whose last tokens are wanted; empty: not.

    Attributes:
        limit: The longest text in tokens.
    """

    def __init__(
        self, model: Classifier, text: PreferenceSettings, skipped: Skipped, separator: str = ""
    ) -> None:
        self._text, self._skipped, self._separator = text, skipped, separator
        chat = ChatFormat.of(model.tokenizer, text)
        self._has_template = bool(chat.template or model.tokenizer.chat_template)
        self._reader = Reader(chat, text.pair, model.source)
        known = [
            limit for limit in (model.context, getattr(model.tokenizer, "model_max_length", None)) if limit
        ]
        self.limit = min([*known, 10**9] if not text.max_tokens else [*known, text.max_tokens])

    def read(self, examples: Iterable[tuple[Record, E]]) -> Iterator[tuple[E, Tokenised]]:
        """The usable examples, with the tokens of their completions.

        Raises:
            DataError: A text cannot be read; or is too long, and `text.on_long_text` is fail.
        """
        for record, found in examples:
            tokens: Tokenised | None = None
            try:
                tokens = self._tokens_of(found, record.where)
            except BadRecordError as error:
                if error.kind != LONG or self._text.on_long_text == "fail":
                    with self._skipped.judging(record):
                        raise
                else:
                    self._skipped.leave_out(record, error.kind, str(error).removeprefix(f"{record.where}: "))
            if tokens is not None:
                yield found, tokens

    def _tokens_of(self, found: HasCompletions, where: str) -> Tokenised:
        read = [self._tokens(side, where) for side in found.sides]
        return Tokenised([ids for ids, _ in read], read[0][1])

    def _tokens(self, completion: Completion, where: str) -> tuple[list[int], list[int]]:
        """Token ids, and the places of its steps' last tokens if these are wanted."""
        if completion.messages and not self._text.pair and not self._has_template:
            raise DataError(
                f"{where}: messages, and the tokenizer has no chat template; set text.chat_template to a file with"
                " one, for instance recipes/data/plain-chat.jinja"
            )
        places = list[int]()
        try:
            if self._separator:
                ids, places = self._reader.tokens_at(completion, step_ends(completion.text, self._separator))
            else:
                ids = self._reader.tokens(completion)
            if len(ids) > self.limit and self._text.on_long_text == "truncate":
                ids = self._reader.truncated(completion, self.limit)
        except RewardError as error:
            raise BadRecordError(f"{where}: {error}", "refused by the chat template") from error
        if not ids:
            raise BadRecordError(f"{where}: the text has no tokens", "empty")
        if len(ids) > self.limit:
            raise BadRecordError(
                f"{where}: {len(ids)} tokens with the prompt, the limit is {self.limit}; set text.on_long_text to"
                ' "truncate" or "skip"',
                LONG,
            )
        return ids, places
