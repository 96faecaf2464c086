"""The settings that a run's folder holds: its job, and the job's typed settings where this version can read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proxlm.config import (
    ControlConfig,
    DistillConfig,
    DPOConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    SFTConfig,
    ValueConfig,
    load_config,
)
from proxlm.config.parse import JOB
from proxlm.config.secrets import holds_secret
from proxlm.config.toml_text import CONFIG_NAME, parse_toml
from proxlm.errors import ConfigError, RunError
from proxlm.files import read_regular
from proxlm.text import system_reason

# Bytes of a text in a run's folder that are read.
LARGEST = 2**28

RunConfig = PPOConfig | PretrainConfig | SFTConfig | RewardConfig | DPOConfig | DistillConfig | ControlConfig
# The jobs that make a run.
RUNS: dict[str, type[RunConfig]] = {
    "ppo": PPOConfig,
    "value": ValueConfig,
    "pretrain": PretrainConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "distill": DistillConfig,
    "control": ControlConfig,
}


def model_folder(job: str) -> str:
    """In which folder of its run, and of a checkpoint, a job leaves its model."""
    return job if job in ("value", "reward") else "policy"


@dataclass(frozen=True)
class SavedSettings:
    """What a run's config.toml holds.

    Attributes:
        job: the name of the run's job; empty where the file names none.
        config: the job's settings; None where they are not those of this version.
        problem: why `config` is None; empty where it is not.
        text: the file as it is; where a secret is in it, as an older version may have written, that remark instead.
    """

    job: str
    config: RunConfig | None
    problem: str
    text: str


def check_is_run(folder: Path) -> None:
    """Raise RunError for a folder that is no run's; it names the run whose file or inner folder this is."""
    is_folder = folder.is_dir()
    if is_folder and (folder / CONFIG_NAME).exists():
        return
    problem = "not a run's folder: it holds no config.toml"
    if not is_folder:
        problem = "a file, where a run's folder is needed" if folder.exists() else "no such folder"
    # A file of a run, its policy/, or one of its checkpoints.
    around = [above for above in folder.parents[:3] if above.name and (above / CONFIG_NAME).is_file()]
    raise RunError(f"{folder}: {problem}" + (f"; did you mean {around[0]}?" if around else ""))


def read_saved_settings(folder: Path) -> SavedSettings:
    """The settings of the run in `folder`.

    Raises:
        RunError: there is no such folder, or no config.toml in it that is TOML and can be read.
    """
    check_is_run(folder)
    file = folder / CONFIG_NAME
    text = read_text(file)
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise RunError(f"{file}: not valid TOML: {error}") from error
    if holds_secret(table):
        text = f"# not shown: {file} holds what looks like a secret\n"
    job = table.get(JOB, "")
    if not isinstance(job, str) or job not in RUNS:
        return SavedSettings("", None, f"{file}: it names no job that makes a run", text)
    try:
        return SavedSettings(job, load_config(RUNS[job], file), "", text)
    except ConfigError as error:
        if isinstance(
            error.__context__, OSError
        ):  # it is read a second time, and the disk may fail in between
            raise RunError(str(error)) from error
        return SavedSettings(job, None, str(error), text)


def read_text(path: Path) -> str:
    """A file of a run's folder as text. Raises RunError that names it."""
    try:
        return read_regular(path, LARGEST).decode("utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {system_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not UTF-8 text (byte {error.start})") from error
