"""What one step of a run is: which networks learn, how many tokens they read and write, in passes of what size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from proxlm.config import ModelSettings, PPOConfig, PretrainConfig, SFTConfig
from proxlm.config.algorithms import ADVANTAGES
from proxlm.errors import ConfigError
from proxlm.models.context import context_of
from proxlm.models.source import ModelSource
from proxlm.planning.shape import Shape, shape_of

Critic = Literal["none", "shared", "separate", "adapter"]
# Tensors of a parameter's size that an optimiser keeps. Adafactor keeps a row and a column of each matrix instead,
# and L-BFGS as many pairs as torch's history has.
MOMENTS = {
    "adamw": 2, "adam": 2, "nadam": 2, "radam": 2, "adamax": 2, "adagrad": 1, "adafactor": 0, "muon": 1, "lbfgs": 200,
}  # fmt: skip
# Prompts are assumed to be this long where neither the recipe nor the command says so.
USUAL_PROMPT = 256


@dataclass(frozen=True)
class Work:
    """One step.

    Attributes:
        policy: The model that learns.
        critic_shape: The model whose trunk is the critic's; of a critic with its own.
        job: ppo: responses are written, scored and learnt from; texts: supervised training.
        critic: How values are found.
        teacher: A model that the policy is distilled from, held beside it.
        prompt: Tokens of a prompt.
        response: Tokens of a response, on average.
        limit: Tokens of the longest response.
        responses: Rows of a step, of all ranks.
        prompts: Different prompts among them.
        epochs: Passes over them.
        minibatches: Optimiser steps of a pass.
        pass_tokens: Most tokens in a pass.
        slots: Responses written at once.
        ahead: Older policies that are held, to write responses beside the updates: `ppo.max_staleness`, or one for
            partial rollouts.
        rank: Of adapters; 0: none.
        top: Blocks that learn; 0: all.
        bfloat16: Whether products are in bf16.
        checkpointing: Whether blocks keep their input only.
        entropy: Whether the update needs entropies.
        known_logprobs: Whether the policy's own pass before the update is saved.
        moments: Tensors of the size of what learns that the optimisers keep: policy's, critic's.
        decode: Bytes of a number of the engine's copy of the weights.
    """

    policy: Shape
    critic_shape: Shape
    job: Literal["ppo", "texts"] = "ppo"
    critic: Critic = "separate"
    teacher: Shape | None = None
    prompt: int = 256
    response: float = 64.0
    limit: int = 64
    responses: int = 64
    prompts: int = 64
    epochs: int = 4
    minibatches: int = 1
    pass_tokens: int = 4096
    slots: int = 64
    ahead: int = 0
    rank: int = 0
    top: int = 0
    bfloat16: bool = False
    checkpointing: bool = False
    entropy: bool = False
    known_logprobs: bool = False
    moments: tuple[float, float] = (2.0, 2.0)
    decode: float = 4.0

    @property
    def tokens(self) -> float:
        """Of a row."""
        return self.prompt + self.response

    @property
    def of_policy(self) -> int:
        """The policy's parameters that learn."""
        if self.rank:
            return self.policy.adapters(self.rank, self.top)
        return self.top * self.policy.blocks // self.policy.layers if self.top else self.policy.parameters

    @property
    def of_critic(self) -> int:
        """The critic's parameters that learn."""
        head = 0 if self.critic == "none" else self.critic_shape.hidden + 1
        if self.critic in ("none", "shared"):
            return head
        if self.rank and self.critic_shape is self.policy:
            return self.of_policy + head
        shape = self.critic_shape
        return head + (self.top * shape.blocks // shape.layers if self.top else shape.trunk)


def work_of(settings: Any, prompt: int = 0, response: float = 0.0) -> Work:
    """The step of a job's settings. Configurations of models are read, and no weights or data.

    Args:
        settings: Of ppo, value, sft or pretrain.
        prompt: Tokens of a prompt; 0: the recipe's longest, or 256.
        response: Tokens of a response on average; 0: the longest.

    Raises:
        ConfigError: A job that is not planned, or lengths that do not fit.
        ModelError: A model of another kind.
    """
    if isinstance(settings, PPOConfig):
        return _of_ppo(settings, prompt, response)
    if isinstance(settings, SFTConfig | PretrainConfig):
        return _of_texts(settings, prompt, response)
    raise ConfigError(
        "command: only recipes of ppo, value, sft and pretrain are planned; measure others with check"
    )


def _of_ppo(job: PPOConfig, prompt: int, response: float) -> Work:
    policy = _shape(job.model, job.model.policy)
    advantage = ADVANTAGES.get(job.ppo.advantage)
    critic: Critic = job.model.critic if advantage is None or advantage.critic else "none"
    limit, longest = job.rollout.max_new_tokens, prompt or job.data.max_prompt_tokens
    if response > limit:
        raise ConfigError(f"response_tokens = {response:g}: more than rollout.max_new_tokens = {limit}")
    context = context_of(ModelSource(job.model).configuration).limit
    longest = longest or min(USUAL_PROMPT, max(1, (context or USUAL_PROMPT + limit) - limit))
    if context is not None and longest + limit > context:
        raise ConfigError(
            f"prompts of {longest} tokens and responses of {limit} are longer than the model's context of {context};"
            " lower rollout.max_new_tokens or data.max_prompt_tokens"
        )
    ppo, bfloat16 = job.ppo, _bfloat16(job.model)
    return Work(
        policy,
        _shape(job.model, job.model.critic_from) if job.model.critic_from else policy,
        critic=critic,
        teacher=_shape(job.model, job.model.teacher) if job.model.teacher else None,
        prompt=longest,
        response=response or float(limit),
        limit=limit,
        responses=ppo.batch_size * ppo.samples_per_prompt,
        prompts=ppo.batch_size,
        epochs=ppo.epochs,
        minibatches=ppo.minibatches,
        pass_tokens=ppo.micro_batch_tokens,
        slots=min(job.rollout.batch_size, ppo.batch_size * ppo.samples_per_prompt),
        ahead=1 if ppo.partial_rollouts else ppo.max_staleness,
        rank=job.model.lora.rank,
        top=job.model.train_layers,
        bfloat16=bfloat16,
        checkpointing=job.model.activation_checkpointing,
        entropy=ppo.entropy_coef > 0,
        known_logprobs=ppo.old_logprobs == "rollout",
        moments=(_moments(job.optim.policy), _moments(job.optim.critic)),
        decode={"policy": 2.0 if bfloat16 else 4.0, "bfloat16": 2.0, "int8": 1.0}[job.rollout.weights],
    )


def _of_texts(job: SFTConfig | PretrainConfig, prompt: int, response: float) -> Work:
    if not job.model.policy:
        raise ConfigError("model.policy: a new model has no configuration to plan by yet; name one that has")
    policy = _shape(job.model, job.model.policy)
    length = prompt + response if prompt or response else job.train.block
    return Work(
        policy,
        policy,
        job="texts",
        critic="none",
        prompt=prompt,
        response=length - prompt,
        responses=max(1, int(job.train.batch_tokens // length)),
        epochs=1,
        pass_tokens=job.train.micro_batch_tokens,
        rank=job.model.lora.rank,
        top=job.model.train_layers,
        bfloat16=_bfloat16(job.model),
        checkpointing=job.model.activation_checkpointing,
        moments=(_moments(job.optim), 0.0),
    )


def _moments(optimiser: Any) -> float:
    if optimiser.name == "sgd":
        return float(optimiser.momentum > 0)
    if optimiser.name == "rmsprop":
        return 1.0 + float(optimiser.momentum > 0)
    return float(MOMENTS[optimiser.name])


def _bfloat16(model: ModelSettings) -> bool:
    """auto is taken for what a GPU makes of it."""
    return model.precision == "bfloat16" or (model.precision == "auto" and model.device != "cpu")


def _shape(model: ModelSettings, name: str) -> Shape:
    """Of a folder whose config.json alone is read, or of a name on the hub."""
    return shape_of(ModelSource(replace(model, policy=name)).configuration, name)
