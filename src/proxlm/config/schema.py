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
