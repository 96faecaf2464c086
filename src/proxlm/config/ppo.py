"""The settings of the algorithm: PPO and its variants, how scores become rewards, and stabilisers.

The defaults follow Schulman et al. 2017 and Ziegler et al. 2019 where they give one. docs/theory.md has the
formula and the source of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.setting import setting

# The adaptive KL controller takes no larger relative error into account (Ziegler et al. 2019, section 2.2).
KL_ERROR_LIMIT = 0.2


CorrectionMode = Literal[
    "none",
    "token",
    "token_truncate",
    "token_mask",
    "sequence",
    "sequence_truncate",
    "sequence_mask",
    "geometric_mask",
]
# A mode's (low, high) where the settings leave them open: those of TIS and IcePop; a geometric mean of a response's
# weights is far closer to 1 than they are.
CORRECTION_BOUNDS: dict[str, tuple[float, float]] = {
    "token_truncate": (0.0, 2.0),
    "token_mask": (0.5, 5.0),
    "sequence_truncate": (0.0, 2.0),
    "sequence_mask": (0.5, 5.0),
    "geometric_mask": (0.95, 1.05),
}


@dataclass(frozen=True)
class CorrectionSettings:
    """Importance weights for one cause of tokens that the trainer's present policy did not sample."""

    mode: CorrectionMode = setting(
        "none",
        "the weight of a token, or the product of its response's: as it is, truncated at high, or masked, 0 outside"
        " [low, high]; geometric_mask: keep or drop a response by the geometric mean of its weights",
    )
    low: float = setting(
        -1.0, "masks: drop what is below; −1: the mode's own, 0.5, or 0.95 of geometric_mask"
    )
    high: float = setting(
        -1.0,
        "truncate at, or drop what is above; −1: the mode's own, 2 to truncate, 5 to mask, 1.05 of geometric_mask",
    )

    @property
    def bounds(self) -> tuple[float, float]:
        """low and high, the mode's own where they are left open."""
        low, high = CORRECTION_BOUNDS.get(self.mode, (0.0, float("inf")))
        return (low if self.low == -1 else self.low), (high if self.high == -1 else self.high)


@dataclass(frozen=True)
class CovarianceSettings:
    """The tokens where log π and the advantage vary together most, for loss = "clip_cov" and "kl_cov"."""

    share: float = setting(0.002, "of the step's tokens, how many are treated apart at most", ge=0, le=1)
    low: float = setting(1.0, "clip_cov: only tokens whose covariance is at least this, in nats × advantage")
    high: float = setting(5.0, "clip_cov: and at most this")
    kl_factor: float = setting(1.0, "kl_cov: factor of KL(π_old ‖ π) at these tokens", ge=0)


@dataclass(frozen=True)
class TrustRegionSettings:
    """The trust-region step, for loss = "trpo": natural gradient and line search."""

    delta: float = setting(0.001, "largest mean KL of a step, in nats per token", gt=0)
    iterations: int = setting(10, "conjugate-gradient iterations", ge=1)
    damping: float = setting(0.001, "added to the Fisher matrix's diagonal", ge=0)
    halvings: int = setting(10, "how many times the line search may halve the step", ge=0)
    fisher_share: float = setting(1.0, "share of the responses used for Fisher-vector products", gt=0, le=1)


