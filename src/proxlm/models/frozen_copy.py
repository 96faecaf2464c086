"""Copies of a model that do not learn."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, TypeVar

from proxlm.models.classifier import Classifier
from proxlm.models.language_model import LanguageModel

M = TypeVar("M", LanguageModel, Classifier)


def frozen_copy(model: M) -> M:
    """A copy of a model: network, adapters and tokenizer. Frozen weights, such as the base below adapters, are
    shared.

    Adapters and tokenizers change state while they are used, so two threads cannot share them.
    """
    shared: dict[int, Any] = {id(p): p for p in model.network.parameters() if not p.requires_grad}
    network, adapters = copy.deepcopy((model.network, model.adapters), shared)
    for p in network.parameters():
        p.requires_grad_(False)
    return replace(model, network=network, adapters=adapters, tokenizer=copy.deepcopy(model.tokenizer))
