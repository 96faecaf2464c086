"""LoRA adapters (Hu et al. 2021) by PEFT: the policy's, and the critic's on the same frozen base.

A model with adapters keeps one copy of its base. The policy's adapters and the critic's are sets of PEFT's with names
of their own, of which one is active at a time. The reference is the policy at its start: the base with all of them
off or, where the policy goes on with an adapter that was trained before, with a third set, which holds that one.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from proxlm.config import LoraSettings
from proxlm.errors import ConfigError, ModelError
from proxlm.models.frozen import top_blocks
from proxlm.models.quiet import without_known_warnings
from proxlm.text import listed, reason_of

if TYPE_CHECKING:
    from proxlm.models.language_model import LanguageModel

# PEFT's names of the sets of adapters.
POLICY, CRITIC, REFERENCE = "default", "critic", "reference"


def add_lora(model: LanguageModel, lora: LoraSettings, train_layers: int = 0) -> LanguageModel:
    """Freeze the base and put rank-r adapters on its linear layers; the output head is left out by default.

    Args:
        model: Its network gets PEFT's layers, in place.
        lora: Rank, alpha and targets.
        train_layers: Only on so many of the top blocks; 0: on all.

    Returns:
        The model with its adapters.

    Raises:
        ConfigError: PEFT is not installed, or the targets are no layers that adapters can sit on and be merged into.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError('model.lora needs PEFT: pip install "proxlm[lora]"') from error
    from transformers.pytorch_utils import Conv1D

    head = model.network.get_output_embeddings()
    if not lora.targets and not any(
        isinstance(module, nn.Linear | Conv1D) and module is not head for module in model.network.modules()
    ):
        model_type = model.network.config.model_type
        raise ConfigError(
            f"model.lora: model type {model_type} has no linear layer but its output head for adapters to sit on;"
            " set model.lora.rank = 0"
        )
    _check_rank(model.network, lora)
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        target_modules=_targets(model.network, lora, train_layers),
        task_type="SEQ_2_SEQ_LM" if model.encoder_decoder else "CAUSAL_LM",
        # GPT-2 keeps its weights as [in, out].
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.network.modules()),
    )
    learned = {id(p) for p in model.network.parameters() if p.requires_grad}
    try:
        # Patterns that PEFT itself adds, for the experts of a mixture.
        with without_known_warnings(r"The following \w+_pattern keys did not match"):
            adapted = peft.get_peft_model(model.network, settings)
    except ValueError as error:
        raise ConfigError(f"model.lora.targets = {lora.targets}: {reason_of(error, 150)}") from error
    settings.base_model_name_or_path = _base_name(model.network)
    try:
        _check_layers(adapted, lora)
        check_merge(adapted, "model.lora")
    except (ConfigError, ModelError):
        # The network may be the caller's.
        for p in adapted.unload().parameters():
            p.requires_grad_(id(p) in learned)
        raise
    return replace(model, adapters=adapted.eval())


def add_lora_to_trunk(network: Any, lora: LoraSettings, train_layers: int = 0) -> Any:
    """Freeze a classifier and put adapters on the linear layers of its trunk; its head is as it was.

    Args:
        network: A …ForSequenceClassification, which gets PEFT's layers, in place.
        lora: Rank, alpha and targets.
        train_layers: Only on so many of the top blocks; 0: on all.

    Returns:
        PEFT's model around it.

    Raises:
        ConfigError: PEFT is not installed, or the targets are no layers that adapters can sit on.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError('model.lora needs PEFT: pip install "proxlm[lora]"') from error
    from transformers.pytorch_utils import Conv1D

    prefix = network.base_model_prefix
    blocks = top_blocks(network, train_layers) if train_layers else [(prefix, getattr(network, prefix))]
    names = [
        f"{top}.{name}"
        for top, block in blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and (not lora.targets or _is_target(name, lora.targets))
    ]
    if not names:
        what = f"layer {listed(list(lora.targets), most=3)}" if lora.targets else "linear layer"
        raise ConfigError(f"model.lora: no {what} in the trunk for adapters to sit on")
    sides = {name: min(network.get_submodule(name).weight.shape) for name in names}
    if lora.rank > (most := max(sides.values())):
        name = next(name for name, side in sides.items() if side == most)
        raise ConfigError(
            f"model.lora.rank = {lora.rank}: must be at most {most}, the smaller side of the matrix {name}, the"
            " largest that it would adapt"
        )
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        target_modules=names,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in network.modules()),
    )
    return peft.get_peft_model(network, settings).eval()


def variant_of(settings: Any) -> str:
    """The name in `model.lora.variant` of the variant of an adapter, by PEFT's settings: an object or a mapping."""
    settings = settings if isinstance(settings, dict) else vars(settings) if settings is not None else {}
    return next((name for name in ("rslora", "dora") if settings.get(f"use_{name}")), "lora")


