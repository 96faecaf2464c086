"""What a model of scores, classes or steps is worth on held-out records, beside a constant and single words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from proxlm.data.labelled import Labelled, step_ends
from proxlm.errors import DataError, RewardError
from proxlm.evaluation.labels import (
    evaluation_of_classes,
    evaluation_of_scores,
    evaluation_of_steps,
)
from proxlm.evaluation.results import Evaluation
from proxlm.evaluation.word_baseline import word_classes, word_values
from proxlm.jobs.judge import MODEL, WORDS, HeldOutRecords, reading_arguments, write_judgement
from proxlm.jobs.reward_records import RewardRecords
from proxlm.rewards.process_reward_model import ProcessRewardModel
from proxlm.rewards.reward_model import RewardModel, members_of
from proxlm.types import Completion

CONSTANT = "constant"
# What a judge says of a record: see `proxlm.evaluation.labels`; None: it could not be read.
_Said = Sequence[Sequence[float] | None]


class HeldOutLabels(HeldOutRecords[Labelled]):
    """Held-out records with labels, and the judges."""

    _type = Labelled
    _called = "record"

    def __init__(self, records: RewardRecords) -> None:
        super().__init__(records)
        self._kind = records.kind

    def judge(self, folder: Path, max_length: int) -> None:
        """Judge the model in a run's folder, and write evaluation.json and every answer.

        Raises:
            DataError: A file of the section [test] cannot be used.
            RewardError: A response cannot be judged, and `text.on_long_text` is fail.
        """
        asked = list(self._asked())
        found = []
        if self._config.test.baselines:
            learnt = list(self._learnt())
            found.append(
                self._evaluation(CONSTANT, "one answer for all", asked, self._constant(learnt, asked))
            )
            if (said := self._words(learnt, asked)) is not None:
                found.append(self._evaluation(WORDS, "regression on single words", asked, said))
        said = self._model(folder / "reward", [record.completion for record in asked], max_length)
        found.append(self._evaluation(MODEL, str(folder / "reward"), asked, said))
        write_judgement(folder, found, self._config.run.seed)

    def _evaluation(self, name: str, model: str, asked: Sequence[Labelled], said: _Said) -> Evaluation:
        answers = [(record, own) for record, own in zip(asked, said, strict=True) if own is not None]
        failed = len(asked) - len(answers)
        if not answers:
            raise DataError(
                "no held-out record can be judged; raise text.max_tokens, or set text.on_long_text"
            )
        if self._kind == "scores":
            return evaluation_of_scores(name, model, self._records.outputs, answers, failed)
        if self._kind == "classes":
            return evaluation_of_classes(name, model, self._records.outputs, answers, failed)
        return evaluation_of_steps(name, model, answers, failed)

    def _constant(self, learnt: Sequence[Labelled], asked: Sequence[Labelled]) -> _Said:
        """The mean score, or the shares of the classes, or of right steps, in the training part."""
        if self._kind == "scores":
            columns = zip(*(record.numbers for record in learnt), strict=True)
            means = [
                statistics.fmean([value for value in column if not math.isnan(value)]) for column in columns
            ]
            return [means] * len(asked)
        if self._kind == "classes":
            counts = [0] * len(self._records.outputs)
            for record in learnt:
                counts[int(record.numbers[0])] += 1
            return [[count / len(learnt) for count in counts]] * len(asked)
        right = statistics.fmean([float(label > 0.5) for record in learnt for label in record.numbers])
        return [[right] * len(record.numbers) for record in asked]

    def _words(self, learnt: Sequence[Labelled], asked: Sequence[Labelled]) -> _Said | None:
        """The judge that sees single words of the response, or of the step; None: it cannot be made."""
        texts = [record.completion.text for record in asked]
        if self._kind == "scores":
            columns = [self._word_column(learnt, k, texts) for k in range(len(self._records.outputs))]
            whole = [column for column in columns if column is not None]
            return list(zip(*whole, strict=True)) if len(whole) == len(columns) else None
        if self._kind == "classes":
            own, classes = [r.completion.text for r in learnt], [int(r.numbers[0]) for r in learnt]
            return word_classes(own, classes, texts, len(self._records.outputs))
        pairs = [pair for record in learnt for pair in zip(self._steps(record), record.numbers, strict=True)]
        steps = [step for record in asked for step in self._steps(record)]
        found = word_classes([step for step, _ in pairs], [int(label > 0.5) for _, label in pairs], steps, 2)
        rest = iter(found or ())
        return None if found is None else [[next(rest)[1] for _ in record.numbers] for record in asked]

    def _word_column(
        self, learnt: Sequence[Labelled], score: int, texts: Sequence[str]
    ) -> list[float] | None:
        known = [record for record in learnt if not math.isnan(record.numbers[score])]
        return word_values([r.completion.text for r in known], [r.numbers[score] for r in known], texts)

    def _steps(self, record: Labelled) -> list[str]:
        text, separator = record.completion.text, self._config.labels.separator
        ends = step_ends(text, separator)
        return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _model(self, path: Path, asked: Sequence[Completion], max_length: int) -> _Said:
        """The saved model, as a reward reads it; of several members the mean of their outputs."""
        arguments = reading_arguments(self._config, max_length)
        if self._kind == "steps":
            unused = {"truncate", "pair"}
            model = ProcessRewardModel(
                str(path), **{name: value for name, value in arguments.items() if name not in unused}
            )
            return self._usable(model.probabilities(asked))
        label = 0 if self._kind == "classes" else None
        members = [
            self._usable(RewardModel(str(member), label=label, **arguments).outputs(asked))
            for member in members_of(path) or [path]
        ]
        means = [None if own[0] is None else torch.tensor(own).mean(0) for own in zip(*members, strict=True)]
        if self._kind == "classes":
            means = [None if mean is None else mean.softmax(-1) for mean in means]
        return [None if mean is None else mean.tolist() for mean in means]

    def _usable(self, found: Sequence[list[float] | RewardError]) -> _Said:
        said: list[list[float] | None] = []
        for row in found:
            if isinstance(row, RewardError) and self._config.text.on_long_text == "fail":
                raise RewardError(f"a held-out response cannot be judged: {row}")
            said.append(None if isinstance(row, RewardError) else row)
        return said
