"""The settings of searching a job's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from proxlm.config.problems import Problems, required
from proxlm.config.recipe_command import RecipeCommand
from proxlm.config.setting import setting

TrainingCommand = Literal["ppo", "value", "pretrain", "sft", "reward", "dpo", "distill", "control"]


@dataclass(frozen=True)
class SearchConfig(RecipeCommand):
    """Search a recipe's settings: trials in a space of them, judged by the numbers of their own runs."""

    command: TrainingCommand = setting("ppo", "the command that the recipe is for")
    space: str = setting(
        "", "TOML file of the settings to search and their ranges, or a ready space: ppo, supervised"
    )
    folder: str = setting(
        "", "where the trials are written; empty: runs/search-DATE-TIME; an old one: go on with it",
        path="output",
    )  # fmt: skip
    seed: int = setting(
        0, "seed of the sampler; those of the runs are run.seed and the next ones", ge=0, lt=2**32
    )
    trials: int = setting(20, "number of trials; of a grid at most", ge=1, le=10_000)
    sampler: Literal["tpe", "random", "grid", "gp"] = setting(
        "tpe",
        "where the next trial is: tree-structured Parzen estimators (Bergstra et al. 2011), random points, all of a"
        " grid in order, or a Gaussian process (needs scipy)",
    )
    random_first: int = setting(8, "tpe, gp: random trials before the model is asked", ge=1)
    recipe_first: bool = setting(
        True, "the first trial has the recipe's own settings, where the space holds them"
    )
    objective: list[str] = setting(
        factory=list,
        help="metric of the finished run; empty: of ppo reward (held-out, sampled), of value value_error, of control"
        " episode_return, else validation_loss; two or more: their Pareto front",
    )
    best_is: list[str] = setting(
        factory=list, help="highest or lowest, for each objective; empty: as the metric is declared"
    )
    seeds: int = setting(
        1, "runs of each trial, with seeds of their own; a trial's value is their mean", ge=1, le=100
    )
    pruner: Literal["none", "median", "halving", "hyperband"] = setting(
        "none",
        "end bad trials early: below the median of those before, by successive halving (Li et al. 2020), or in"
        " brackets of it (Li et al. 2018)",
    )
    prune_by: str = setting(
        "",
        "metric of the steps that the pruner reads; empty: of ppo evaluation/reward with evaluation.every, else"
        " reward; of others the objective",
    )
    prune_from: int = setting(
        1, "first step that is judged; of halving and hyperband the smallest budget", ge=1
    )
    factor: int = setting(
        3, "halving, hyperband: one of so many goes on to a budget so many times as large", ge=2
    )
    workers: int = setting(1, "processes that run trials at the same time", ge=1, le=256)
    confirm: int = setting(
        0, "new seeds with which the best trials and the recipe are trained at the end", ge=0, le=100
    )
    confirm_best: int = setting(1, "how many of the best trials are confirmed", ge=1, le=100)

    positional: ClassVar[str] = "command recipe"

    def problems(self) -> Problems:
        found = super().problems() + required(("space", self.space))
        if len(set(self.objective)) < len(self.objective):
            found.append(("objective", "names a metric twice"))
        if wrong := [one for one in self.best_is if one not in ("highest", "lowest")]:
            found.append(("best_is", f'"{wrong[0]}": write highest or lowest'))
        elif self.best_is and len(self.best_is) != max(1, len(self.objective)):
            found.append(("best_is", "give one for each objective"))
        if len(self.objective) > 1 and self.pruner != "none":
            found.append(("pruner", "not with several objectives: set it to none"))
        return found


@dataclass(frozen=True)
class SweepConfig(RecipeCommand):
    """Train a recipe with every combination of some settings, with several seeds, and compare them in a table."""

    command: TrainingCommand = setting("ppo", "the command that the recipe is for")
    over: list[str] = setting(
        factory=list,
        help="a setting and its values, section.key=V1,V2,…; KEY+KEY=… gives them to both; may be repeated: the"
        " grid is their product",
    )
    seeds: int = setting(1, "runs of each combination: run.seed and the next ones", ge=1, le=100)
    objective: str = setting("", "metric that the combinations are ordered by; empty: as of proxlm search")
    folder: str = setting(
        "", "where the runs are written; empty: runs/sweep-DATE-TIME; an old one: go on with it",
        path="output",
    )  # fmt: skip
    workers: int = setting(1, "processes that run at the same time", ge=1, le=256)

    positional: ClassVar[str] = "command recipe"

    def problems(self) -> Problems:
        return super().problems() + required(("over", self.over))
