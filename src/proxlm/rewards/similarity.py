"""How like a reference text a response is, by the embeddings of a local encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from proxlm.errors import RewardError
from proxlm.kernels.device import resolve_device
from proxlm.models.encoder import Encoder, load_encoder
from proxlm.models.model_types import register_model_types
from proxlm.models.weights import check_files, read_configuration
from proxlm.rewards.fields import field_of
from proxlm.text import reason_of
from proxlm.types import Completion

_MOST_KEPT = 100_000


class Similarity:
    """The cosine of the embeddings of response and reference, in [-1, 1]; with several references the best counts.

    An embedding is the mean of the encoder's last states over the text's tokens, special ones included, as
    sentence-transformers pools by default (Reimers & Gurevych 2019). Those of references are kept.

    Args:
        path: A folder with an encoder in Hugging Face format, MiniLM for instance; safetensors only.
        field: The record's field: a text, or a list of texts.
        max_length: Longest text in tokens; the rest of a longer one is not read. 0: the model's own limit.
        batch_size: Texts in one forward pass; changes only the speed.
        device: auto, cpu, cuda, cuda:1, …; in float32 everywhere.

    Raises:
        ValueError: An argument is impossible ("ARGUMENT: what is wrong").
    """

    def __init__(
        self,
        path: str,
        field: str = "response",
        max_length: int = 0,
        batch_size: int = 32,
        device: str = "auto",
    ) -> None:
        if max_length < 0:
            raise ValueError(f"max_length = {max_length}: must be at least 0")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: must be at least 1")
        if not path or not Path(path).is_dir():
            raise ValueError(f'path = "{path}": no such folder')
        check_files(path, f"encoder {path}")
        register_model_types()
        try:
            config = read_configuration(path)
        except (OSError, ValueError) as error:
            raise ValueError(f'path = "{path}": {reason_of(error)}') from error
        if config.is_encoder_decoder:
            raise ValueError(
                f'path = "{path}": an encoder–decoder; an encoder such as BERT or MiniLM is needed'
            )
        self.path, self.field, self.max_length, self.batch_size = path, field, max_length, batch_size
        self.device = resolve_device(device)
        self._encoder: Encoder | None = None
        self._kept: dict[str, Tensor] = {}

    def prepare(self) -> None:
        """Load the encoder and its tokenizer, once. Raises ModelError."""
        if self._encoder is None:
            self._encoder = load_encoder(self.path, self.device)
            self.max_length = min(self.max_length or 10**9, self._encoder.limit)

    def __call__(self, completions: list[Completion]) -> list[float | RewardError]:
        """The similarities, [B]; each is independent of the rest of the batch, up to rounding."""
        self.prepare()
        references = [self._references(completion) for completion in completions]
        wanted = {text for found in references if isinstance(found, list) for text in found}
        if len(self._kept) + len(wanted) > _MOST_KEPT:
            self._kept.clear()
        new = sorted(wanted - self._kept.keys())
        self._kept.update(zip(new, self._embeddings(new), strict=True))
        own = self._embeddings([completion.text.strip() for completion in completions])
        return [
            found if isinstance(found, RewardError) else max(float(mine @ self._kept[text]) for text in found)
            for mine, found in zip(own, references, strict=True)
        ]

    def _references(self, completion: Completion) -> list[str] | RewardError:
        found = field_of(completion, self.field)
        if isinstance(found, RewardError):
            return found
        texts = [found] if isinstance(found, str) else found
        if isinstance(texts, list) and texts and all(isinstance(t, str) and t.strip() for t in texts):
            return [text.strip() for text in texts]
        return RewardError(f'field "{self.field}" holds no text and no list of texts')

    @torch.inference_mode()
    def _embeddings(self, texts: list[str]) -> list[Tensor]:
        """Texts [n] → n vectors of length 1 on the CPU; zeros for a text without tokens."""
        assert self._encoder is not None
        read = self._encoder.tokenizer
        rows = [read(text, truncation=True, max_length=self.max_length)["input_ids"] for text in texts]
        found = [torch.zeros(0)] * len(rows)
        ordered = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(ordered), self.batch_size):
            batch = ordered[start : start + self.batch_size]
            means, _ = self._encoder.pooled([rows[i] for i in batch])
            for i, vector in zip(batch, torch.nn.functional.normalize(means, dim=-1).cpu(), strict=True):
                found[i] = vector
        return found
