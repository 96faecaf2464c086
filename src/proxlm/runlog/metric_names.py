"""Every metric that a job writes, declared once: name, unit, meaning, and the jobs that write it.

A metric is its name, so it can be a key of a row; the doctor, the report and the views name metrics by the constants
here. docs/metrics.md is made from this table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, Self

Job = Literal["ppo", "value", "pretrain", "sft", "reward", "dpo", "distill", "control", "evaluate"]

# value: PPO's steps in which the critic learns alone, and its evaluation.json.
PPO: tuple[Job, ...] = ("ppo", "value")
PPO_POLICY: tuple[Job, ...] = ("ppo",)
VALUE: tuple[Job, ...] = ("value",)
CONTROL: tuple[Job, ...] = ("control",)
BOTH: tuple[Job, ...] = ("ppo", "value", "control")
BOTH_POLICY: tuple[Job, ...] = ("ppo", "control")
SUPERVISED: tuple[Job, ...] = ("pretrain", "sft", "reward", "dpo", "distill")
LANGUAGE_MODELS: tuple[Job, ...] = ("pretrain", "sft")
PREFERENCES: tuple[Job, ...] = ("reward", "dpo")
DISTILL: tuple[Job, ...] = ("distill",)
REWARD_MODEL: tuple[Job, ...] = ("reward",)
TRAINING: tuple[Job, ...] = ("ppo", "value", "pretrain", "sft", "reward", "dpo", "distill", "control")
EVALUATE: tuple[Job, ...] = ("evaluate",)


class Metric(str):
    """The name of a metric, with its unit ("" for a plain number), its meaning, and the jobs that write it."""

    unit: str
    meaning: str
    jobs: tuple[Job, ...]

    def __new__(cls, name: str, unit: str, meaning: str, jobs: tuple[Job, ...]) -> Self:
        metric = super().__new__(cls, name)
        metric.unit, metric.meaning, metric.jobs = unit, meaning, jobs
        return metric

    def __getnewargs__(self) -> tuple[str, str, str, tuple[Job, ...]]:  # type: ignore[override]
        return str(self), self.unit, self.meaning, self.jobs

    def matches(self, name: str) -> bool:
        """Whether a name is this one."""
        return self == name


class MetricFamily:
    """Metrics whose names have a part that varies: "lr/{model}" stands for lr/policy and lr/critic.

    Args:
        pattern: the name, with the part that varies in braces.
        parts: the values of that part; empty: any text.
    """

    def __init__(
        self, pattern: str, unit: str, meaning: str, jobs: tuple[Job, ...], parts: Sequence[str] = ()
    ) -> None:
        self.pattern, self.unit, self.meaning, self.jobs, self.parts = pattern, unit, meaning, jobs, parts
        before, after = re.split(r"\{\w+\}", pattern)
        part = "|".join(map(re.escape, parts)) or ".*"
        self._before, self._after = before, after
        self._names = re.compile(f"{re.escape(before)}({part}){re.escape(after)}", re.DOTALL)

    def __call__(self, part: str | int) -> Metric:
        """The metric whose varying part is `part`."""
        return Metric(f"{self._before}{part}{self._after}", self.unit, self.meaning, self.jobs)

    def matches(self, name: str) -> bool:
        """Whether a name belongs to the family."""
        return self._names.fullmatch(name) is not None


METRICS: dict[str, Metric | MetricFamily] = {}


def _metric(name: str, unit: str, meaning: str, jobs: tuple[Job, ...]) -> Metric:
    METRICS[name] = metric = Metric(name, unit, meaning, jobs)
    return metric


def _family(
    pattern: str, unit: str, meaning: str, jobs: tuple[Job, ...], parts: Sequence[str] = ()
) -> MetricFamily:
    METRICS[pattern] = family = MetricFamily(pattern, unit, meaning, jobs, parts)
    return family


def declared(name: str) -> Metric | MetricFamily | None:
    """The metric or family that a name in metrics.jsonl or evaluation.json belongs to; None if it is not declared."""
    return METRICS.get(name) or next((known for known in METRICS.values() if known.matches(name)), None)


NATS, NATS_TOKEN, TOKENS, SHARE, SECONDS = "nats", "nats/token", "tokens", "share", "s"
MODELS = ("policy", "critic")

# --- every row ---
STEP = _metric("step", "", "number of the step, from 1", TRAINING)
TIME = _metric("time", SECONDS, "since the run began, pauses between resumes left out", TRAINING)
NOT_FINITE = _metric("not_finite", "", "how many of the row's numbers are not finite (null there)", TRAINING)

# --- supervised training ---
LOSS = _metric(
    "loss",
    NATS_TOKEN,
    "of the step's batch, cross-entropy or what [loss] says; reward, dpo: of a record, of scores the error in"
    " their variances",
    SUPERVISED,
)
VALIDATION_LOSS = _metric(
    "validation_loss",
    NATS_TOKEN,
    "of the validation part, without [loss]; by it the model is kept, or by train.early_stopping_metric",
    SUPERVISED,
)
VALIDATION_SOURCE = _family(
    "validation_loss/{source}",
    NATS_TOKEN,
    "of the validation part of one source of a mixture (text.weights)",
    LANGUAGE_MODELS,
)
EPOCHS = _family(
    "epochs/{source}", "", "how many times a source of a mixture has been read, by tokens", LANGUAGE_MODELS
)
AVERAGE = _family("average/{metric}", "", "the same of the averaged weights (train.average)", SUPERVISED)
VALIDATION_ACCURACY = _metric(
    "validation_accuracy",
    SHARE,
    "validation pairs whose chosen completion scores higher, a tie is half; or classes, or steps, that are right",
    PREFERENCES,
)
VALIDATION_MARGIN = _metric(
    "validation_margin",
    "",
    "mean score of the chosen minus the rejected completion, validation; dpo: of β log(π / π_ref)",
    PREFERENCES,
)
VALIDATION_SCORE = _metric("validation_score", "", "mean score of all validation completions", REWARD_MODEL)
VALIDATION_ERROR = _metric(
    "validation_error",
    "",
    "mean absolute error of scores, in their own units; of several the mean",
    REWARD_MODEL,
)
VALIDATION_CORRELATION = _metric(
    "validation_correlation",
    "",
    "Pearson correlation of scores and labels; of several the mean",
    REWARD_MODEL,
)
VALIDATION_SPREAD = _metric(
    "validation_spread",
    "",
    "mean standard deviation of an ensemble's scores of a validation completion (ensemble.size)",
    REWARD_MODEL,
)
VALIDATION_CHOSEN = _metric(
    "validation_chosen",
    NATS,
    "mean log(π / π_ref) of the chosen completion, validation: below 0 it becomes less likely, too",
    ("dpo",),
)
VALIDATION_CROSS_ENTROPY = _metric(
    "validation_cross_entropy",
    NATS_TOKEN,
    "−log q of the held-out texts' own tokens, q the student's",
    DISTILL,
)
VALIDATION_FORWARD_KL = _metric(
    "validation_forward_kl", NATS_TOKEN, "KL(teacher ‖ student) at each token of the held-out texts", DISTILL
)
VALIDATION_REVERSE_KL = _metric(
    "validation_reverse_kl",
    NATS_TOKEN,
    "KL(student ‖ teacher) at each token of the student's samples to held-out prompts (distill.eval_samples)",
    DISTILL,
)
VALIDATION_AGREEMENT = _metric(
    "validation_agreement",
    SHARE,
    "held-out tokens where the student's likeliest is the teacher's (greedy agreement)",
    DISTILL,
)
LR = _metric("lr", "", "learning rate", SUPERVISED)
GRAD_NORM = _metric("grad_norm", "", "norm of the gradient before clipping", SUPERVISED)
GRAD_NORM_NOT_FINITE = _metric(
    "grad_norm_not_finite", "", "1 where the step was skipped because its gradient was not finite", SUPERVISED
)

# --- reward ---
REWARD = _metric(
    "reward", "", "mean reward of a response; control: mean return of the episodes that ended in the step",
    (*BOTH, *EVALUATE),
)  # fmt: skip
REWARD_STD = _metric("reward_std", "", "standard deviation of the rewards", BOTH)
REWARD_COMPONENT = _family("reward/{component}", "", "mean of one component of the reward", (*PPO, *EVALUATE))
REWARD_NONE = _metric(
    "reward_none",
    "",
    "responses left out because the reward returned None for them; where there are some",
    PPO,
)
REWARD_FAILED = _metric("reward_failed", "", "responses whose reward failed and got reward.error_score", PPO)
REWARD_LENGTH_CORRELATION = _metric(
    "reward_length_correlation",
    "",
    "Pearson correlation of a response's reward and its length; absent where one is constant",
    PPO,
)
SCORE = _metric("score", "", "mean score after shaping: scaled, clipped, penalties taken off", PPO)
SCALE_MEAN = _metric("scale/mean", "", "mean of the scores that scores are scaled by (shaping.scale)", PPO)
SCALE_STD = _metric("scale/std", "", "standard deviation of those scores", PPO)
EPISODES_ENDED = _metric("episodes_ended", "", "episodes that ended in the step", CONTROL)
EPISODE_RETURN = _metric("episode_return", "", "mean return of the newest 100 episodes", CONTROL)
EPISODE_LENGTH = _metric("episode_length", "steps", "mean length of the newest 100 episodes", CONTROL)

# --- distance from the reference ---
KL = _metric(
    "kl", NATS, "KL to the reference per response (log-ratio of the sampled tokens)", (*PPO, *EVALUATE)
)
KL_PER_TOKEN = _metric("kl_per_token", NATS_TOKEN, "KL to the reference per token", PPO)
TEACHER_KL = _metric(
    "teacher/kl",
    NATS,
    "reverse KL to the teacher per response (log-ratio of the sampled tokens; model.teacher)",
    (*PPO_POLICY, *EVALUATE),
)
TEACHER_KL_PER_TOKEN = _metric(
    "teacher/kl_per_token", NATS_TOKEN, "reverse KL to the teacher per token (model.teacher)", PPO_POLICY
)
KL_COEF = _metric("kl_coef", "", "β, the coefficient of the KL penalty", PPO)
ENTROPY = _metric("entropy", NATS_TOKEN, "entropy of the policy (control: nats per action)", BOTH)

# --- the policy's update ---
POLICY_LOSS = _metric("policy_loss", "", "policy loss, mean over the step's optimiser steps", BOTH_POLICY)
KL_LOSS = _metric("kl_loss", "", "KL term of the loss (ppo.kl_in = loss), else 0", PPO_POLICY)
POSITIVE_LOSS = _metric(
    "positive_loss",
    NATS_TOKEN,
    "−log π of the tokens of positive responses (ppo.positive_coef), 0 without",
    PPO_POLICY,
)
POSITIVE_SHARE = _metric("positive_share", SHARE, "tokens of positive responses (ppo.positive_coef)", PPO)
PTX_LOSS = _metric("ptx_loss", NATS_TOKEN, "language-model loss of PPO-ptx, 0 without", PPO_POLICY)
RATIO_MEAN = _metric("ratio_mean", "", "mean probability ratio π / π_old", BOTH_POLICY)
RATIO_MAX = _metric("ratio_max", "", "largest probability ratio", BOTH_POLICY)
CLIP_FRACTION = _metric("clip_fraction", SHARE, "tokens without a gradient because of the clip", BOTH_POLICY)
APPROX_KL = _metric("approx_kl", NATS_TOKEN, "mean (log ratio)² / 2 of the update", BOTH_POLICY)
FIRST_RATIO_ERROR = _metric(
    "first_minibatch/ratio_error",
    "",
    "largest |ratio − 1| in the first minibatch; 0 by construction",
    BOTH_POLICY,
)
FIRST_CLIP_FRACTION = _metric(
    "first_minibatch/clip_fraction", SHARE, "clip fraction in the first minibatch", BOTH_POLICY
)
OPTIMISER_STEPS = _metric("optimiser_steps", "", "optimiser steps in the step", BOTH)
ADVANTAGE_MEAN = _metric("advantage_mean", "", "mean advantage before whitening", BOTH)
ADVANTAGE_STD = _metric("advantage_std", "", "standard deviation of the advantages before whitening", BOTH)
COVARIANCE = _metric(
    "covariance",
    "",
    "Cov(log π, advantage) over the step's tokens (ppo.loss = clip_cov, kl_cov); entropy falls where it is above 0",
    PPO,
)
COVARIANCE_SHARE = _metric("covariance/share", SHARE, "tokens that clip_cov or kl_cov treats apart", PPO)
TRPO_KL = _metric("trpo/kl", NATS_TOKEN, "KL of the trust-region step", PPO_POLICY)
TRPO_IMPROVEMENT = _metric("trpo/improvement", "", "gain of the surrogate by the step", PPO_POLICY)
TRPO_HALVINGS = _metric("trpo/halvings", "", "halvings of the step in the line search", PPO_POLICY)
TRPO_ACCEPTED = _metric("trpo/accepted", "", "1 where the line search accepted a step", PPO_POLICY)
TRPO_STEP_NORM = _metric("trpo/step_norm", "", "norm of the step", PPO_POLICY)

# --- the critic ---
VALUE_LOSS = _metric("value_loss", "", "value loss, mean over the step's optimiser steps", BOTH)
EXPLAINED_VARIANCE = _metric("explained_variance", "", "1 − Var(return − value) / Var(return)", BOTH)
EXPLAINED_VARIANCE_QUARTER = _family(
    "explained_variance/quarter_{k}", "", "the same, in the k-th quarter of the response", PPO, "1234"
)
VALUE_SLOPE = _metric(
    "value_slope", "", "slope of returns over values, 1 if calibrated; absent where values do not vary", PPO
)
VALUE_BIAS = _metric("value_bias", "", "mean value − mean return, 0 if calibrated", PPO)
ADVANTAGE_QUARTER = _family(
    "advantage_mean/quarter_{k}",
    "",
    "mean advantage before whitening in the k-th quarter of the response, 0 if the critic is right",
    PPO,
    "1234",
)
RETURNS_BEYOND_BINS = _metric(
    "returns_beyond_bins",
    SHARE,
    "returns below model.value.low or above high, which a categorical critic cannot predict",
    PPO,
)
VALUE_ERROR = _metric("value_error", "", "(value − return)² on held-out prompts, mean over tokens", VALUE)
VALUE_SPREAD = _metric(
    "value_spread",
    "",
    "standard deviation of values over the critic's heads, mean over tokens (model.value.heads)",
    PPO,
)
VALUE_MEAN = _metric("value_mean", "", "mean value before the update", BOTH)
RETURN_MEAN = _metric("return_mean", "", "mean return", BOTH)

# --- sampling and its policy ---
ROLLOUT_GAP = _metric(
    "rollout_gap", NATS, "largest difference of a log-prob between engine and trainer", BOTH
)
ROLLOUT_KL = _metric("rollout_kl", NATS_TOKEN, "KL from the policy that sampled to the trainer's (k3)", PPO)
KEPT_TOKENS = _metric(
    "kept_tokens", TOKENS, "mean size of the set that a token was sampled from (top_k, top_p, min_p)", PPO
)
DROPPED_MASS = _metric(
    "dropped_mass", SHARE,
    "mean probability of the tokens outside that set, which top_k, top_p and min_p keep from being sampled", PPO,
)  # fmt: skip
STALENESS = _metric("staleness", "steps", "updates between sampling and learning, mean over tokens", PPO)
STALENESS_SHARE = _family(
    "staleness/share_{age}",
    SHARE,
    "tokens that were sampled this many updates before (ppo.max_staleness)",
    PPO,
)
CAUSES = ("engine", "staleness")
WEIGHT_MEAN = _family("{cause}_weight/mean", "", "mean weight of the correction for this cause", PPO, CAUSES)
WEIGHT_MAX = _family("{cause}_weight/max", "", "largest weight", PPO, CAUSES)
WEIGHT_EFFECTIVE = _family(
    "{cause}_weight/effective_share",
    SHARE,
    "effective sample size of the weights, (Σ w)² / (n Σ w²)",
    PPO,
    CAUSES,
)
WEIGHT_DROPPED = _family("{cause}_weight/dropped_share", SHARE, "tokens whose weight is 0", PPO, CAUSES)
WEIGHT_KL = _family(
    "{cause}_weight/kl", NATS_TOKEN, "KL between the policies of the weight, untruncated (k3)", PPO, CAUSES
)
TEMPERATURE = _metric("temperature", "", "sampling temperature of the step", PPO)
WARMUP = _metric("warmup", "", "1 in steps in which only the critic learns", PPO)
FILTER_DRAWS = _metric("filter/draws", "", "how often prompts were drawn (ppo.filter_groups)", PPO)
FILTER_KEPT = _metric("filter/kept_prompts", "", "prompts whose responses differ in reward", PPO)
FILTER_DRAWN = _metric("filter/drawn_prompts", "", "prompts drawn", PPO)

# --- responses and conversations ---
RESPONSE_LENGTH = _metric("response_length", TOKENS, "mean length of a response", PPO)
REPETITION = _metric("repetition", SHARE, "token pairs of a response that it already had", PPO)
EOS_SHARE = _metric("eos_share", SHARE, "responses that ended with the end-of-text token", PPO)
ENDED_SHARE = _metric(
    "ended_share", SHARE, "responses that ended by themselves or at a stop text", (*PPO, *EVALUATE)
)
ENVIRONMENT_TURNS = _metric("environment/turns", "turns", "mean replies of the policy in a conversation", PPO)
ENVIRONMENT_LOST = _metric("environment/lost", "", "conversations lost because the environment failed", PPO)
ENVIRONMENT_LEFT_ALONE = _metric(
    "environment/left_alone",
    "",
    "conversations left out because a loss left nothing to compare them with",
    PPO,
)
COUNTED = _family(
    "counted/{name}",
    "",
    "mean of what the environment counts in a conversation, calls of tools for instance",
    PPO,
)

# --- the optimisers ---
LR_MODEL = _family("lr/{model}", "", "learning rate at the end of the step", BOTH, MODELS)
GRAD_NORM_MODEL = _family("grad_norm/{model}", "", "mean norm of the gradient before clipping", BOTH, MODELS)
GRAD_NORM_MODEL_NOT_FINITE = _family(
    "grad_norm/{model}_not_finite",
    "",
    "optimiser steps skipped because the gradient was not finite",
    BOTH,
    MODELS,
)

# --- speed and memory ---
PHASES = (
    "generate",
    "score",
    "prepare",
    "update",
    "waiting",
    "score_overlapped",
    "trainer_logprobs",
    "rollout",
    "evaluate",
    "step",
)
TIME_PHASE = _family(
    "time/{phase}",
    SECONDS,
    "of one phase of the step; step: all of them; score_overlapped: scoring while another phase ran;"
    " trainer_logprobs: those of the older policy by the trainer's passes",
    TRAINING,
    PHASES,
)
CPU_SECONDS = _metric(
    "time/cpu",
    SECONDS,
    "CPU seconds of the process in the step, all threads, its evaluation left out; unlike the others they do not"
    " count what a busy machine makes it wait",
    PPO,
)
TOKENS_PER_SECOND = _metric(
    "tokens_per_second", "tokens/s", "response (supervised: training) tokens per second", (*PPO, *SUPERVISED)
)
TOKENS_PER_SECOND_PHASE = _family(
    "tokens_per_second/{phase}",
    "tokens/s",
    "response tokens per second of one phase",
    PPO,
    ("generate", "update"),
)
STEPS_PER_SECOND = _metric("steps_per_second", "1/s", "environment steps per second", CONTROL)
ENVIRONMENT_STEPS = _metric("environment_steps", "", "environment steps so far, of all environments", CONTROL)
MEMORY_GB = _metric(
    "memory_gb", "GiB", "most memory held so far, of the GPU if one is used", (*PPO, *SUPERVISED)
)

# --- evaluation alone ---
LENGTH = _metric(
    "length", TOKENS, "mean length of a response; of a conversation, the policy's own tokens", EVALUATE
)
DISTINCT_1 = _metric("distinct_1", SHARE, "different words / all words, over all responses", EVALUATE)
DISTINCT_2 = _metric(
    "distinct_2", SHARE, "different word pairs / all word pairs, over all responses", EVALUATE
)
PERPLEXITY = _metric("perplexity", "", "perplexity of the responses under the reference, per token", EVALUATE)
TASK = _family("task/{metric}", "", "a metric of the section [metrics]: docs/evaluation.md", EVALUATE)
GREEDY = _family(
    "greedy/{metric}", "", "the metric of greedy responses, the likeliest token each time", EVALUATE
)

MAJORITY = _family(
    "majority/{metric}",
    "",
    "the metric of one of a prompt's responses: the first with the answer that most of them have",
    EVALUATE,
)
BEST_BY_REWARD = _family(
    "best_by_reward/{metric}",
    "",
    "the metric of one of a prompt's responses: the one with the highest reward",
    EVALUATE,
)
TOKENS_WRITTEN = _metric(
    "tokens_written", "tokens", "tokens of all responses to a prompt, of which one is picked", EVALUATE
)

# --- evaluation by log-likelihood ---
CHOICE_ACCURACY = _metric(
    "choice/accuracy", SHARE, "questions whose right choice has the highest log-prob; ties share", EVALUATE
)
CHOICE_ACCURACY_PER_BYTE = _metric(
    "choice/accuracy_per_byte", SHARE, "the same by log-prob per byte of the choice in UTF-8", EVALUATE
)
CHOICE_PROBABILITY = _metric(
    "choice/probability", "", "mean probability of the right choice among the choices", EVALUATE
)
CHOICE_MASS = _metric("choice/mass", "", "mean probability of all choices together among all texts", EVALUATE)
CHOICE_CALIBRATION_ERROR = _metric(
    "choice/calibration_error",
    SHARE,
    "expected calibration error of the likeliest choice's probability among the choices, in ten bins",
    EVALUATE,
)
BITS_PER_BYTE = _metric(
    "text/bits_per_byte",
    "bits/byte",
    "−log2 p(text) per byte of the text in UTF-8, over all documents",
    EVALUATE,
)
DOCUMENT_BITS_PER_BYTE = _metric(
    "text/document_bits_per_byte", "bits/byte", "mean over documents of each one's bits per byte", EVALUATE
)
TEXT_PERPLEXITY = _metric(
    "text/perplexity", "", "exp(−log p(text) per token): not comparable where tokenizers differ", EVALUATE
)
BYTES_PER_TOKEN = _metric(
    "text/bytes_per_token", "bytes", "bytes of the text per token of the model", EVALUATE
)
CHANGED_DOCUMENTS = _metric(
    "text/changed_documents",
    "",
    "documents that the tokenizer does not give back (unknown characters, lower case): too few bits per byte",
    EVALUATE,
)
LIKELIHOOD = (
    CHOICE_ACCURACY, CHOICE_ACCURACY_PER_BYTE, CHOICE_PROBABILITY, CHOICE_MASS, CHOICE_CALIBRATION_ERROR,
    BITS_PER_BYTE, DOCUMENT_BITS_PER_BYTE, TEXT_PERPLEXITY, BYTES_PER_TOKEN, CHANGED_DOCUMENTS,
)  # fmt: skip

# --- evaluation of a reward model ---
ACCURACY = _metric(
    "accuracy",
    SHARE,
    "held-out comparisons whose chosen completion scores higher, a tie is half; or classes, or steps, that are right",
    REWARD_MODEL,
)
ACCURACY_SLICE = _family(
    "accuracy/{slice}", SHARE, "the same, of the records of one slice (text.slice_field)", REWARD_MODEL
)
BEST_OF_N = _metric(
    "best_of_n", SHARE, "prompts of test.best_of whose highest score is of a right completion", REWARD_MODEL
)
BEST_OF_N_SLICE = _family("best_of_n/{slice}", SHARE, "the same, of one slice", REWARD_MODEL)
MARGIN = _metric("margin", "", "mean score of the chosen minus the rejected completion", REWARD_MODEL)
LOG_LOSS = _metric(
    "log_loss",
    NATS,
    "−log σ(margin), mean over comparisons, where log 2 = 0.693 is chance; or −log of the right class's probability",
    REWARD_MODEL,
)
CALIBRATION_ERROR = _metric(
    "calibration_error",
    SHARE,
    "expected calibration error of σ(|margin|), or of the likeliest class, in ten bins: how far it is from the share"
    " that is right",
    REWARD_MODEL,
)
LENGTH_CORRELATION = _metric(
    "length_correlation", "", "Pearson correlation of a completion's score and its characters", REWARD_MODEL
)

MACRO_F1 = _metric("macro_f1", SHARE, "mean over classes of F1 (scikit-learn)", REWARD_MODEL)
FIRST_ERROR = _metric(
    "first_error", SHARE, "responses whose first wrong step, or that there is none, is found", REWARD_MODEL
)
PEARSON = _metric("pearson", "", "Pearson correlation of scores and labels", REWARD_MODEL)
PEARSON_OF = _family("pearson/{field}", "", "the same, of one of several scores", REWARD_MODEL)
SPEARMAN = _metric("spearman", "", "correlation of the ranks of scores and labels", REWARD_MODEL)
SPEARMAN_OF = _family("spearman/{field}", "", "the same, of one of several scores", REWARD_MODEL)
SQUARED_ERROR = _metric("mse", "", "mean squared error of scores, in the labels' units squared", REWARD_MODEL)
SQUARED_ERROR_OF = _family("mse/{field}", "", "the same, of one of several scores", REWARD_MODEL)
ABSOLUTE_ERROR = _metric("mae", "", "mean absolute error of scores, in the labels' units", REWARD_MODEL)
ABSOLUTE_ERROR_OF = _family("mae/{field}", "", "the same, of one of several scores", REWARD_MODEL)

# --- evaluation during a run ---
EVALUATION = _family(
    "evaluation/{metric}",
    "",
    "the metric on held-out prompts, in steps that evaluate (evaluation.every)",
    PPO_POLICY,
)


def is_metric_of(name: str, job: str) -> bool:
    """Whether the rows of a job may have this metric; of an evaluation, whether it measures what is named."""
    known = declared(name)
    if known is None or job not in known.jobs:
        return False
    before = (
        {EVALUATION: "evaluation/", GREEDY: "greedy/"}.get(known) if isinstance(known, MetricFamily) else None
    )
    return before is None or is_metric_of(name.removeprefix(before), "evaluate")
