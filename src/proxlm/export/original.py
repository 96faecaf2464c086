"""What is exported: a language model, an encoder–decoder or a classifier, read once with its adapters merged."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from proxlm.config import ModelSettings
from proxlm.data.tokenizer import read_tokenizer
from proxlm.errors import ModelError
from proxlm.models.adapter_folder import AdapterFolder, find_adapter
from proxlm.models.adapters import merged
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import ADAPTER_FOLDER
from proxlm.models.source import ModelSource
from proxlm.models.weights import read_network
from proxlm.text import reason_of, shown

Kind = Literal["language model", "encoder–decoder", "classifier of texts", "classifier of tokens"]
_CLASSIFIERS: dict[str, Kind] = {
    "ForSequenceClassification": "classifier of texts",
    "ForTokenClassification": "classifier of tokens",
}
# In which folders of a run its model may be.
_OF_RUN = ("policy", "reward", "value")


@dataclass
class Original:
    """The model that is exported.

    Attributes:
        kind: What it is.
        network: The transformers model in float32, adapters merged.
        tokenizer: Its tokenizer.
        source: Where it came from, for messages.
        folder: Where it was read from; "": it was passed from Python.
        vocabulary: Rows of its embedding.
        ends: The tokens at which a response ends.
        model: It as a LanguageModel; None: a classifier.
    """

    kind: Kind
    network: Any
    tokenizer: Any
    source: str
    folder: str
    vocabulary: int
    ends: Collection[int] = ()
    model: LanguageModel | None = None

    @property
    def scores(self) -> bool:
        """Whether its outputs are scores, not log-probs of tokens."""
        return self.kind in _CLASSIFIERS.values()

    @property
    def language_model(self) -> LanguageModel:
        """It, for formats that hold decoders alone. Raises ModelError for another kind."""
        if self.model is None or self.kind != "language model":
            raise ModelError(
                f"{self.source}: a {self.kind}, where a language model is needed; export safetensors"
            )
        return self.model

    def release(self) -> None:
        """Let the weights go, so that those of the export can take their place in memory."""
        self.network = self.model = None


def model_of_run(name: str) -> str:
    """The folder of the model in a run's folder; any other name as it is.

    Raises:
        ModelError: A run that is not finished, or an ensemble of reward models.
    """
    run = Path(name)
    if not (run / "config.toml").is_file() or (run / "config.json").is_file():
        return name
    found = next((run / part for part in _OF_RUN if (run / part).is_dir()), None)
    if found is None:
        raise ModelError(
            f'model = "{name}": a run without a model yet: resume it, or export a checkpoint\'s policy/'
        )
    if not any((found / file).is_file() for file in ("config.json", "adapter_config.json")):
        below = sorted(folder.name for folder in found.iterdir() if folder.is_dir())
        raise ModelError(f"{found}: several models: export one of {shown(', '.join(below), 80)}")
    return str(found)


def load_original(source: ModelSource) -> Original:
    """The model with its weights. Raises ModelError, ConfigError."""
    settings = source.settings
    if not source.in_memory and find_adapter(settings.policy) is None:
        names = [str(name) for name in getattr(source.configuration, "architectures", None) or []]
        for end, kind in _CLASSIFIERS.items():
            if any(name.endswith(end) for name in names):
                return _classifier(settings, kind)
    model = source.load()
    if model.adapters is not None:
        network = merged(copy.deepcopy(model.adapters))
        model = replace(model, network=network, adapters=None)
    return Original(
        "encoder–decoder" if model.encoder_decoder else "language model",
        model.network,
        model.tokenizer,
        model.source,
        "" if source.in_memory else settings.policy,
        _rows(model.network),
        model.turn_end.tokens,
        model,
    )


def _classifier(settings: ModelSettings, kind: Kind) -> Original:
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    per_token = kind == "classifier of tokens"
    auto = AutoModelForTokenClassification if per_token else AutoModelForSequenceClassification
    what = f'model = "{settings.policy}"'
    network = read_network(auto, settings.policy, what, trust_remote_code=settings.trust_remote_code)
    try:
        tokenizer = read_tokenizer(settings.policy, settings.trust_remote_code)
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        raise ModelError(f"{what}: no tokenizer: {reason_of(error)}") from error
    return Original(kind, network.eval(), tokenizer, settings.policy, settings.policy, _rows(network))


def _rows(network: Any) -> int:
    return int(network.get_input_embeddings().weight.shape[0])


def adapter_of(original: Original) -> AdapterFolder:
    """The adapter that its folder is, or that lies below a merged policy. Raises ModelError if there is none."""
    folder = original.folder
    found = find_adapter(folder) or find_adapter(str(Path(folder) / ADAPTER_FOLDER)) if folder else None
    if found is None:
        raise ModelError(
            f"{original.source}: no adapter's folder; one is written by training with model.lora.rank: export"
            " safetensors"
        )
    return found


def check_range(network: Any, dtype: torch.dtype, source: str) -> None:
    """Raise ModelError for a weight beyond the largest number of a precision."""
    limit = torch.finfo(dtype).max
    for name, p in network.named_parameters():
        if float(p.detach().abs().max()) > limit:
            raise ModelError(
                f"{source}: {shown(name, 60)} has weights beyond {limit:.3g}, the largest number of"
                f" {str(dtype).removeprefix('torch.')}; export bfloat16 or float32"
            )
