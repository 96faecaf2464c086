"""The help texts: the jobs, and every setting of a job with its type, default, bounds and meaning."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any, get_args

from proxlm.config.arguments import SHORT, short_for
from proxlm.config.inference_jobs import EvaluateConfig, GenerateConfig
from proxlm.config.jobs import JOBS
from proxlm.config.parse import job_class
from proxlm.config.setting import Bounds
from proxlm.config.tree import is_section, kinds, known_keys
from proxlm.config.values import Key, choices, is_table, toml_value

_WIDTH = 100
_GROUPS = {
    "Prepare": ("new", "check", "plan", "data", "tokenizer", "probe"),
    "Train": ("pretrain", "sft", "reward", "classify", "dpo", "distill", "value", "ppo", "control", "launch"),
    "Search settings": ("search", "sweep", "folds"),
    "Use and compare models": ("generate", "evaluate", "compare"),
    "Make small and deploy": ("compress", "export"),
    "Look at a run": ("report", "doctor", "verify"),
    "End a run": ("stop",),
    "See it work": ("demo",),
}
_TYPES = {
    str: "TEXT",
    int: "INTEGER",
    float: "NUMBER",
    bool: "true|false",
    list[str]: "TEXT, repeatable",
    list[int]: "INTEGER, repeatable",
}


def overview() -> str:
    """What `proxlm --help` prints: the jobs, one line each, in groups."""
    jobs: list[str] = []
    for title, names in _GROUPS.items():
        jobs += ["", f"{title}:", *(f"  {name:<10}{_doc(JOBS[name])}" for name in names)]
    return "\n".join(
        [
            "Usage: proxlm JOB [RECIPE.toml] [--section.key VALUE ...]",
            "",
            "Train language models with Proximal Policy Optimisation (PPO).",
            *jobs,
            "",
            "proxlm JOB --help    every setting of a job, with its default and meaning",
            "proxlm --version     the version",
        ]
    )


def describe(job: str) -> str:
    """What `proxlm JOB --help` prints: every setting by section. Raises ConfigError for an unknown job."""
    kind = job_class(job)
    of_recipe = "[--set section.key=VALUE ...] " if ("set",) in known_keys(kind) else ""
    lines = [
        f"Usage: proxlm {job} {_bare_argument(kind)} {of_recipe}[--section.key VALUE ...]",
        "",
        _doc(kind),
        "",
    ]
    lines += _paragraph(
        "A setting has the value from the command line if it is given there, else from the recipe, else the "
        'default below. A recipe is a TOML file with the same names: --model.policy X is policy = "X" under '
        "[model]. On the command line, - and _ in a name are the same; the option of a list may be repeated; "
        "of a table, set one key (--table.key VALUE) or the whole table ('{key = 1}'). A relative path in a recipe "
        "is relative to the recipe's folder, on the command line to the current directory; what is written "
        "(run.folder, output, gif) is always relative to the current directory.",
        "",
    )
    for short in SHORT:
        if key := short_for(kind, short):
            value = " true" if short == "resume" else ""
            lines += ["", f"  --{short}", f"      short for --{key}{value}"]
    lines += _section(kind, (), kind(), "")
    return "\n".join(lines)


def _bare_argument(kind: Any) -> str:
    if hasattr(kind, "positional"):
        name = str(kind.positional).upper().replace(".", "_")
        if kinds(kind).get(kind.positional) == list[str]:
            name = f"{name.removesuffix('S')} ..."
        return f"[{name}] [RECIPE.toml]" if hasattr(kind, "takes_recipe") else name
    return "[RECIPE.toml | RUN_FOLDER]" if kind in (EvaluateConfig, GenerateConfig) else "[RECIPE.toml]"


def _doc(kind: Any) -> str:
    return " ".join((kind.__doc__ or "").split())


def _paragraph(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _section(kind: Any, at: Key, default: Any, note: str) -> list[str]:
    """The lines of a section's own settings, then of the sections in it. note: its parent's remark about it."""
    own: list[str] = []
    below: list[str] = []
    for field in dataclasses.fields(kind):
        of, key, value = kinds(kind)[field.name], (*at, field.name), getattr(default, field.name)
        text, bounds = field.metadata.get("help", ""), field.metadata.get("bounds", Bounds())
        if is_section(of):
            below += _section(of, key, value, text)
            continue
        own += _setting(of, key, value, text, bounds)
        if is_table(of) and is_section(get_args(of)[1]):
            element: Any = get_args(of)[1]
            below += _section(element, (*key, "NAME"), element(), "")
    title = f"{'.'.join(at)}: {_doc(kind)}" if at else ""
    header = _paragraph(f"{title} ({note})" if note else title, "") if at and own else []
    return [*([""] if own else []), *header, *own, *below]


def _setting(kind: Any, key: Key, default: Any, text: str, bounds: Bounds) -> list[str]:
    facts = ", ".join([f"default {toml_value(default)}", *_bounds(bounds)])
    line = f"  --{'.'.join(key)} {_type_word(kind)}  ({facts})"
    if len(line) > _WIDTH and choices(kind):
        line, text = f"  --{'.'.join(key)} CHOICE  ({facts})", f"one of {', '.join(choices(kind))}: {text}"
    return [line, *_paragraph(text, " " * 6)]


def _type_word(kind: Any) -> str:
    if choices(kind):
        return "|".join(choices(kind))
    if is_table(kind):
        value = get_args(kind)[1]
        return "{KEY = NUMBER, ...}" if value is float else "{KEY = VALUE, ...}"
    return _TYPES.get(kind, "VALUE")


def _bounds(bounds: Bounds) -> list[str]:
    limits = [
        ("at least", bounds.ge),
        ("more than", bounds.gt),
        ("at most", bounds.le),
        ("less than", bounds.lt),
    ]
    return [f"{word} {bound:.10g}" for word, bound in limits if bound is not None]
