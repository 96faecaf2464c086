"""`proxlm value`: pretrain a critic on a fixed policy's responses, and save it as a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from proxlm.config import PPOConfig, ValueConfig
from proxlm.errors import ConfigError
from proxlm.jobs.held_out import HeldOutEvaluations, print_comparison
from proxlm.jobs.held_out_values import HeldOutValues
from proxlm.jobs.ppo import PPOTrainer
from proxlm.jobs.startup import after_restart, start_job
from proxlm.models.actor_critic import ActorCritic
from proxlm.models.value_head import ValueHead
from proxlm.models.value_model import classifier_for, save_value_model
from proxlm.runlog.saved_settings import model_folder
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.ppo.learner import StepParameters
from proxlm.train.ppo.loop import PPOLoop
from proxlm.types import Rollout, Scores


def main(config: ValueConfig) -> None:
    """Run the job and print where everything is."""
    start_job(config.run.threads, config.model)
    run = ValueTrainer(config=after_restart(config)).train()
    print_comparison(run)
    print(f"\ncritic  {run.model}   (--model.critic_from of proxlm ppo)")
    if config.run.report:
        print(f"report  {run.folder / 'report.html'}")


class ValueLoop(PPOLoop):
    """PPO's loop with the policy as it is: each step trains the critic, on Monte Carlo returns."""

    model_folder: ClassVar[str] = model_folder("value")

    def _parameters(self, rollout: Rollout, scores: Scores) -> StepParameters:
        return replace(super()._parameters(rollout, scores), critic_only=True)

    def weights(self) -> dict[str, Tensor]:
        """The critic's alone."""
        return {f"critic.{name}": p for name, p in self.models.critic_parameters()}

    def optimisers_by_name(self) -> dict[str, Optimiser]:
        return {name: optimiser for name, optimiser in self.learner.optimisers if name == "critic"}

    def save_model(self, folder: Path) -> None:
        trunk, head = _critic_of(self.models)
        save_value_model(trunk, head, self.models.policy, folder)


class ValueTrainer(PPOTrainer):
    """Trains the critic of PPO on a fixed policy, and saves it as …ForSequenceClassification.

    Rollout, reward, KL, shaping and returns are those of `PPOTrainer` with the same settings and arguments.
    """

    job: ClassVar[str] = "value"
    _settings: ClassVar[type[PPOConfig]] = ValueConfig
    _loop: ClassVar[type[PPOLoop]] = ValueLoop
    _held_out: ClassVar[type[HeldOutEvaluations]] = HeldOutValues

    def _models(self) -> ActorCritic:
        """The networks, if there is a classifier of this type; where it has no bias, a scalar head learns none."""
        if self.source.encoder_decoder:
            raise ConfigError(
                f"model.policy = {self.config.model.policy}: an encoder–decoder's critic cannot be saved as a"
                " classifier, whose head would read the whole text; use ppo.critic_warmup of proxlm ppo"
            )
        models = super()._models()
        trunk, head = _critic_of(models)
        bias = classifier_for(trunk, head, self.config.model.policy).score.bias
        if bias is None and head.bins is None:
            head.linear.bias.requires_grad_(False)
        return models


def _critic_of(models: ActorCritic) -> tuple[Any, ValueHead]:
    """The critic's trunk and head."""
    assert models.value_head is not None  # an advantage without a critic is refused
    return models.policy.trunk if models.critic_trunk is None else models.critic_trunk, models.value_head
