"""A reward: its terms are called with a time limit; their results are checked, weighted and added up."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from proxlm.config.schema import RewardSettings
from proxlm.config.signature import checked
from proxlm.data.fields import own_copy
from proxlm.errors import LONGEST_MESSAGE, ConfigError, RewardError
from proxlm.rewards.call import TimedCaller
from proxlm.rewards.isolated import IsolatedTerms
from proxlm.rewards.process_reward_model import ProcessRewardModel
from proxlm.rewards.resolve import Rewards, Term, resolve_terms
from proxlm.rewards.result import Component, UnusableResultError, parts_of
from proxlm.rewards.reward_ensemble import RewardEnsemble
from proxlm.rewards.reward_model import RewardModel
from proxlm.rewards.similarity import Similarity
from proxlm.text import listed, shown, suggestion
from proxlm.types import Completion, Rollout, Scores

log = logging.getLogger(__name__)
# Loaded by `prepare`, outside the time limit, and kept in this process.
_MODELS = RewardModel | RewardEnsemble | ProcessRewardModel | Similarity


@checked("function")
def build_reward(config: RewardSettings, function: Rewards | Reward | None = None) -> Reward:
    """The reward that `config` describes. Reward models are located but not loaded yet: see Reward.prepare.

    Args:
        config: The section [reward].
        function: A Python function, or several, to use instead of `config.use`; a `Reward` is returned as it is.

    Raises:
        ConfigError: An unknown name, file or argument, or an impossible value.
        UserCodeError: A user's file cannot be run.
    """
    if isinstance(function, Reward):
        return function
    if config.isolate and function is not None:
        raise ConfigError(
            "reward.isolate: a function given in Python cannot be sent to another process; put it into a file and set"
            " reward.use = path/to/file.py:function"
        )
    terms = resolve_terms(config, function)
    if isinstance(function, Mapping | Sequence) and not isinstance(function, str):
        config = replace(config, weights={})  # of the functions, by name; they are in the terms
    return Reward(terms, config)


class Reward:
    """Callable: a rollout → the scores of its responses. Made by `build_reward`."""

    def __init__(self, terms: list[Term], config: RewardSettings) -> None:
        if config.on_error not in ("fail", "score"):
            raise ConfigError(f'reward.on_error = "{config.on_error}": must be fail or score')
        self._terms = terms
        self._config = config
        self._caller = TimedCaller()
        self._isolated = IsolatedTerms(config) if config.isolate else None
        self._components: dict[str, list[str]] = {}  # by term, once it has returned something

    def prepare(self) -> None:
        """Load the reward models, outside the time limit. Raises ModelError, or ConfigError for a wrong label."""
        for term in self._terms:
            if isinstance(term.function, _MODELS):
                term.function.prepare()

    def __call__(self, rollout: Rollout) -> Scores:
        """Scores on the rollout's device: total [B] float32, per_token [R] float32 or None. See `score`."""
        scores = self.score(rollout.completions())
        device = rollout.logprobs.device

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            scores,
            total=scores.total.to(device),
            per_token=moved(scores.per_token),
            potentials=moved(scores.potentials),
        )

    def score(self, completions: Sequence[Completion]) -> Scores:
        """The weighted sum of the terms for each of B completions, on the CPU.

        A component of per-token rewards counts in per_token instead of total (in potentials, if its term is a
        potential), and is reported as each response's sum. A component that is None for a response does not count
        for it; a response for which all are None (but for those of weight 0) has no reward: its total is NaN. With
        on_error = "score", a response whose reward failed in any term gets error_score as total, and no per-token
        rewards; in `components` its failed parts are error_score.

        Raises:
            RewardError: A term failed, and on_error = "fail".
            ConfigError: reward.weights names a component that the function does not return.
        """
        self.prepare()
        lengths = torch.tensor([len(c.tokens) for c in completions], dtype=torch.int64)
        row_of_token = torch.repeat_interleave(torch.arange(len(completions)), lengths)
        total = torch.zeros(len(completions), dtype=torch.float64)
        tokens: dict[str, Tensor] = {}
        components: dict[str, list[float]] = {}
        weights: dict[str, float] = {}
        failed: set[int] = set()
        given, withheld = _no_rows(completions), _no_rows(completions)
        for term in self._terms:
            for name, part in self._evaluate(term, completions).items():
                default = term.component_weights.get(name, 1.0)
                weight = term.weight * self._config.weights.get(name, default)
                values = torch.tensor(part.values, dtype=torch.float64)
                if not term.potential:
                    withheld |= values.isnan()
                    given |= ~values.isnan() & (weight != 0)
                if part.per_token is not None:
                    kind = "potentials" if term.potential else "per_token"
                    weighted = weight * torch.tensor(part.per_token, dtype=torch.float64)
                    tokens[kind] = tokens[kind] + weighted if kind in tokens else weighted
                elif term.potential and not part.problems and not values.isnan().all():
                    raise ConfigError(
                        f"reward.terms.{term.name}.potential: {term.title} must return a number for each token"
                    )
                else:
                    total += weight * values.nan_to_num(0.0)
                failed.update(part.problems)
                if label := ".".join(filter(None, (term.name, name))):
                    if part.per_token is None and not term.potential:
                        weights[label] = weight
                    components[label] = [
                        self._config.error_score if i in part.problems else v
                        for i, v in enumerate(part.values)
                    ]
        failed.update(self._overflows(total, list(tokens.values()), row_of_token, failed))
        total[withheld & ~given] = math.nan
        lost = torch.tensor([i in failed for i in range(len(completions))], dtype=torch.bool)
        total[lost] = self._config.error_score
        kept = {kind: t.masked_fill(lost[row_of_token], 0.0).float() for kind, t in tokens.items()}
        return Scores(
            total.float(), kept.get("per_token"), components, len(failed), kept.get("potentials"), weights
        )

    def _evaluate(self, term: Term, completions: Sequence[Completion]) -> dict[str, Component]:
        """One term's components by name; rows that failed are marked. Raises RewardError with on_error = "fail"."""
        try:
            parts = self._call(term, completions)
            self._check_components(term, list(parts))
        except UnusableResultError as error:
            problems = dict.fromkeys(range(len(completions)), str(error))
            self._fail(term.title, problems, len(completions))
            return {
                name: Component([math.nan] * len(completions), None, problems)
                for name in self._components.get(term.name, [""])
            }
        self._fail(
            term.title, {i: text for p in parts.values() for i, text in p.problems.items()}, len(completions)
        )
        return parts

    def _call(self, term: Term, completions: Sequence[Completion]) -> dict[str, Component]:
        """One term's checked components. Raises UnusableResultError."""
        if self._isolated is not None and not isinstance(term.function, _MODELS):
            return self._isolated.evaluate(self._terms.index(term), completions)
        # The prompt's record is shared by all its responses and steps; what a reward writes into it must not stay.
        own = [
            replace(c, fields=own_copy(c.fields), messages=tuple(own_copy(message) for message in c.messages))
            for c in completions
        ]
        outcome = self._caller.call(lambda: term.function(own), self._config.timeout)
        if outcome.timed_out:
            raise UnusableResultError(f"took longer than {self._config.timeout:g} s (reward.timeout)")
        return parts_of(outcome, term.file, completions)

    def _check_components(self, term: Term, names: list[str]) -> None:
        """Refuse a missing component, which would count as 0, and a weight of a component that does not exist."""
        first = self._components.get(term.name)
        if first is None:
            for name in self._config.weights:
                if name not in names:
                    raise ConfigError(f"reward.weights.{name}: {term.title} {_returns(names, name)}")
            self._components[term.name] = names
        elif set(first) != set(names):
            raise UnusableResultError(
                f"returned {_listed(names)}, but its first call returned {_listed(first)}"
            )

    def _overflows(
        self, total: Tensor, tokens: list[Tensor], row_of_token: Tensor, failed: set[int]
    ) -> set[int]:
        """Rows that have not failed so far and whose weighted sum does not fit in float32."""
        bad = set((~total.float().isfinite()).nonzero().flatten().tolist())
        for per_token in tokens:
            bad.update(row_of_token[~per_token.float().isfinite()].tolist())
        bad -= failed
        self._fail(
            "sum", {i: f"is too large for float32 for completion {i}" for i in sorted(bad)}, len(total)
        )
        return bad

    def _fail(self, title: str, problems: dict[int, str], rows: int) -> None:
        """Raise the first of the problems, or log it, as reward.on_error says."""
        if not problems:
            return
        text = next(iter(problems.values()))
        # A problem of the whole call is recorded for every row with the same text.
        more = len(problems) - 1 if len(set(problems.values())) > 1 else 0
        line = shown(f"reward {title} {text}{f' (and {more} more)' if more else ''}", LONGEST_MESSAGE)
        if self._config.on_error == "fail":
            raise RewardError(
                f'{line}; fix it, or set reward.on_error = "score" to go on with reward.error_score'
            )
        log.warning(
            "%s; error_score = %g for %d of %d responses", line, self._config.error_score, len(problems), rows
        )


def _no_rows(completions: Sequence[Completion]) -> Tensor:
    return torch.zeros(len(completions), dtype=torch.bool)


def _returns(names: list[str], wanted: str) -> str:
    if names == [""]:
        return "returns a plain list, not a dict of components"
    return f"returns no such component; {suggestion(wanted, names, f'it returns {listed(names)}')}"


def _listed(names: list[str]) -> str:
    return "a plain list" if names == [""] else f"the components {', '.join(names)}"
