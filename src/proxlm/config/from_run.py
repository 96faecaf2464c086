"""What `evaluate` and `generate` take from the settings of a run's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxlm.config.inference_jobs import EvaluateConfig, GenerateConfig
from proxlm.config.paths import relative_to
from proxlm.config.problems import OF_TRAINING
from proxlm.config.tree import kinds
from proxlm.errors import ConfigError
from proxlm.files import read_regular

# Stands in a run's config.toml for what only Python can pass, and in its inputs.json for the name of a file.
IN_MEMORY = "<in memory>"
PASSED_FROM_PYTHON = "passed from Python"
INPUTS = "inputs.json"
LARGEST_INPUTS = 2**28  # bytes
# The folder of a run that holds the models of its best steps (checkpoint/best.py).
BEST = "best"
# The sections that mean the same in a run and in the jobs that use its model; the others are about training.
SECTIONS = ("model", "data", "rollout", "environment", "reward", "metrics")
# What [data] takes from the [text] of fine-tuning.
DATA_OF_TEXT = ("prompt_field", "chat", "chat_template", "chat_template_kwargs")
# The prompts of a run; `generate` asks for one instead.
PROMPTS = ("prompts", "eval_prompts")


def kept_models(run: Path) -> list[Path]:
    """The folders of the models that a run keeps in best/, oldest first: the last one is the best so far."""
    return sorted(path for path in (run / BEST).glob("step-*") if path.is_dir())


def settings_of_run(
    kind: type, folder: Path, saved: Mapping[str, Any], best: Path | None = None
) -> dict[str, Any]:
    """The settings of `kind`, a job that uses a trained model, for the run in `folder`.

    Its policy is compared with the model that it was trained from (evaluate), or generates (generate), with the
    run's own sampling, data, environment and reward. A run that began with a new model, or one that a Python caller
    passed, has nothing to compare with; prompts that one passed are IN_MEMORY.

    Args:
        kind: EvaluateConfig or GenerateConfig.
        folder: The run's folder.
        saved: What its config.toml holds; relative paths in it are relative to the folder.
        best: The model that it keeps as its best, to use in place of policy/; None: policy/, and evaluate takes the
            best one as well, if it is of another step than the last.

    Raises:
        ConfigError: A run that is not finished, or one of proxlm control, value or reward, which leaves no language
            model.
    """
    job = saved.get("job")
    if job in ("control", "value", "reward"):
        raise ConfigError(f"{folder}: a run of proxlm {job}, which leaves no language model")
    found = {name: saved[name] for name in SECTIONS if name in saved and name in kinds(kind)}
    if kind is GenerateConfig:
        found.pop("reward", None)  # it is for picking one of several responses, which is asked for by itself
    text, run = _table(saved, "text"), _table(saved, "run")
    if job in ("sft", "dpo") or (job == "distill" and text.get("train")):
        found["data"] = _data_of_text(text)
    if job == "distill" and _table(saved, "distill").get("mode") == "sequence":
        # Its tokens may be others than the student's.
        found["model"] = {name: value for name, value in _table(found, "model").items() if name != "teacher"}
    if "threads" in run:
        found["run"] = {"threads": run["threads"]}
    if "model" in found:
        unused = (*OF_TRAINING, *(["teacher"] if kind is GenerateConfig else []))
        model = _table(saved, "model")
        found["model"] = {name: value for name, value in model.items() if name not in unused}
    found = relative_to(kind, found, folder)
    passed = _passed_from_python(folder)
    for name in PROMPTS:
        if f"data.{name}" in passed and isinstance(found.get("data"), dict):
            found["data"] = {**found["data"], name: IN_MEMORY}
    if best is None and not os.path.isdir(folder / "policy"):
        raise ConfigError(
            f"{folder}: the run has no policy/ yet, for it is not finished: resume it, or evaluate the policy/ of"
            " one of its checkpoints with --model.policy"
        )
    policy = str(best or folder / "policy")
    if kind is GenerateConfig:
        if isinstance(found.get("data"), dict):
            found["data"] = {name: value for name, value in found["data"].items() if name not in PROMPTS}
        return _with_policy(found, policy)
    more = [str(path) for path in kept_models(folder)[-1:]] if best is None and not _is_last(folder) else []
    if "seed" in run:
        # The seed picks the held-out prompts, which must be those that were not trained on.
        found["seed"] = run["seed"]
    if "greedy" in (evaluation := _table(saved, "evaluation")):
        found["greedy"] = evaluation["greedy"]
    if "model.policy" not in passed and (_table(saved, "model").get("policy") or job == "ppo"):
        return {**found, "models": [policy, *more]}
    return {**_with_policy(found, policy), **({"models": more} if more else {})}


def _is_last(run: Path) -> bool:
    """Whether a run's best step is the last one that it has saved: policy/ is then the same model."""
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    return [path.name for path in kept_models(run)[-1:]] == saved[-1:]


def uses_runs(kind: type) -> bool:
    """Whether the job of these settings takes a run's folder in place of a recipe."""
    return kind in (EvaluateConfig, GenerateConfig)


def _data_of_text(text: Mapping[str, Any]) -> dict[str, Any]:
    """Fine-tuning's records as prompts: how they are read, and the held-out ones if they are in one file."""
    data = {name: text[name] for name in DATA_OF_TEXT if name in text}
    held_out = text.get("validation")
    if isinstance(held_out, list) and len(held_out) == 1:
        data["eval_prompts"] = held_out[0]
    return data


def _with_policy(found: dict[str, Any], policy: str) -> dict[str, Any]:
    model = found.get("model")
    return {**found, "model": {**model, "policy": policy} if isinstance(model, dict) else {"policy": policy}}


def _table(saved: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = saved.get(name)
    return section if isinstance(section, Mapping) else {}


def _passed_from_python(folder: Path) -> frozenset[str]:
    """The settings in whose place a Python caller passed something, by the run's inputs.json if it is one."""
    try:
        settings = json.loads(read_regular(folder / INPUTS, LARGEST_INPUTS))["inputs"]
        return frozenset(key for key, entry in settings.items() if PASSED_FROM_PYTHON in entry["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return frozenset()
