"""Language models improved by Proximal Policy Optimisation: from raw text to a tuned model.

Nothing here imports torch until a name that needs it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxlm.config import load_config
    from proxlm.errors import ConfigError, DataError, ModelError, RewardError, RunError, UserError
    from proxlm.jobs.ppo import run_ppo
    from proxlm.jobs.pretrain import run_pretrain
    from proxlm.jobs.sft import run_sft
    from proxlm.types import Completion, Experience, Prompt, Rollout

__version__ = "0.1.0"

__all__ = [
    "Completion",
    "ConfigError",
    "DataError",
    "Experience",
    "ModelError",
    "Prompt",
    "RewardError",
    "Rollout",
    "RunError",
    "UserError",
    "__version__",
    "load_config",
    "run_ppo",
    "run_pretrain",
    "run_sft",
]

# Hidden from type checkers, for which this would make every name a right one.
if not TYPE_CHECKING:
    _HOMES = {
        "load_config": "proxlm.config",
        "run_ppo": "proxlm.jobs.ppo",
        "run_pretrain": "proxlm.jobs.pretrain",
        "run_sft": "proxlm.jobs.sft",
        **dict.fromkeys(("Completion", "Experience", "Prompt", "Rollout"), "proxlm.types"),
        **dict.fromkeys(
            ("ConfigError", "DataError", "ModelError", "RewardError", "RunError", "UserError"),
            "proxlm.errors",
        ),
    }

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'proxlm' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})
