"""The settings of writing a model for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from proxlm.config.problems import Problems, required
from proxlm.config.schema import ProcessSettings
from proxlm.config.setting import setting

Weights = Literal["float32", "float16", "bfloat16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
ExportFormat = Literal["safetensors", "adapter", "gguf", "onnx"]
# What each format can hold.
_WEIGHTS = {
    "safetensors": ("float32", "float16", "bfloat16"),
    "adapter": ("float32",),
    "gguf": ("float32", "float16", "bfloat16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"),
    "onnx": ("float32",),
}


@dataclass(frozen=True)
class ExportCheckSettings:
    """How the export is compared with the original before it is finished."""

    text: list[str] = setting(
        factory=list,
        help="held-out texts to compare on: files, folders or data sets; beside texts in many scripts, which are"
        " always encoded by both",
        path="input",
    )
    count: int = setting(8, "number of texts whose log-probs are compared, those of check.text first", ge=1)
    tokens: int = setting(48, "tokens read of each of them", ge=1)
    greedy: int = setting(16, "length of the greedy response to each of them; 0: none", ge=0)
    kl: float = setting(
        0.0,
        "largest mean KL(original ‖ export) behind a token, in nats; 0: 1e-6 for float32, 1e-3 for float16, 0.02 for"
        " bfloat16 and q8_0, 0.1 for q5, 0.5 for q4",
        ge=0,
    )
    difference: float = setting(
        0.0,
        "largest difference of two log-probs or scores; 0: 0.01 for float32, none for other log-probs, 0.05 and 0.5"
        " for scores in float16 and bfloat16",
        ge=0,
    )


@dataclass(frozen=True)
class ExportConfig:
    """Write a model for other programs (safetensors, PEFT adapter, GGUF, ONNX), compared with the original."""

    model: str = setting(
        "",
        "what is exported (also: proxlm export MODEL): the folder of a run, a model or an adapter, a GGUF file, or a"
        " name on the hub",
        path="model",
    )
    format: ExportFormat = setting(
        "safetensors",
        "safetensors: a folder for transformers and vLLM, adapters merged; adapter: for PEFT; gguf: one file for"
        " llama.cpp; onnx: a graph for onnxruntime",
    )
    weights: Weights = setting(
        "float32", "what the numbers are kept as; the blocks of 8, 5 and 4 bits are for gguf"
    )
    base: str = setting(
        "", "adapter: the base to name in it; empty: the one that it was trained on", path="model"
    )
    output: str = setting("", "folder to write, which must not exist", path="output")
    check: ExportCheckSettings = setting(factory=ExportCheckSettings)
    trust_remote_code: bool = setting(False, "allow Python code that comes with the model to run")
    run: ProcessSettings = setting(factory=ProcessSettings)

    positional: ClassVar[str] = "model"
    takes_recipe: ClassVar[bool] = True

    def problems(self) -> Problems:
        found = required(("model", self.model), ("output", self.output))
        if self.weights not in (fit := _WEIGHTS[self.format]):
            found.append(("weights", f'format = "{self.format}" holds {", ".join(fit)}'))
        if self.base and self.format != "adapter":
            found.append(("base", 'is for format = "adapter"'))
        return found
