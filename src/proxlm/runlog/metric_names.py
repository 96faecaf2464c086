"""Every metric that a job writes, declared once: name, meaning, unit, and the jobs that write it.

A metric is its name, so it can be a key of a row; the doctor, the report and the views name metrics by the constants
here. docs/metrics.md is made from this table.
"""

from __future__ import annotations

from proxlm.runlog.metric import DECLARED, Jobs, Metric, MetricFamily

# value: PPO's steps in which the critic learns alone, and its evaluation.json.
PPO = Jobs(("ppo", "value"))
PPO_POLICY = Jobs(("ppo",))
VALUE = Jobs(("value",))
CONTROL = Jobs(("control",))
BOTH = Jobs(("ppo", "value", "control"))
BOTH_POLICY = Jobs(("ppo", "control"))
SUPERVISED = Jobs(("pretrain", "sft", "reward", "dpo", "distill"))
LANGUAGE_MODELS = Jobs(("pretrain", "sft"))
PREFERENCES = Jobs(("reward", "dpo"))
DPO = Jobs(("dpo",))
DISTILL = Jobs(("distill",))
REWARD_MODEL = Jobs(("reward",))
TRAINING = Jobs(("ppo", "value", "pretrain", "sft", "reward", "dpo", "distill", "control"))
EVALUATE = Jobs(("evaluate",))
PPO_EVALUATED = Jobs(PPO + EVALUATE)
POLICY_EVALUATED = Jobs(PPO_POLICY + EVALUATE)
BOTH_EVALUATED = Jobs(BOTH + EVALUATE)
LANGUAGE = Jobs(PPO + SUPERVISED)

NATS, NATS_TOKEN, TOKENS, SHARE, SECONDS = "nats", "nats/token", "tokens", "share", "s"
MODELS = ("policy", "critic")

# --- every row ---
STEP = TRAINING.metric("step", "number of the step, from 1")
TIME = TRAINING.metric("time", "since the run began, pauses between resumes left out", SECONDS)
NOT_FINITE = TRAINING.metric("not_finite", "how many of the row's numbers are not finite (null there)")

# --- supervised training ---
LOSS = SUPERVISED.metric(
    "loss",
    "of the step's batch, cross-entropy or what [loss] says; reward, dpo: of a record, of scores the error in"
    " their variances",
    NATS_TOKEN,
)
VALIDATION_LOSS = SUPERVISED.metric(
    "validation_loss",
    "of the validation part, without [loss]; by it the model is kept, or by train.early_stopping_metric",
    NATS_TOKEN,
)
VALIDATION_SOURCE = LANGUAGE_MODELS.family(
    "validation_loss/{source}", "of the validation part of one source of a mixture (text.weights)", NATS_TOKEN
)
EPOCHS = LANGUAGE_MODELS.family(
    "epochs/{source}", "how many times a source of a mixture has been read, by tokens"
)
AVERAGE = SUPERVISED.family("average/{metric}", "the same of the averaged weights (train.average)")
VALIDATION_ACCURACY = PREFERENCES.metric(
    "validation_accuracy",
    "validation pairs whose chosen completion scores higher, a tie is half; or classes, or steps, that are right",
    SHARE,
)
VALIDATION_MARGIN = PREFERENCES.metric(
    "validation_margin",
    "mean score of the chosen minus the rejected completion, validation; dpo: of β log(π / π_ref)",
)
VALIDATION_SCORE = REWARD_MODEL.metric("validation_score", "mean score of all validation completions")
VALIDATION_ERROR = REWARD_MODEL.metric(
    "validation_error", "mean absolute error of scores, in their own units; of several the mean"
)
VALIDATION_CORRELATION = REWARD_MODEL.metric(
    "validation_correlation", "Pearson correlation of scores and labels; of several the mean"
)
VALIDATION_SPREAD = REWARD_MODEL.metric(
    "validation_spread",
    "mean standard deviation of an ensemble's scores of a validation completion (ensemble.size)",
)
VALIDATION_CHOSEN = DPO.metric(
    "validation_chosen",
    "mean log(π / π_ref) of the chosen completion, validation: below 0 it becomes less likely, too",
    NATS,
)
VALIDATION_CROSS_ENTROPY = DISTILL.metric(
    "validation_cross_entropy", "−log q of the held-out texts' own tokens, q the student's", NATS_TOKEN
)
VALIDATION_FORWARD_KL = DISTILL.metric(
    "validation_forward_kl", "KL(teacher ‖ student) at each token of the held-out texts", NATS_TOKEN
)
VALIDATION_REVERSE_KL = DISTILL.metric(
    "validation_reverse_kl",
    "KL(student ‖ teacher) at each token of the student's samples to held-out prompts (distill.eval_samples)",
    NATS_TOKEN,
)
VALIDATION_AGREEMENT = DISTILL.metric(
    "validation_agreement",
    "held-out tokens where the student's likeliest is the teacher's (greedy agreement)",
    SHARE,
)
LR = SUPERVISED.metric("lr", "learning rate")
GRAD_NORM = SUPERVISED.metric("grad_norm", "norm of the gradient before clipping")
GRAD_NORM_NOT_FINITE = SUPERVISED.metric(
    "grad_norm_not_finite", "1 where the step was skipped because its gradient was not finite"
)

