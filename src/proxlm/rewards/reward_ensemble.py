"""Several reward models as one reward, which can be wary of what they do not agree on."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any, Literal

from proxlm.errors import RewardError
from proxlm.rewards.reward_model import RewardModel
from proxlm.types import Completion

# The folders of the members in an ensemble's folder.
MEMBER = "member-"


def members_of(folder: Path) -> list[Path]:
    """The members' folders in an ensemble's, in the order of their numbers."""
    found = [p for p in folder.glob(f"{MEMBER}*") if re.fullmatch(rf"{MEMBER}\d+", p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(MEMBER)))


class RewardEnsemble:
    """Scores prompt + response with every reward model of an ensemble, and combines the scores.

    A policy that looks for what one model overrates finds it; several models seldom overrate the same (Coste et al.
    2023; Eisenstein et al. 2023). The result has the components score, which is the reward, and spread, the members'
    standard deviation, which shows how little they agree (weight 0).

    Args:
        path: A folder with the models in member-1, member-2, …: what `proxlm reward` with ensemble.size writes.
        combine: mean; worst, the lowest score; or cautious, mean − k · spread.
        k: Of cautious.
        max_length, truncate, batch_size, device, sigmoid, label, pair, chat_template, chat_template_kwargs: See
            `RewardModel`.

    Raises:
        ValueError: An argument is impossible ("ARGUMENT: what is wrong").
    """

    weights = {"score": 1.0, "spread": 0.0}  # noqa: RUF012 (read, never written)

    def __init__(
        self,
        path: str,
        combine: Literal["mean", "worst", "cautious"] = "mean",
        k: float = 1.0,
        max_length: int = 0,
        truncate: bool = False,
        batch_size: int = 16,
        device: str = "auto",
        sigmoid: bool = False,
        label: str | int | None = None,
        pair: bool = False,
        chat_template: str = "",
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if k < 0:
            raise ValueError(f"k = {k}: must be at least 0")
        folders = members_of(Path(path)) if path else []
        if len(folders) < 2:
            raise ValueError(
                f'path = "{path}": needs two models or more, in {MEMBER}1, {MEMBER}2, … below it'
            )
        self.combine, self.k = combine, k
        self.members = [
            RewardModel(
                str(folder), max_length, truncate, batch_size, device, sigmoid, label, pair, chat_template,
                chat_template_kwargs,
            )
            for folder in folders
        ]  # fmt: skip

    def prepare(self) -> None:
        """Load the models, once. Raises ModelError, or ConfigError for a wrong label."""
        for member in self.members:
            member.prepare()

    def __call__(self, completions: list[Completion]) -> dict[str, list[float | RewardError]]:
        """The combined scores and their spread, [B] each."""
        rows = zip(*(member(completions) for member in self.members), strict=True)
        found: dict[str, list[float | RewardError]] = {"score": [], "spread": []}
        for row in rows:
            failed = next((score for score in row if isinstance(score, RewardError)), None)
            scores = [score for score in row if not isinstance(score, RewardError)]
            spread = statistics.pstdev(scores) if failed is None else failed
            found["spread"].append(spread)
            found["score"].append(failed or self._combined(scores))
        return found

    def _combined(self, scores: list[float]) -> float:
        if self.combine == "worst":
            return min(scores)
        mean = statistics.fmean(scores)
        return mean - self.k * statistics.pstdev(scores) if self.combine == "cautious" else mean