@dataclass(frozen=True)
class PPOSettings:
    """Proximal Policy Optimisation with Generalised Advantage Estimation, and other algorithms in the same loop."""

    steps: int = setting(100, "number of PPO steps (rollout, score, update)", ge=1, on_resume="free")
    batch_size: int = setting(64, "prompts per step", ge=1)
    samples_per_prompt: int = setting(1, "responses per prompt", ge=1)
    epochs: int = setting(4, "passes over each step's responses", ge=1)
    minibatches: int = setting(1, "optimiser steps per pass", ge=1)
    micro_batch_tokens: int = setting(
        4096,
        "most tokens, padding included, in one forward pass; affects memory, not the result",
        ge=1,
        on_resume="free",
    )
    advantage: str = setting(
        "gae",
        "gae, vtrace, retrace, reinforce, reinforce++, rloo, grpo, or path/to/file.py:function (docs/algorithms.md)",
        path="function",
    )
    loss: str = setting(
        "ppo",
        "ppo, pg, gspo, cispo, dppo, clip_cov, kl_cov, trpo, or path/to/file.py:function",
        path="function",
    )
    gamma: float = setting(1.0, "discount factor", ge=0, le=1)
    lam: float = setting(0.95, "GAE's λ: 0 one-step, 1 Monte Carlo (Schulman et al. 2015)", ge=0, le=1)
    critic_lam: float = setting(-1.0, "λ of the critic's targets; −1: the same as lam", ge=-1, le=1)
    lam_length: float = setting(
        0.0, "α of the length-adaptive λ = 1 − 1 / (α · length), instead of lam; 0: off", ge=0
    )
    trace_rho: float = setting(1.0, "vtrace: ρ̄, the largest weight of a step's temporal difference", gt=0)
    trace_c: float = setting(1.0, "vtrace, retrace: c̄, the largest weight of what follows a step", gt=0)
    gae_steps: Literal["token", "turn"] = setting(
        "token", "what counts as one step of GAE: a token, or a whole turn of a conversation"
    )
    group_std: bool = setting(True, "grpo: divide by the standard deviation of the prompt's rewards")
    clip_low: float = setting(0.2, "the ratio is clipped below at 1 − this", ge=0, lt=1)
    clip_high: float = setting(0.2, "the ratio is clipped above at 1 + this", ge=0)
    dual_clip: float = setting(
        0.0, "ppo: upper limit of the loss where A < 0, as a multiple of |A|; 0: off", ge=0
    )
    divergence_limit: float = setting(0.2, "dppo: δ, the largest change of a token's probability", gt=0, le=1)
    clip_value: float = setting(
        0.2, "how far a value may move before its loss is clipped; 0: no clipping", ge=0
    )
    value_coef: float = setting(0.1, "factor of the value loss", ge=0)
    critic_warmup: int = setting(
        0,
        "first PPO steps that train only the critic, on Monte Carlo returns (with a shared critic only its head)",
        ge=0,
    )
    entropy_coef: float = setting(0.0, "factor of the entropy bonus", ge=0)
    entropy_floor: float = setting(
        0.0, "apply the bonus only while the entropy, in nats per token, is below this; 0: always", ge=0
    )
    positive_coef: float = setting(
        0.0, "factor of the extra loss −log π on the tokens of positive responses; 0: off", ge=0
    )
    positive: Literal["threshold", "best"] = setting(
        "threshold",
        "which responses are positive: with a reward of positive_threshold or more, or the best of their prompt's,"
        " where those differ",
    )
    positive_threshold: float = setting(1.0, "positive = threshold: the lowest reward, before shaping")
    whiten_advantages: Literal["auto", "always", "never"] = setting(
        "auto",
        "scale a step's advantages to mean 0, variance 1; auto: with all that have a critic, and reinforce++",
    )
    advantage_clip: float = setting(0.0, "clip advantages to ± this, after whitening; 0: off", ge=0)
    aggregation: Literal["token", "sequence", "fixed"] = setting(
        "token",
        "the loss is a mean over tokens, a mean over sequences of their token means, or sum / (sequences × limit)",
    )
    truncation: Literal["terminal", "bootstrap"] = setting(
        "terminal",
        "future reward after a response cut at the length limit: 0 (terminal), or the critic's estimate (bootstrap)",
    )
    kl_coef: float = setting(
        0.05, "β, the reward penalty per nat of KL to the reference (the initial value if adaptive)", ge=0
    )
    kl_in: Literal["reward", "advantage", "loss"] = setting(
        "reward",
        "subtract β · KL from each token's reward; or, discounted by kl_lam, from its advantage, past estimator and"
        " critic, so that it stays with its tokens where rewards are a turn's or a response's; or add it to the loss"
        " (needs k2 or k3)",
    )
    kl_lam: float = setting(
        0.95, "kl_in = advantage: λ of the later KL: 0 a token's own alone, 1 all that follows", ge=0, le=1
    )
    kl_estimator: Literal["k1", "k2", "k3"] = setting("k1", "estimator of the KL per token (Schulman 2020)")
    mask_reference: bool = setting(
        True,
        "with a kept sampling mask: the reference of the KL, and the teacher, are renormalised over it, too; false:"
        " they are whole",
    )
    teacher_coef: float = setting(
        1.0,
        "with model.teacher: factor of the reverse KL to it that each token's advantage loses; 0: measured alone",
        ge=0,
    )
    teacher_lam: float = setting(
        0.0,
        "with model.teacher: λ of the later KL: 0 a token's own alone, which needs no critic; 1 all that follows",
        ge=0,
        le=1,
    )
    kl_controller: Literal["fixed", "adaptive"] = setting(
        "fixed", "keep β constant, or adapt it so that the KL approaches kl_target"
    )
    kl_target: float = setting(6.0, "adaptive: target KL per response, in nats", gt=0)
    kl_horizon: float = setting(10000.0, "adaptive: number of responses over which β adapts", gt=0)
    max_log_ratio: float = setting(20.0, "clamp log-ratios to ± this before exp", gt=0)
    target_kl: float = setting(
        0.0, "stop a step's passes once the approximate KL of its update exceeds this; 0: never", ge=0
    )
    reference_decay: float = setting(
        1.0,
        "after each step: reference = decay · reference + (1 − decay) · policy; 1: the reference stays fixed",
        ge=0,
        le=1,
    )
    filter_groups: bool = setting(
        False, "replace prompts whose responses all got the same reward by others (dynamic sampling)"
    )
    filter_rounds: int = setting(3, "filter_groups: how many times a step may draw prompts", ge=1)
    max_staleness: int = setting(
        0,
        "k: generate and score the responses of up to k later steps during the updates, each with the policy from k"
        " updates before it; 0: each step waits for its own",
        ge=0,
        le=64,
    )
    partial_rollouts: bool = setting(
        False,
        "with max_staleness = k: responses go on over the updates, in k segments of equally many tokens, each with"
        " newer weights: the first is k updates old, the last one",
    )
    old_logprobs: Literal["recomputed", "rollout"] = setting(
        "recomputed",
        "where π_old of the ratio comes from: recomputed by the trainer, which makes the first ratio exactly 1, or"
        " taken from the rollout, which saves that forward pass",
    )
    engine_correction: CorrectionSettings = setting(
        factory=CorrectionSettings,
        help="the engine is not the trainer: weight π_v / π_rollout of the policy version v that sampled",
    )
    staleness_correction: CorrectionSettings = setting(
        factory=CorrectionSettings, help="the rollout is older than the update: weight π_old / π_v"
    )
    covariance: CovarianceSettings = setting(factory=CovarianceSettings)
    trpo: TrustRegionSettings = setting(factory=TrustRegionSettings)


