"""Settings that are missing or cannot be combined, as (key, message) pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxlm.config.algorithms import ADVANTAGES, LOSSES, advantage_of
from proxlm.config.model import ModelSettings
from proxlm.config.new_model import NewModelSettings
from proxlm.config.optimiser import OptimiserSettings, OptimisersSettings
from proxlm.config.ppo import CorrectionSettings, PPOSettings
from proxlm.config.rollout import EvaluationSettings, RolloutSettings, changed_logits, has_too_long_ids
from proxlm.config.schema import RewardSettings, RunSettings
from proxlm.config.tokenizer import tokenizer_problems
from proxlm.text import shown, suggestion
from proxlm.user_code import parse_reference

Problems = list[tuple[str, str]]

# What the chat template gets in other ways, or what asks for something else than a rendered text.
RESERVED_VARIABLES = frozenset(
    (
        "conversation",
        "messages",
        "tools",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "sanitize_control_tokens",
    )
)


def chat_problems(key: str, variables: Mapping[str, Any]) -> Problems:
    """Names in the setting `key` that are no variables of a chat template."""
    return [
        (f"{key}.{name}", "not a variable of a chat template; it is set in another way")
        for name in sorted(RESERVED_VARIABLES & variables.keys())
    ]


def keep_best_problems(run: RunSettings, evaluation: EvaluationSettings) -> Problems:
    """A metric of held-out prompts to keep the best step by, which the run does not measure."""
    metric, problem = run.best_metric(), ""
    if metric.startswith("evaluation/") and not evaluation.every:
        problem = "is not measured during the run: evaluation.every = 0"
    elif metric.startswith("evaluation/greedy/") and not evaluation.greedy:
        problem = "is not measured: evaluation.greedy = false"
    return [("run.keep_best", f"{shown(metric)} {problem}")] if problem else []


# Of [model], what only a job that trains has a use for.
OF_TRAINING = ("critic", "critic_from", "value", "train_layers", "freeze", "lora")


def trained_model_problems(model: ModelSettings) -> Problems:
    """Settings of [model] that do nothing to a model which is only used."""
    default = ModelSettings()
    return [
        (f"model.{name}", "is about training, and this command trains nothing; leave it out")
        for name in OF_TRAINING
        if getattr(model, name) != getattr(default, name)
    ]


def algorithm_problems(ppo: PPOSettings, model: ModelSettings) -> Problems:
    """Settings that the chosen advantage and loss cannot be combined with."""
    found: Problems = []
    for key, name, known in (("advantage", ppo.advantage, ADVANTAGES), ("loss", ppo.loss, LOSSES)):
        if name not in known and parse_reference(name) is None:
            listing = f"built in are {', '.join(known)}; one of your own is path/to/file.py:function"
            found.append((f"ppo.{key}", f"unknown; {suggestion(name, known, listing)}"))
    advantage = advantage_of(ppo.advantage)
    if advantage.groups and ppo.samples_per_prompt < 2:
        found.append(("ppo.samples_per_prompt", f"must be 2 or more with ppo.advantage = {ppo.advantage}"))
    if not advantage.critic:
        for key, used in (
            ("ppo.critic_warmup", ppo.critic_warmup > 0),
            ("ppo.truncation", ppo.truncation == "bootstrap"),
            ("model.critic_from", bool(model.critic_from)),
            ("model.value.head", model.value.head != "scalar"),
        ):
            if used:
                found.append((key, f"ppo.advantage = {ppo.advantage} has no critic"))
    if advantage.critic and model.critic == "adapter":
        if not model.lora.rank:
            found.append(("model.critic", "adapter needs LoRA adapters: set model.lora.rank"))
        if model.activation_checkpointing:
            # A block would be recomputed with the adapters that are active at that time.
            found.append(("model.activation_checkpointing", "cannot be used with model.critic = adapter"))
    if model.value.head == "categorical" and model.value.low >= model.value.high:
        found.append(("model.value.low", f"must be less than model.value.high = {model.value.high:g}"))
    if model.value.heads == 1 and model.value.combine != "mean":
        found.append(("model.value.combine", "needs model.value.heads of 2 or more"))
    if model.critic_from and model.critic != "separate":
        found.append(("model.critic_from", "needs model.critic = separate"))
    if ppo.critic_lam < 0 and ppo.critic_lam != -1:
        found.append(("ppo.critic_lam", "must be −1 (the same as lam) or from 0 to 1"))
    found += dual_clip_problems(ppo.dual_clip)
    if ppo.kl_in == "loss" and ppo.kl_estimator == "k1":
        found.append(("ppo.kl_estimator", "k1 as a loss has an expected gradient of 0; use k2 or k3"))
    if ppo.positive_coef > 0 and ppo.loss == "trpo":
        found.append(
            ("ppo.positive_coef", "not with ppo.loss = trpo, whose step is not that of a sum of losses")
        )
    if ppo.positive_coef > 0 and ppo.positive == "best" and ppo.samples_per_prompt < 2:
        found.append(("ppo.samples_per_prompt", "must be 2 or more with ppo.positive = best"))
    if ppo.covariance.low > ppo.covariance.high:
        low, high = ppo.covariance.low, ppo.covariance.high
        found.append(("ppo.covariance.low", f"{low:g} must not be more than ppo.covariance.high = {high:g}"))
    for name in ("engine_correction", "staleness_correction"):
        found += _correction_problems(f"ppo.{name}", getattr(ppo, name))
    return found


def _correction_problems(key: str, correction: CorrectionSettings) -> Problems:
    """What cannot be in the section `key`."""
    found: Problems = []
    used = {
        "low": correction.mode.endswith("_mask"),
        "high": correction.mode.endswith(("_mask", "_truncate")),
    }
    for name, is_used in used.items():
        value = getattr(correction, name)
        if value != -1 and value < 0:
            found.append((f"{key}.{name}", "must not be negative; −1 is the mode's own"))
        elif value != -1 and not is_used:
            found.append((f"{key}.{name}", f'has no effect with {key}.mode = "{correction.mode}"'))
    low, high = correction.bounds
    if used["low"] and low > high:
        found.append((f"{key}.low", f"{low:g} must not be more than {key}.high = {high:g}"))
    return found


def rollout_problems(rollout: RolloutSettings) -> Problems:
    """What cannot be in the section [rollout]."""
    found: Problems = []
    if "" in rollout.stop:
        found.append(("rollout.stop", "an empty text would end every response; leave it out"))
    if "" in rollout.bad_words:
        found.append(("rollout.bad_words", "an empty text is no word; leave it out"))
    if "" in rollout.logit_bias:
        found.append(("rollout.logit_bias", "an empty text has no token; leave it out"))
    if long := next((key for key in rollout.logit_bias if has_too_long_ids(key)), None):
        found.append(("rollout.logit_bias", f"{shown(long, 40)}: no token has an id of so many digits"))
    return found


def learnt_rollout_problems(rollout: RolloutSettings) -> Problems:
    """What cannot be in the section [rollout] where a policy learns from the responses."""
    reason = (
        "not where a policy learns from its responses: they would come from another distribution than its own, and"
        " the ratio be biased; use it in proxlm generate and evaluate"
    )
    return [(name, reason) for name in changed_logits(rollout)]


def required(*pairs: tuple[str, Any]) -> Problems:
    """A problem for each (key, value) whose value is empty."""
    return [(key, "required, but not given") for key, value in pairs if not value]


def new_model_problems(key: str, new: NewModelSettings, model: ModelSettings) -> Problems:
    """Problems of the section `key`, which describes a new model."""
    found: Problems = []
    if not new.recurrent:  # heads and positions
        if new.hidden % new.heads:
            found.append((f"{key}.hidden", f"must be a multiple of {key}.heads = {new.heads}"))
        elif new.hidden // new.heads % 2:
            found.append((f"{key}.hidden", f"{key}.hidden / {key}.heads must be even (rotary positions)"))
    found += tokenizer_problems(f"{key}.tokens", new.tokens)
    if model.lora.rank:
        found.append(("model.lora.rank", "adapters need model.policy, a model to continue from"))
    for name, given in (
        ("activation", new.activation != "type"),
        ("norm_eps", new.norm_eps > 0),
        ("scale_residual", new.scale_residual),
    ):
        if given and new.recurrent:
            found.append((f"{key}.{name}", f"{new.type} has none; leave it out"))
    vectors = new.embeddings
    if vectors.file and vectors.train != "none":
        found.append((f"{key}.embeddings.train", f"give this or {key}.embeddings.file, not both"))
    if vectors.std and not vectors.file and vectors.train == "none":
        found.append((f"{key}.embeddings.std", f"scales word vectors: set {key}.embeddings.file or train"))
    if vectors.freeze and new.tie_embeddings:
        reason = f"would freeze the output head, too: set {key}.tie_embeddings = false"
        found.append((f"{key}.embeddings.freeze", reason))
    return found


def scratch_problems(scratch: NewModelSettings, model: ModelSettings) -> Problems:
    """Problems of what a job begins with: model.policy, or a new model of the section [scratch]."""
    if model.policy and scratch.type:
        return [("scratch.type", "give model.policy or scratch.type, not both")]
    if scratch.type:
        return new_model_problems("scratch", scratch, model)
    if not model.policy:
        return [("model.policy", "required, but not given; or set scratch.type to train a new model")]
    return []


def model_problems(model: ModelSettings) -> Problems:
    """What cannot be in the section [model] of a job that trains."""
    found: Problems = []
    if model.freeze and model.lora.rank:
        found.append(("model.freeze", "with model.lora nothing but the adapters learns; choose their layers by"
                      " model.lora.targets and model.train_layers"))  # fmt: skip
    if model.activation_checkpointing and model.packed:
        found.append(
            ("model.activation_checkpointing", "not with model.packed = true; set one of the two to false")
        )
    return found


def reward_problems(reward: RewardSettings) -> Problems:
    if reward.use and reward.terms:
        return [("reward.use", "give use or terms, not both")]
    found: Problems = []
    for name, term in reward.terms.items():
        found += required((f"reward.terms.{name}.use", term.use))
    return found


def dual_clip_problems(dual_clip: float) -> Problems:
    return [("ppo.dual_clip", "must be more than 1, or 0 for off")] if 0 < dual_clip <= 1 else []


def optimisers_problems(optim: OptimisersSettings) -> Problems:
    """Problems of the policy's and of the critic's optimiser."""
    found = optimiser_problems("optim.policy", optim.policy) + optimiser_problems(
        "optim.critic", optim.critic
    )
    for key, one in (("policy", optim.policy), ("critic", optim.critic)):
        if one.name == "lbfgs":
            found.append(
                (
                    f"optim.{key}.name",
                    "lbfgs is for supervised training: a loss that moves each step breaks it",
                )
            )
    return found


def optimiser_problems(key: str, optim: OptimiserSettings) -> Problems:
    if optim.name == "lbfgs" and optim.weight_decay:
        return [(f"{key}.weight_decay", "lbfgs has none; set it to 0")]
    if optim.name == "lbfgs" and optim.layer_decay != 1:
        return [(f"{key}.layer_decay", "lbfgs has one step for all weights; set it to 1")]
    if optim.name == "lbfgs" and optim.rates:
        return [(f"{key}.rates", "lbfgs has one step for all weights; leave it out")]
    if wrong := next((pattern for pattern, factor in optim.rates.items() if factor <= 0), None):
        advice = "must be more than 0; to keep a weight as it is, set model.freeze"
        return [(f"{key}.rates", f'"{shown(wrong)}": {advice}')]
    if optim.schedule == "staged" and not optim.stages:
        return [(f"{key}.stages", 'required with schedule = "staged"')]
    if optim.schedule == "exponential" and optim.final == 0:
        return [(f"{key}.final", 'must be more than 0 with schedule = "exponential"')]
    return [
        (f"{key}.stages", f'"{step}" is not a step number') for step in optim.stages if not step.isdecimal()
    ]
