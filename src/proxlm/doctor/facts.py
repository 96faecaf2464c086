"""The few settings of a run that the rules need, taken from the typed settings of its job."""

from __future__ import annotations

from dataclasses import dataclass

from proxlm.config import ControlConfig, PPOConfig

# Without the settings, a step is taken to have this many responses.
RESPONSES_UNKNOWN = 16


@dataclass(frozen=True)
class Facts:
    """A run's settings as the rules see them; what is not known has a value that keeps rules silent or general.

    Attributes:
        responses: responses per step; 0: not known.
        updates: optimiser steps per PPO step; 0: not known.
        max_new_tokens: length limit of a response; 0: not known.
        lr: the policy's highest learning rate; −1: not known.
        loss: ppo.loss; empty: not known.
        kl_coef: β, or its first value; −1: not known.
        adaptive: β is steered to kl_target.
        kl_target: that target, in nats per response.
        reference_moves: the reference follows the policy.
        leaves_reference: the policy learns from a teacher, and nothing holds it near the reference.
        entropy_coef: factor of the entropy bonus; −1: not known.
        filtered: sampling with top-k, top-p or min-p.
        rounded: responses are sampled with rounded weights, which are always corrected for.
        corrected: the loss is weighted for the policy that sampled.
        precision: model.precision; empty: not known.
        may_not_end: responses of a fixed length are fine, as when a text is continued.
        penalised: score − β · KL is what the run maximises, and can be compared between steps: not where scores are
            scaled by all scores so far, nor where the KL is in the loss, beside scaled advantages.
        control: a run of `proxlm control`, whose policy may be sure of itself.
    """

    responses: int = 0
    updates: int = 0
    max_new_tokens: int = 0
    lr: float = -1.0
    loss: str = ""
    kl_coef: float = -1.0
    adaptive: bool = False
    kl_target: float = 0.0
    reference_moves: bool = False
    leaves_reference: bool = False
    entropy_coef: float = -1.0
    filtered: bool = False
    rounded: bool = False
    corrected: bool = False
    precision: str = ""
    may_not_end: bool = False
    penalised: bool = True
    control: bool = False


def facts_of(config: PPOConfig | ControlConfig) -> Facts:
    """The facts of a job's settings."""
    return _control_facts(config) if isinstance(config, ControlConfig) else _ppo_facts(config)


def _ppo_facts(config: PPOConfig) -> Facts:
    ppo, shaping = config.ppo, config.shaping
    return Facts(
        responses=ppo.batch_size * ppo.samples_per_prompt,
        updates=ppo.epochs * ppo.minibatches,
        max_new_tokens=config.rollout.max_new_tokens,
        lr=config.optim.policy.lr,
        loss=ppo.loss,
        kl_coef=ppo.kl_coef,
        adaptive=ppo.kl_controller == "adaptive",
        kl_target=ppo.kl_target,
        reference_moves=ppo.reference_decay < 1,
        leaves_reference=bool(config.model.teacher) and ppo.teacher_coef > 0 and ppo.kl_coef == 0,
        entropy_coef=ppo.entropy_coef,
        filtered=config.rollout.unlike_policy,
        rounded=config.rollout.weights != "policy",
        corrected=ppo.engine_correction.mode != "none",
        precision=config.model.precision,
        # A text that is continued need not end; an answer in a chat, or one that pays for not ending, should.
        may_not_end=(
            shaping.missing_eos == "ignore" and shaping.overlong_buffer == 0 and not config.data.chat
        ),
        penalised=shaping.scale != "running" and ppo.kl_in != "loss",
    )


def _control_facts(config: ControlConfig) -> Facts:
    ppo = config.ppo
    return Facts(
        updates=ppo.epochs * ppo.minibatches,
        lr=config.optim.policy.lr,
        entropy_coef=ppo.entropy_coef,
        control=True,
    )
