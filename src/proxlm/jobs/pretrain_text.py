"""The text of `proxlm pretrain`: read, split, and encoded into blocks, from one source or from a mixture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from proxlm.config import PretrainConfig
from proxlm.config.mixture import is_mixture, source_names
from proxlm.data.documents import Documents
from proxlm.data.inputs import inputs_of
from proxlm.data.skipped import Skipped
from proxlm.data.text import read_texts
from proxlm.data.token_streams import TokenStreams, kept_streams, temporary_streams, tokenizer_sha256
from proxlm.errors import ConfigError, DataError
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.supervised.examples import Examples


class PretrainText:
    """The texts to train and to validate on; they are read when something of them is first needed.

    Args:
        config: The job's settings.
        texts: Documents that a Python caller passes; None: the files of the section [text].
        skipped: Receives what is left out.
    """

    def __init__(self, config: PretrainConfig, texts: Iterable[str] | None, skipped: Skipped) -> None:
        self.config, self.skipped, self._texts = config, skipped, texts
        self.mixed = is_mixture(config.text)
        self.names = source_names(config.text.train) if self.mixed else []
        own = config.text.validation
        self.validation_names = (source_names(own) if own else self.names) if self.mixed else []

    @cached_property
    def documents(self) -> tuple[list[Documents], list[Documents]]:
        """Of each source what to train on, in the order of its files, and what to validate on."""
        text, seed = self.config.text, self.config.run.seed
        sources = [
            self._read(paths) for paths in ([[path] for path in text.train] if self.mixed else [text.train])
        ]
        if text.validation:
            held_out = [[path] for path in text.validation] if self.mixed else [text.validation]
            return sources, [read_texts(paths, text.extensions, self.skipped) for paths in held_out]
        parts = [source.split(text.validation_share, seed) for source in sources]
        return [train for train, _ in parts], [validation for _, validation in parts]

    def examples(self, tokenizer: Any) -> tuple[Examples, Examples]:
        """Blocks to train and to validate on.

        Raises:
            DataError: A part is shorter than a block.
        """
        text, block = self.config.text, self.config.train.block
        if text.tokens:
            key = self._key(tokenizer)
            streams = kept_streams(
                Path(text.tokens), key, tokenizer, lambda: (self._shuffled(), len(self.skipped))
            )
            if streams.left_out and not len(self.skipped):
                _ = self.documents  # names what was left out
        else:
            streams = temporary_streams(tokenizer, self._shuffled())
        count = len(self.names) or 1
        sources = range(count), range(count, len(streams.ends))
        training = self._blocks(streams, sources[0], self.names, block)
        try:
            return training, self._blocks(streams, sources[1], self.validation_names, block)
        except DataError as error:
            raise DataError(f"the validation part: {error}; or raise text.validation_share") from error

    def _blocks(
        self, streams: TokenStreams, wanted: Sequence[int], names: Sequence[str], block: int
    ) -> Examples:
        return Examples.from_streams(streams, wanted, block, names)

    def _read(self, paths: Sequence[str]) -> Documents:
        if self._texts is not None:
            return Documents(self._texts)
        return read_texts(paths, self.config.text.extensions, self.skipped)

    def _shuffled(self) -> list[Documents]:
        """The documents of all streams: in the order of the files, neighbours in a block would be near-copies."""
        train, validation = self.documents
        seed = derive_seed(self.config.run.seed, Purpose.DOCUMENTS)
        return [*(documents.shuffled(seed) for documents in train), *validation]

    def _key(self, tokenizer: Any) -> str:
        """A hash of what the streams depend on: the files, the settings that split and order them, the tokenizer."""
        text = self.config.text
        digests = inputs_of(self.config).digests()
        keys = [
            f"text.{name}[{i}]" for name in ("train", "validation") for i in range(len(getattr(text, name)))
        ]
        for key in keys:
            if key not in digests:
                raise ConfigError(
                    f"text.tokens: {key} is no file on this disk that could be compared; leave it out"
                )
        settings: list[Any] = [text.extensions, text.on_bad_record, self.mixed, self.config.run.seed]
        settings.append(0.0 if text.validation else text.validation_share)
        parts = [[digests[key] for key in keys], len(text.train), settings, tokenizer_sha256(tokenizer)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
