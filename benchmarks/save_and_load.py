"""Saves and loads a tiny model of every type that transformers can build small: the logits must be those in memory.

    nice python benchmarks/save_and_load.py [TYPE ...]

For each type: without adapters and with LoRA on every linear layer, as if trained. "refused": a line said why.
Exit status 1 if a loaded model is another one, or an error is none of ours. The short form:
tests/models/test_save_and_load.py.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from model_types import logits_of, tiny_network
from proxlm.config import LoraSettings, ModelSettings
from proxlm.data.tokenizer import train_tokenizer
from proxlm.errors import UserError
from proxlm.models.load import language_model_of, load_language_model
from proxlm.models.save import save_language_model

LARGEST = 3_000_000  # parameters; a type that is larger with these sizes has other names for them
TOKENS = [5, 9, 30, 7, 40, 41, 3, 8, 77]


def main(types: list[str]) -> int:
    """Try the types, or all of them; returns the exit status."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["The cat sat on the mat and looked at the moon."] * 20, 320, 64)
    began, counts = time.monotonic(), Counter[str]()
    for model_type in types or all_types():
        for rank in (0, 4):
            outcome, said = tried(model_type, tokenizer, rank)
            counts[outcome] += 1
            if outcome != "same":
                print(f"{outcome:8} {model_type}{f', rank {rank}' if rank else ''}: {said}", flush=True)
            if outcome in ("too large", "not built") or (outcome == "refused" and not rank):
                break
    print(f"{dict(counts)}, {time.monotonic() - began:.0f} s, transformers {transformers.__version__}")
    return int(bool(counts["OTHER"] or counts["ERROR"]))


def all_types() -> list[str]:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES})


def tried(model_type: str, tokenizer: Any, rank: int) -> tuple[str, str]:
    """What came of one type: an outcome, and what there is to say of it."""
    try:
        if (size := parameters(model_type, tokenizer)) > LARGEST:
            return "too large", f"{size:,} parameters"
        network = tiny_network(model_type, tokenizer)
        logits_of(network, TOKENS)
    except Exception as error:  # transformers cannot build or run it with these sizes: none of our affair
        return "not built", f"{type(error).__name__}: {str(error)[:80]!r}"
    try:
        settings = ModelSettings(policy=model_type, device="cpu", lora=LoraSettings(rank=rank))
        model = language_model_of(network, tokenizer, settings)
        if rank:
            generator = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for _, p in model.trainable():
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        wanted = logits_of(model.network, TOKENS)
        with tempfile.TemporaryDirectory() as folder:
            save_language_model(model, Path(folder))
            loaded = load_language_model(ModelSettings(policy=folder, device="cpu"))
            gap = float((logits_of(loaded.network, TOKENS) - wanted).abs().max())
    except UserError as error:
        return "refused", str(error)[:160]
    except Exception as error:
        return "ERROR", f"{type(error).__name__}: {str(error)[:160]!r}"
    allowed = (1e-4 if rank else 1e-5) * float(wanted.abs().max())
    return ("same", "") if gap <= allowed else ("OTHER", f"logits differ by {gap:.3g}")


def parameters(model_type: str, tokenizer: Any) -> int:
    """Numbers in a tiny network of the type, without making it."""
    with torch.device("meta"):
        return sum(p.numel() for p in tiny_network(model_type, tokenizer, std=0).parameters())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
