"""Programs that read an exported model, or hold the original: transformers, PEFT and onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxlm.export.original import Original
from proxlm.models.quiet import without_progress_bars

_AUTO = {
    "language model": "AutoModelForCausalLM",
    "encoder–decoder": "AutoModelForSeq2SeqLM",
    "classifier of texts": "AutoModelForSequenceClassification",
    "classifier of tokens": "AutoModelForTokenClassification",
}


class _StepByStep:
    """Greedy responses by reading the whole text again for every token, which works for every kind of model."""

    def __init__(self, tokenizer: Any, original: Original) -> None:
        self._tokenizer, self._ends, self._scores = tokenizer, original.ends, original.scores

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, verbose=False)["input_ids"])

    def logits(self, ids: Sequence[int]) -> Tensor:
        """The logits [T, V] of one text; of a classifier its scores [1, K] or [T, K]."""
        raise NotImplementedError

    def outputs(self, ids: Sequence[int]) -> Tensor:
        found = self.logits(ids)
        return found if self._scores else found.log_softmax(-1)

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        made: list[int] = []
        while len(made) < count and not (made and made[-1] in self._ends):
            made.append(int(self.logits([*ids, *made])[-1].argmax()))
        return made


class Transformers(_StepByStep):
    """A transformers model with its tokenizer: a language model, an encoder–decoder or a classifier."""

    def __init__(self, network: Any, tokenizer: Any, original: Original, name: str = "transformers") -> None:
        super().__init__(tokenizer, original)
        self.name, self._network = name, network.eval()

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """As declared; an encoder–decoder reads the text on both sides."""
        row = torch.tensor([list(ids)], device=self._network.device)
        more = {"decoder_input_ids": row} if self._network.config.is_encoder_decoder else {}
        logits: Tensor = self._network(input_ids=row, **more).logits
        return logits.reshape(-1, logits.shape[-1]).float().cpu()


class Onnx(_StepByStep):
    """An ONNX graph with the tokenizer beside it, run by onnxruntime."""

    name = "onnxruntime"

    def __init__(self, file: Path, tokenizer: Any, original: Original, threads: int) -> None:
        import onnxruntime

        super().__init__(tokenizer, original)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def logits(self, ids: Sequence[int]) -> Tensor:
        return self.batch([ids])[0]

    def batch(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """The outputs of texts that are read as one batch, padded on the right."""
        length = max(map(len, rows))
        ids, mask = (torch.zeros(len(rows), length, dtype=torch.int64) for _ in range(2))
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(list(row))
            mask[i, : len(row)] = 1
        (found,) = self._session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        kept = [found[i, : len(row)] if found.ndim == 3 else found[i : i + 1] for i, row in enumerate(rows)]
        return [torch.from_numpy(one).float() for one in kept]


def plain_transformers(folder: Path, original: Original) -> Transformers:
    """A folder as anybody reads it, with nothing of proxlm's but its own model types; the weights in float32."""
    import transformers

    kind = getattr(transformers, _AUTO[original.kind])
    with without_progress_bars():
        network = kind.from_pretrained(folder, dtype=torch.float32)
        return Transformers(network, transformers.AutoTokenizer.from_pretrained(folder), original)


def with_peft(folder: Path, base: str, original: Original) -> Transformers:
    """An adapter's folder as PEFT reads it, on its base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with without_progress_bars():
        network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted = PeftModel.from_pretrained(network, folder)
        return Transformers(adapted, AutoTokenizer.from_pretrained(folder), original, "PEFT")
