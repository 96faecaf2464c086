"""The last layer of a critic: from states to values, and its loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proxlm.config.model import ValueSettings
from proxlm.rl.losses import clipped_value_loss
from proxlm.rl.value_ensemble import ONE_HEAD, Ensemble, combined_value, differences_of_heads
from proxlm.rl.value_histogram import ValueBins, first_logits, histogram_loss, histogram_mean


class ValueHead(nn.Module):
    """V(state) in float32: w · h + b, or the mean of a histogram over bins whose logits are W h + b.

    One head's weights are zero at the start, so V ≡ 0, or the middle of the bins until `begin` has the first returns.
    Several heads are K such layers one below the other; at the start their weights are random, by torch's generator,
    and sum to zero over the heads.

    Args:
        hidden_size: H, the width of the states.
        bins: Of a categorical head; None: it has one number.
        ensemble: How many heads there are, and how their values become one.
    """

    def __init__(
        self, hidden_size: int, bins: ValueBins | None = None, ensemble: Ensemble = ONE_HEAD
    ) -> None:
        super().__init__()
        self.bins, self.ensemble = bins, ensemble
        self.linear = nn.Linear(hidden_size, ensemble.heads * (1 if bins is None else bins.count))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if ensemble.heads > 1:
            by_head = self.linear.weight.detach().unflatten(0, (ensemble.heads, -1))
            noise = torch.randn(by_head.shape) * (ensemble.spread / hidden_size**0.5)
            by_head.copy_(differences_of_heads(noise))

    @property
    def waits(self) -> bool:
        """Whether it is categorical and as new: its bias is zero, and so is the sum of its heads' weights."""
        weight, bias = self.linear.weight.detach(), self.linear.bias
        by_head = weight.unflatten(0, (self.ensemble.heads, -1))
        return self.bins is not None and not bias.any() and bool((by_head.sum(0).abs() < 1e-5).all())

    @torch.no_grad()
    def begin(self, returns: Tensor) -> None:
        """The bias of each head becomes the logits of the mean histogram of the finite ones of these returns [N].

        From the uniform histogram the first gradients of all states are about the same, and the trunk would learn to
        make the states alike, as every one then says what all returns have in common.
        """
        assert self.bins is not None
        finite = returns[returns.isfinite()]
        if len(finite):
            self.linear.bias.copy_(first_logits(finite, self.bins).repeat(self.ensemble.heads))

    def forward(self, states: Tensor) -> Tensor:
        """[..., H] → V [...]."""
        return self.combined(self.values(states))

    def values(self, states: Tensor) -> Tensor:
        """V of each head, [..., H] → [..., K]."""
        return self._values(self._outputs(states, self.linear.weight, self.linear.bias))

    def combined(self, values: Tensor) -> Tensor:
        """V of the heads' values, [..., K] → [...]."""
        if self.ensemble.heads == 1:
            return values.squeeze(-1)
        return combined_value(values, self.ensemble.combine, self.ensemble.pessimism)

    def losses(self, states: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
        """What V of these states costs each head: the clipped squared error, or the cross-entropy of the histogram.

        The gradient in the weights of K heads is multiplied by K: the loss is the mean over heads, so each head gets
        the gradient that it would have alone, and the trunk the mean of theirs.

        Args:
            states: [R, H].
            old: V of each head before the update [R, K]. A head is clipped around its own: around the combined value,
                one that is further off than the clip might not learn.
            returns: What V is to predict [R].
            clip: See `clipped_value_loss`; a histogram has no clip.

        Returns:
            The loss of each token and head [R, K].
        """
        heads = self.ensemble.heads
        weight, bias = (_with_gradient_times(heads, p) for p in (self.linear.weight, self.linear.bias))
        outputs = self._outputs(states, weight, bias)
        targets = returns[:, None].expand(-1, heads)
        if self.bins is not None:
            return histogram_loss(outputs, targets, self.bins)
        return clipped_value_loss(self._values(outputs), old, targets, clip)

    def _outputs(self, states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """What the heads say: V of each [..., K], or the logits of its bins [..., K, bins]."""
        with torch.autocast(states.device.type, enabled=False):
            outputs = nn.functional.linear(states.float(), weight, bias)
        return outputs if self.bins is None else outputs.unflatten(-1, (self.ensemble.heads, self.bins.count))

    def _values(self, outputs: Tensor) -> Tensor:
        return outputs if self.bins is None else histogram_mean(outputs, self.bins)


def _with_gradient_times(factor: int, parameter: Tensor) -> Tensor:
    """The parameter, so that what flows back through it is multiplied by `factor`."""
    if factor == 1:
        return parameter
    through = parameter.view_as(parameter)
    if through.requires_grad:
        through.register_hook(lambda gradient: gradient * factor)
    return through


def bins_of(settings: ValueSettings) -> ValueBins | None:
    """The bins of the section [model.value]; None for a scalar head."""
    if settings.head == "scalar":
        return None
    return ValueBins(settings.low, settings.high, settings.bins, settings.sigma)


def ensemble_of(settings: ValueSettings) -> Ensemble:
    """The heads of the section [model.value]."""
    return Ensemble(settings.heads, settings.combine, settings.pessimism, settings.init_spread)
