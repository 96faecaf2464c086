"""What every job does first: threads, quiet libraries, and data checked before weights are read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from proxlm.checkpoint import clear_leftovers
from proxlm.config import (
    ControlConfig,
    DataSettings,
    ModelSettings,
    PPOConfig,
    PretrainConfig,
    RolloutSettings,
    SFTConfig,
    to_toml,
)
from proxlm.data.prompts import LoadedPrompts, load_prompts
from proxlm.data.skipped import FILE_NAME, Skipped
from proxlm.data.tokenizer import load_tokenizer, require_folder
from proxlm.errors import ConfigError, DataError, ModelError
from proxlm.kernels.allocator import keep_freed_memory
from proxlm.kernels.device import can_widen, lacks_bfloat16, resolve_device
from proxlm.runlog.folder import open_run, write_atomic
from proxlm.runlog.lock import locked
from proxlm.runlog.loggers import check_wandb
from proxlm.seeds import Purpose, derive_seed
from proxlm.types import Progress

TrainingConfig = PPOConfig | PretrainConfig | SFTConfig | ControlConfig


def set_up(seed: int, threads: int = 0, model: ModelSettings | None = None) -> None:
    """Seed what draws weights, use `threads` CPU threads (0: one per core), keep transformers' bars away.

    Says so where the model's precision is one that the device has no instructions for.
    """
    from transformers.utils import logging

    torch.manual_seed(derive_seed(seed, Purpose.WEIGHTS))
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if model is not None and model.precision == "bfloat16" and lacks_bfloat16(model.device):
        how = (
            "multiplies in float32 and rounds to bfloat16, which takes less memory but no less time than float32"
            if resolve_device(model.device).type == "cpu" and can_widen()
            else "emulates it, far slower than float32"
        )
        print(
            f"note: model.precision = bfloat16, but this device has no instructions for it: it {how};"
            " auto takes what is there",
            flush=True,
        )


def prompt_limit(model: ModelSettings, data: DataSettings, rollout: RolloutSettings) -> int:
    """The longest prompt in tokens: data.max_prompt_tokens, or what the context leaves for the response.

    An encoder–decoder has its whole context for the prompt, and as much for the start token and the response.
    Reads the model's configuration only. Raises DataError where nothing is left for a prompt.
    """
    context = model_context(model)
    if context is None:
        return data.max_prompt_tokens or 2**31
    room = context - rollout.max_new_tokens
    if is_encoder_decoder(model):
        room = context if rollout.max_new_tokens < context else 0
    if room < 1:
        raise DataError(
            f"rollout.max_new_tokens = {rollout.max_new_tokens}: the model's context of {context} tokens leaves no"
            " room for a prompt; lower it"
        )
    if data.max_prompt_tokens > room:
        raise DataError(
            f"data.max_prompt_tokens = {data.max_prompt_tokens}: with rollout.max_new_tokens ="
            f" {rollout.max_new_tokens} the model's context of {context} leaves {room}; lower one of them"
        )
    return data.max_prompt_tokens or room


def model_context(model: ModelSettings) -> int | None:
    """The model's longest sequence in tokens, or None where its configuration names none; see LanguageModel."""
    return getattr(_configuration(model).get_text_config(), "max_position_embeddings", None)


def is_encoder_decoder(model: ModelSettings) -> bool:
    """Whether the model's prompts are for an encoder. Reads its configuration only."""
    return bool(_configuration(model).is_encoder_decoder)


def _configuration(model: ModelSettings) -> Any:
    from transformers import AutoConfig

    from proxlm.models.families import register_families

    register_families()
    require_folder(model.policy)
    try:
        return AutoConfig.from_pretrained(model.policy, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f'model.policy = "{model.policy}": cannot be loaded: {reason[:300]}') from error


def check_block(key: str, block: int, model: ModelSettings) -> None:
    """Raise ConfigError where packed sequences of `block` tokens, the setting `key`, are longer than the context."""
    context = model_context(model)
    if context is not None and block > context:
        raise ConfigError(f"{key} = {block}: longer than the model's context of {context}")


def load_both(
    model: ModelSettings, data: DataSettings, rollout: RolloutSettings, seed: int, skipped: Skipped
) -> tuple[LoadedPrompts, LoadedPrompts]:
    """Training and held-out prompts, checked against the model's tokenizer and context."""
    tokenizer = load_tokenizer(model.policy, model.trust_remote_code)
    limit = prompt_limit(model, data, rollout)
    source = is_encoder_decoder(model)
    train = load_prompts(data, tokenizer, limit, "train", seed, source, skipped)
    held_out = load_prompts(data, tokenizer, limit, "eval", seed, source, skipped)
    return train, held_out


def describe_prompts(train: LoadedPrompts, held_out: LoadedPrompts, skipped: Skipped) -> str:
    """One line that says how many prompts there are and how many were left out, and why."""
    unused = f"{held_out.unused} left out, beyond data.eval_count" if held_out.unused else ""
    said = "; ".join(filter(None, (left_out(skipped), unused)))
    return f"{len(train.prompts)} prompts to train on, {len(held_out.prompts)} held out" + (
        f" ({said})" if said else ""
    )


def left_out(skipped: Skipped) -> str:
    """How many records were left out, by reason, and where they stand; nothing where none was."""
    return f"{skipped.summary()}: see {FILE_NAME}" if len(skipped) else ""


def start_run(config: TrainingConfig, job: str) -> Path:
    """Make a new run's folder with its config.toml, or find the one to resume. Raises RunError, ConfigError."""
    if config.run.wandb:
        check_wandb(config.run.wandb)
    return open_run(config.run.folder, job, config.run.resume, lambda folder: config_of_run(config, folder))


@contextmanager
def run_folder(config: TrainingConfig, job: str) -> Iterator[Path]:
    """`start_run`, and nobody else in that folder while this lasts. Raises RunError, ConfigError."""
    folder = start_run(config, job)
    with locked(folder):
        yield folder


def config_of_run(config: TrainingConfig, folder: Path) -> str:
    """The text of config.toml. It names the folder and does not ask to resume: that is for the command line.

    So `proxlm JOB FOLDER/config.toml --resume` goes on with the run.
    """
    run = replace(config.run, resume=False, folder=str(folder))
    return to_toml(replace(config, run=run))


def announce_resume(config: TrainingConfig, folder: Path, checkpoint: Path) -> None:
    """After a resume that fitted: say where from, let config.toml hold the settings now in force, and tidy up what a
    crash has left."""
    clear_leftovers(folder)
    write_atomic(folder / "config.toml", config_of_run(config, folder))
    print(f"resumed from {checkpoint}", flush=True)


def progress_line(what: str) -> Progress:
    """Shows "what done/total" on standard error, in place, where that is a terminal."""

    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        if done != shown and sys.stderr.isatty():
            shown, end = done, "\r\033[K" if done == total else ""
            print(f"\r{what} {done}/{total}", end=end, file=sys.stderr, flush=True)

    return show
