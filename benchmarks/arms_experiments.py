"""The experiments of arms.py: what is asked, what all arms share, and in what each arm differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Tuning:
    """The rates that every arm tries on a seed which is not used again.

    Attributes:
        setting: What is tuned.
        rates: All arms try the same.
        steps: Length of such a run; 0: the arm's.
        by: The number of a run that is to be highest.
    """

    setting: str
    rates: tuple[float, ...]
    steps: int = 0
    by: str = "reward"


@dataclass(frozen=True)
class Experiment:
    """Runs that differ in one thing. The first arm is the one that the others are compared with.

    Attributes:
        title: Of its section.
        recipe: In recipes/.
        common: Settings of all arms.
        arms: By name, the settings of each.
        watched: Metrics shown as means over the steps of a run: of the first quarter and of the last.
        game: The policy is a small model that has read random play of this game; empty: the recipe's.
        critics: Arms whose critic `proxlm value` trains before, with the arm's other settings and these.
        tuning: None: all arms have the rates of `common`.
    """

    title: str
    recipe: str
    common: Settings
    arms: Mapping[str, Settings]
    watched: tuple[str, ...] = ()
    game: str = ""
    critics: Mapping[str, Settings] = field(default_factory=dict)
    tuning: Tuning | None = None


SMALL: Settings = {"run.threads": 1, "run.save_every": 0, "ppo.epochs": 2, "ppo.minibatches": 2}
BETA = 0.05
STORIES: Settings = {
    **SMALL,
    "rollout.max_new_tokens": 24,
    "ppo.steps": 16,
    "ppo.batch_size": 32,
    "ppo.kl_coef": BETA,
    "optim.policy.lr": 3e-4,
    "optim.policy.schedule": "constant",
    "optim.critic.schedule": "constant",
}
PRETRAINED = "pretrained 4 steps, then 12"

# λ = 0.95 wherever there is one: with λ = 1 and γ = 1 a turn's advantage differs from a token's only by the critic.
# The recipes' adaptive β would give each arm a task of its own.
GAME: Settings = {
    **SMALL,
    "ppo.gamma": 1.0,
    "ppo.lam": 0.95,
    "ppo.kl_controller": "fixed",
    "ppo.kl_coef": 0.005,
    "ppo.target_kl": 0.0,
    "optim.policy.lr": 1e-3,
    "data.eval_count": 64,
}
CONVERSATIONS, GROUP = 64, 4


def game(name: str, steps: int, more: Settings) -> Experiment:
    """Turn GAE, token GAE and GRPO on a game."""
    single = {"ppo.batch_size": CONVERSATIONS, "ppo.advantage": "gae"}
    return Experiment(
        title=f"Turn GAE, token GAE or GRPO: {name}",
        recipe=f"{name}.toml",
        game=name,
        common={**GAME, **more, "ppo.steps": steps},
        arms={
            "token GAE": {**single, "ppo.gae_steps": "token"},
            "turn GAE": {**single, "ppo.gae_steps": "turn"},
            "GRPO": {
                "ppo.batch_size": CONVERSATIONS // GROUP,
                "ppo.samples_per_prompt": GROUP,
                "ppo.advantage": "grpo",
                "ppo.kl_in": "loss",
                "ppo.kl_estimator": "k3",
            },
        },
        watched=("explained_variance",),
    )


EXPERIMENTS: dict[str, Experiment] = {
    "mask": Experiment(
        title="The sampling mask at top-p 0.9, kept or not",
        recipe="stories-sentiment.toml",
        common={**STORIES, "rollout.top_p": 0.9},
        arms={"kept": {}, "not kept": {"rollout.keep_sampling_mask": False}},
        watched=("rollout_kl", "kept_tokens"),
    ),
    "critic-head": Experiment(
        title="The critic: scalar or categorical",
        recipe="stories-sentiment.toml",
        common={**STORIES, "model.critic": "separate", "ppo.steps": 40},
        arms={
            "scalar": {},
            # Rewards are in [−1, 1], and the KL takes some 0.3 off: bins of 0.1 as the default's, where returns are.
            "categorical": {
                "model.value.head": "categorical",
                "model.value.low": -2.0,
                "model.value.high": 2.0,
                "model.value.bins": 41,
            },
        },
        watched=("explained_variance", "value_bias"),
    ),
    "critic": Experiment(
        title="The critic: pretrained or not",
        recipe="stories-sentiment.toml",
        common={**STORIES, "model.critic": "separate"},
        arms={"scalar": {}, PRETRAINED: {"ppo.steps": 12}},
        critics={PRETRAINED: {"ppo.steps": 4}},
        watched=("explained_variance", "value_bias"),
        tuning=Tuning("optim.critic.lr", (1e-3, 3e-3, 1e-2), by="explained_variance/last"),
    ),
    # Of 8 numbers nothing is learnt in so few games.
    "number-game": game("number-game", 24, {"environment.args.highest": 4}),
    "tic-tac-toe": game("tic-tac-toe", 16, {}),
    "frozen-lake": game("frozen-lake", 24, {}),
}
