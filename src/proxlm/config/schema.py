"""The sections of settings that jobs are made of; those of the algorithm are in ppo.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from proxlm.config.setting import setting

ON_BAD_RECORD = (
    "a record that cannot be read or used: stop with an error, or skip it, count it and list it in the run's"
    " skipped.jsonl (also: --on-bad-record)"
)


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021) with PEFT; the base is frozen and serves as the reference."""

    rank: int = setting(
        0,
        "rank of the adapters; 0: train all weights. If model.policy is an adapter: its rank to continue it, 0 to"
        " merge it into its base",
        ge=0,
    )
    alpha: float = setting(16.0, "the adapters' update is multiplied by alpha / rank", gt=0)
    targets: list[str] = setting(
        factory=list,
        help="names of the linear layers to adapt; empty: every linear layer except the output head",
    )
    variant: Literal["lora", "rslora", "dora"] = setting(
        "lora",
        "rslora: multiplied by alpha / √rank (Kalajdzievski 2023); dora: the weights' lengths learn apart from their"
        " directions (Liu et al. 2024), slower",
    )


@dataclass(frozen=True)
class ValueSettings:
    """The critic's last layer: one number or a histogram over bins that is learnt by cross-entropy, once or several
    times.
    """

    head: Literal["scalar", "categorical"] = setting(
        "scalar",
        "V is the head's one number, learnt by squared error, or the mean of a histogram over the bins (HL-Gauss)",
    )
    low: float = setting(-5.0, "categorical: the lowest value; lower returns count as this one")
    high: float = setting(5.0, "categorical: the highest value; a bin or two beyond all returns is best")
    bins: int = setting(101, "categorical: number of bins, evenly spaced from low to high", ge=2)
    sigma: float = setting(
        0.75,
        "categorical: deviation of the Gaussian around a return, in bins; 0: two-hot, the two bins beside it",
        ge=0,
    )
    head_rate: float = setting(
        10.0,
        "categorical: the head learns at this multiple of the critic's rate, so that it and not the trunk learns what"
        " all returns have in common",
        gt=0,
    )
    heads: int = setting(
        1,
        "number of value heads on the critic's trunk, which start differently and learn the same returns",
        ge=1,
    )
    combine: Literal["mean", "min", "lower_bound"] = setting(
        "mean", "several heads: V is the mean of their values, the least, or mean − pessimism · deviation"
    )
    pessimism: float = setting(1.0, "lower_bound: how many deviations over the heads are taken off", ge=0)
    init_spread: float = setting(
        0.1, "several heads: deviation of what they say at the start, around 0 (categorical: of logits)", ge=0
    )
    head_share: float = setting(
        0.5,
        "several heads: share of the responses that each one learns from, at random (bootstrap); 1: all, so they"
        " become one",
        gt=0,
        le=1,
    )


