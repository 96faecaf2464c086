"""A critic on disk: a trained sequence classifier, which others load, too; or a language model to begin from."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from proxlm.checkpoint.write import give_mode_of
from proxlm.data.tokenizer import different_tokens, read_tokenizer
from proxlm.errors import ModelError
from proxlm.models.encoder_decoder import EncoderDecoderTrunk
from proxlm.models.language_model import LanguageModel
from proxlm.models.model_types import register_model_types
from proxlm.models.quiet import without_progress_bars
from proxlm.models.value_head import ValueHead
from proxlm.models.weights import (
    NOT_A_REWARD_MODEL,
    check_files,
    check_vocabulary,
    read_configuration,
    read_network,
)
from proxlm.rl.value_ensemble import ONE_HEAD, Ensemble
from proxlm.rl.value_histogram import ValueBins
from proxlm.text import reason_of

# In the configuration of a saved critic: low, high and sigma of a categorical one's bins, and what is added to its
# outputs where the classifier has no bias; how many heads there are.
BINS, HEADS, BIAS = "value_bins", "value_heads", "bias"
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class ValueModel(NamedTuple):
    """network: the whole transformers model; trunk: the part of it that gives states; head: from these to values."""

    network: Any
    trunk: Any
    head: ValueHead


def read_value_model(
    path: str, policy: LanguageModel, bins: ValueBins | None, ensemble: Ensemble = ONE_HEAD
) -> ValueModel:
    """A critic for a policy from a folder or a name on the hub.

    A classifier (…ForSequenceClassification) gives trunk and head, so that V after a text is at first its output. Of
    a language model the trunk alone is taken, with a new head, V = 0. Its sizes may be others than the policy's; its
    tokens may not. Several heads are those of a saved critic with as many, or all begin as its only one and differ by
    the ensemble's spread.

    Raises:
        ModelError: It cannot be loaded, has other tokens or another kind of head, or is no decoder where the policy
            is one, or the other way round.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    register_model_types()
    what = f'model.critic_from = "{path}"'
    check_files(path, what)
    try:
        found = read_configuration(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{what}: cannot be loaded: {reason_of(error, 200)}") from error
    if bool(found.is_encoder_decoder) != policy.encoder_decoder:
        kinds = (
            ("an encoder–decoder", "a decoder")
            if found.is_encoder_decoder
            else ("a decoder", "an encoder–decoder")
        )
        raise ModelError(
            f"{what}: {kinds[0]}, and the policy is {kinds[1]}; give a critic of the policy's kind"
        )
    names = getattr(found, "architectures", None) or [""]
    if any(str(name).endswith(LANGUAGE_MODELS) for name in names):
        network = read_network(
            AutoModelForSeq2SeqLM if found.is_encoder_decoder else AutoModelForCausalLM, path, what
        )
        _check_tokens(what, path, network, policy)
        print(f"note: {what}: a language model, so the critic begins with its trunk and V = 0", flush=True)
        head = ValueHead(network.get_output_embeddings().weight.shape[1], bins, ensemble)
        trunk = EncoderDecoderTrunk(network) if found.is_encoder_decoder else network.base_model
        return ValueModel(network, trunk, head)
    if found.is_encoder_decoder:
        # Its classifiers read the whole text on both sides and have more than a linear head: not V of a state.
        raise ModelError(
            f"{what}: a classifier on an encoder–decoder is no value of a state; give an encoder–decoder language"
            ' model, whose trunk the critic begins with, or set model.critic_from = ""'
        )
    network = read_network(AutoModelForSequenceClassification, path, what, advice=NOT_A_REWARD_MODEL)
    _check_tokens(what, path, network, policy)
    return ValueModel(network, network.base_model, _head_of(what, network, bins, ensemble))


def _head_of(what: str, network: Any, bins: ValueBins | None, ensemble: Ensemble) -> ValueHead:
    """The value head that a classifier's linear score layer is."""
    saved, heads = getattr(network.config, BINS, None), getattr(network.config, HEADS, 1)
    if heads not in (1, ensemble.heads):
        raise ModelError(
            f"{what}: it has {heads} value heads, model.value.heads says {ensemble.heads}; set it to {heads}"
        )
    score, wanted = getattr(network, "score", None), heads * (1 if bins is None else bins.count)
    if not isinstance(score, nn.Linear) or score.out_features != wanted:
        outputs = getattr(score, "out_features", "no linear score layer and no")
        raise ModelError(
            f"{what}: needs {wanted} output{'s' * (wanted > 1)}, as model.value says; it has {outputs} outputs"
        )
    bias = None if score.bias is None else score.bias.detach()
    if bins is not None:
        said = dict(saved) if isinstance(saved, dict) else {}
        bias = _saved_bias(what, said.pop(BIAS, None), wanted) if bias is None else bias
        if said != _bins_as_saved(bins):
            raise ModelError(
                f"{what}: its bins are {said or None}, those of model.value {_bins_as_saved(bins)}; set them alike"
            )
    head, copies = ValueHead(score.in_features, bins, ensemble), ensemble.heads // heads
    with torch.no_grad():
        if copies == 1:
            head.linear.weight.zero_()
        head.linear.weight.add_(score.weight.repeat(copies, 1))
        if bias is not None:
            head.linear.bias.copy_(bias.repeat(copies))
    return head


def _saved_bias(what: str, saved: Any, count: int) -> Tensor | None:
    """What the configuration of a categorical critic says is added to its outputs [count]."""
    if saved is None:
        return None
    numbers = isinstance(saved, list) and all(type(x) in (int, float) and math.isfinite(x) for x in saved)
    if not numbers or len(saved) != count:
        raise ModelError(f"{what}: config.json: {BINS}.{BIAS}: expected {count} finite numbers")
    return torch.tensor(saved)


def _bins_as_saved(bins: ValueBins) -> dict[str, float]:
    return {"low": bins.low, "high": bins.high, "sigma": bins.sigma}


def _check_tokens(what: str, path: str, network: Any, policy: LanguageModel) -> None:
    """Raise ModelError unless the critic reads the policy's tokens as what they are."""
    check_vocabulary(what, policy.tokenizer, network, special=True)
    rows, wanted = (n.get_input_embeddings().weight.shape[0] for n in (network, policy.network))
    if not any((Path(path) / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        if rows != wanted:
            raise ModelError(
                f"{what}: its embedding has {rows} rows, the policy's {wanted}, and no tokenizer beside it says that"
                " its tokens are the policy's; save the tokenizer with it"
            )
        return
    try:
        other = read_tokenizer(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{what}: its tokenizer cannot be read: {reason_of(error, 200)}") from error
    if difference := different_tokens(other, policy.tokenizer, "the policy's"):
        raise ModelError(f"{what}: its tokenizer is not the policy's: {difference}")


def classifier_for(trunk: Any, head: ValueHead, what: str) -> Any:
    """The transformers classifier that computes the values of a trunk and a head: its weights are those, not copies.

    Raises:
        ModelError: transformers has none for this type, or none whose head is linear and alike.
    """
    config = copy.deepcopy(trunk.config)
    if head.bins is not None:
        setattr(config, BINS, _bins_as_saved(head.bins))
    if head.ensemble.heads > 1:
        setattr(config, HEADS, head.ensemble.heads)
    network = classifier_on(trunk, head.linear, config, what)
    if network.score.bias is None and bool(head.linear.bias.any()):
        if head.bins is None:
            raise ModelError(
                f"{what}: the classifier of model type {config.model_type} has no bias; the value head does"
            )
        getattr(network.config, BINS)[BIAS] = head.linear.bias.tolist()
    return network


def classifier_on(trunk: Any, head: nn.Linear, config: Any, what: str, per_token: bool = False) -> Any:
    """As `classifier_for`, of a linear head with any number of outputs, whose bias is dropped if the type has none.

    config: its own, changed in place; per_token: one that has outputs for each token (…ForTokenClassification).
    """
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    kind = AutoModelForTokenClassification if per_token else AutoModelForSequenceClassification
    register_model_types()
    config.num_labels = head.out_features
    config.use_cache = True
    try:
        with torch.device("meta"):
            network: Any = kind.from_config(config)
    except (ValueError, AttributeError) as error:
        raise ModelError(
            f"{what}: transformers has no classifier{' of tokens' * per_token} of model type {config.model_type}"
        ) from error
    score = getattr(network, "score", None) or (getattr(network, "classifier", None) if per_token else None)
    if not isinstance(score, nn.Linear) or score.weight.shape != head.weight.shape:
        raise ModelError(
            f"{what}: the classifier of model type {config.model_type} has no linear head on the states"
        )
    setattr(network, network.base_model_prefix, trunk)
    score.weight = head.weight
    bias: Any = score.bias
    if bias is not None:
        score.bias = head.bias
    network.config.architectures = [type(network).__name__]
    return network.eval()


def save_value_model(trunk: Any, head: ValueHead, policy: LanguageModel, folder: Path) -> None:
    """Write a critic as …ForSequenceClassification, with one output or one for each bin, and the policy's tokenizer.

    `AutoModelForSequenceClassification.from_pretrained(folder)` gives V after a text (of a categorical critic, the
    logits of the bins, less `value_bins.bias` of config.json), of several heads one after the other, and
    `model.critic_from` reads the folder.
    """
    network = classifier_for(trunk, head, policy.source)
    with without_progress_bars():
        network.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
    give_mode_of(folder / "config.json", folder)