# --- reward ---
REWARD = BOTH_EVALUATED.metric(
    "reward", "mean reward of a response; control: mean return of the episodes that ended in the step"
)
REWARD_STD = BOTH.metric("reward_std", "standard deviation of the rewards")
REWARD_COMPONENT = PPO_EVALUATED.family("reward/{component}", "mean of one component of the reward")
REWARD_NONE = PPO.metric(
    "reward_none", "responses left out because the reward returned None for them; where there are some"
)
REWARD_FAILED = PPO.metric("reward_failed", "responses whose reward failed and got reward.error_score")
REWARD_LENGTH_CORRELATION = PPO.metric(
    "reward_length_correlation",
    "Pearson correlation of a response's reward and its length; absent where one is constant",
)
SCORE = PPO.metric("score", "mean score after shaping: scaled, clipped, penalties taken off")
SCALE_MEAN = PPO.metric("scale/mean", "mean of the scores that scores are scaled by (shaping.scale)")
SCALE_STD = PPO.metric("scale/std", "standard deviation of those scores")
EPISODES_ENDED = CONTROL.metric("episodes_ended", "episodes that ended in the step")
EPISODE_RETURN = CONTROL.metric("episode_return", "mean return of the newest 100 episodes")
EPISODE_LENGTH = CONTROL.metric("episode_length", "mean length of the newest 100 episodes", "steps")

# --- distance from the reference ---
KL = PPO_EVALUATED.metric("kl", "KL to the reference per response (log-ratio of the sampled tokens)", NATS)
KL_PER_TOKEN = PPO.metric("kl_per_token", "KL to the reference per token", NATS_TOKEN)
TEACHER_KL = POLICY_EVALUATED.metric(
    "teacher/kl",
    "reverse KL to the teacher per response (log-ratio of the sampled tokens; model.teacher)",
    NATS,
)
TEACHER_KL_PER_TOKEN = PPO_POLICY.metric(
    "teacher/kl_per_token", "reverse KL to the teacher per token (model.teacher)", NATS_TOKEN
)
KL_COEF = PPO.metric("kl_coef", "β, the coefficient of the KL penalty")
ENTROPY = BOTH.metric("entropy", "entropy of the policy (control: nats per action)", NATS_TOKEN)

