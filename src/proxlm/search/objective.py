"""What a search optimises, and what its pruner reads: metrics of the job's runs, and which value is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxlm.config import ControlConfig, PPOConfig
from proxlm.config.search import SearchConfig
from proxlm.errors import ConfigError
from proxlm.runlog.best_values import Best, best_of
from proxlm.runlog.metric_names import (
    EPISODE_RETURN,
    EVALUATION,
    METRICS,
    REWARD,
    VALIDATION_LOSS,
    VALUE_ERROR,
    VALUE_LOSS,
    is_metric_of,
)
from proxlm.text import did_you_mean, shown

_DEFAULTS = {"ppo": REWARD, "value": VALUE_ERROR, "control": EPISODE_RETURN}
_OF_STEPS = {"ppo": REWARD, "value": VALUE_LOSS, "control": EPISODE_RETURN}


def objectives(job: str, names: Sequence[str], best_is: Sequence[str], base: Any) -> list[tuple[str, Best]]:
    """The metrics by which trials are judged, with the better value of each.

    Those of a language model's responses are of the evaluation on held-out prompts after the run; others are of the
    best validation, else of the last step.

    Raises:
        ConfigError: There is no such metric, its better value is not declared, or nothing is held out.
    """
    found: list[tuple[str, Best]] = []
    for i, name in enumerate(names or [_DEFAULTS.get(job, VALIDATION_LOSS)]):
        own = is_metric_of(name, job) or is_metric_of(name, "evaluate") or name.startswith("user/")
        if not own:
            hint = did_you_mean(name, list(METRICS), otherwise="see docs/metrics.md")
            raise ConfigError(f"objective: proxlm {job} has no metric {shown(name)}; {hint}")
        best: Any = best_is[i] if best_is else best_of(name)
        if best is None:
            raise ConfigError(f"best_is: needed for objective = {shown(name)}: write highest or lowest")
        found.append((name, best))
    if isinstance(base, PPOConfig) and not (base.data.eval_prompts or base.data.eval_count):
        raise ConfigError(
            "data.eval_count = 0: a search judges by held-out prompts; set it, or data.eval_prompts"
        )
    return found


def pruned_by(config: SearchConfig, base: Any, objective: tuple[str, Best]) -> tuple[str, Best]:
    """The metric of the steps by which trials are pruned, with its better value. Raises ConfigError."""
    job = config.command
    if config.prune_by:
        name = config.prune_by
    elif job == "ppo" and base.evaluation.every:
        name = EVALUATION(REWARD)
    else:
        held = objective[0] if is_metric_of(objective[0], job) and job not in _OF_STEPS else VALIDATION_LOSS
        name = _OF_STEPS.get(job, held)
    if not is_metric_of(name, job) and not name.startswith("user/"):
        hint = did_you_mean(name, list(METRICS), otherwise="see docs/metrics.md")
        raise ConfigError(f"prune_by: the steps of proxlm {job} have no metric {shown(name)}; {hint}")
    best = best_of(name) or objective[1]
    if best != objective[1]:
        raise ConfigError(
            f"prune_by = {shown(name)}: the {best} value is the better one, of the objective the {objective[1]};"
            " choose one that goes the same way"
        )
    return name, best


def planned_steps(base: Any) -> int:
    """The steps of one run of these settings, at most."""
    if isinstance(base, ControlConfig):
        return max(1, base.environment.steps // (base.environment.count * base.ppo.horizon))
    steps: int = base.ppo.steps if isinstance(base, PPOConfig) else base.train.steps
    return steps
