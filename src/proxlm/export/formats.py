"""The formats: what each needs of a model, how it is written, and by what program it is read back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from proxlm.checkpoint.write import give_mode_of
from proxlm.config.export import ExportConfig
from proxlm.errors import ConfigError
from proxlm.export.compare import Reader
from proxlm.export.gguf_file import check_gguf, write_gguf
from proxlm.export.llama_cpp import installed, llama_cpp
from proxlm.export.onnx_file import check_onnx, write_onnx
from proxlm.export.original import Original, adapter_of, check_range
from proxlm.export.readers import Onnx, plain_transformers, with_peft
from proxlm.models.adapter_folder import ADAPTER_WEIGHTS
from proxlm.models.save import no_progress_bars, save_language_model, save_network
from proxlm.models.weights import ADAPTER_CONFIG
from proxlm.runlog.folder import write_json_atomic

_LLAMA_CPP = 'format = "gguf": the file is compared by llama.cpp: pip install "proxlm[llama-cpp]"'
_ONNX_FILE = "model.onnx"
# The most tokens of a text that llama.cpp reads in the comparison, where the model's context is longer.
_LONGEST = 4096


class Format(Protocol):
    """One way of writing a model."""

    def check(self, original: Original, config: ExportConfig) -> None:
        """Raise UserError for a model that cannot be written so, or a package that is missing."""

    def write(self, original: Original, config: ExportConfig, folder: Path) -> list[str]:
        """Write the model into a folder that is there; returns remarks for the report."""

    def read(self, original: Original, config: ExportConfig, folder: Path) -> AbstractContextManager[Reader]:
        """A program that has read the folder. The original's weights may have been released."""


class Safetensors:
    """A folder for transformers, vLLM and all that reads Hugging Face's format, adapters merged."""

    def check(self, original: Original, config: ExportConfig) -> None:
        if config.weights != "float32":
            check_range(original.network, getattr(torch, config.weights), original.source)

    def write(self, original: Original, config: ExportConfig, folder: Path) -> list[str]:
        dtype = getattr(torch, config.weights)
        own_type = original.network.config.model_type == "proxlm_lstm"
        if original.model is not None:
            save_language_model(replace(original.model, save_dtype=dtype), folder)
        else:
            with no_progress_bars():
                save_network(original.network, dtype, folder)
                original.tokenizer.save_pretrained(folder)
            give_mode_of(folder / "config.json", folder)
        return ["transformers reads it after proxlm.register_model_types()"] if own_type else []

    @contextmanager
    def read(self, original: Original, config: ExportConfig, folder: Path) -> Iterator[Reader]:
        del config
        yield plain_transformers(folder, original)


class Adapter:
    """The folder of a PEFT adapter, which names its base."""

    def check(self, original: Original, config: ExportConfig) -> None:
        del config
        adapter_of(original)

    def write(self, original: Original, config: ExportConfig, folder: Path) -> list[str]:
        adapter = adapter_of(original)
        base = config.base or adapter.base
        write_json_atomic(folder / ADAPTER_CONFIG, {**adapter.settings, "base_model_name_or_path": base})
        shutil.copyfile(adapter.path / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
        original.tokenizer.save_pretrained(folder)
        return [f"its base: {base}"]

    @contextmanager
    def read(self, original: Original, config: ExportConfig, folder: Path) -> Iterator[Reader]:
        yield with_peft(folder, config.base or adapter_of(original).base, original)


class Gguf:
    """One file for llama.cpp."""

    def check(self, original: Original, config: ExportConfig) -> None:
        check_gguf(original.language_model)
        if not installed():
            raise ConfigError(_LLAMA_CPP)
        if config.weights == "float16":
            check_range(original.network, torch.float16, original.source)

    def write(self, original: Original, config: ExportConfig, folder: Path) -> list[str]:
        model = original.language_model
        tokenizer = check_gguf(model)
        kinds = write_gguf(model, self._file(config, folder), config.weights, tokenizer)
        split = f"; text is split as llama.cpp's {tokenizer.pre}" if tokenizer.pre else ""
        return [f"tensors: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}{split}"]

    @contextmanager
    def read(self, original: Original, config: ExportConfig, folder: Path) -> Iterator[Reader]:
        longest = min(_LONGEST, config.check.tokens + config.check.greedy + 8)
        with llama_cpp(
            self._file(config, folder), original.vocabulary, longest, config.run.threads or 1
        ) as reader:
            yield reader

    @staticmethod
    def _file(config: ExportConfig, folder: Path) -> Path:
        return folder / f"model-{config.weights}.gguf"


class OnnxGraph:
    """A graph for onnxruntime, with the tokenizer and the configuration beside it."""

    def check(self, original: Original, config: ExportConfig) -> None:
        del config
        check_onnx(original.network, original.source)

    def write(self, original: Original, config: ExportConfig, folder: Path) -> list[str]:
        del config
        write_onnx(original.network, folder / _ONNX_FILE, original.source)
        original.network.config.save_pretrained(folder)
        original.tokenizer.save_pretrained(folder)
        return ["inputs input_ids and attention_mask [batch, sequence], padded on the right; output logits"]

    @contextmanager
    def read(self, original: Original, config: ExportConfig, folder: Path) -> Iterator[Reader]:
        yield Onnx(folder / _ONNX_FILE, original.tokenizer, original, config.run.threads or 1)


FORMATS: dict[str, Format] = {
    "safetensors": Safetensors(),
    "adapter": Adapter(),
    "gguf": Gguf(),
    "onnx": OnnxGraph(),
}