# --- the policy's update ---
POLICY_LOSS = BOTH_POLICY.metric("policy_loss", "policy loss, mean over the step's optimiser steps")
KL_LOSS = PPO_POLICY.metric("kl_loss", "KL term of the loss (ppo.kl_in = loss), else 0")
POSITIVE_LOSS = PPO_POLICY.metric(
    "positive_loss", "−log π of the tokens of positive responses (ppo.positive_coef), 0 without", NATS_TOKEN
)
POSITIVE_SHARE = PPO.metric("positive_share", "tokens of positive responses (ppo.positive_coef)", SHARE)
PTX_LOSS = PPO_POLICY.metric("ptx_loss", "language-model loss of PPO-ptx, 0 without", NATS_TOKEN)
RATIO_MEAN = BOTH_POLICY.metric("ratio_mean", "mean probability ratio π / π_old")
RATIO_MAX = BOTH_POLICY.metric("ratio_max", "largest probability ratio")
CLIP_FRACTION = BOTH_POLICY.metric("clip_fraction", "tokens without a gradient because of the clip", SHARE)
APPROX_KL = BOTH_POLICY.metric("approx_kl", "mean (log ratio)² / 2 of the update", NATS_TOKEN)
FIRST_RATIO_ERROR = BOTH_POLICY.metric(
    "first_minibatch/ratio_error", "largest |ratio − 1| in the first minibatch; 0 by construction"
)
FIRST_CLIP_FRACTION = BOTH_POLICY.metric(
    "first_minibatch/clip_fraction", "clip fraction in the first minibatch", SHARE
)
OPTIMISER_STEPS = BOTH.metric("optimiser_steps", "optimiser steps in the step")
ADVANTAGE_MEAN = BOTH.metric("advantage_mean", "mean advantage before whitening")
ADVANTAGE_STD = BOTH.metric("advantage_std", "standard deviation of the advantages before whitening")
COVARIANCE = PPO.metric(
    "covariance",
    "Cov(log π, advantage) over the step's tokens (ppo.loss = clip_cov, kl_cov); entropy falls where it is above 0",
)
COVARIANCE_SHARE = PPO.metric("covariance/share", "tokens that clip_cov or kl_cov treats apart", SHARE)
TRPO_KL = PPO_POLICY.metric("trpo/kl", "KL of the trust-region step", NATS_TOKEN)
TRPO_IMPROVEMENT = PPO_POLICY.metric("trpo/improvement", "gain of the surrogate by the step")
TRPO_HALVINGS = PPO_POLICY.metric("trpo/halvings", "halvings of the step in the line search")
TRPO_ACCEPTED = PPO_POLICY.metric("trpo/accepted", "1 where the line search accepted a step")
TRPO_STEP_NORM = PPO_POLICY.metric("trpo/step_norm", "norm of the step")

# --- the critic ---
VALUE_LOSS = BOTH.metric("value_loss", "value loss, mean over the step's optimiser steps")
EXPLAINED_VARIANCE = BOTH.metric("explained_variance", "1 − Var(return − value) / Var(return)")
EXPLAINED_VARIANCE_QUARTER = PPO.family(
    "explained_variance/quarter_{k}", "the same, in the k-th quarter of the response", parts="1234"
)
VALUE_SLOPE = PPO.metric(
    "value_slope", "slope of returns over values, 1 if calibrated; absent where values do not vary"
)
VALUE_BIAS = PPO.metric("value_bias", "mean value − mean return, 0 if calibrated")
ADVANTAGE_QUARTER = PPO.family(
    "advantage_mean/quarter_{k}",
    "mean advantage before whitening in the k-th quarter of the response, 0 if the critic is right",
    parts="1234",
)
RETURNS_BEYOND_BINS = PPO.metric(
    "returns_beyond_bins",
    "returns below model.value.low or above high, which a categorical critic cannot predict",
    SHARE,
)
VALUE_ERROR = VALUE.metric("value_error", "(value − return)² on held-out prompts, mean over tokens")
VALUE_SPREAD = PPO.metric(
    "value_spread",
    "standard deviation of values over the critic's heads, mean over tokens (model.value.heads)",
)
VALUE_MEAN = BOTH.metric("value_mean", "mean value before the update")
RETURN_MEAN = BOTH.metric("return_mean", "mean return")

