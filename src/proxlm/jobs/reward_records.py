"""The records that a reward model learns: comparisons, or responses with labels, and what its outputs are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from proxlm.config import RewardConfig
from proxlm.data.labelled import LabelFormat, Labelled, classes_in, labelled
from proxlm.data.preferences import Comparison, comparisons, split_by_prompt
from proxlm.data.records import Source
from proxlm.data.skipped import Record, Skipped
from proxlm.errors import ConfigError
from proxlm.jobs.in_memory import GivenRecords
from proxlm.models.classifier import Classifier
from proxlm.text import listed
from proxlm.train.supervised.completion_tokens import CompletionTokens
from proxlm.train.supervised.labelled_texts import LabelledTexts

# The classes of a step, in the order in which others save them.
STEP_CLASSES = ("wrong", "right")


class RewardRecords:
    """Reads the records of a job.

    Args:
        config: Its settings.
        given: Where the records are.
        skipped: Receives what cannot be used.

    Attributes:
        outputs: The names of the model's outputs: of scores their fields, of classes these.
        held_out: The places (file:line) of the validation records, once `texts` has read them.

    Raises:
        DataError: The classes are not given and cannot be found.
    """

    def __init__(self, config: RewardConfig, given: GivenRecords, skipped: Skipped) -> None:
        self.config, self.given, self._skipped = config, given, skipped
        self.kind, self.held_out = config.objective.kind, list[str]()
        self.outputs: Sequence[str] = ("score",)
        if self.kind == "scores":
            self.outputs = config.labels.score_fields
        elif self.kind == "steps":
            self.outputs = STEP_CLASSES
        elif self.kind == "classes":
            field = config.labels.class_field
            self.outputs = config.labels.classes or classes_in(field, given.training, skipped)

    def examples(
        self, sources: Sequence[Source], skipped: Skipped | None = None
    ) -> Iterator[tuple[Record, Comparison | Labelled]]:
        """The records and what they hold. Raises DataError."""
        skipped = self._skipped if skipped is None else skipped
        if self.kind == "comparisons":
            return comparisons(self.config.text, sources, skipped)
        how = LabelFormat(self.kind, self.config.text, self.config.labels, self.outputs)
        return labelled(how, sources, skipped)

    def order_as(self, model: Classifier) -> None:
        """Take the order of the classes from a trained classifier of the same ones.

        Raises:
            ConfigError: `labels.classes` says another.
        """
        known = [str(model.network.config.id2label[i]) for i in sorted(model.network.config.id2label)]
        if self.kind != "classes" or model.new_head or known == [*self.outputs]:
            return
        if set(known) == set(self.outputs):
            if self.config.labels.classes:
                raise ConfigError(
                    f"labels.classes: the order of the model's outputs is {listed(known)}; give that"
                )
            self.outputs = known

    def split(self, groups: Sequence[str]) -> tuple[list[int], list[int]]:
        """Which of the records are for training and for validation."""
        return split_by_prompt(groups, self.config.text.validation_share, self.config.run.seed)

    def texts(self, reading: CompletionTokens) -> tuple[LabelledTexts, LabelledTexts]:
        """The training and the validation part as tokens. Raises DataError."""
        every, groups, places = self._read(reading, self.given.training)
        if self.given.validation:
            held_out, _, places = self._read(reading, self.given.validation)
            self.held_out = places
            return every.select(range(len(every))), held_out.select(range(len(held_out)))
        training, validation = self.split(groups)
        self.held_out = [places[i] for i in validation]
        return every.select(training), every.select(validation)

    def _read(
        self, reading: CompletionTokens, sources: Sequence[Source]
    ) -> tuple[LabelledTexts, list[str], list[str]]:
        """Tokens and numbers, and for each record its group and its place."""
        groups, places = list[str](), list[str]()

        def rows() -> Iterator[tuple[list[list[int]], tuple[float, ...], list[int]]]:
            for found, tokens in reading.read(self.examples(sources)):
                groups.append(found.group)
                places.append(found.where)
                yield tokens.texts, found.numbers, tokens.places

        return LabelledTexts.of(rows(), 2 if self.kind == "comparisons" else 1), groups, places

    def vocabulary_texts(self) -> Iterator[str]:
        """The texts of the training part, for a new tokenizer."""
        held_out = set[int]()
        if not self.given.validation:
            groups = [found.group for _, found in self.examples(self.given.training)]
            held_out.update(self.split(groups)[1])
        for i, (_, found) in enumerate(self.examples(self.given.training)):
            if i not in held_out:
                yield found.sides[0].prompt
                yield from (side.text for side in found.sides)
