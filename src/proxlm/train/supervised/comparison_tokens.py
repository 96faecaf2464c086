"""From comparisons to the tokens that a reward model reads of them: the same as when it scores responses later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from proxlm.config import PreferenceSettings
from proxlm.data.chat import ChatFormat
from proxlm.data.preferences import Comparison, comparisons
from proxlm.data.records import Source
from proxlm.data.skipped import Skipped
from proxlm.errors import BadRecordError, DataError, RewardError
from proxlm.models.classifier import Classifier
from proxlm.rewards.reading import Reader
from proxlm.types import Completion


class ComparisonTokens:
    """Reads comparisons as `RewardModel` reads completions.

    Args:
        model: The reward model.
        text: The section [text].
        skipped: Receives what cannot be used.

    Attributes:
        limit: The longest text in tokens.
    """

    def __init__(self, model: Classifier, text: PreferenceSettings, skipped: Skipped) -> None:
        self._text, self._skipped = text, skipped
        chat = ChatFormat.of(model.tokenizer, text)
        self._has_template = bool(chat.template or model.tokenizer.chat_template)
        self._reader = Reader(chat, text.pair, model.source)
        known = [
            limit for limit in (model.context, getattr(model.tokenizer, "model_max_length", None)) if limit
        ]
        self.limit = min([*known, 10**9] if not text.max_tokens else [*known, text.max_tokens])

    def read(self, sources: Sequence[Source]) -> Iterator[tuple[Comparison, list[list[int]]]]:
        """The usable comparisons, with the tokens of the chosen and of the rejected text.

        Raises:
            DataError: See `comparisons`; or a text is too long, and `text.on_long_text` is fail.
        """
        for record, found in comparisons(self._text, sources, self._skipped):
            texts: list[list[int]] = []
            try:
                texts = [self._tokens(side, record.where) for side in found.sides]
            except BadRecordError as error:
                if error.kind != LONG or self._text.on_long_text == "fail":
                    with self._skipped.judging(record):
                        raise
                else:
                    self._skipped.leave_out(record, error.kind, str(error).removeprefix(f"{record.where}: "))
            if texts:
                yield found, texts

    def _tokens(self, completion: Completion, where: str) -> list[int]:
        if completion.messages and not self._text.pair and not self._has_template:
            raise DataError(
                f"{where}: messages, and the tokenizer has no chat template; set text.chat_template to a file with"
                " one, for instance recipes/data/plain-chat.jinja"
            )
        try:
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
        return ids


LONG = "over the length limit"