# --- sampling and its policy ---
ROLLOUT_GAP = BOTH.metric("rollout_gap", "largest difference of a log-prob between engine and trainer", NATS)
ROLLOUT_KL = PPO.metric("rollout_kl", "KL from the policy that sampled to the trainer's (k3)", NATS_TOKEN)
KEPT_TOKENS = PPO.metric(
    "kept_tokens", "mean size of the set that a token was sampled from (top_k, top_p, min_p)", TOKENS
)
DROPPED_MASS = PPO.metric(
    "dropped_mass",
    "mean probability of the tokens outside that set, which top_k, top_p and min_p keep from being sampled",
    SHARE,
)
STALENESS = PPO.metric("staleness", "updates between sampling and learning, mean over tokens", "steps")
STALENESS_SHARE = PPO.family(
    "staleness/share_{age}", "tokens that were sampled this many updates before (ppo.max_staleness)", SHARE
)
CAUSES = ("engine", "staleness")
WEIGHT_MEAN = PPO.family("{cause}_weight/mean", "mean weight of the correction for this cause", parts=CAUSES)
WEIGHT_MAX = PPO.family("{cause}_weight/max", "largest weight", parts=CAUSES)
WEIGHT_EFFECTIVE = PPO.family(
    "{cause}_weight/effective_share", "effective sample size of the weights, (Σ w)² / (n Σ w²)", SHARE, CAUSES
)
WEIGHT_DROPPED = PPO.family("{cause}_weight/dropped_share", "tokens whose weight is 0", SHARE, CAUSES)
WEIGHT_KL = PPO.family(
    "{cause}_weight/kl", "KL between the policies of the weight, untruncated (k3)", NATS_TOKEN, CAUSES
)
TEMPERATURE = PPO.metric("temperature", "sampling temperature of the step")
WARMUP = PPO.metric("warmup", "1 in steps in which only the critic learns")
FILTER_DRAWS = PPO.metric("filter/draws", "how often prompts were drawn (ppo.filter_groups)")
FILTER_KEPT = PPO.metric("filter/kept_prompts", "prompts whose responses differ in reward")
FILTER_DRAWN = PPO.metric("filter/drawn_prompts", "prompts drawn")

# --- responses and conversations ---
RESPONSE_LENGTH = PPO.metric("response_length", "mean length of a response", TOKENS)
REPETITION = PPO.metric("repetition", "token pairs of a response that it already had", SHARE)
EOS_SHARE = PPO.metric("eos_share", "responses that ended with the end-of-text token", SHARE)
ENDED_SHARE = PPO_EVALUATED.metric(
    "ended_share", "responses that ended by themselves or at a stop text", SHARE
)
ENVIRONMENT_TURNS = PPO.metric("environment/turns", "mean replies of the policy in a conversation", "turns")
ENVIRONMENT_LOST = PPO.metric("environment/lost", "conversations lost because the environment failed")
ENVIRONMENT_LEFT_ALONE = PPO.metric(
    "environment/left_alone", "conversations left out because a loss left nothing to compare them with"
)
COUNTED = PPO.family(
    "counted/{name}", "mean of what the environment counts in a conversation, calls of tools for instance"
)

