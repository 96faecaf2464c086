"""A trained sequence classifier as a reward."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxlm.errors import ConfigError, RewardError
from proxlm.models.weights import NOT_A_REWARD_MODEL
from proxlm.rewards.classifier_reward import ClassifierReward
from proxlm.text import listed, shown
from proxlm.types import Completion

# The folders of the members in an ensemble's folder.
MEMBER = "member-"


class RewardModel(ClassifierReward):
    """Scores prompt + response with a transformers sequence classifier, loaded by `prepare`.

    A model with one output returns that output; one with several scores (regression) a component for each, by name;
    one with several classes the log-probability of one.

    Args:
        path: A folder in Hugging Face format, or a name on the hub; safetensors only, and no code from there.
        max_length: Longest text in tokens, special ones included; 0: the model's own limit. A longer text is an
            error for that completion, or with `truncate` loses its beginning.
        truncate: Cut the beginning off a text that is too long.
        batch_size: Texts in one forward pass; 1 if the model has no padding token. Changes only the speed.
        device: auto, cpu, cuda, cuda:1, ... In float32 on the CPU, in the model's own precision on a GPU.
        sigmoid: Return a probability in [0, 1] instead of an output or a log-probability.
        logit: Return the class's output itself.
        label: The class whose log-probability is the reward (name or number), required with two classes or more; or
            the only one of several scores to return.
        pair: Give prompt and response to the tokenizer as two texts, which it separates as it does for a
            classifier trained on pairs (a translation and its source, for instance), instead of as one text.
        chat_template: A file with a Jinja template, for a model whose tokenizer has none.
        chat_template_kwargs: Variables of its template.

    A prompt of messages is read through the reward model's own template and tokenizer, whatever the policy's are: the
    conversation with the response as the assistant's last message, its end included. BOS stands once.

    Raises:
        ValueError: An argument is impossible ("ARGUMENT: what is wrong").
    """

    _called = "reward model"

    def __init__(
        self,
        path: str,
        max_length: int = 0,
        truncate: bool = False,
        batch_size: int = 16,
        device: str = "auto",
        sigmoid: bool = False,
        logit: bool = False,
        label: str | int | None = None,
        pair: bool = False,
        chat_template: str = "",
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(path, max_length, batch_size, device, chat_template, chat_template_kwargs)
        if sigmoid and logit:
            raise ValueError("logit = true: a probability (sigmoid) is none; set one of both to false")
        self.truncate, self.pair = truncate, pair
        self.sigmoid, self.logit, self.label = sigmoid, logit, label
        self.heads: list[str] = []  # the names of several scores
        if Path(path).is_dir() and (advice := other_folder(Path(path))):
            raise ValueError(f'path = "{path}": {advice}')
        if (config := self._configuration()) is not None:
            try:
                _check_classifier(config)
            except ValueError as error:
                raise ValueError(f'path = "{path}": {error}') from error
            self._set_heads(config)

    def prepare(self) -> None:
        """Load the model and its tokenizer, once. Raises ModelError, or ConfigError for a wrong label."""
        if self._model is not None:
            return
        from transformers import AutoModelForSequenceClassification

        tokenizer = self._read_tokenizer()
        model = self._read_network(AutoModelForSequenceClassification, tokenizer, NOT_A_REWARD_MODEL)
        try:
            self._set_heads(model.config)
        except ValueError as error:
            raise ConfigError(f"reward model {self.path}: {error}") from error
        self._begin(model, tokenizer, self.pair)

    def __call__(
        self, completions: list[Completion]
    ) -> list[float | RewardError] | dict[str, list[float | RewardError]]:
        """The scores, [B], or several by name; each is independent of the rest of the batch, up to rounding."""
        if not self.heads:
            return self.scores(completions)
        rows = self.outputs(completions)
        return {
            name: [row if isinstance(row, RewardError) else row[i] for row in rows]
            for i, name in enumerate(self.heads)
        }

    def scores(self, completions: Sequence[Completion]) -> list[float | RewardError]:
        """One number for each completion: the only output, or what `label` names."""
        rows = self.outputs(completions)
        good = [row for row in rows if not isinstance(row, RewardError)]
        rewards = iter(self._reward(torch.tensor(good)).tolist() if good else [])
        return [row if isinstance(row, RewardError) else next(rewards) for row in rows]

    def outputs(self, completions: Sequence[Completion]) -> list[list[float] | RewardError]:
        """All outputs of the model for each completion."""
        self.prepare()
        assert self._reader is not None
        scores: list[list[float] | RewardError] = [RewardError("the text is empty")] * len(completions)
        rows: dict[int, list[int]] = {}
        for i, completion in enumerate(completions):
            try:
                ids = self._reader.tokens(completion)
                if len(ids) > self.max_length and self.truncate:
                    ids = self._reader.truncated(completion, self.max_length)
            except RewardError as error:
                scores[i] = error
                continue
            if len(ids) > self.max_length:
                scores[i] = RewardError(
                    f"{len(ids)} tokens with the prompt are more than max_length = {self.max_length}; "
                    "truncate = true cuts off the beginning"
                )
            elif ids:
                rows[i] = ids
        # Without a padding token a decoder cannot find where a padded text ends.
        size = 1 if self._padding() is None else self.batch_size
        for i, outputs in self._logits(rows, size):
            scores[i] = outputs.tolist()
        return scores

    def _reward(self, logits: Tensor) -> Tensor:
        """Logits [b, classes] → rewards [b]."""
        index = self._class_index(self._model.config)
        kind = self._model.config.problem_type
        one = logits.shape[-1] == 1 or kind == "regression"
        if one or self.logit or kind == "multi_label_classification":
            logit = logits[:, index]
            if self.logit or (one and not self.sigmoid):
                return logit
            return torch.sigmoid(logit) if self.sigmoid else torch.nn.functional.logsigmoid(logit)
        logprob = torch.log_softmax(logits, -1)[:, index]
        return logprob.exp() if self.sigmoid else logprob

    def _set_heads(self, config: Any) -> None:
        """Note the names of several scores, or check `label`. Raises ValueError for an unknown label."""
        if self.label is None and config.problem_type == "regression" and len(config.id2label) > 1:
            self.heads = [str(config.id2label[i]) for i in sorted(config.id2label)]
        else:
            self._class_index(config)

    def _class_index(self, config: Any) -> int:
        """The output that `label` names; 0 for a model with one output. Raises ValueError for an unknown label."""
        names = {int(i): str(name) for i, name in config.id2label.items()}
        if len(names) == 1 and self.label is None:
            return 0
        for i, name in names.items():
            if self.label in (i, name):
                return i
        problem = "required for a model with several classes" if self.label is None else "no such class"
        raise ValueError(f"label = {self.label!r}: {problem}; the model has {listed(names.values())}")


def members_of(folder: Path) -> list[Path]:
    """The members' folders in an ensemble's, in the order of their numbers."""
    found = [p for p in folder.glob(f"{MEMBER}*") if re.fullmatch(rf"{MEMBER}\d+", p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(MEMBER)))


def other_folder(folder: Path) -> str:
    """What to write for a folder that holds no reward model itself, but an ensemble or a run of one; else ""."""
    if (folder / "config.json").exists():
        return ""
    for place, word in ((folder, "holds"), (folder / "reward", "a run, whose reward/ holds")):
        if members := members_of(place):
            return (
                f"{word} an ensemble of {len(members)}; write use = "
                f'"reward_ensemble" with path = "{place}", or path = "{members[0]}" for one of them'
            )
    if (folder / "reward" / "config.json").exists():
        return f'a run; its reward model is path = "{folder / "reward"}"'
    return ""


def _check_classifier(config: Any) -> None:
    """Raise ValueError for the configuration of a model that says itself that it is no sequence classifier."""
    kinds = getattr(config, "architectures", None) or []
    if kinds and not any("SequenceClassification" in kind for kind in kinds):
        raise ValueError(f"a {shown(kinds[0])}; {NOT_A_REWARD_MODEL}")
