"""Several reward models that learn side by side, each on its own sample of the comparisons."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from proxlm.config import ObjectiveSettings
from proxlm.models.classifier import Classifier, averaged, save_classifier
from proxlm.models.forward import micro_batches
from proxlm.rewards.reward_ensemble import MEMBER
from proxlm.runlog import metric_names as names
from proxlm.runlog.folder import JsonRow
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.supervised.labelled_texts import LabelledTexts, all_outputs, outputs_of
from proxlm.train.supervised.reward_objective import RewardObjective


def bag(count: int, seed: int, member: int) -> Tensor:
    """How often each of `count` comparisons is in a member's bootstrap sample (Breiman 1996), [count]; sum: count."""
    drawn = random.Random(derive_seed(seed, Purpose.BAG, member)).choices(range(count), k=count)
    return torch.bincount(torch.tensor(drawn), minlength=count).float()


class EnsembleObjective(RewardObjective):
    """The mean of the members' losses; each weights every comparison by its own sample.

    Args:
        members: The classifiers, at least two.
        training: The comparisons to learn.
        validation: Those that choose the weights that are kept.
        settings: The section [objective].
        seed: Of the samples; None: every member learns all comparisons alike.
        average: One model is saved, whose weights are the members' means (Ramé et al. 2024), instead of all of them.
    """

    def __init__(
        self,
        members: Sequence[Classifier],
        training: LabelledTexts,
        validation: LabelledTexts,
        settings: ObjectiveSettings,
        seed: int | None,
        average: bool = False,
    ) -> None:
        super().__init__(members[0], training, validation, settings)
        self.members, self.average = members, average
        count = len(training)
        self.bags = [torch.ones(count) if seed is None else bag(count, seed, i) for i in range(len(members))]

    def trainable(self) -> Sequence[tuple[str, nn.Parameter]]:
        return [
            (f"{MEMBER}{i}.{name}", p) for i, one in enumerate(self.members, 1) for name, p in one.trainable()
        ]

    def gradient(self, rows: Sequence[int], micro_batch_tokens: int) -> tuple[float, int]:
        chosen, loss = torch.tensor(rows), 0.0
        for micro in micro_batches(self.lengths[chosen], micro_batch_tokens):
            part = [rows[i] for i in micro.tolist()]
            for member, weights in zip(self.members, self.bags, strict=True):
                losses = self._losses(self.training, part, outputs_of(member, self.training, part))
                share = (weights[part].to(losses.device) * losses).sum() / len(rows)
                share.backward()
                loss += float(share.detach()) / len(self.members)
        return loss, int(self.training.text_lengths[chosen].sum())

    def validate(self, micro_batch_tokens: int) -> dict[str, float]:
        """Of the mean of the members' scores, or of the averaged model; and how far the members are apart."""
        found = torch.stack([all_outputs(one, self.validation, micro_batch_tokens) for one in self.members])
        outputs = found.mean(0)
        if self.average:
            outputs = all_outputs(averaged(self.members), self.validation, micro_batch_tokens)
        return {
            **self.metrics_of(outputs),
            names.VALIDATION_SPREAD: float(found.double().std(0, correction=0).mean()),
        }

    def samples(self, count: int) -> list[JsonRow]:
        """As of one model, with the mean of the members' scores and their standard deviation."""
        rows = [super().samples(count)]
        kept = self.model
        try:
            for member in self.members[1:]:
                self.model = member
                rows.append(super().samples(count))
        finally:
            self.model = kept
        made = list[JsonRow]()
        for alike in zip(*rows, strict=True):
            scores = torch.tensor([float(str(row["reward"])) for row in alike])
            spread = {"spread": float(scores.std(correction=0))}
            made.append({**alike[0], "reward": float(scores.mean()), "components": spread})
        return made

    def save(self, folder: Path) -> None:
        if self.average:
            save_classifier(averaged(self.members), folder)
            return
        for i, member in enumerate(self.members, 1):
            save_classifier(member, folder / f"{MEMBER}{i}")
