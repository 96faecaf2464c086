"""The settings of the algorithm: PPO and its kin, what a score is turned into, and what keeps a run stable.

The defaults follow Schulman et al. 2017 and Ziegler et al. 2019 where they give one. docs/theory.md has the
formula and the source of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.setting import setting


@dataclass(frozen=True)
class CorrectionSettings:
    """Weights for rollouts sampled by another policy than the trainer's: another engine, filters, stale weights."""

    mode: Literal["none", "truncate", "mask", "full"] = setting(
        "none", "π_old / π_rollout per token: not at all, capped, zero outside [low, high], or as it is"
    )
    level: Literal["token", "sequence"] = setting("token", "weights of single tokens, or of whole responses")
    cap: float = setting(2.0, "truncate: the largest weight", gt=0)
    low: float = setting(0.5, "mask: smaller weights become 0", ge=0)
    high: float = setting(5.0, "mask: larger weights become 0", gt=0)


@dataclass(frozen=True)
class TrustRegionSettings:
    """The step of loss = "trpo": natural gradient and line search."""

    delta: float = setting(0.001, "largest mean KL of a step, in nats per token", gt=0)
    iterations: int = setting(10, "conjugate-gradient iterations", ge=1)
    damping: float = setting(0.001, "added to the Fisher matrix's diagonal", ge=0)
    halvings: int = setting(10, "how often the line search may halve the step", ge=0)
    fisher_share: float = setting(
        1.0, "share of the responses that Fisher-vector products are taken on", gt=0, le=1
    )


