"""A process reward model: how likely each step of a response is right, and one number of these."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Literal

from proxlm.data.labelled import step_ends
from proxlm.errors import ConfigError, ModelError, RewardError
from proxlm.rewards.classifier_reward import ClassifierReward
from proxlm.text import reason_of
from proxlm.types import Completion

# In the configuration of a model that `proxlm reward` has trained on steps.
SEPARATOR = "step_separator"
_ADVICE = "needs a trained …ForTokenClassification with one output, or two: wrong and right"


class ProcessRewardModel(ClassifierReward):
    """Scores a response by its steps with a transformers token classifier, loaded by `prepare`.

    The probability that a step is right is read at its last token (Lightman et al. 2023; Wang et al. 2024,
    Math-Shepherd): σ of the only output, or of two outputs the second's softmax.

    Args:
        path: A folder in Hugging Face format, or a name on the hub; safetensors only, and no code from there.
        combine: min, the least of the probabilities; product of all; last; mean; or steps: each step's at its last
            token, a reward per token, which needs the policy's tokenizer to be the model's.
        separator: What stands between two steps; empty: what the model was trained with.
        max_length: Longest text in tokens; 0: the model's own limit. A longer text is an error for that completion.
        batch_size: Texts in one forward pass. Changes only the speed.
        device: auto, cpu, cuda, cuda:1, ...
        chat_template: A file with a Jinja template, for a model whose tokenizer has none.
        chat_template_kwargs: Variables of its template.

    A response without any step is an error for that completion.

    Raises:
        ValueError: An argument is impossible ("ARGUMENT: what is wrong").
    """

    _called = "process reward model"

    def __init__(
        self,
        path: str,
        combine: Literal["min", "product", "last", "mean", "steps"] = "min",
        separator: str = "",
        max_length: int = 0,
        batch_size: int = 16,
        device: str = "auto",
        chat_template: str = "",
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(path, max_length, batch_size, device, chat_template, chat_template_kwargs)
        self.combine, self.separator = combine, separator
        self._tokenizer: Any = None
        if (config := self._configuration()) is not None:
            try:
                self._check(config)
            except ValueError as error:
                raise ValueError(f'path = "{path}": {reason_of(error)}') from error

    def _check(self, config: Any) -> None:
        """Take the separator from a configuration. Raises ValueError for that of no process reward model."""
        kinds = [str(kind) for kind in getattr(config, "architectures", None) or []]
        if (kinds and not any("TokenClassification" in kind for kind in kinds)) or config.num_labels > 2:
            raise ValueError(_ADVICE)
        saved = getattr(config, SEPARATOR, "")
        self.separator = self.separator or (saved if isinstance(saved, str) else "")
        if not self.separator:
            raise ValueError(
                f"its configuration has no {SEPARATOR}; set separator, for instance to a line break"
            )

    def prepare(self) -> None:
        """Load the model and its tokenizer, once. Raises ModelError, or ConfigError."""
        if self._model is not None:
            return
        from transformers import AutoModelForTokenClassification

        what = f"process reward model {self.path}"
        tokenizer = self._read_tokenizer()
        if not tokenizer.is_fast:
            raise ModelError(f"{what}: its tokenizer does not say which characters a token holds")
        model = self._read_network(AutoModelForTokenClassification, tokenizer, _ADVICE)
        try:
            self._check(model.config)
        except ValueError as error:
            raise ConfigError(f"{what}: {error}") from error
        self._tokenizer = tokenizer
        self._begin(model, tokenizer, pair=False)

    def __call__(
        self, completions: list[Completion]
    ) -> list[float | RewardError] | list[list[float] | RewardError]:
        """The scores [B]; with combine = "steps" a number for each token of each response."""
        found = self.probabilities(completions)
        if self.combine == "steps":
            pairs = zip(found, completions, strict=True)
            return [row if isinstance(row, RewardError) else self._per_token(row, c) for row, c in pairs]
        return [row if isinstance(row, RewardError) else self._combined(row) for row in found]

    def _combined(self, steps: Sequence[float]) -> float:
        if self.combine == "min":
            return min(steps)
        if self.combine == "product":
            return math.prod(steps)
        return steps[-1] if self.combine == "last" else math.fsum(steps) / len(steps)

    def _per_token(self, steps: Sequence[float], completion: Completion) -> list[float] | RewardError:
        """Each step's probability at the response's token that holds its last character; 0 elsewhere."""
        count, response = (
            len(completion.tokens),
            completion.text.strip(),
        )  # some tokenizers strip what they decode
        whole = self._decoded(completion, count)
        start = whole.find(response)
        if start < 0:
            return RewardError(
                "the response's tokens are not those of the process reward model's tokenizer, so that no step can be"
                " found in them; set combine to min, product, last or mean"
            )
        start -= completion.text.find(response)
        rewards = [0.0] * count
        for p, end in zip(steps, step_ends(completion.text, self.separator), strict=True):
            rewards[self._token_of(completion, whole[: start + end])] += p
        return rewards

    def _token_of(self, completion: Completion, beginning: str) -> int:
        """The first token with which a response's tokens give this beginning; a character may need several."""

        def given(token: int) -> bool:
            return self._decoded(completion, token + 1).startswith(beginning)

        last = len(completion.tokens) - 1
        return bisect_left(range(last), True, key=given)

    def _decoded(self, completion: Completion, count: int) -> str:
        """The text of a response's first tokens."""
        return str(self._tokenizer.decode(completion.tokens[:count]))

    def probabilities(self, completions: Sequence[Completion]) -> list[list[float] | RewardError]:
        """How likely each step of each completion is right."""
        self.prepare()
        found: list[list[float] | RewardError] = [RewardError("the response has no step")] * len(completions)
        rows: dict[int, list[int]] = {}
        places: dict[int, list[int]] = {}
        for i, completion in enumerate(completions):
            try:
                if read := self._read(completion):
                    rows[i], places[i] = read
            except RewardError as error:
                found[i] = error
        for i, logits in self._logits(rows, self.batch_size):
            right = logits[:, 0] if logits.shape[-1] == 1 else logits[:, 1] - logits[:, 0]
            found[i] = right[places[i]].sigmoid().tolist()
        return found

    def _read(self, completion: Completion) -> tuple[list[int], list[int]] | None:
        """Tokens and the places of the steps' last ones; None: it has no step. Raises RewardError."""
        assert self._reader is not None
        ends = step_ends(completion.text, self.separator)
        if not ends:
            return None
        ids, places = self._reader.tokens_at(completion, ends)
        if len(ids) > self.max_length:
            raise RewardError(
                f"{len(ids)} tokens with the prompt are more than max_length = {self.max_length}"
            )
        return ids, places