def _targets(network: Any, lora: LoraSettings, train_layers: int) -> list[str] | str:
    """What adapters sit on, as PEFT takes it; with train_layers the full names of layers of the top blocks."""
    from transformers.pytorch_utils import Conv1D

    if not train_layers:
        return list(lora.targets) or "all-linear"
    names = [
        f"{top}.{name}"
        for top, block in top_blocks(network, train_layers)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and (not lora.targets or _is_target(name, lora.targets))
    ]
    if not names:
        what = f"layer {listed(list(lora.targets), most=3)}" if lora.targets else "linear layer"
        raise ConfigError(f"model.lora: no {what} in the top {train_layers} blocks (model.train_layers)")
    return names


def _is_target(name: str, targets: Iterable[str]) -> bool:
    """As PEFT matches them: the name, or its end after a dot."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _check_rank(network: Any, lora: LoraSettings) -> None:
    """Raise ConfigError for a rank beyond the smaller side of every matrix that would be adapted.

    Such adapters can do no more than a full update, and would take more memory than there may be.
    """
    from transformers.pytorch_utils import Conv1D

    head, sides = network.get_output_embeddings(), {}
    for name, module in network.named_modules():
        linear = isinstance(module, nn.Linear | Conv1D) and module is not head
        weight = getattr(module, "weight", None)
        if (
            weight is not None
            and weight.ndim == 2
            and (_is_target(name, lora.targets) if lora.targets else linear)
        ):
            sides[name] = min(weight.shape)
    if sides and lora.rank > (most := max(sides.values())):
        name = next(name for name, side in sides.items() if side == most)
        raise ConfigError(
            f"model.lora.rank = {lora.rank}: must be at most {most}, the smaller side of the matrix {name}, the"
            " largest that it would adapt"
        )


def _base_name(network: Any) -> str:
    """The base of an adapter, for adapter_config.json: an absolute folder, or a name on the hub."""
    name = str(getattr(network, "name_or_path", "") or "")
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def _check_layers(adapted: Any, lora: LoraSettings) -> None:
    """Raise ConfigError for adapters on a layer that shares its weight with another one, as a tied head does."""
    network = adapted.get_base_model()
    names: dict[int, list[str]] = {}
    for name, p in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name.replace(".base_layer", "").removesuffix(".weight"))
    for target in adapted.base_model.targeted_module_names:
        weight = getattr(network.get_submodule(target).get_base_layer(), "weight", None)
        others = [name for name in names.get(id(weight), []) if name != target]
        if others:
            raise ConfigError(
                f"model.lora.targets = {lora.targets}: {target} shares its weight with {listed(others, most=2)}, so"
                " adapters on one of them cannot be merged; leave it out"
            )


def merged(adapted: Any) -> Any:
    """The network with its active adapters added to its weights, in place; the other sets are dropped."""
    with without_known_warnings():
        return adapted.merge_and_unload()


@torch.no_grad()
def check_merge(adapted: Any, what: str) -> None:
    """Raise ModelError unless adapters with some effect give the same logits merged into the weights and beside them.

    A layer whose weight is used past its own forward, or twice, would be another model once it is saved.

    Args:
        adapted: PEFT's model with LoRA adapters; it stays as it is.
        what: Beginning of the error's message.
    """
    trial = copy.deepcopy(adapted).eval()
    generator = torch.Generator().manual_seed(0)
    for name, p in trial.named_parameters():
        if "lora_B." in name or "lora_embedding_B." in name:
            p.copy_(torch.randn(p.shape, generator=generator))
    for module in trial.modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "lora_B"):
            factors = (
                module.lora_B[POLICY].weight if POLICY in module.lora_B else module.lora_embedding_B[POLICY]
            )
            weight = module.get_param() if hasattr(module, "get_param") else module.weight
            factors.mul_(0.1 * weight.norm() / module.get_delta_weight(POLICY).norm().clamp_min(1e-12))
    try:
        with trial.disable_adapter():
            bare = some_logits(trial.get_base_model())
        beside = some_logits(trial.get_base_model())
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{what}: a layer with adapters cannot run ({reason_of(error, 100)}); set model.lora.targets to other"
            " layers, or model.lora.rank = 0"
        ) from error
    gap = float((some_logits(merged(trial)) - beside).abs().max())
    effect = float((beside - bare).abs().max())
    if not gap <= 2e-3 * effect + 2e-5 * max(1.0, float(beside.abs().max())):
        model_type = adapted.get_base_model().config.model_type
        raise ModelError(
            f"{what}: adapters on model type {model_type} give logits that differ by {gap:.3g} once they are merged"
            " into its weights; set model.lora.targets to other layers, or model.lora.rank = 0"
        )


def some_logits(network: Any) -> torch.Tensor:
    """The network's logits of a short text, [1, T, V] float32."""
    size, device = network.get_input_embeddings().weight.shape[0], next(network.parameters()).device
    tokens = torch.arange(8, device=device)[None] * 7 % size
    sides = {}
    if network.config.is_encoder_decoder:
        sides = {"attention_mask": torch.ones_like(tokens), "decoder_input_ids": tokens.flip(-1)}
    found: torch.Tensor = network(input_ids=tokens, use_cache=False, **sides).logits.float()
    return found