@dataclass(frozen=True)
class ModelSettings:
    """The model, its critic, the precision and the device."""

    policy: str = setting(
        "",
        "the language model: a folder in Hugging Face format, of a model or a PEFT adapter, or a name on the hub; a"
        " GGUF file (its path, or package:NAME of an installed package that carries one)",
        path="model",
    )
    critic: Literal["shared", "separate", "adapter"] = setting(
        "separate",
        "the value head is on the policy's trunk (shared), on a copy of it (separate), or, with model.lora, on the"
        " policy's base with LoRA adapters for the critic (adapter); no critic where the advantage uses no values",
    )
    critic_from: str = setting(
        "",
        "start the critic from this model (folder or hub name), of any size, with the policy's tokens: a reward model"
        " or a critic of proxlm value, trunk and head, or a language model, with V = 0; empty: a copy of the policy",
        path="model",
    )
    teacher: str = setting(
        "",
        "distil this model (folder or hub name), of any size and type, with the policy's tokens: the policy learns to"
        " write what it finds likely (ppo.teacher_coef), beside a reward or without one; empty: none",
        path="model",
    )
    value: ValueSettings = setting(factory=ValueSettings)
    train_layers: int = setting(
        0,
        "only the top N blocks learn; what lies below is computed once for each token, not in every pass; with"
        " model.lora, adapters sit on these blocks alone; 0: everything learns",
        ge=0,
    )
    freeze: list[str] = setting(
        factory=list,
        help='weights that do not learn: patterns of their names, such as "*.mlp.*" or "model.layers.0.*"',
    )
    activation_checkpointing: bool = setting(
        False,
        "keep only each layer's input for the backward pass and recompute the rest: less memory, slower",
        on_resume="free",
    )
    packed: bool = setting(
        False,
        "pack sequences without padding in a forward pass; the numbers are the same, the speed differs",
        on_resume="free",
    )
    precision: Literal["float32", "bfloat16", "auto"] = setting(
        "float32",
        "precision of the computation; weights, optimiser, losses and log-probs are always float32; auto: bfloat16"
        " if the device has instructions for it",
    )
    save_dtype: Literal["float32", "bfloat16", "source"] = setting(
        "float32",
        "precision of the weights in policy/: float32, as they are trained, or rounded to bfloat16, or to what the"
        " weights of model.policy are saved in (source); a resume goes on from float32 in any case",
        on_resume="free",
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, ...", on_resume="free")
    trust_remote_code: bool = setting(
        False, "allow Python code that comes with the model to run", on_resume="free"
    )
    lora: LoraSettings = setting(factory=LoraSettings)


@dataclass(frozen=True)
class DataSettings:
    """The prompts."""

    prompts: str = setting(
        "",
        "file of prompts: .jsonl, .ndjson, .json, .csv, .tsv, .txt (one a line), .gz of these, .parquet; or data set",
        path="input",
    )
    prompt_field: str = setting(
        "prompt",
        "field that holds the prompt (text, or a list of chat messages); data.question: a field of a field",
    )
    eval_prompts: str = setting(
        "", "file of held-out prompts; empty: eval_count are set aside from prompts", path="input"
    )
    eval_count: int = setting(64, "number of held-out prompts to evaluate on", ge=0)
    chat: bool = setting(False, "render each prompt with the tokenizer's chat template, as a user's message")
    chat_template: str = setting(
        "", "file with a Jinja chat template, for a tokenizer without one", path="input"
    )
    chat_template_kwargs: dict[str, Any] = setting(
        factory=dict,
        help="variables of the chat template, such as {enable_thinking = false}; a record's field of this name"
        " goes before it",
    )
    system: str = setting("", "system message before each prompt (with chat)")
    max_prompt_tokens: int = setting(
        0, "longest prompt; 0: the model's context minus the longest response", ge=0
    )
    template: str = setting(
        "",
        'the prompt as a text with fields of the record in it, "Question: {question}\\nAnswer:" for instance, instead'
        " of prompt_field",
    )
    examples: str = setting(
        "", "file of solved records, as sft learns from, to stand before each prompt (few-shot)", path="input"
    )
    shots: int = setting(0, "number of examples before each prompt; never the prompt itself", ge=0)
    shots_from: Literal["drawn", "first"] = setting(
        "drawn",
        "each prompt has examples of its own, drawn by the seed; or all have the first ones of the file",
    )
    response_field: str = setting("response", "field of an example with its answer (text or messages)")
    answer_separator: str = setting(
        " ",
        "text between an example's prompt and its answer, where neither has white space there (not in chat)",
    )
    example_separator: str = setting("\n\n", "text behind each example (not in chat)")
    on_long_prompt: Literal["fail", "skip", "fewer_shots"] = setting(
        "fail",
        "a prompt longer than max_prompt_tokens: stop with an error, or skip it and count it, or leave out examples"
        " until it fits and count that",
    )
    on_bad_record: Literal["fail", "skip"] = setting("fail", ON_BAD_RECORD)


@dataclass(frozen=True)
class RewardTerm:
    """One named part of the reward."""

    use: str = setting("", "a built-in reward's name, or path/to/file.py:function", path="function")
    weight: float = setting(1.0, "factor in the sum")
    args: dict[str, Any] = setting(factory=dict, help="keyword arguments of the reward", path="model")
    potential: bool = setting(
        False,
        "its per-token values are potentials (Ng et al. 1999): hints that do not change the optimal policy",
    )


@dataclass(frozen=True)
class RewardSettings:
    """The reward of a response: one function, or a weighted sum of named terms."""

    use: str = setting("", "a built-in reward's name, or path/to/file.py:function", path="function")
    args: dict[str, Any] = setting(factory=dict, help="keyword arguments of the reward", path="model")
    weights: dict[str, float] = setting(
        factory=dict, help="weights of the components, if the function returns a dict of them; default 1"
    )
    terms: dict[str, RewardTerm] = setting(
        factory=dict, help="named terms, instead of use: [reward.terms.NAME] with use, weight, args"
    )
    timeout: float = setting(
        120.0, "time limit of one call of the reward, in seconds", gt=0, on_resume="free"
    )
    on_error: Literal["fail", "score"] = setting(
        "fail",
        "a reward that raises, hangs or returns no number: stop, or use error_score and count it",
        on_resume="free",
    )
    isolate: bool = setting(
        False,
        "call the reward in a separate process, which is killed after timeout and restarted if it dies (not for"
        " reward models or functions given in Python)",
        on_resume="free",
    )
    memory_gb: float = setting(
        0.0,
        "isolate: memory limit in GiB, in addition to what the process uses at its start; 0: no limit",
        ge=0,
        on_resume="free",
    )
    error_score: float = setting(0.0, "score of a response whose reward failed (with on_error = score)")
    # Fixed on resume: a reward may compare the responses that it is called with.
    overlap: int = setting(
        0,
        "score responses in groups of this size as soon as they are finished, while others are generated; 0: score"
        " all of them at the end",
        ge=0,
    )


Schedule = Literal[
    "constant", "linear", "cosine", "cosine-restarts", "one-cycle", "warmup-stable-decay", "polynomial",
    "exponential", "inverse-time", "staged",
]  # fmt: skip


@dataclass(frozen=True)
class OptimiserSettings:
    """The optimiser and its learning-rate schedule."""

    name: Literal[
        "adamw", "adam", "nadam", "radam", "adamax", "adagrad", "sgd", "rmsprop", "adafactor", "muon", "lbfgs"
    ] = setting(
        "adamw",
        "torch's optimiser of that name; muon: for hidden matrices, with adamw for all else; lbfgs: for supervised"
        " training, one step per batch without a line search",
    )
    lr: float = setting(3e-6, "highest learning rate", gt=0)
    schedule: Schedule = setting("constant", "how the learning rate falls after warm-up, per optimiser step")
    warmup: int = setting(0, "optimiser steps over which the learning rate rises linearly from 0", ge=0)
    final: float = setting(
        0.0,
        "learning rate at the end (cosine-restarts: of each cycle), as a share of lr; not of constant,"
        " inverse-time and staged",
        ge=0,
        le=1,
    )
    cycles: int = setting(4, "cosine-restarts: number of cycles, all of the same length", ge=1)
    rise: float = setting(
        0.3, "one-cycle: share of the steps in which the learning rate rises, from lr / 25", gt=0, lt=1
    )
    decay: float = setting(
        0.2,
        "warmup-stable-decay: share of the steps, the last ones, in which the learning rate falls",
        gt=0,
        le=1,
    )
    power: float = setting(2.0, "polynomial: its exponent; 1 is linear", gt=0)
    half_life: float = setting(100.0, "inverse-time: optimiser steps after which lr is halved", gt=0)
    stages: dict[str, float] = setting(
        factory=dict, help='staged: factor of lr from each optimiser step on, e.g. {"100" = 0.5, "200" = 0.1}'
    )
    beta1: float = setting(0.9, "β1 of adamw, adam, nadam, radam and adamax", ge=0, lt=1)
    beta2: float = setting(0.999, "β2 of those; rmsprop's smoothing constant α", ge=0, lt=1)
    eps: float = setting(1e-5, "ε of those, of adagrad and of rmsprop", gt=0)
    momentum: float = setting(0.9, "of sgd, rmsprop and muon", ge=0, lt=1)
    weight_decay: float = setting(
        0.0,
        "weight decay of weight matrices; decoupled, but for sgd, adam, adamax, adagrad and rmsprop, where it is"
        " an L2 penalty",
        ge=0,
    )
    max_grad_norm: float = setting(1.0, "clip the gradient to this norm; 0: no clipping", ge=0)
    layer_decay: float = setting(
        1.0,
        "each block learns at this multiple of the rate of the one above it, and so do the embeddings below them; the"
        " head learns at lr, the top block at this times lr; 1: all alike",
        gt=0,
        le=1,
    )
    rates: dict[str, float] = setting(
        factory=dict,
        help='multiples of the rate by patterns of the weights\' names, such as {"*embed*" = 0.1}; those that fit'
        " the same weight are multiplied",
    )


def _falling(lr: float) -> OptimiserSettings:
    return OptimiserSettings(lr=lr, schedule="linear", final=0.1)


@dataclass(frozen=True)
class OptimisersSettings:
    """The optimisers of the policy and of the critic."""

    policy: OptimiserSettings = setting(factory=lambda: _falling(3e-6))
    critic: OptimiserSettings = setting(factory=lambda: _falling(1e-5))


@dataclass(frozen=True)
class RunSettings:
    """The run's folder, seed and logging."""

    folder: str = setting(
        "", "where the run is written; empty: runs/JOB-DATE-TIME", on_resume="free", path="output"
    )
    seed: int = setting(0, "seed of all random numbers", ge=0, lt=2**32)
    resume: bool = setting(False, "continue from the folder's newest complete checkpoint", on_resume="free")
    accept_changes: bool = setting(
        False,
        "with resume: go on although the base model, data, reward or environment files or the rows of the run have"
        " changed since; each change is named",
        on_resume="free",
    )
    save_every: int = setting(50, "steps between checkpoints; 0: only at the end", ge=0, on_resume="free")
    asynchronous_save: bool = setting(
        False,
        "write checkpoints in a thread, from a copy in main memory, while the next steps are taken; at most one at a"
        " time",
        on_resume="free",
    )
    keep: int = setting(2, "number of newest checkpoints to keep", ge=1, on_resume="free")
    keep_best: str = setting(
        "auto",
        "keep the model of the step with the best value of this metric in best/, besides checkpoints; auto:"
        " evaluation/reward with evaluation.every (from a teacher alone the lowest evaluation/teacher/kl), else none;"
        " evaluation/greedy/reward, for instance; none: none",
    )
    keep_best_is: Literal["highest", "lowest"] = setting(
        "highest", "whether the highest or the lowest value of keep_best is the best"
    )
    max_skipped_updates: int = setting(
        5,
        "stop after this many steps in a row without an update because of non-finite gradients; 0: never",
        ge=0,
        on_resume="free",
    )
    watchdog: float = setting(
        30.0,
        "minutes without progress after which the place where the run is stuck is reported; 0: never",
        ge=0,
        on_resume="free",
    )
    watchdog_stop: bool = setting(
        False, "end a run that the watchdog finds stuck, with status 75", on_resume="free"
    )
    log_samples: int = setting(
        4, "number of responses to write to samples.jsonl, per step or validation", ge=0, on_resume="free"
    )
    tensorboard: bool = setting(
        False, "write TensorBoard events (needs proxlm[tensorboard])", on_resume="free"
    )
    wandb: str = setting("", "Weights & Biases project to log to (needs proxlm[wandb])", on_resume="free")
    threads: int = setting(0, "CPU threads; 0: one per core", ge=0, on_resume="free")
    report: bool = setting(True, "write report.html at the end", on_resume="free")

    def best_metric(self, otherwise: str = "") -> str:
        """The metric whose best step is kept; "": none. otherwise: of a run for which keep_best is auto."""
        return {"auto": otherwise, "none": ""}.get(self.keep_best, self.keep_best)


@dataclass(frozen=True)
class ProcessSettings:
    """The process of a job that trains nothing."""

    threads: int = setting(0, "CPU threads; 0: one per core", ge=0)


@dataclass(frozen=True)
class TextSettings:
    """Text for supervised training."""

    train: list[str] = setting(
        factory=list,
        help="files or data sets: of text, or folders of it (pretrain); of records (sft)",
        path="input",
    )
    validation: list[str] = setting(
        factory=list, help="held-out files; empty: validation_share is set aside", path="input"
    )
    validation_share: float = setting(0.05, "share of the records to set aside for validation", gt=0, lt=1)
    weights: dict[str, float] = setting(
        factory=dict,
        help="a mixture: the proportion of the tokens of each entry of train, by the name of its file or folder"
        " without endings, {stories = 3, poems = 1}; what is exhausted begins again",
    )
    temperature: float = setting(
        1.0,
        "a mixture without weights: entries in proportion to tokens^(1 / temperature); 1: as they are; a high one:"
        " all alike",
        gt=0,
    )
    tokens: str = setting(
        "",
        "pretrain: a folder to keep the tokens in, which later runs on the same text read instead of encoding it;"
        " empty: a temporary file",
        on_resume="free",
        path="output",
    )
    extensions: list[str] = setting(factory=lambda: [".txt", ".md"], help="which files of a folder to read")
    on_bad_record: Literal["fail", "skip"] = setting("fail", ON_BAD_RECORD)
    prompt_field: str = setting("prompt", "sft: field with the prompt (text or messages)")
    response_field: str = setting("response", "sft: field with the response (text or messages)")
    messages_field: str = setting(
        "messages", "sft: field with chat messages, used if a record has no prompt and response"
    )
    chat: bool = setting(False, "sft: render prompt and response with the chat template")
    chat_template: str = setting(
        "", "file with a Jinja chat template, for a tokenizer without one", path="input"
    )
    chat_template_kwargs: dict[str, Any] = setting(
        factory=dict,
        help="variables of the chat template, such as {enable_thinking = false}; a record's field of this name"
        " goes before it",
    )


@dataclass(frozen=True)
class SupervisedSettings:
    """The training loop of pretraining and supervised fine-tuning."""

    steps: int = setting(1000, "largest number of optimiser steps", ge=1, on_resume="free")
    minutes: float = setting(
        0.0, "stop after this many minutes of training; 0: no limit", ge=0, on_resume="free"
    )
    batch_tokens: int = setting(8192, "tokens per optimiser step", ge=1)
    micro_batch_tokens: int = setting(8192, "most tokens in one forward pass", ge=1, on_resume="free")
    block: int = setting(256, "pretrain: length of the packed sequences", ge=2)
    validate_every: int = setting(100, "steps between validations", ge=1)
    patience: int = setting(
        5,
        "stop after this many validations without a better value of early_stopping_metric; 0: never",
        ge=0,
        on_resume="free",
    )
    early_stopping_metric: str = setting(
        "validation_loss",
        "metric of a validation by which the model is kept and patience counted: validation_loss, loss; of reward and"
        " dpo others that they write, validation_accuracy for instance",
    )
    curriculum_steps: int = setting(
        0,
        "sft, reward, dpo: short records first; in so many steps the share of the records, from the shortest on,"
        " grows from curriculum_start to all; 0: off",
        ge=0,
    )
    curriculum_start: float = setting(
        0.1, "share of the records, the shortest ones, to begin with", gt=0, le=1
    )
    dropout: float = setting(
        0.0,
        "not of dpo: probability that a number is set to 0 in a training pass, of the embeddings and of what each"
        " block's attention and MLP add to the residual stream; 0: none",
        ge=0,
        lt=1,
    )
    average: Literal["none", "uniform", "ema"] = setting(
        "none",
        "validate a mean of the weights, too, and keep it where it is better: of the last validations (uniform), or"
        " exponential over all steps (ema)",
    )
    average_last: int = setting(
        5, "uniform: number of validations whose weights are kept in memory and averaged", ge=2
    )
    ema_decay: float = setting(0.99, "ema: share of the mean that a step leaves", gt=0, lt=1)
