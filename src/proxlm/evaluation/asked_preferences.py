"""Which of two responses to a prompt is preferred: a judge is asked in both orders, or the higher reward wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from proxlm.config import RewardSettings
from proxlm.errors import ConfigError, DataError, RewardError
from proxlm.evaluation.differences import Arm, Row
from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.tables import Table
from proxlm.evaluation.win_rate import Preference, WinRate, win_rate
from proxlm.rewards.judge import Judge
from proxlm.rewards.resolve import resolve_terms
from proxlm.rewards.reward import build_reward
from proxlm.text import shown
from proxlm.types import Completion


def win_rates(arms: Sequence[Arm], config: RewardSettings, greedy: bool, seed: int = 0) -> list[WinRate]:
    """The win rate of each arm against the first one.

    Args:
        arms: Of one run each, with the same prompts; of several responses to a prompt the first one counts.
        config: A judge or any other reward.
        greedy: Whether the greedy responses are compared, not the sampled ones.
        seed: Of the resamples.

    Raises:
        ConfigError: The arms have several seeds, or the settings do not fit.
        RewardError: A response cannot be judged, and reward.on_error = "fail".
        DataError: There is nothing to judge.
    """
    for arm in arms:
        if len(arm.runs) > 1:
            raise ConfigError(
                f"reward: win rates are of single runs, and {shown(arm.name)} has several seeds"
            )
    judge = _judge(config)
    first = _completions(arms[0], greedy)
    found = []
    for arm in arms[1:]:
        other = _completions(arm, greedy)
        pairs = [(other[key], first[key]) for key in first if key in other]
        said = _by_judge(judge, pairs, config) if judge else _by_reward(pairs, config)
        if all(one is None for one in said):
            raise DataError(f"{shown(arm.name)}: no response was judged, so that there is no win rate")
        found.append(win_rate(arm.name, arms[0].name, said, judge is not None, seed))
    return found


def _judge(config: RewardSettings) -> Judge | None:
    """The judge that compares; None: the reward gives each response a number."""
    if config.use != "judge" or config.args.get("mode") != "pairwise":
        return None
    (term,) = resolve_terms(config, None)
    return term.function if isinstance(term.function, Judge) else None


def _completions(arm: Arm, greedy: bool) -> dict[tuple[str, str], Completion]:
    """The first response to each prompt."""
    found: dict[tuple[str, str], Completion] = {}
    for row in arm.runs[0]:
        response = _response(row.get("greedy") if greedy else row)
        if response is not None:
            key = (str(row.get("prompt_id", "")), str(row["prompt"]))
            found.setdefault(key, Completion(key[1], response))
    if not found:
        what = "greedy responses" if greedy else "responses"
        raise DataError(f"{shown(arm.name)}: holds no {what} to judge")
    return found


def _response(row: Row | None) -> str | None:
    response = row.get("response") if isinstance(row, Mapping) else None
    return response if isinstance(response, str) else None


_Pairs = Sequence[tuple[Completion, Completion]]


def _by_judge(judge: Judge, pairs: _Pairs, config: RewardSettings) -> list[Preference | None]:
    said = judge.preferences([ours for ours, _ in pairs], [theirs.text for _, theirs in pairs])
    found: list[Preference | None] = []
    for (ours, theirs), verdict in zip(pairs, said, strict=True):
        if isinstance(verdict, RewardError):
            if config.on_error == "fail":
                raise RewardError(
                    f'{verdict}; fix it, or set reward.on_error = "score" to leave such prompts out'
                )
            found.append(None)
        else:
            found.append(Preference(*verdict, _longer(ours, theirs)))
    return found


def _by_reward(pairs: _Pairs, config: RewardSettings) -> list[Preference | None]:
    """The higher reward wins; where one of both has none, nothing is said."""
    left_out: dict[str, Any] = {"error_score": math.nan} if config.on_error == "score" else {}
    reward = build_reward(replace(config, **left_out))
    ours, theirs = (reward.score(list(side)).total.tolist() for side in zip(*pairs, strict=True))
    found: list[Preference | None] = []
    for (one, other), a, b in zip(pairs, ours, theirs, strict=True):
        win = 0.5 if a == b else float(a > b)
        nothing = math.isnan(a) or math.isnan(b)
        found.append(None if nothing else Preference(win, win, _longer(one, other)))
    return found


def _longer(ours: Completion, theirs: Completion) -> float:
    return float(len(ours.text) - len(theirs.text))


def win_rate_table(rates: Sequence[WinRate]) -> Table:
    """A row for each win rate; all against the same system."""
    ordered = any(rate.first is not None for rate in rates)
    head = [
        f"against {rates[0].reference}",
        "win rate",
        "at equal length",
        "won",
        "tied",
        "lost",
        "longer by",
    ]
    notes = [
        "(a tie is a half; win rate: Wilson's interval over prompts; at equal length: by logistic regression on the",
        "difference of length, bootstrap interval; longer by: characters, on average)",
    ]
    if ordered:
        head += ["prefers the first", "changed"]
        notes += [
            "(prefers the first: of the judge's verdicts, ½ without position bias;",
            "changed: prompts on which the verdict changes with the order)",
        ]
    notes += [f"({r.arm}: {r.failed} prompts left out, of which nothing was said)" for r in rates if r.failed]
    return Table(head, [_cells(rate, ordered) for rate in rates], notes=notes)


def _cells(rate: WinRate, ordered: bool) -> list[str]:
    cells = [
        rate.arm,
        _share(rate.rate),
        _share(rate.equal_length),
        str(rate.won),
        str(rate.tied),
        str(rate.lost),
    ]
    cells.append(f"{rate.longer:+.1f}")
    return [*cells, _share(rate.first), str(rate.changed)] if ordered else cells


def _share(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.mean:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
