"""What the outputs of a reward model are compared with: comparisons, scores, classes or labels of steps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from proxlm.config import LossSettings, ObjectiveSettings, RewardConfig
from proxlm.models.classifier import Classifier
from proxlm.models.score_units import ScoreUnits, begin_at, units_of
from proxlm.rl.preference_losses import (
    bradley_terry_loss,
    centring_penalty,
    class_loss,
    score_loss,
    share_preferred,
    step_loss,
)
from proxlm.rl.token_losses import focal_loss
from proxlm.runlog import metric_names as names
from proxlm.runlog.folder import JsonRow
from proxlm.train.supervised.labelled_texts import LabelledTexts


class Criterion:
    """A loss between outputs and the numbers of records, and what is measured of both.

    Outputs are those of `outputs_of` in `labelled_texts.py`, [n, group, K] or, of steps, [n, S, K].
    """

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each record, [n]."""
        raise NotImplementedError

    def training_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is minimised, [n], where that is not the loss that is reported of the validation part."""
        return self.losses(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The validation metrics beside the loss."""
        raise NotImplementedError

    def sample(self, outputs: Tensor, targets: Tensor) -> JsonRow:
        """What samples.jsonl says of one record: outputs [group or S, K], targets [T]."""
        raise NotImplementedError

    def saving(self, model: Classifier) -> AbstractContextManager[Any]:  # noqa: ARG002
        """A context in which the model's outputs are those of the model that is saved."""
        return nullcontext()

    def finish(self, model: Classifier) -> None:
        """Let the model's outputs be those of the model that is saved, at the end: the caller may have lent it."""


class Comparisons(Criterion):
    """Bradley–Terry's loss in nats, with a term that keeps scores around 0 if asked. The target is the margin."""

    def __init__(self, settings: ObjectiveSettings) -> None:
        self.settings = settings

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        chosen, rejected = outputs[:, 0, 0], outputs[:, 1, 0]
        loss = bradley_terry_loss(chosen, rejected, targets[:, 0], self.settings.label_smoothing)
        if self.settings.centring:
            loss = loss + self.settings.centring * centring_penalty(chosen, rejected)
        return loss

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:  # noqa: ARG002
        leads = outputs[:, 0, 0].double() - outputs[:, 1, 0].double()
        return {
            names.VALIDATION_ACCURACY: float(share_preferred(leads).mean()),
            names.VALIDATION_MARGIN: float(leads.mean()),
            names.VALIDATION_SCORE: float(outputs.double().mean()),
        }


class Scores(Criterion):
    """Squared or Huber's error of standardised scores. The targets are the scores, NaN where there is none."""

    def __init__(self, fields: Sequence[str], units: ScoreUnits, settings: ObjectiveSettings) -> None:
        self.fields, self.units = fields, units
        self._delta = settings.huber_delta if settings.score_loss == "huber" else None

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = self.units.standardised(targets.cpu()).to(outputs.device)
        return score_loss(outputs[:, 0], wanted, self._delta)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        scores, known = self.units.in_units(outputs[:, 0]), ~targets.isnan()
        errors, correlations = list[float](), list[float]()
        for k in range(len(self.fields)):
            found, wanted = scores[known[:, k], k], targets[known[:, k], k].double()
            if len(wanted):
                errors.append(float((found - wanted).abs().mean()))
            if len(wanted) > 1 and float(found.std()) and float(wanted.std()):
                correlations.append(float(torch.corrcoef(torch.stack([found, wanted]))[0, 1]))
        metrics: dict[str, float] = {names.VALIDATION_ERROR: sum(errors) / len(errors)}
        if correlations:
            metrics[names.VALIDATION_CORRELATION] = sum(correlations) / len(correlations)
        return metrics

    def sample(self, outputs: Tensor, targets: Tensor) -> JsonRow:
        scores: list[float] = self.units.in_units(outputs)[0].tolist()
        wanted = ["none" if value != value else f"{value:g}" for value in targets.tolist()]
        expected = ", ".join(wanted)
        if len(self.fields) == 1:
            return {"expected": expected, "reward": scores[0]}
        return {"expected": expected, "components": dict(zip(self.fields, scores, strict=True))}

    def saving(self, model: Classifier) -> AbstractContextManager[Any]:
        return self.units.folded_into(model.output_layer)

    def finish(self, model: Classifier) -> None:
        self.units.put_into(model.output_layer)


class Classes(Criterion):
    """Cross-entropy in nats, or what [loss] says in training. The target is the number of the class."""

    def __init__(self, classes: Sequence[str], loss: LossSettings | None = None) -> None:
        self.classes, self.loss = classes, loss or LossSettings()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return class_loss(outputs[:, 0], targets[:, 0])

    def training_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.loss.kind == "label-smoothing":
            return class_loss(outputs[:, 0], targets[:, 0], self.loss.smoothing)
        losses = self.losses(outputs, targets)
        return focal_loss(-losses, self.loss.gamma) if self.loss.kind == "focal" else losses

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        right = outputs[:, 0].argmax(-1) == targets[:, 0].long()
        return {names.VALIDATION_ACCURACY: float(right.double().mean())}

    def sample(self, outputs: Tensor, targets: Tensor) -> JsonRow:
        probabilities: list[float] = outputs[0].softmax(-1).tolist()
        return {
            "expected": self.classes[int(targets[0])],
            "components": dict(zip(self.classes, probabilities, strict=True)),
        }


class Steps(Criterion):
    """Binary cross-entropy in nats, a mean over a response's steps. The targets are the steps' labels."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return step_loss(outputs[..., 1] - outputs[..., 0], targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        known = ~targets.isnan()
        right = (outputs[..., 1] > outputs[..., 0]) == (targets > 0.5)
        return {names.VALIDATION_ACCURACY: float(right[known].double().mean())}

    def sample(self, outputs: Tensor, targets: Tensor) -> JsonRow:
        probabilities: list[float] = (outputs[:, 1] - outputs[:, 0]).sigmoid().tolist()
        return {
            "expected": " ".join(f"{label:g}" for label in targets.tolist()),
            "reward": min(probabilities),
            "components": {f"step {i}": p for i, p in enumerate(probabilities, 1)},
        }


# On so many texts a new head without a bias finds the states' mean.
_FIRST = 64


def criterion_of(
    config: RewardConfig, outputs: Sequence[str], members: Sequence[Classifier], training: LabelledTexts
) -> Criterion:
    """What models at their start are to learn; their configurations say from now on what their outputs are.

    Args:
        config: The job's settings.
        outputs: The outputs' names.
        members: The models, whose heads are brought to the units in which they learn.
        training: The records to learn.

    Raises:
        DataError: The scores are all the same.
    """
    kind = config.objective.kind
    if kind == "comparisons":
        return Comparisons(config.objective)
    for model in members:
        problem = "regression" if kind == "scores" else "single_label_classification"
        more = {"step_separator": config.labels.separator} if kind == "steps" else {}
        model.name_outputs(outputs, problem, **more)
    if kind != "scores":
        return Classes(outputs, config.loss) if kind == "classes" else Steps()
    has_bias = members[0].output_layer.bias is not None
    units, wanted = units_of(training.targets(range(len(training))), outputs, has_bias)
    rows = range(min(_FIRST, len(training)))
    for model in members:
        if not model.new_head:
            units.taken_out_of(model.output_layer)
        elif not has_bias:
            begin_at(model, *training.batch(rows, model.pad_id), wanted)
    return Scores(outputs, units, config.objective)