@dataclass(frozen=True)
class PPOSettings:
    """Proximal Policy Optimisation with Generalised Advantage Estimation, and other algorithms in the same loop."""

    steps: int = setting(100, "PPO steps: rollout, score, update", ge=1, on_resume="free")
    batch_size: int = setting(64, "prompts per step", ge=1)
    samples_per_prompt: int = setting(1, "responses per prompt", ge=1)
    epochs: int = setting(4, "passes over each step's responses", ge=1)
    minibatches: int = setting(1, "optimiser steps per pass", ge=1)
    micro_batch_tokens: int = setting(
        4096,
        "most tokens (padding included) in one forward pass; changes memory, not the result",
        ge=1,
        on_resume="free",
    )
    advantage: str = setting(
        "gae", "gae, reinforce, reinforce++, rloo, grpo, or path/to/file.py:function (see docs/algorithms.md)"
    )
    loss: str = setting("ppo", "ppo, pg, gspo, cispo, dppo, trpo, or path/to/file.py:function")
    gamma: float = setting(1.0, "discount factor", ge=0, le=1)
    lam: float = setting(0.95, "GAE's λ: 0 one-step, 1 Monte Carlo (Schulman et al. 2015)", ge=0, le=1)
    critic_lam: float = setting(-1.0, "λ of the critic's targets; −1: the same as lam", ge=-1, le=1)
    lam_length: float = setting(
        0.0, "α of the length-adaptive λ = 1 − 1 / (α · length), instead of lam; 0: off", ge=0
    )
    gae_steps: Literal["token", "turn"] = setting("token", "what is one step of GAE")
    group_std: bool = setting(True, "grpo: divide by the standard deviation of the prompt's rewards")
    clip_low: float = setting(0.2, "ε below 1 in the clipped ratio", ge=0, lt=1)
    clip_high: float = setting(0.2, "ε above 1 in the clipped ratio", ge=0)
    dual_clip: float = setting(0.0, "ppo: with A < 0 the loss is at most this times |A|; 0: off", ge=0)
    divergence_limit: float = setting(0.2, "dppo: δ, how far a token's probability may move", gt=0, le=1)
    clip_value: float = setting(0.2, "how far a value may move before its loss is clipped; 0: no clip", ge=0)
    value_coef: float = setting(0.1, "factor of the value loss", ge=0)
    critic_warmup: int = setting(
        0, "PPO steps in which only the critic learns, on Monte-Carlo returns (shared: its head only)", ge=0
    )
    entropy_coef: float = setting(0.0, "factor of the entropy bonus", ge=0)
    entropy_floor: float = setting(
        0.0, "the bonus acts only while entropy is below this, in nats per token; 0: always", ge=0
    )
    whiten_advantages: Literal["auto", "always", "never"] = setting(
        "auto", "a step's advantages to mean 0, variance 1; auto: with gae, reinforce++ and your own"
    )
    advantage_clip: float = setting(0.0, "advantages are cut to ± this, after whitening; 0: off", ge=0)
    aggregation: Literal["token", "sequence", "fixed"] = setting(
        "token", "loss: mean over tokens, mean over sequences of token means, or sum / (sequences × limit)"
    )
    truncation: Literal["terminal", "bootstrap"] = setting(
        "terminal", "after a response cut at the length limit: no future reward, or the critic's estimate"
    )
    kl_coef: float = setting(
        0.05, "β: reward lost per nat of KL to the reference (first value if adaptive)", ge=0
    )
    kl_in: Literal["reward", "loss"] = setting(
        "reward", "take β · KL off the reward of each token, or add it to the loss (needs k2 or k3)"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = setting("k1", "per-token KL estimate")
    kl_controller: Literal["fixed", "adaptive"] = setting("fixed", "constant β, or steered to kl_target")
    kl_target: float = setting(6.0, "KL per response that the adaptive controller aims at, in nats", gt=0)
    kl_horizon: float = setting(10000.0, "responses over which the adaptive controller acts", gt=0)
    max_log_ratio: float = setting(20.0, "log-ratios are clamped to ± this before exp", gt=0)
    target_kl: float = setting(0.0, "end a step's passes once approxKL exceeds this; 0: never", ge=0)
    reference_decay: float = setting(
        1.0,
        "the reference moves: decay · reference + (1 − decay) · policy after each step; 1: frozen",
        ge=0,
        le=1,
    )
    filter_groups: bool = setting(
        False, "leave out prompts whose responses all got the same reward, and draw others (dynamic sampling)"
    )
    filter_rounds: int = setting(3, "filter_groups: how often a step may draw prompts", ge=1)
    prefetch: bool = setting(
        False,
        "write and score the next step's responses while this step's update runs; they come from a policy one"
        " update older",
    )
    old_logprobs: Literal["recomputed", "rollout"] = setting(
        "recomputed",
        "π_old of the ratio: from a pass of the trainer's own, which makes the first ratio exactly 1, or as the"
        " responses were sampled, which spares that pass",
    )
    correction: CorrectionSettings = setting(factory=CorrectionSettings)
    trpo: TrustRegionSettings = setting(factory=TrustRegionSettings)


@dataclass(frozen=True)
class ShapingSettings:
    """From a response's score to the rewards that are learnt from, in this order."""

    scale: Literal["none", "reference", "running"] = setting(
        "none", "scores to mean 0, std 1: of the reference's samples before the run, or of all scores so far"
    )
    reference_samples: int = setting(256, "scale = reference: how many responses are sampled for it", ge=2)
    clip: float = setting(0.0, "scores are cut to ± this, after scaling; 0: off", ge=0)
    missing_eos: Literal["ignore", "subtract", "replace"] = setting(
        "ignore", "a response cut at the length limit: leave its score, subtract, or replace it"
    )
    missing_eos_penalty: float = setting(1.0, "what subtract takes off; replace sets minus this", ge=0)
    overlong_buffer: int = setting(
        0, "tokens before the length limit over which overlong_penalty grows from 0; 0: off", ge=0
    )
    overlong_penalty: float = setting(1.0, "what a response at the length limit loses", ge=0)
    whiten_rewards: bool = setting(False, "scale a step's rewards of tokens to variance 1, mean kept")


@dataclass(frozen=True)
class PtxSettings:
    """PPO-ptx (Ouyang et al. 2022): the language-model loss on text, mixed into each optimiser step."""

    coef: float = setting(0.0, "factor of the language-model loss; 0: off", ge=0)
    text: list[str] = setting(factory=list, help="files or folders of text")
    extensions: list[str] = setting(factory=lambda: [".txt", ".md"], help="which files of a folder to read")
    block: int = setting(128, "length of the packed sequences", ge=2)
    batch_tokens: int = setting(1024, "tokens of text per optimiser step", ge=1)
