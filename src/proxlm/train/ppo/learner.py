"""What learns, and the numbers of one step: what `prepare` and `update` are given besides the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from proxlm.config import PPOConfig
from proxlm.config.signature import checked
from proxlm.models.actor_critic import HEAD, ActorCritic
from proxlm.rl.running_statistics import RunningStatistics
from proxlm.train.common.layer_rates import layer_rates
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.common.schedules import temperature_at
from proxlm.train.ppo.algorithms import Algorithm, build_algorithm
from proxlm.train.ppo.ptx import PtxText


@dataclass(frozen=True)
class Optimisers:
    """One optimiser for the policy, one for the critic (its trunk, if it has its own, and the value head)."""

    policy: Optimiser
    critic: Optimiser | None

    def __iter__(self) -> Iterator[tuple[str, Optimiser]]:
        """Those there are, by name."""
        yield "policy", self.policy
        if self.critic is not None:
            yield "critic", self.critic


@dataclass(frozen=True)
class Learner:
    """The networks, their optimisers, and how they learn; the same in every step of a run.

    ptx: text whose language-model loss is mixed into each optimiser step, or None.
    """

    models: ActorCritic
    optimisers: Optimisers
    config: PPOConfig
    algorithm: Algorithm
    ptx: PtxText | None = None


@checked()
def build_learner(
    models: ActorCritic, config: PPOConfig, algorithm: Algorithm | None = None, ptx: PtxText | None = None
) -> Learner:
    """A learner with new optimisers.

    Args:
        models: The networks.
        config: `optim` and `ppo` are used.
        algorithm: The advantage and the loss; None: those that the settings name.
        ptx: See `Learner`.
    """
    critic, value = models.critic_parameters(), config.model.value
    faster = value.head_rate if value.head == "categorical" else 1.0
    rates = {name: faster for name, _ in critic if name.startswith(f"{HEAD}.")}
    optimisers = Optimisers(
        Optimiser(models.policy_parameters(), config.optim.policy, section="optim.policy"),
        Optimiser(critic, config.optim.critic, rates, section="optim.critic") if critic else None,
    )
    return Learner(models, optimisers, config, algorithm or build_algorithm(config.ppo), ptx)


def check_rates(models: ActorCritic, config: PPOConfig) -> None:
    """Raise ConfigError for a pattern of `rates` that fits nothing, as `build_learner` does, which makes more."""
    for name, learning, optim in (
        ("policy", models.policy_parameters(), config.optim.policy),
        ("critic", models.critic_parameters(), config.optim.critic),
    ):
        if learning:
            layer_rates((key for key, _ in learning), 1.0, optim.rates, f"optim.{name}")


@dataclass(frozen=True)
class StepParameters:
    """The numbers that change from step to step.

    temperature: that the responses were sampled at; kl_coef: β of the KL to the reference; score_statistics: mean and
    standard deviation that scores are scaled by; critic_only: a step of the critic's warm-up, the policy stays.
    """

    temperature: float = 1.0
    kl_coef: float = 0.0
    score_statistics: RunningStatistics = RunningStatistics()  # noqa: RUF009 (immutable)
    critic_only: bool = False


def step_parameters(config: PPOConfig, step: int = 0) -> StepParameters:
    """The numbers of step `step`, from 0, as the settings have them before anything is adapted."""
    return StepParameters(
        temperature=temperature_at(config.rollout, step, config.ppo.steps),
        kl_coef=config.ppo.kl_coef,
        critic_only=step < config.ppo.critic_warmup,
    )
