"""The engine in the trainer's own process, on the trainer's own weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from proxlm.config import RolloutSettings
from proxlm.config.signature import checked
from proxlm.data.turn_end import TurnEnd
from proxlm.engine.agreement import check_engine
from proxlm.engine.decoders import Decoder, make_decoder
from proxlm.engine.request import Request, RequestOutput
from proxlm.engine.scheduler import Scheduler
from proxlm.errors import ModelError
from proxlm.models.language_model import LanguageModel


class NativeEngine:
    """Continuous batching on a `LanguageModel`; see `protocol.Engine` for the methods.

    The model's weights are used where they are. Whoever changes them in place says so with `load_weights`. The
    decoder, with its KV cache and its prepared copies of the weights, is made for the first request and lives until
    `reset` or `load_weights`; a rollout ends with a `reset`, so that an update has the memory.

    Args:
        model: what generates.
        settings: `batch_size`, how many requests run at once, and `weights`, in which precision they are prepared.
            How a request is sampled is in its own parameters.
    """

    @checked()
    def __init__(self, model: LanguageModel, settings: RolloutSettings) -> None:
        self.model = model
        self.version = 0
        self._settings = settings
        self._scheduler: Scheduler | None = None

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self.model.tokenizer

    @property
    def context(self) -> int | None:
        """The model's."""
        return self.model.context

    @property
    def encoder_decoder(self) -> bool:
        """The model's."""
        return self.model.encoder_decoder

    @property
    def turn_end(self) -> TurnEnd:
        """The model's."""
        return self.model.turn_end

    def __len__(self) -> int:
        return 0 if self._scheduler is None else len(self._scheduler)

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests.

        Raises:
            ModelError: A request may become longer than the model's context, or has a token without an embedding, the
                engine does not compute what the model does (`agreement.check_engine`, once for a model), or prepared
                weights that this model type does not have.
        """
        requests = list(requests)
        self._check(self.model, requests)
        check_engine(self.model)
        if self._scheduler is None:
            decoder = self._decoder(any(request.keep_states for request in requests))
            self._scheduler = Scheduler(self.model, decoder, self._settings.batch_size)
        self._scheduler.add(requests)

    def _decoder(self, keep_states: bool) -> Decoder:
        return make_decoder(self.model, self._settings.weights, keep_states, self._settings.cuda_graphs)

    def _check(self, model: LanguageModel, requests: list[Request]) -> None:
        """Raise ModelError if a prompt with all the tokens it may get is longer than a model's context, or has a
        token without an embedding.
        """
        lengths = [(len(request.prompt), request.params.max_new_tokens) for request in requests]
        if self.encoder_decoder:  # a response begins with the start token
            longest = max((max(prompt, 1 + response) for prompt, response in lengths), default=0)
        else:
            longest = max((prompt + response for prompt, response in lengths), default=0)
        model.check_length(longest)
        for request in requests:
            model.check_tokens("a prompt", request.prompt)
            if request.written and self.encoder_decoder:
                raise ModelError(f"{model.source}: a response of an encoder–decoder cannot be continued")

    def step(self) -> list[RequestOutput]:
        """One token of each running request; returns those that finished with it."""
        return [] if self._scheduler is None else self._scheduler.step()

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy tensors into the model by name, where they are not the model's own, and forget prepared copies."""
        if len(self):
            raise RuntimeError(f"load_weights: {len(self)} requests are unfinished")
        self._scheduler = None
        own = dict(self.model.network.named_parameters(remove_duplicate=False))
        for name, tensor in weights:
            target = own.get(name)
            if target is None:
                raise ModelError(f"{self.model.source}: no weights of the name {name}")
            if target.shape != tensor.shape:
                raise ModelError(
                    f"{self.model.source}: {name} has the shape {list(target.shape)}, not {list(tensor.shape)}"
                )
            if target.data_ptr() != tensor.data_ptr():
                target.copy_(tensor)
        self.version = version

    def reset(self) -> None:
        """Drop unfinished requests, the KV cache and prepared copies of the weights."""
        self._scheduler = None

    def close(self) -> None:
        """The same: the weights belong to the model."""
        self.reset()
