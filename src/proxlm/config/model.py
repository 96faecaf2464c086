"""The section [model]: which model, what of it learns, adapters and the value head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.setting import setting


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021) with PEFT; the base is frozen and serves as the reference."""

    rank: int = setting(
        0,
        "rank of the adapters; 0: train all weights. If model.policy is an adapter: its rank to continue it, 0 to"
        " merge it into its base",
        ge=0,
    )
    alpha: float = setting(16.0, "the adapters' update is multiplied by alpha / rank", gt=0)
    targets: list[str] = setting(
        factory=list,
        help="names of the linear layers to adapt; empty: every linear layer except the output head",
    )
    variant: Literal["lora", "rslora", "dora"] = setting(
        "lora",
        "rslora: multiplied by alpha / √rank (Kalajdzievski 2023); dora: the weights' lengths learn apart from their"
        " directions (Liu et al. 2024), slower",
    )


@dataclass(frozen=True)
class ValueSettings:
    """The critic's last layer: one number or a histogram over bins that is learnt by cross-entropy, once or several
    times.
    """

    head: Literal["scalar", "categorical"] = setting(
        "scalar",
        "V is the head's one number, learnt by squared error, or the mean of a histogram over the bins (HL-Gauss)",
    )
    low: float = setting(-5.0, "categorical: the lowest value; lower returns count as this one")
    high: float = setting(5.0, "categorical: the highest value; a bin or two beyond all returns is best")
    bins: int = setting(101, "categorical: number of bins, evenly spaced from low to high", ge=2)
    sigma: float = setting(
        0.75,
        "categorical: deviation of the Gaussian around a return, in bins; 0: two-hot, the two bins beside it",
        ge=0,
    )
    head_rate: float = setting(
        10.0,
        "categorical: the head learns at this multiple of the critic's rate, so that it and not the trunk learns what"
        " all returns have in common",
        gt=0,
    )
    heads: int = setting(
        1,
        "number of value heads on the critic's trunk, which start differently and learn the same returns",
        ge=1,
    )
    combine: Literal["mean", "min", "lower_bound"] = setting(
        "mean", "several heads: V is the mean of their values, the least, or mean − pessimism · deviation"
    )
    pessimism: float = setting(1.0, "lower_bound: how many deviations over the heads are taken off", ge=0)
    init_spread: float = setting(
        0.1, "several heads: deviation of what they say at the start, around 0 (categorical: of logits)", ge=0
    )
    head_share: float = setting(
        0.5,
        "several heads: share of the responses that each one learns from, at random (bootstrap); 1: all, so they"
        " become one",
        gt=0,
        le=1,
    )


@dataclass(frozen=True)
class ModelSettings:
    """The model, its critic, the precision and the device."""

    policy: str = setting(
        "",
        "the language model: a folder in Hugging Face format, of a model or a PEFT adapter, or a name on the hub; a"
        " GGUF file (its path, or package:NAME of an installed package that carries one)",
        path="model",
    )
    critic: Literal["shared", "separate", "adapter"] = setting(
        "separate",
        "the value head is on the policy's trunk (shared), on a copy of it (separate), or, with model.lora, on the"
        " policy's base with LoRA adapters for the critic (adapter); no critic where the advantage uses no values",
    )
    critic_from: str = setting(
        "",
        "start the critic from this model (folder or hub name), of any size, with the policy's tokens: a reward model"
        " or a critic of proxlm value, trunk and head, or a language model, with V = 0; empty: a copy of the policy",
        path="model",
    )
    teacher: str = setting(
        "",
        "distil this model (folder or hub name), of any size and type, with the policy's tokens: the policy learns to"
        " write what it finds likely (ppo.teacher_coef), beside a reward or without one; empty: none",
        path="model",
    )
    value: ValueSettings = setting(factory=ValueSettings)
    train_layers: int = setting(
        0,
        "only the top N blocks learn; what lies below is computed once for each token, not in every pass; with"
        " model.lora, adapters sit on these blocks alone; 0: everything learns",
        ge=0,
    )
    freeze: list[str] = setting(
        factory=list,
        help='weights that do not learn: patterns of their names, such as "*.mlp.*" or "model.layers.0.*"',
    )
    activation_checkpointing: bool = setting(
        False,
        "keep only each layer's input for the backward pass and recompute the rest: less memory, slower",
        on_resume="free",
    )
    packed: bool = setting(
        False,
        "pack sequences without padding in a forward pass; the numbers are the same, the speed differs",
        on_resume="free",
    )
    precision: Literal["float32", "bfloat16", "auto"] = setting(
        "float32",
        "precision of the computation; weights, optimiser, losses and log-probs are always float32; auto: bfloat16"
        " if the device has instructions for it",
    )
    save_dtype: Literal["float32", "bfloat16", "source"] = setting(
        "float32",
        "precision of the weights in policy/: float32, as they are trained, or rounded to bfloat16, or to what the"
        " weights of model.policy are saved in (source); a resume goes on from float32 in any case",
        on_resume="free",
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, ...", on_resume="free")
    trust_remote_code: bool = setting(
        False, "allow Python code that comes with the model to run", on_resume="free"
    )
    lora: LoraSettings = setting(factory=LoraSettings)
