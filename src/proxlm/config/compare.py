"""The settings of comparing what was evaluated before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from proxlm.config.problems import Problems, required, reward_problems
from proxlm.config.schema import ProcessSettings, RewardSettings
from proxlm.config.setting import setting


@dataclass(frozen=True)
class CompareConfig:
    """Compare runs, seeds or files of responses prompt by prompt: differences, tests, win rates."""

    runs: list[str] = setting(
        factory=list,
        help="what is compared, the reference first (also: proxlm compare A B …): folders of runs, or files of"
        " responses; one run: its model before and after; A1,A2,A3: the seeds of an arm",
    )
    reward: RewardSettings = setting(
        factory=RewardSettings,
        help="with use: also win rates, by a judge (args.mode = pairwise: in both orders) or by the higher reward",
    )
    greedy: bool = setting(False, "win rates of the greedy responses instead of the sampled ones")
    output: str = setting(
        "", "file for the results, .json, .md, .html or .txt; empty: only print", path="output"
    )
    seed: int = setting(0, "seed of the resamples", ge=0, lt=2**32)
    run: ProcessSettings = setting(factory=ProcessSettings)

    positional: ClassVar[str] = "runs"
    takes_recipe: ClassVar[bool] = True

    def problems(self) -> Problems:
        found = required(("runs", self.runs)) + reward_problems(self.reward)
        if self.greedy and not (self.reward.use or self.reward.terms):
            found.append(("greedy", "is for win rates: set reward.use, or leave it out"))
        if self.output and not self.output.endswith((".json", ".md", ".html", ".txt")):
            found.append(("output", "must end with .json, .md, .html or .txt"))
        return found