# --- the optimisers ---
LR_MODEL = BOTH.family("lr/{model}", "learning rate at the end of the step", parts=MODELS)
GRAD_NORM_MODEL = BOTH.family("grad_norm/{model}", "mean norm of the gradient before clipping", parts=MODELS)
GRAD_NORM_MODEL_NOT_FINITE = BOTH.family(
    "grad_norm/{model}_not_finite",
    "optimiser steps skipped because the gradient was not finite",
    parts=MODELS,
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
TIME_PHASE = TRAINING.family(
    "time/{phase}",
    "of one phase of the step; step: all of them; score_overlapped: scoring while another phase ran;"
    " trainer_logprobs: those of the older policy by the trainer's passes",
    SECONDS,
    PHASES,
)
CPU_SECONDS = PPO.metric(
    "time/cpu",
    "CPU seconds of the process in the step, all threads, its evaluation left out; unlike the others they do not"
    " count what a busy machine makes it wait",
    SECONDS,
)
TOKENS_PER_SECOND = LANGUAGE.metric(
    "tokens_per_second", "response (supervised: training) tokens per second", "tokens/s"
)
TOKENS_PER_SECOND_PHASE = PPO.family(
    "tokens_per_second/{phase}", "response tokens per second of one phase", "tokens/s", ("generate", "update")
)
STEPS_PER_SECOND = CONTROL.metric("steps_per_second", "environment steps per second", "1/s")
ENVIRONMENT_STEPS = CONTROL.metric("environment_steps", "environment steps so far, of all environments")
MEMORY_GB = LANGUAGE.metric("memory_gb", "most memory held so far, of the GPU if one is used", "GiB")

# --- evaluation alone ---
LENGTH = EVALUATE.metric(
    "length", "mean length of a response; of a conversation, the policy's own tokens", TOKENS
)
DISTINCT_1 = EVALUATE.metric("distinct_1", "different words / all words, over all responses", SHARE)
DISTINCT_2 = EVALUATE.metric("distinct_2", "different word pairs / all word pairs, over all responses", SHARE)
PERPLEXITY = EVALUATE.metric("perplexity", "perplexity of the responses under the reference, per token")
TASK = EVALUATE.family("task/{metric}", "a metric of the section [metrics]: docs/evaluation.md")
GREEDY = EVALUATE.family("greedy/{metric}", "the metric of greedy responses, the likeliest token each time")

MAJORITY = EVALUATE.family(
    "majority/{metric}",
    "the metric of one of a prompt's responses: the first with the answer that most of them have",
)
BEST_BY_REWARD = EVALUATE.family(
    "best_by_reward/{metric}", "the metric of one of a prompt's responses: the one with the highest reward"
)
TOKENS_WRITTEN = EVALUATE.metric(
    "tokens_written", "tokens of all responses to a prompt, of which one is picked", "tokens"
)

# --- evaluation by log-likelihood ---
CHOICE_ACCURACY = EVALUATE.metric(
    "choice/accuracy", "questions whose right choice has the highest log-prob; ties share", SHARE
)
CHOICE_ACCURACY_PER_BYTE = EVALUATE.metric(
    "choice/accuracy_per_byte", "the same by log-prob per byte of the choice in UTF-8", SHARE
)
CHOICE_PROBABILITY = EVALUATE.metric(
    "choice/probability", "mean probability of the right choice among the choices"
)
CHOICE_MASS = EVALUATE.metric("choice/mass", "mean probability of all choices together among all texts")
CHOICE_CALIBRATION_ERROR = EVALUATE.metric(
    "choice/calibration_error",
    "expected calibration error of the likeliest choice's probability among the choices, in ten bins",
    SHARE,
)
BITS_PER_BYTE = EVALUATE.metric(
    "text/bits_per_byte", "−log2 p(text) per byte of the text in UTF-8, over all documents", "bits/byte"
)
DOCUMENT_BITS_PER_BYTE = EVALUATE.metric(
    "text/document_bits_per_byte", "mean over documents of each one's bits per byte", "bits/byte"
)
TEXT_PERPLEXITY = EVALUATE.metric(
    "text/perplexity", "exp(−log p(text) per token): not comparable where tokenizers differ"
)
BYTES_PER_TOKEN = EVALUATE.metric("text/bytes_per_token", "bytes of the text per token of the model", "bytes")
CHANGED_DOCUMENTS = EVALUATE.metric(
    "text/changed_documents",
    "documents that the tokenizer does not give back (unknown characters, lower case): too few bits per byte",
)
LIKELIHOOD = (
    CHOICE_ACCURACY,
    CHOICE_ACCURACY_PER_BYTE,
    CHOICE_PROBABILITY,
    CHOICE_MASS,
    CHOICE_CALIBRATION_ERROR,
    BITS_PER_BYTE,
    DOCUMENT_BITS_PER_BYTE,
    TEXT_PERPLEXITY,
    BYTES_PER_TOKEN,
    CHANGED_DOCUMENTS,
)

# --- evaluation of a reward model ---
ACCURACY = REWARD_MODEL.metric(
    "accuracy",
    "held-out comparisons whose chosen completion scores higher, a tie is half; or classes, or steps, that are right",
    SHARE,
)
ACCURACY_SLICE = REWARD_MODEL.family(
    "accuracy/{slice}", "the same, of the records of one slice (text.slice_field)", SHARE
)
BEST_OF_N = REWARD_MODEL.metric(
    "best_of_n", "prompts of test.best_of whose highest score is of a right completion", SHARE
)
BEST_OF_N_SLICE = REWARD_MODEL.family("best_of_n/{slice}", "the same, of one slice", SHARE)
MARGIN = REWARD_MODEL.metric("margin", "mean score of the chosen minus the rejected completion")
LOG_LOSS = REWARD_MODEL.metric(
    "log_loss",
    "−log σ(margin), mean over comparisons, where log 2 = 0.693 is chance; or −log of the right class's probability",
    NATS,
)
CALIBRATION_ERROR = REWARD_MODEL.metric(
    "calibration_error",
    "expected calibration error of σ(|margin|), or of the likeliest class, in ten bins: how far it is from the share"
    " that is right",
    SHARE,
)
LENGTH_CORRELATION = REWARD_MODEL.metric(
    "length_correlation", "Pearson correlation of a completion's score and its characters"
)

MACRO_F1 = REWARD_MODEL.metric("macro_f1", "mean over classes of F1 (scikit-learn)", SHARE)
FIRST_ERROR = REWARD_MODEL.metric(
    "first_error", "responses whose first wrong step, or that there is none, is found", SHARE
)
PEARSON = REWARD_MODEL.metric("pearson", "Pearson correlation of scores and labels")
PEARSON_OF = REWARD_MODEL.family("pearson/{field}", "the same, of one of several scores")
SPEARMAN = REWARD_MODEL.metric("spearman", "correlation of the ranks of scores and labels")
SPEARMAN_OF = REWARD_MODEL.family("spearman/{field}", "the same, of one of several scores")
SQUARED_ERROR = REWARD_MODEL.metric("mse", "mean squared error of scores, in the labels' units squared")
SQUARED_ERROR_OF = REWARD_MODEL.family("mse/{field}", "the same, of one of several scores")
ABSOLUTE_ERROR = REWARD_MODEL.metric("mae", "mean absolute error of scores, in the labels' units")
ABSOLUTE_ERROR_OF = REWARD_MODEL.family("mae/{field}", "the same, of one of several scores")

# --- evaluation during a run ---
EVALUATION = PPO_POLICY.family(
    "evaluation/{metric}", "the metric on held-out prompts, in steps that evaluate (evaluation.every)"
)

METRICS = DECLARED
"""All of them, by name; of a family by its pattern."""


def declared(name: str) -> Metric | MetricFamily | None:
    """The metric or family that a name in metrics.jsonl or evaluation.json belongs to; None if it is not declared."""
    return METRICS.get(name) or next((known for known in METRICS.values() if known.matches(name)), None)


def is_metric_of(name: str, job: str) -> bool:
    """Whether the rows of a job may have this metric; of an evaluation, whether it measures what is named."""
    known = declared(name)
    if known is None or job not in known.jobs:
        return False
    before = (
        {EVALUATION: "evaluation/", GREEDY: "greedy/"}.get(known) if isinstance(known, MetricFamily) else None
    )
    return before is None or is_metric_of(name.removeprefix(before), "evaluate")
