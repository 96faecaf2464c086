"""Several reward models that learn side by side, each on its own sample of the records."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from proxlm.config import EnsembleSettings
from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.models.classifier import Classifier, averaged, save_classifier
from proxlm.rewards.reward_ensemble import ENSEMBLE
from proxlm.rewards.reward_model import MEMBER
from proxlm.runlog import metric_names as names
from proxlm.runlog.folder import JsonRow
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.common.passes import passes
from proxlm.train.supervised.criteria import Criterion
from proxlm.train.supervised.dropout import NO_DROPOUT, Dropout
from proxlm.train.supervised.labelled_texts import LabelledTexts, all_outputs
from proxlm.train.supervised.reward_objective import RewardObjective
from proxlm.train.supervised.stacking import stacking_weights


def bag(count: int, seed: int, member: int) -> Tensor:
    """How often each of `count` records is in a member's bootstrap sample (Breiman 1996), [count]; sum: count."""
    drawn = random.Random(derive_seed(seed, Purpose.BAG, member)).choices(range(count), k=count)
    return torch.bincount(torch.tensor(drawn), minlength=count).float()


class EnsembleObjective(RewardObjective):
    """The mean of the members' losses; each weights every record by its own sample.

    With boosting a member's loss is that of the sum of its output and those of the members before it, which learn
    nothing from it: forward stagewise additive modelling (Friedman, Hastie and Tibshirani 2000; gradient boosting,
    Friedman 2001), with all members learning at once (Beygelzimer et al. 2015, Online gradient boosting).

    Args:
        members: The classifiers, at least two.
        training: The records to learn.
        validation: Those that choose the weights that are kept.
        criterion: What they learn.
        ensemble: The section [ensemble].
        seed: The run's.
        micro_batch_tokens: Most tokens in a pass when a checkpoint needs the members' weights in the sum.
        dropout: Of the members.
    """

    def __init__(
        self,
        members: Sequence[Classifier],
        training: LabelledTexts,
        validation: LabelledTexts,
        criterion: Criterion,
        ensemble: EnsembleSettings,
        seed: int,
        micro_batch_tokens: int,
        dropout: Dropout = NO_DROPOUT,
    ) -> None:
        super().__init__(members[0], training, validation, criterion, dropout)
        self.members, self.settings = members, ensemble
        count = len(training)
        self.bags = [
            bag(count, seed, i) if ensemble.bagging else torch.ones(count) for i in range(len(members))
        ]
        # Of the validation records, and the versions of the weights that they are of.
        self._outputs: tuple[list[int], Tensor] = [], torch.zeros(0)
        self._micro_batch_tokens = micro_batch_tokens

    def trainable(self) -> Sequence[tuple[str, nn.Parameter]]:
        return [
            (f"{MEMBER}{i}.{name}", p) for i, one in enumerate(self.members, 1) for name, p in one.trainable()
        ]

    def gradient(
        self, rows: Sequence[int], micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS
    ) -> tuple[float, int]:
        chosen, loss = torch.tensor(rows), 0.0
        for micro, weight in passes(self.lengths[chosen], micro_batch_tokens, ranks):
            part = [rows[i] for i in micro.tolist()]
            before: Tensor | float = 0.0
            for number, (member, weights) in enumerate(zip(self.members, self.bags, strict=True)):
                outputs = self.training_outputs(member, part, number) + before
                losses = self.losses_of(outputs, part)
                share = weight * (weights[part].to(losses.device) * losses).sum() / len(rows)
                share.backward()
                loss += float(share.detach()) / len(self.members)
                before = outputs.detach() if self.settings.boosting else 0.0
        return loss, int(self.training.text_lengths[chosen].sum())

    def validate(self, micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS) -> dict[str, float]:
        """Of the mean (boosted: the sum) of the members' outputs, or of the averaged model; and their spread."""
        self._micro_batch_tokens = micro_batch_tokens  # fewer than before, where memory ran out
        found = self._measure(ranks)
        outputs = found.sum(0) if self.settings.boosting else found.mean(0)
        if self.settings.save == "average":
            outputs = all_outputs(averaged(self.members), self.validation, micro_batch_tokens, ranks)
        return {
            **self.metrics_of(outputs),
            names.VALIDATION_SPREAD: float(found.double().std(0, correction=0).mean()),
        }

    def _measure(self, ranks: Ranks = ONE_PROCESS) -> Tensor:
        """Each member's outputs for all validation records, [M, n, group, K]."""
        tokens = self._micro_batch_tokens
        found = torch.stack([all_outputs(one, self.validation, tokens, ranks) for one in self.members])
        self._outputs = self._versions(), found
        return found

    def _versions(self) -> list[int]:
        """How often each weight has changed."""
        return [p._version for one in self.members for p in one.network.parameters()]

    def samples(self, count: int) -> list[JsonRow]:
        """As of one model, with the members' scores combined and their standard deviation."""
        rows = [super().samples(count)]
        kept = self.model
        try:
            for member in self.members[1:]:
                self.model = member
                rows.append(super().samples(count))
        finally:
            self.model = kept
        return [self._together(alike) for alike in zip(*rows, strict=True)]

    def _together(self, alike: Sequence[JsonRow]) -> JsonRow:
        """One sample from the members' rows."""
        if "reward" not in alike[0]:
            return alike[0]
        scores = torch.tensor([float(str(row["reward"])) for row in alike])
        reward = scores.sum() if self.settings.boosting else scores.mean()
        spread = {"spread": float(scores.std(correction=0))}
        return {**alike[0], "reward": float(reward), "components": spread}

    def save(self, folder: Path) -> None:
        if self.settings.save == "average":
            with self.criterion.saving(made := averaged(self.members)):
                save_classifier(made, folder)
            return
        for i, member in enumerate(self.members, 1):
            with self.criterion.saving(member):
                save_classifier(member, folder / f"{MEMBER}{i}")
        content: dict[str, object] = {"boosted": self.settings.boosting}
        if self.validation.group == 2:
            known, found = self._outputs
            outputs = (found if known == self._versions() else self._measure())[..., 0].double()
            content["stacked"] = stacking_weights((outputs[:, :, 0] - outputs[:, :, 1]).T).tolist()
        (folder / ENSEMBLE).write_text(json.dumps(content) + "\n", encoding="utf-8")
