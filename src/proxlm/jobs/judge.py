"""What a finished reward model is worth on held-out comparisons, beside judges that see length or words alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from proxlm.config import RewardConfig
from proxlm.data.labelled import Labelled
from proxlm.data.preferences import Choice, Comparison, choices
from proxlm.data.records import Source
from proxlm.data.skipped import Skipped
from proxlm.errors import DataError, RewardError
from proxlm.evaluation.comparisons import Judged, evaluation_of
from proxlm.evaluation.differences import Arm, Difference, as_text, differences
from proxlm.evaluation.results import Evaluation
from proxlm.evaluation.tables import as_table
from proxlm.evaluation.word_baseline import word_scores
from proxlm.jobs.reward_records import RewardRecords
from proxlm.report.evaluation_files import write_evaluations, write_responses
from proxlm.report.run import Run
from proxlm.rewards.reward_ensemble import Combination, RewardEnsemble
from proxlm.rewards.reward_model import RewardModel, members_of
from proxlm.types import Completion

# Scores of completions; None: of one that cannot be scored.
Judge = Callable[[Sequence[Completion]], Sequence[float | None]]
R = TypeVar("R", Comparison, Labelled)
MODEL, LENGTH, WORDS, STACKED = "model", "length", "words", "stacked"


class HeldOutRecords(Generic[R]):
    """Records that a reward model has not been trained on: those of the section [test], or its validation."""

    _type: type[R]
    _called: ClassVar[str]

    def __init__(self, records: RewardRecords) -> None:
        self._records, self._config = records, records.config
        self._held_out = set(records.held_out)

    def check(self) -> None:
        """Read the files of the section [test] once, before anything is trained. Raises DataError."""
        if self._config.test.files and not any(True for _ in self._asked()):
            raise DataError(f"test.files: no {self._called} that can be used")

    def _asked(self) -> Iterator[R]:
        """The records to judge."""
        given, files = self._records.given, self._config.test.files
        for found in self._read(files or given.validation or given.training):
            if files or found.where in self._held_out:
                yield found

    def _learnt(self) -> Iterator[R]:
        """The records that the model was trained on."""
        given = self._records.given
        for found in self._read(given.training):
            if given.validation or found.where not in self._held_out:
                yield found

    def _read(self, sources: Sequence[Source]) -> Iterator[R]:
        for _, found in self._records.examples(sources, _quiet(self._config)):
            if isinstance(found, self._type):
                yield found


class HeldOut(HeldOutRecords[Comparison]):
    """Held-out comparisons, and the judges."""

    _type = Comparison
    _called = "comparison"

    def judge(self, folder: Path, max_length: int) -> None:
        """Judge the model in a run's folder, and write evaluation.json and every score.

        Raises:
            DataError: A file of the section [test] cannot be used.
            RewardError: A completion cannot be scored, and `text.on_long_text` is fail.
        """
        asked = list(self._asked())
        picked = self._choices()
        learnt = list(self._learnt()) if self._config.test.baselines else []
        model = _model_judge(folder / "reward", self._config, max_length)
        longer = _longer_is_better(learnt)
        lengths = _judged(partial(_lengths, longer=longer), asked, picked)
        found = [
            evaluation_of(LENGTH, f"the {'longer' if longer else 'shorter'} one", lengths, False),
            evaluation_of(MODEL, str(folder / "reward"), _judged(model, asked, picked)),
        ]
        if self._config.ensemble.size > 1 and self._config.test.files and members_of(folder / "reward"):
            stacked = _model_judge(folder / "reward", self._config, max_length, "stacked")
            found.append(evaluation_of(STACKED, "the members, stacked", _judged(stacked, asked, picked)))
        if not self._config.test.baselines:
            found = found[1:]
        elif (words := _words(learnt, asked, picked)) is not None:
            found.insert(1, words)
        write_judgement(folder, found, self._config.run.seed)

    def check(self) -> None:
        super().check()
        self._choices()

    def _choices(self) -> list[Choice]:
        path = self._config.test.best_of
        return list(choices(self._config.text, path, _quiet(self._config))) if path else []


def write_judgement(folder: Path, found: Sequence[Evaluation], seed: int) -> None:
    """Write evaluation.json with all judges, and every answer of the model and of the judge by words."""
    kept = [
        evaluation if evaluation.name in (MODEL, WORDS) else replace(evaluation, responses=[])
        for evaluation in found
    ]
    for evaluation in kept:
        if evaluation.responses:
            write_responses(folder, evaluation)
    write_evaluations(folder, kept, seed)


def print_judgement(run: Run) -> None:
    """Print the table of the judges."""
    found = list(run.evaluations.values())
    if not found:
        return
    print("\n" + as_table(found, "held-out comparison" if LENGTH in run.evaluations else "held-out record"))
    of_words = [run.evaluations[name] for name in (WORDS, MODEL) if name in run.evaluations]
    if len(of_words) > 1 and (compared := _less_words(*of_words)):
        print("\n" + as_text(compared))
    if len(found) > 1 and WORDS not in run.evaluations:
        print(
            'no judge by single words: it needs scikit-learn (pip install "proxlm[metrics]") and 20 records'
        )


def _less_words(words: Evaluation, model: Evaluation) -> list[Difference]:
    """The model less the judge by words, on what both could judge."""
    read = {row["record"] for row in words.responses} & {row["record"] for row in model.responses}
    both = [[row for row in judge.responses if row["record"] in read] for judge in (words, model)]
    return differences([Arm(WORDS, both[:1]), Arm(MODEL, both[1:])]) if read else []


def _quiet(config: RewardConfig) -> Skipped:
    """Receives again what the run has counted already."""
    return Skipped(config.text.on_bad_record == "skip")


def _longer_is_better(learnt: Sequence[Comparison]) -> bool:
    """Whether the longer completion is the better one at least as often as the shorter one."""
    leads = [len(found.chosen.text) - len(found.rejected.text) for found in learnt]
    return sum((lead > 0) - (lead < 0) for lead in leads) >= 0


def _lengths(completions: Sequence[Completion], longer: bool) -> list[float]:
    return [float(len(done.text)) * (1 if longer else -1) for done in completions]


def _words(
    learnt: Sequence[Comparison], asked: Sequence[Comparison], picked: Sequence[Choice]
) -> Evaluation | None:
    """The judge that sees single words, trained on the same comparisons; None: it cannot be made."""
    every = [done for found in asked for done in found.sides]
    every += [done for choice in picked for done in choice.completions]
    scores = word_scores(
        [found.chosen.text for found in learnt],
        [found.rejected.text for found in learnt],
        [done.text for done in every],
    )
    if scores is None:
        return None
    rest = iter(scores)
    judged = _judged(lambda completions: [next(rest) for _ in completions], asked, picked)
    return evaluation_of(WORDS, "logistic regression on single words", judged)


def reading_arguments(config: RewardConfig, max_length: int) -> dict[str, Any]:
    """The arguments of `RewardModel` with which it reads texts as the run did."""
    text = config.text
    return {
        "max_length": max_length,
        "truncate": text.on_long_text == "truncate",
        "device": config.model.device,
        "pair": text.pair,
        "chat_template": text.chat_template,
        "chat_template_kwargs": dict(text.chat_template_kwargs),
    }


def _model_judge(
    path: Path, config: RewardConfig, max_length: int, combine: Combination | None = None
) -> Judge:
    """The saved model, as `reward.use = "reward_model"` reads it."""
    text, arguments = config.text, reading_arguments(config, max_length)
    model: RewardModel | RewardEnsemble
    if members_of(path):
        usual: Combination = "sum" if config.ensemble.boosting else "mean"
        model = RewardEnsemble(str(path), combine or usual, **arguments)
    else:
        model = RewardModel(str(path), **arguments)

    def scores(completions: Sequence[Completion]) -> list[float | None]:
        found: list[float | None] = []
        given = model(list(completions))
        for score in given["score"] if isinstance(given, dict) else given:
            if isinstance(score, RewardError):
                if text.on_long_text == "fail":
                    raise RewardError(f"a held-out completion cannot be scored: {score}")
                found.append(None)
            else:
                found.append(score)
        return found

    return scores


def _judged(judge: Judge, asked: Sequence[Comparison], picked: Sequence[Choice]) -> Judged:
    """What a judge says of all of them; what it cannot score is left out and counted."""
    every = [done for found in asked for done in found.sides]
    every += [done for choice in picked for done in choice.completions]
    scores = iter(judge(every))
    pairs = [(found, (next(scores), next(scores))) for found in asked]
    lists = [(choice, [next(scores) for _ in choice.completions]) for choice in picked]
    whole = [(found, (a, b)) for found, (a, b) in pairs if a is not None and b is not None]
    chosen = [(choice, [s for s in own if s is not None]) for choice, own in lists if None not in own]
    if not whole:
        raise DataError(
            "no held-out comparison can be scored; raise text.max_tokens, or set text.on_long_text"
        )
    return Judged(whole, chosen, len(pairs) - len(whole) + len(lists) - len(chosen))
