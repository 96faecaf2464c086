"""What supervised training minimises for each token, or for each class, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.setting import setting


@dataclass(frozen=True)
class LossSettings:
    """The loss of a token (pretrain, sft) or of a class (reward); validation_loss is always the cross-entropy."""

    kind: Literal["cross-entropy", "label-smoothing", "focal"] = setting(
        "cross-entropy",
        "label-smoothing: towards a mix of the right token and all of them (Szegedy et al. 2016); focal: what is"
        " learnt already counts less (Lin et al. 2017)",
    )
    smoothing: float = setting(
        0.1, "label-smoothing: ε, the share of the target that all tokens have alike", gt=0, lt=1
    )
    gamma: float = setting(2.0, "focal: γ, the exponent of 1 − p(token); 0 is cross-entropy", ge=0)
