"""A model as an ONNX graph: token ids and mask → logits, for any number of texts of any length."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxlm.errors import ConfigError, ModelError
from proxlm.text import headline

INSTALL = 'format = "onnx" needs the packages onnx, onnxscript and onnxruntime: pip install "proxlm[onnx]"'
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class _Logits(nn.Module):
    """A network whose output is its logits alone."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.network(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).logits
        return logits


def check_onnx(network: Any, source: str) -> None:
    """Raise ConfigError if a package is missing, ModelError for a type whose graph depends on its input."""
    if any(find_spec(name) is None for name in _PACKAGES):
        raise ConfigError(INSTALL)
    config = network.config
    if config.is_encoder_decoder:
        raise ModelError(
            f"{source}: an encoder–decoder, whose two halves would be two graphs; export safetensors"
        )
    if config.model_type == "proxlm_lstm":
        raise ModelError(f"{source}: proxlm's LSTM, whose passes depend on the mask; export safetensors")


@torch.no_grad()
def write_onnx(network: Any, file: Path, source: str) -> None:
    """Write the graph; weights of 2 GB and more lie in a file beside it.

    Args:
        network: A transformers model in float32, in evaluation mode.
        file: The file to write.
        source: Where the model came from, for messages.

    Raises:
        ModelError: torch cannot make a graph of it.
    """
    ids = torch.arange(6).reshape(2, 3)
    mask = torch.ones_like(ids)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with _quiet():
            program = torch.onnx.export(
                _Logits(network.eval()),
                (ids, mask),
                dynamo=True,
                dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
            )
            assert program is not None
            program.save(str(file))
    except OSError:
        raise
    except Exception as error:  # of torch.export and its decompositions, whatever a model's code leads to
        raise ModelError(
            f"{source}: torch cannot make an ONNX graph of {network.config.model_type}: {headline(error, 120)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's progress, and its warnings of packages that no language model needs."""
    told, log = io.StringIO(), logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(told), redirect_stderr(told):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
