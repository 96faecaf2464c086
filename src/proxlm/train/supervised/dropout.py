"""Dropout in training passes (Srivastava et al. 2014), from random numbers that are counted and not drawn.

Networks stay in evaluation mode, where their own dropout is off. While a training pass runs, hooks set states to 0 at
the places of the Transformer (Vaswani et al. 2017, section 5.4): the embeddings that go into a stack of blocks, and
what each block's attention and MLP add to the residual stream. Which states is a function of (seed, step, row, place,
position, channel), so it depends neither on how a batch is split into passes nor on padding, packing or a resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from proxlm.errors import ConfigError
from proxlm.kernels.philox import MASK, philox
from proxlm.models.few_blocks import few_blocks, stacks
from proxlm.models.lstm import LSTMModel
from proxlm.models.residual import residual_modules
from proxlm.seeds import Purpose, derive_seed

# A state is kept where 16 random bits are at least p · 2**16; a counter gives eight times 16 bits.
_LEVELS, _LANES = 2**16, 8


class Site(NamedTuple):
    """A place of dropout: what a module returns, or, with `enters`, what goes into it."""

    module: nn.Module
    enters: bool


class Tokens(NamedTuple):
    """What the rows of states are: which training row, and which position in it; both [N] int64."""

    rows: Tensor
    positions: Tensor


class Dropout:
    """Dropout of the networks that an objective trains.

    Args:
        networks: transformers models, with adapters or without.
        p: The probability that a state is set to 0; it is rounded to a multiple of 1/65,536.
        seed: Of the run.

    Raises:
        ConfigError: It is not known where a network's type adds to its residual stream.
    """

    def __init__(self, networks: Sequence[Any] = (), p: float = 0.0, seed: int = 0) -> None:
        self.threshold = min(max(1, round(p * _LEVELS)), _LEVELS - 1) if p else 0
        self.seed = seed
        self._sites = [sites_of(network) for network in networks] if p else []
        self._key = torch.tensor(0), torch.tensor(0)
        self.begin_step(0)

    def begin_step(self, step: int) -> None:
        """The step whose passes come next, from 0."""
        if not self._sites:
            return
        seed = derive_seed(self.seed, Purpose.DROPOUT, step)
        self._key = torch.tensor(seed & MASK), torch.tensor(seed >> 32)

    @contextmanager
    def on(self, rows: Tensor, lengths: Tensor | None = None, network: int = 0) -> Iterator[None]:
        """Let the forward passes inside have dropout.

        Args:
            rows: The numbers of their training rows, [B].
            lengths: The rows are packed, with so many tokens each, [B]; None: they are padded on the right.
            network: Which of the networks runs.
        """
        handles = []
        try:
            for number, site in enumerate(self._sites[network] if self._sites else ()):
                # Networks of an ensemble have numbers of their own.
                drop = partial(self._drop, (rows, lengths), network << 16 | number)
                handles.append(_hook(site, drop))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _drop(self, batch: tuple[Tensor, Tensor | None], site: int, x: Tensor) -> Tensor:
        """States [..., H] of a batch's tokens with some set to 0, and the others scaled so that the mean stays."""
        tokens = _tokens_of(batch, x)
        keep = kept(tokens, x.shape[-1], site, self._key, self.threshold).view(x.shape)
        return torch.where(keep, x, 0.0) * (_LEVELS / (_LEVELS - self.threshold))


NO_DROPOUT = Dropout()


def kept(tokens: Tokens, channels: int, site: int, key: tuple[Tensor, Tensor], threshold: int) -> Tensor:
    """Which channels of the states of N tokens are kept, [N, channels] bool."""
    device = tokens.rows.device
    lanes = torch.arange(-(-channels // _LANES), device=device)
    counter = tokens.positions[:, None], lanes, tokens.rows[:, None], torch.tensor([site], device=device)
    a, b, c, d = philox(counter, key)
    bits = torch.stack((a | b << 32, c | d << 32), -1).view(torch.int16).flatten(1)  # from −2**15 on
    return bits[:, :channels] >= threshold - _LEVELS // 2


def sites_of(network: Any) -> list[Site]:
    """The places of dropout in a network, in their order.

    Raises:
        ConfigError: They are not known.
    """
    if isinstance(network.base_model, LSTMModel):
        return [Site(module, enters=False) for module in network.base_model.dropouts]
    found = list[Site]()
    for (_, _, stack), blocks in zip(stacks(network), residual_modules(network), strict=True):
        found.append(Site(stack[0], enters=True))
        found += [Site(module, enters=False) for modules in blocks for module in modules]
        if not all(blocks):
            raise _unknown(network)
    if not found or not _are_all(network, found):
        raise _unknown(network)
    return found


def _are_all(network: Any, sites: Sequence[Site]) -> bool:
    """Whether no matrix of a block has a part in the output, once all that blocks add is set to 0."""
    ids = torch.arange(1, 6, device=next(network.parameters()).device)[None]
    inputs = (
        {"input_ids": ids, "decoder_input_ids": ids}
        if network.config.is_encoder_decoder
        else {"input_ids": ids}
    )
    with few_blocks(network), torch.enable_grad():
        matrices = [p for _, _, stack in stacks(network) for p in stack.parameters() if p.dim() > 1]
        learning = [p.requires_grad for p in matrices]
        handles = [_hook(site, lambda x: x * 0) for site in sites if not site.enters]
        try:
            for p in matrices:
                p.requires_grad_(True)
            output = network.base_model(**inputs, use_cache=False)[0].float().square().sum()
            gradients = torch.autograd.grad(output, matrices, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
            for p, learns in zip(matrices, learning, strict=True):
                p.requires_grad_(learns)
    return not any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def _hook(site: Site, drop: Any) -> Any:
    """Let states go through a function at a place."""
    if not site.enters:
        return site.module.register_forward_hook(lambda _module, _inputs, output: drop(output))

    def enter(
        _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        if inputs:
            return (drop(inputs[0]), *inputs[1:]), named
        return inputs, {**named, "hidden_states": drop(named["hidden_states"])}

    return site.module.register_forward_pre_hook(enter, with_kwargs=True)


def _tokens_of(batch: tuple[Tensor, Tensor | None], x: Tensor) -> Tokens:
    """The tokens of states [B, T, H], [1, N, H] or flat ones."""
    rows, lengths = batch[0].to(x.device), batch[1]
    count = x.shape[:-1].numel()
    if lengths is None:
        columns = count // len(rows)
        return Tokens(
            rows.repeat_interleave(columns), torch.arange(columns, device=x.device).repeat(len(rows))
        )
    lengths = lengths.to(x.device)
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return Tokens(rows.repeat_interleave(lengths), torch.arange(count, device=x.device) - starts)


def _unknown(network: Any) -> ConfigError:
    return ConfigError(
        f"train.dropout: it is not known where {network.config.model_type} adds to its residual stream; set it to 0"
    )
