"""The last layer of a critic: from states to values, and its loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proxlm.config.schema import ValueSettings
from proxlm.rl.losses import clipped_value_loss
from proxlm.rl.value_histogram import ValueBins, histogram_loss, histogram_mean


class ValueHead(nn.Module):
    """V(state) in float32: w · h + b, or the mean of a histogram over bins whose logits are W h + b.

    Its weights are zero at the start, so V ≡ 0, or the middle of the bins.
    """

    def __init__(self, hidden_size: int, bins: ValueBins | None = None) -> None:
        super().__init__()
        self.bins = bins
        self.linear = nn.Linear(hidden_size, 1 if bins is None else bins.count)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """[..., H] → V [...]."""
        return self._value(self._outputs(states))

    def loss(self, states: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
        """What V of these states costs: the clipped squared error, or the cross-entropy of the histogram.

        Args:
            states: [R, H].
            old: V before the update [R].
            returns: What V is to predict [R].
            clip: See `clipped_value_loss`; a histogram has no clip.

        Returns:
            The loss of each token [R].
        """
        outputs = self._outputs(states)
        if self.bins is not None:
            return histogram_loss(outputs, returns, self.bins)
        return clipped_value_loss(self._value(outputs), old, returns, clip)

    def _outputs(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return self.linear(states.float())

    def _value(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(-1) if self.bins is None else histogram_mean(outputs, self.bins)


def bins_of(settings: ValueSettings) -> ValueBins | None:
    """The bins of the section [model.value]; None for a scalar head."""
    if settings.head == "scalar":
        return None
    return ValueBins(settings.low, settings.high, settings.bins, settings.sigma)