@dataclass(frozen=True)
class ShapingSettings:
    """How a response's score becomes the rewards that PPO learns from; applied in this order."""

    normalise: Literal["none", "group", "batch"] = setting(
        "none",
        "with several rewards: each to mean 0, std 1 among its prompt's responses (group) or the step's (batch),"
        " before the weights",
    )
    scale: Literal["none", "reference", "running"] = setting(
        "none",
        "scale scores to mean 0, std 1 of the reference's samples before the run, or of all scores so far",
    )
    reference_samples: int = setting(256, "scale = reference: number of responses to sample for it", ge=2)
    clip: float = setting(0.0, "clip scores to ± this, after scaling; 0: off", ge=0)
    missing_eos: Literal["ignore", "subtract", "replace"] = setting(
        "ignore",
        "score of a response cut at the length limit: unchanged, minus the penalty, or replaced by −penalty",
    )
    missing_eos_penalty: float = setting(1.0, "the penalty of missing_eos", ge=0)
    overlong_buffer: int = setting(
        0, "tokens before the length limit over which overlong_penalty grows from 0; 0: off", ge=0
    )
    overlong_penalty: float = setting(1.0, "score that a response at the length limit loses", ge=0)
    whiten_rewards: bool = setting(False, "scale a step's token rewards to variance 1, keeping their mean")


@dataclass(frozen=True)
class PtxSettings:
    """PPO-ptx (Ouyang et al. 2022): the language-model loss on text, mixed into each optimiser step."""

    coef: float = setting(0.0, "factor of the language-model loss; 0: off", ge=0)
    text: list[str] = setting(factory=list, help="files or folders of text", path="input")
    extensions: list[str] = setting(factory=lambda: [".txt", ".md"], help="which files of a folder to read")
    block: int = setting(128, "length of the packed sequences", ge=2)
    batch_tokens: int = setting(1024, "tokens of text per optimiser step", ge=1)
