"""The trials of a search in optuna's storage, an SQLite file, from which a killed search goes on as if nothing was.

optuna's samplers and pruners keep random numbers and other state in memory. Here they are made anew for each
question, with a seed of the trial's number, and asked about a copy of the trials; so the answer is a function of the
search's seed and of what the file holds. A trial is written with all its values at once.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxlm.config.search import SearchConfig
from proxlm.config.values import toml_value
from proxlm.errors import ConfigError, RunError
from proxlm.search.space import Parameter, Space, Values
from proxlm.seeds import Purpose, derive_seed

DATABASE, _NAME = "study.db", "search"
# Seconds to wait for another process that writes to the file.
_PATIENCE = 120
# Finished trials of which it is said which settings mattered.
_FEWEST = 8
STATES = {
    "RUNNING": "running",
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "WAITING": "waiting",
}


@dataclass(frozen=True)
class Trial:
    """A trial of a search.

    Attributes:
        number: From 0, in the order in which they began.
        state: "finished", "pruned", "failed" or "running".
        values: Its settings by dotted key.
        objective: Of each objective its value, the mean over the trial's seeds; empty: not finished.
        deviations: Standard errors of these means, of one seed NaN.
        numbers: All numbers of its runs, means over the seeds.
        reason: Why it was pruned, or has failed.
        seconds: Of its runs.
        steps: The metric that the pruner reads, by step.
    """

    number: int
    state: str
    values: Values
    objective: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    steps: dict[int, float] = field(default_factory=dict)


def optuna_module() -> Any:
    """optuna, with its lines about single trials switched off. Raises ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError('proxlm search needs optuna: pip install "proxlm[search]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def check_installed(config: SearchConfig) -> None:
    """Raise ConfigError where optuna, or what the sampler needs besides, is not installed."""
    optuna_module()
    if config.sampler == "gp" and importlib.util.find_spec("scipy") is None:
        raise ConfigError("sampler = gp: needs scipy: pip install scipy; or set it to tpe")


class Study:
    """The trials of one search.

    Args:
        folder: The search's folder; the file is made in it, whole or not at all.
        config: The search's settings.
        space: What is searched.
        best_is: "highest" or "lowest", for each objective.
        budget: Steps of a trial, for hyperband.

    Raises:
        RunError: The file cannot be used.
    """

    def __init__(
        self, folder: Path, config: SearchConfig, space: Space, best_is: Sequence[str], budget: int
    ) -> None:
        self._optuna = optuna_module()
        self._config, self._space, self._budget = config, space, budget
        self._directions = ["maximize" if one == "highest" else "minimize" for one in best_is]
        self._storage, self._study = self._open(folder)

    def _open(self, folder: Path) -> tuple[Any, Any]:
        optuna, file = self._optuna, folder / DATABASE
        try:
            if not file.exists():
                beside = folder / f".writing-{DATABASE}"
                for name in (beside, beside.with_name(f"{beside.name}-journal")):
                    name.unlink(missing_ok=True)
                storage = self._storage_at(beside)
                optuna.create_study(storage=storage, study_name=_NAME, directions=self._directions)
                storage.engine.dispose()
                os.replace(beside, file)
            storage = self._storage_at(file)
            sampler = optuna.samplers.RandomSampler(seed=0)  # never asked
            return storage, optuna.load_study(storage=storage, study_name=_NAME, sampler=sampler)
        except Exception as error:
            raise RunError(f"{file}: cannot be used: {type(error).__name__}: {error}") from error

    def _storage_at(self, file: Path) -> Any:
        from sqlalchemy import URL

        url = URL.create("sqlite", database=str(file.resolve()))
        options = {"connect_args": {"timeout": _PATIENCE}}
        return self._optuna.storages.RDBStorage(url.render_as_string(), engine_kwargs=options)

    def trials(self) -> list[Trial]:
        """All trials so far, by number."""
        return [self._trial(one) for one in self._study.get_trials(deepcopy=False)]

    def _trial(self, frozen: Any) -> Trial:
        own = frozen.user_attrs
        return Trial(
            number=frozen.number,
            state=STATES[frozen.state.name],
            values=self._in_the_space(frozen.params),
            objective=tuple(frozen.values) if frozen.state.name == "COMPLETE" else (),
            deviations=tuple(math.nan if one is None else one for one in own.get("deviations", ())),
            numbers=own.get("numbers", {}),
            reason=own.get("reason", ""),
            seconds=own.get("seconds", 0.0),
            steps=dict(frozen.intermediate_values),
        )

    def add(self, values: Values | None, base: Any) -> int:
        """Add a trial that is running; its number. values: its settings; None: the sampler chooses them."""
        optuna, known = self._optuna, self._study.get_trials(deepcopy=False)
        scratch = optuna.create_study(
            study_name=_NAME,
            directions=self._directions,
            sampler=self._sampler(len(known)),
            pruner=self._pruner(),
        )
        scratch.add_trials([self._as_bad(one) for one in known])
        if values is not None:
            scratch.enqueue_trial(
                {one.key: _stored(values[one.key]) for one in self._space if one.key in values}
            )
        trial, drawn = scratch.ask(), Values()
        for one in self._space:
            if one.applies(drawn, base):
                drawn[one.key] = _restored(one, _suggested(trial, one))
        frozen = scratch.get_trials(deepcopy=False)[-1]
        running = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=frozen.params,
            distributions=frozen.distributions,
            system_attrs=frozen.system_attrs,
        )
        self._study.add_trial(running)
        return len(known)

    def _as_bad(self, trial: Any) -> Any:
        """A trial for the sampler: optuna leaves out those that failed, so that one would go where all fail."""
        states = self._optuna.trial.TrialState
        if trial.state != states.FAIL:
            return trial
        bad = copy.deepcopy(trial)
        bad.state, bad.intermediate_values = states.PRUNED, {}  # worse than all that have a value
        return bad

    def _sampler(self, number: int) -> Any:
        samplers, config = self._optuna.samplers, self._config
        seed = derive_seed(config.seed, Purpose.SAMPLER, number) % 2**32
        if config.sampler == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=config.random_first)
        if config.sampler == "tpe":
            conditions = any(one.when for one in self._space)
            return samplers.TPESampler(
                seed=seed,
                n_startup_trials=config.random_first,
                multivariate=True,
                group=conditions,
                constant_liar=True,
            )
        return samplers.RandomSampler(seed=seed)

    def _pruner(self) -> Any:
        pruners, config = self._optuna.pruners, self._config
        if config.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=config.prune_from)
        if config.pruner == "halving":
            return pruners.SuccessiveHalvingPruner(
                min_resource=config.prune_from, reduction_factor=config.factor
            )
        if config.pruner == "hyperband":
            most = max(self._budget, config.prune_from)
            return pruners.HyperbandPruner(config.prune_from, most, config.factor)
        return pruners.NopPruner()

    def is_bad(self, number: int, step: int, value: float) -> bool:
        """Record a trial's metric after a step; whether the trial is to end there.

        A step that was recorded before a crash is not asked about again, unless the answer was lost.
        """
        frozen = self._frozen(number)
        decided = frozen.user_attrs.get("decided", {"step": 0, "rungs": 0})
        if step <= decided["step"]:
            return False
        if step not in frozen.intermediate_values:
            self._storage.set_trial_intermediate_value(frozen._trial_id, step, value)
            frozen = self._frozen(number)
        # What a crash left of an answer: successive halving notes a rung before it decides there.
        rungs = [name for name in frozen.system_attrs if name.startswith("completed_rung_")]
        for name in rungs:
            if int(name.rpartition("_")[2]) >= decided["rungs"]:
                del frozen.system_attrs[name]
        if self._pruner().prune(self._study, frozen):
            return True
        rungs = [name for name in self._frozen(number).system_attrs if name.startswith("completed_rung_")]
        self._storage.set_trial_user_attr(frozen._trial_id, "decided", {"step": step, "rungs": len(rungs)})
        return False

    def finish(
        self,
        number: int,
        objective: Sequence[float],
        deviations: Sequence[float],
        numbers: Mapping[str, float],
        seconds: float,
    ) -> None:
        """A trial has done all its runs."""
        plain = [None if math.isnan(one) else one for one in deviations]
        self._end(
            number, "COMPLETE", list(objective), deviations=plain, numbers=dict(numbers), seconds=seconds
        )

    def give_up(self, number: int, reason: str, seconds: float, pruned: bool = False) -> None:
        """A trial was pruned, or has failed."""
        self._end(number, "PRUNED" if pruned else "FAIL", None, reason=reason, seconds=seconds)

    def _end(self, number: int, state: str, values: list[float] | None, **own: Any) -> None:
        trial = self._frozen(number)._trial_id
        for name, value in own.items():
            self._storage.set_trial_user_attr(trial, name, value)
        found = self._optuna.trial.TrialState[state]
        if state == "PRUNED":  # as optuna's own loop does it, for samplers that read it
            steps = self._frozen(number).intermediate_values
            values = [steps[max(steps)]] if steps else None
        self._storage.set_trial_state_values(trial, found, values)

    def _frozen(self, number: int) -> Any:
        study = self._storage.get_study_id_from_name(_NAME)
        return self._storage.get_trial(self._storage.get_trial_id_from_study_id_trial_number(study, number))

    def _in_the_space(self, params: Mapping[str, Any]) -> Values:
        return {one.key: _restored(one, params[one.key]) for one in self._space if one.key in params}

    def importance(self, objective: int = 0) -> tuple[dict[str, float], str]:
        """How much each setting matters to an objective, 1 in all, and the evaluator's name; {}: too few trials."""
        importance = self._optuna.importance
        if importlib.util.find_spec("sklearn") is not None:
            evaluator: Any = importance.FanovaImportanceEvaluator(seed=self._config.seed)
            name = "fANOVA (Hutter et al. 2014)"
        else:
            evaluator, name = importance.PedAnovaImportanceEvaluator(), "PED-ANOVA (Watanabe et al. 2023)"
        finished = [one for one in self.trials() if one.state == "finished"]
        keys = [one.key for one in self._space if all(one.key in trial.values for trial in finished)]
        varied = [key for key in keys if len({toml_value(trial.values[key]) for trial in finished}) > 1]
        if (
            len(finished) < _FEWEST
            or not varied
            or len({trial.objective[objective] for trial in finished}) < 2
        ):
            return {}, name
        found = importance.get_param_importances(
            self._study,
            evaluator=evaluator,
            params=varied,
            target=lambda trial: trial.values[objective],
        )
        return {key: float(value) for key, value in found.items()}, name


def _stored(value: Any) -> Any:
    """A value as optuna can hold it: lists and tables as TOML."""
    return toml_value(value) if isinstance(value, list | dict) else value


def _restored(one: Parameter, value: Any) -> Any:
    """The space's own value, of a list or a table too."""
    return next((option for option in one.options if _stored(option) == value), value)


def _suggested(trial: Any, one: Parameter) -> Any:
    if one.options:
        return trial.suggest_categorical(one.key, [_stored(option) for option in one.options])
    if one.whole:
        return trial.suggest_int(one.key, int(one.low), int(one.high), step=int(one.step) or 1, log=one.log)
    return trial.suggest_float(one.key, one.low, one.high, step=one.step or None, log=one.log)
