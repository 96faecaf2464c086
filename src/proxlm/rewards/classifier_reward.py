"""What rewards with a classifier of their own share: its folder, its tokenizer, and its passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from proxlm.config.paths import looks_like_path
from proxlm.config.problems import chat_problems
from proxlm.data.chat import ChatFormat, read_template
from proxlm.data.tokenizer import read_tokenizer
from proxlm.errors import ModelError
from proxlm.kernels.device import resolve_device
from proxlm.models.encoder import longest_text
from proxlm.models.model_types import register_model_types
from proxlm.models.weights import check_files, check_vocabulary, read_configuration, read_network
from proxlm.rewards.reading import Reader
from proxlm.text import reason_of


class ClassifierReward:
    """A model that reads completions. The arguments are those of the reward.

    Raises:
        ValueError: An argument is impossible ("ARGUMENT: what is wrong").
    """

    _called: ClassVar[str]  # in messages

    def __init__(
        self,
        path: str,
        max_length: int,
        batch_size: int,
        device: str,
        chat_template: str,
        chat_template_kwargs: dict[str, Any] | None,
    ) -> None:
        if max_length < 0:
            raise ValueError(f"max_length = {max_length}: must be at least 0")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: must be at least 1")
        self.path, self.max_length, self.batch_size = path, max_length, batch_size
        self.device = resolve_device(device)
        self.chat_template, self.chat_template_kwargs = chat_template, chat_template_kwargs or {}
        if problems := chat_problems("chat_template_kwargs", self.chat_template_kwargs):
            raise ValueError(": ".join(problems[0]))
        self._model: Any = None
        self._reader: Reader | None = None

    def _configuration(self) -> Any:
        """That of the folder; None: the path is a name on the hub. Raises ValueError."""
        if not Path(self.path).is_dir():
            if not self.path or looks_like_path(self.path):
                raise ValueError(f'path = "{self.path}": no such folder')
            return None
        check_files(self.path, f"{self._called} {self.path}")
        register_model_types()
        try:
            return read_configuration(self.path)
        except (OSError, ValueError) as error:
            raise ValueError(f'path = "{self.path}": {reason_of(error)}') from error

    def _read_tokenizer(self) -> Any:
        """Its tokenizer. Raises ModelError."""
        try:
            return read_tokenizer(self.path)
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"reward model {self.path}: no tokenizer: {reason_of(error)}") from error

    def _read_network(self, kind: Any, tokenizer: Any, advice: str) -> Any:
        """The network, in float32 on the CPU, in its own precision on a GPU. Raises ModelError.

        Args:
            kind: The class of transformers that reads it.
            tokenizer: Its tokenizer.
            advice: What is needed, for a folder that holds something else.
        """
        register_model_types()
        what, dtype = f"{self._called} {self.path}", torch.float32 if self.device.type == "cpu" else "auto"
        network = read_network(kind, self.path, what, dtype=dtype, advice=advice)
        check_vocabulary(what, tokenizer, network)
        return network.to(self.device).eval()

    def _begin(self, network: Any, tokenizer: Any, pair: bool) -> None:
        """Read with these from now on."""
        self.max_length = self.max_length or longest_text(network.config.get_text_config(), tokenizer)
        chat = ChatFormat(tokenizer, read_template(self.chat_template), self.chat_template_kwargs)
        self._model, self._reader = network, Reader(chat, pair, self.path)

    def _padding(self) -> int | None:
        """The model's padding id, not the tokenizer's: decoders find a text's last token by it."""
        found: int | None = getattr(self._model.config.get_text_config(), "pad_token_id", None)
        return found

    def _logits(self, rows: Mapping[int, Sequence[int]], size: int) -> Iterator[tuple[int, Tensor]]:
        """The outputs for each row of token ids, on the CPU; rows of similar length, `size` of them, share a pass."""
        ordered = sorted(rows, key=lambda i: len(rows[i]))
        for start in range(0, len(ordered), size):
            batch = ordered[start : start + size]
            yield from zip(batch, self._pass([rows[i] for i in batch]), strict=True)

    @torch.inference_mode()
    def _pass(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """b rows, padded on the right → outputs [b, ...] in float32."""
        longest, pad = max(map(len, rows)), self._padding() or 0
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        logits: Tensor = self._model(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
        ).logits
        return logits.float().cpu()