def add_critic_adapters(model: LanguageModel) -> None:
    """Add a second set of adapters with the policy's settings, for the critic; at the start it is the policy's."""
    add_adapter_set(model, CRITIC, copied=REFERENCE in model.adapters.peft_config)
    require_gradients(p for _, p in model.trainable(CRITIC))


@torch.no_grad()
def add_adapter_set(model: LanguageModel, name: str, copied: bool) -> None:
    """Add a frozen set of adapters with the policy's settings: new ones, which change nothing, or copies of its."""
    trainable = [p for key in (POLICY, CRITIC) for _, p in model.trainable(key)]
    model.adapters.add_adapter(name, copy.deepcopy(model.adapters.peft_config[POLICY]))
    model.adapters.eval()
    own = dict(model.trainable())
    for key, p in model.trainable(name):
        p.requires_grad_(False)
        if copied:
            before, _, after = key.rpartition(f".{name}")
            p.copy_(own[f"{before}.{POLICY}{after}"])
    require_gradients(trainable)


@contextlib.contextmanager
def critic_adapters_active(model: LanguageModel) -> Iterator[None]:
    """The critic's adapters instead of the policy's, in this block; both stay trainable."""
    trainable = [p for _, p in model.trainable() + model.trainable(CRITIC)]
    model.adapters.set_adapter(CRITIC)
    try:
        require_gradients(trainable)
        yield
    finally:
        model.adapters.set_adapter(POLICY)
        require_gradients(trainable)


@contextlib.contextmanager
def reference_active(model: LanguageModel) -> Iterator[None]:
    """The policy at its start, bit for bit, in this block: the reference of a policy with adapters."""
    if model.adapters is None:
        yield
    elif REFERENCE not in model.adapters.peft_config:
        with model.adapters.disable_adapter():
            yield
    else:
        trainable = [p for key in (POLICY, CRITIC) for _, p in model.trainable(key) if p.requires_grad]
        model.adapters.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            model.adapters.set_adapter(POLICY)
            require_gradients(trainable)


def adapter_parameters(network: Any, name: str) -> list[tuple[str, nn.Parameter]]:
    """The named parameters of one set of adapters."""
    return [
        (key, p)
        for key, p in network.named_parameters()
        if "lora_" in key and (f".{name}." in key or key.endswith(f".{name}"))
    ]


def require_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Undo what PEFT does when it switches between sets: it freezes those that are not active."""
    for p in parameters:
        p.requires_grad_(True)
