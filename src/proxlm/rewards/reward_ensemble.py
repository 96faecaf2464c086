"""Several reward models as one reward, which can be wary of what they do not agree on."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any, Literal

from proxlm.checkpoint.manifest import read_json_object
from proxlm.errors import RewardError, RunError
from proxlm.rewards.reward_model import MEMBER, RewardModel, members_of
from proxlm.text import listed
from proxlm.types import Completion

# What says how they belong together: {"boosted": bool, "stacked": a weight for each member}.
ENSEMBLE = "ensemble.json"

Combination = Literal["mean", "worst", "cautious", "stacked", "sum"]


class RewardEnsemble:
    """Scores prompt + response with every reward model of an ensemble, and combines the scores.

    A policy that looks for what one model overrates finds it; several models seldom overrate the same (Coste et al.
    2023; Eisenstein et al. 2023). The result has the components score, which is the reward, and spread, the members'
    standard deviation, which shows how little they agree (weight 0).

    Args:
        path: A folder with the models in member-1, member-2, …: what `proxlm reward` with ensemble.size writes.
        combine: mean; worst, the lowest score; cautious, mean − k · spread; stacked, the sum with the weights that
            explained the validation comparisons best; sum, of members that were boosted.
        k: Of cautious.
        max_length, truncate, batch_size, device, sigmoid, logit, label, pair, chat_template, chat_template_kwargs: As
            of `RewardModel`.

    Raises:
        ValueError: An argument is impossible ("ARGUMENT: what is wrong").
    """

    weights = {"score": 1.0, "spread": 0.0}  # noqa: RUF012 (read, never written)

    def __init__(
        self,
        path: str,
        combine: Combination = "mean",
        k: float = 1.0,
        max_length: int = 0,
        truncate: bool = False,
        batch_size: int = 16,
        device: str = "auto",
        sigmoid: bool = False,
        logit: bool = False,
        label: str | int | None = None,
        pair: bool = False,
        chat_template: str = "",
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if k < 0:
            raise ValueError(f"k = {k}: must be at least 0")
        folders = members_of(Path(path)) if path else []
        if len(folders) < 2:
            within = Path(path) / "reward"
            there = f'; they are in "{within}"' if path and members_of(within) else ""
            raise ValueError(
                f'path = "{path}": needs two models or more, in {MEMBER}1, {MEMBER}2, … below it{there}'
            )
        self.combine, self.k = combine, k
        self.factors = _factors(Path(path), combine, len(folders))
        self.members = [
            RewardModel(
                str(folder), max_length, truncate, batch_size, device, sigmoid, logit, label, pair, chat_template,
                chat_template_kwargs,
            )
            for folder in folders
        ]  # fmt: skip
        if heads := self.members[0].heads:
            raise ValueError(f"label: needed, because the members have several outputs: {listed(heads)}")

    def prepare(self) -> None:
        """Load the models, once. Raises ModelError, or ConfigError for a wrong label."""
        for member in self.members:
            member.prepare()

    def __call__(self, completions: list[Completion]) -> dict[str, list[float | RewardError]]:
        """The combined scores and their spread, [B] each."""
        rows = zip(*(member.scores(completions) for member in self.members), strict=True)
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
        mean = math.fsum(factor * score for factor, score in zip(self.factors, scores, strict=True))
        return mean - self.k * statistics.pstdev(scores) if self.combine == "cautious" else mean


def _factors(folder: Path, combine: str, count: int) -> list[float]:
    """How much each member counts. Raises ValueError for a combination that these members are not for."""
    boosted, stacked = False, None
    if (folder / ENSEMBLE).exists():
        try:
            found = read_json_object(folder / ENSEMBLE)
        except RunError as error:
            raise ValueError(str(error)) from error
        boosted, stacked = found.get("boosted") is True, found.get("stacked")
    if boosted != (combine == "sum") and combine != "stacked":
        kind = "boosted: each corrects those before it" if boosted else "not boosted"
        raise ValueError(
            f'combine = "{combine}": the members are {kind}; set it to {"sum" if boosted else "mean"}'
        )
    if combine != "stacked":
        return [1.0 if boosted else 1 / count] * count
    if not isinstance(stacked, list) or len(stacked) != count or not all(map(_is_weight, stacked)):
        raise ValueError(
            f'combine = "stacked": {folder / ENSEMBLE} has no weights of {count} members; set it to mean'
        )
    if not any(stacked):
        raise ValueError(
            'combine = "stacked": no member was better than chance, so all weights are 0; set it to mean'
        )
    return [float(weight) for weight in stacked]


def _is_weight(value: object) -> bool:
    return type(value) in (int, float) and 0 <= float(str(value)) < math.inf
