"""A recurrent language model: LSTM layers between a token embedding and an output head tied to it.

The cell is that of Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, as torch.nn.LSTM has it.
Input and output share one matrix (Press & Wolf 2017). It is an ordinary transformers model; `models/model_types.py`
makes the Auto classes know it. Its state [h, c] is the cache, so that a token costs the same wherever it stands.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence, pad_sequence
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class LSTMConfig(PreTrainedConfig):
    """The shape of the model. A recurrence has no longest sequence and no attention heads, so neither is kept.

    dropout: on the embedding, between layers and before the head, in training mode; proxlm trains in evaluation
    mode, where train.dropout acts at the same places.
    """

    model_type = "proxlm_lstm"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        vocab_size: int = 4096,
        hidden_size: int = 256,
        num_hidden_layers: int = 2,
        dropout: float = 0.0,
        initializer_range: float = 0.1,
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        **more: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.dropout, self.initializer_range, self.use_cache = dropout, initializer_range, use_cache
        for name in ("max_position_embeddings", "num_attention_heads"):
            more.pop(name, None)
        super().__init__(tie_word_embeddings=tie_word_embeddings, **more)
        # Newer versions of transformers take what they do not know for attributes; older ones set this alone.
        self.tie_word_embeddings = tie_word_embeddings


@dataclass(eq=False)
class LSTMState:
    """The state of every layer after the tokens read so far: what a Transformer's cache is to it.

    hidden, cell [layers, b, H]; read: how many columns of input it has seen, masked ones included.
    """

    hidden: Tensor
    cell: Tensor
    read: int = 0
    is_compileable = False

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self.read

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at `indices` [k], in that order."""
        self.hidden, self.cell = (s.index_select(1, indices) for s in (self.hidden, self.cell))

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self.hidden = self.hidden.repeat_interleave(repeats, dim=1)
        self.cell = self.cell.repeat_interleave(repeats, dim=1)


_switching = threading.Lock()
_inside = 0  # how many are in plain_kernels at once
_before: tuple[Any, Any] = (True, True)  # the switches as the first of them found them


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """torch's own LSTM on every device: the old and the new log-prob of a token must be the same computation.

    oneDNN's has other last bits with gradient than without, and fails under bfloat16 autocast; cuDNN's has no
    gradient in evaluation mode, in which proxlm trains, and rounds to TF32 by default. The switches are of
    the whole process: of threads that are here at once, the first turns them off and the last one back.
    """
    global _inside, _before
    with _switching:
        if not _inside:
            _before = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
            torch.backends.mkldnn.enabled = torch.backends.cudnn.enabled = False  # type: ignore[assignment]
        _inside += 1
    try:
        yield
    finally:
        with _switching:
            _inside -= 1
            if not _inside:
                torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled = _before


class LSTMPreTrainedModel(PreTrainedModel):
    """Weights: embeddings normal; gates uniform within 1 / √H, torch's own; biases 0, but 1 at the forget gate
    (Jozefowicz et al. 2015).
    """

    config_class = LSTMConfig
    base_model_prefix = "model"
    # What was read cannot be taken back, so generation that steps back is refused.
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, nn.LSTM):
            super()._init_weights(module)
            return
        size = module.hidden_size
        forget = torch.zeros(4 * size)
        forget[size : 2 * size] = 1.0
        for name, p in module.named_parameters():
            if name.startswith("weight"):
                init.uniform_(p, -(size**-0.5), size**-0.5)
            elif name.startswith("bias_ih"):
                init.copy_(p, forget.to(p))
            else:
                init.zeros_(p)


class LSTMModel(LSTMPreTrainedModel):
    """The trunk: tokens → states."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.lstm = nn.LSTM(
            config.hidden_size, config.hidden_size, config.num_hidden_layers, batch_first=True
        )
        # On the embeddings and on what each layer gives (Zaremba et al. 2014, arXiv 1409.2329).
        self.dropouts = nn.Sequential(
            *(nn.Dropout(config.dropout) for _ in range(config.num_hidden_layers + 1))
        )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: LSTMState | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Tokens [b, t] (or their embeddings [b, t, H]) → last_hidden_state [b, t, H].

        Args:
            input_ids: Tokens [b, t].
            attention_mask: [b, … t]; a column with 0 leaves its row's state as it is, and has the output 0, wherever
                it stands.
            position_ids: [b, t]; without cache and mask, a new sequence starts where they are 0 (packing).
            past_key_values: The state to continue from; updated in place.
            inputs_embeds: Embeddings [b, t, H] instead of tokens.
            use_cache: Whether the state is returned; None: as configured.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        states = self.dropouts[0](inputs_embeds)
        keep = self.config.use_cache if use_cache is None else use_cache
        state, columns = past_key_values, states.shape[1]
        mask = None if attention_mask is None else attention_mask[:, -columns:].bool()
        if mask is not None and bool(mask.all()):
            mask = None
        starts = position_ids if attention_mask is None and state is None and not keep else None
        afters = []
        for layers, dropout in self._stages():
            before = None if state is None else (state.hidden[layers], state.cell[layers])
            if starts is not None:
                states, after = self._packed(states, starts, layers)
            elif mask is not None:
                states, after = self._masked(states, mask, layers, before)
            else:
                states, after = self._run(states, layers, before)
            states = dropout(states)
            afters.append(after)
        hidden, cell = (torch.cat(parts) for parts in zip(*afters, strict=True))
        if state is None:
            state = LSTMState(hidden, cell)
        else:
            state.hidden, state.cell = hidden, cell
        state.read += columns
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=state if keep else None)

    def _stages(self) -> list[tuple[slice, Any]]:
        """The layers that run in one go, and the dropout behind them: all of them where there is none between."""
        if self.training or any(dropout._forward_hooks for dropout in self.dropouts):
            return [(slice(i, i + 1), self.dropouts[i + 1]) for i in range(self.lstm.num_layers)]
        return [(slice(None), self.dropouts[-1])]

    def _run(
        self, states: Any, layers: slice, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """The layers over rows that are all there, or over torch's packed rows."""
        with plain_kernels():
            if layers == slice(None):
                return self.lstm(states, before)
            (weights,) = self.lstm.all_weights[layers]
            return _one_layer(states, list(weights), before)

    def _masked(
        self, embeds: Tensor, mask: Tensor, layers: slice, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Real tokens are moved to the front of their row, read, and their states moved back. mask [b, t] bool."""
        lengths = mask.sum(-1)
        order = torch.argsort(~mask, dim=-1, stable=True)[..., None].expand_as(embeds)
        # torch reads no empty row: it reads one column of it, which is then forgotten.
        packed = pack_padded_sequence(
            embeds.gather(1, order), lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        read, (hidden, cell) = self._run(packed, layers, before)
        states = pad_packed_sequence(read, batch_first=True, total_length=embeds.shape[1])[0]
        states = torch.zeros_like(states).scatter(1, order, states) * mask[..., None]
        some = (lengths > 0)[:, None]
        old = before or (torch.zeros_like(hidden), torch.zeros_like(cell))
        return states, (torch.where(some, hidden, old[0]), torch.where(some, cell, old[1]))

    def _packed(
        self, embeds: Tensor, position_ids: Tensor, layers: slice
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Sequences that start where position_ids [b, t] are 0, run as rows of a batch. → [b, t, H]"""
        starts = position_ids.expand(embeds.shape[:2]) == 0
        starts = starts.clone()
        starts[:, 0] = True
        first = starts.flatten().nonzero().squeeze(-1).tolist()
        lengths = [b - a for a, b in zip(first, [*first[1:], starts.numel()], strict=True)]
        rows = pad_sequence(list(embeds.flatten(0, 1).split(lengths)), batch_first=True)
        hidden, after = self._run(rows, layers, None)
        joined = torch.cat([row[:n] for row, n in zip(hidden, lengths, strict=True)])
        return joined.view(*embeds.shape[:2], -1), after


def _one_layer(
    states: Any, weights: list[Any], before: tuple[Tensor, Tensor] | None
) -> tuple[Any, tuple[Tensor, Tensor]]:
    """What nn.LSTM does of one layer, over rows [b, t, H] or over torch's packed rows."""
    packed = isinstance(states, PackedSequence)
    data = states.data if packed else states
    rows = int(states.batch_sizes[0]) if packed else len(data)
    start = before or tuple(data.new_zeros(1, rows, weights[1].shape[1]) for _ in range(2))
    if not packed:
        read, hidden, cell = torch.lstm(data, start, weights, True, 1, 0.0, False, False, True)
        return read, (hidden, cell)
    if before is not None:
        start = tuple(part.index_select(1, states.sorted_indices) for part in before)
    read, hidden, cell = torch.lstm(data, states.batch_sizes, start, weights, True, 1, 0.0, False, False)
    hidden, cell = (part.index_select(1, states.unsorted_indices) for part in (hidden, cell))
    return PackedSequence(read, *states[1:]), (hidden, cell)


class LSTMForCausalLM(LSTMPreTrainedModel, GenerationMixin):
    """Trunk and head. `generate` keeps the state as its cache."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        self.model = LSTMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """The forward makes its own state: keys and values have no place here."""
        return False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: LSTMState | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """Tokens [b, t] → logits [b, t, V], or of the last `logits_to_keep` columns; labels as in every causal LM."""
        position_ids = more.pop("position_ids", None)
        output = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache
        )
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **more)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=output.past_key_values)


class LSTMForSequenceClassification(GenericForSequenceClassification, LSTMPreTrainedModel):
    """Trunk and scores of the last token: a reward model, or the start of a critic."""
