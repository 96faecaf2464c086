"""Settings that do nothing under the value of another one: to give one is an error, not silence.

Only settings of a single switch are here. A setting that some algorithms use and others do not is named in a note
(`unused_by_algorithm`), because a comparison of algorithms leaves it as it is. One that is for a certain job or case
says so in its own description ("PPO: …", "sft: …", "β1 of adamw and adam").
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, NamedTuple, get_args

from proxlm.config.algorithms import ADVANTAGES, LOSSES
from proxlm.config.corpus_steps import (
    ChatSettings,
    ChineseSettings,
    ContaminationSettings,
    ExactSettings,
    HtmlSettings,
    LanguageSettings,
    NearSettings,
    PiiSettings,
    QualitySettings,
    SplitSettings,
    UnicodeSettings,
)
from proxlm.config.optimiser import Schedule
from proxlm.config.ppo import PPOSettings
from proxlm.config.rollout import RolloutSettings
from proxlm.config.schema import DataSettings
from proxlm.config.tree import Assembly, split_key
from proxlm.config.values import shown_value
from proxlm.text import listed


class Switch(NamedTuple):
    """Settings that need another one.

    Attributes:
        settings: Their names in the section.
        section: The section; OPTIMISERS: each section of that kind.
        key: The whole key of what they need.
        on: Whether its value is one that they have an effect with.
        advice: What to set it to.
    """

    settings: str
    section: str
    key: str
    on: Callable[[Any], bool]
    advice: str


def _is(*values: Any) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in values), " or ".join(str(value).lower() for value in values)


def _holds(*names: str) -> tuple[Callable[[Any], bool], str]:
    """A setting of this name that is no list, as steps is in some jobs, switches nothing."""

    def on(values: Any) -> bool:
        return not isinstance(values, list) or any(name in values for name in names)

    return on, f"a list with {' or '.join(names)}"


_POSITIVE = (lambda value: value > 0), "more than 0"
_GIVEN = bool, "something"
_EMPTY = (lambda value: not value), "nothing"
_NAMED = (lambda value: value != "type"), "a named one"
_TRAINED = (lambda value: value != "none"), "skipgram or cbow"
_ZERO = (lambda value: value == 0), "0"
_COV = "ppo.covariance"
_ENVIRONMENT = "args tasks max_turns max_tokens timeout lockstep time_limit"
_SHOTS = "shots_from response_field answer_separator example_separator"
_COMPARED = "objective.kind", *_is("comparisons")
_PAIRS = "chosen_field rejected_field winner_field winner_values completion_fields margin_field"
_METRICS = "answer_fields read pattern ignore_case language labels entities right k confidence resamples"
_FALLING = (
    "linear",
    "cosine",
    "cosine-restarts",
    "one-cycle",
    "warmup-stable-decay",
    "polynomial",
    "exponential",
)
_WITH_WARMUP = tuple(name for name in get_args(Schedule) if name != "one-cycle")
_SAMPLED = " ".join(field.name for field in fields(RolloutSettings))
_PROMPTS = " ".join(field.name for field in fields(DataSettings) if field.name != "on_bad_record")
_MODEL = (
    "tokenizer vocabulary hidden layers heads intermediate context tie_embeddings activation norm_eps initialisation"
    " std scale_residual"
)
_TOKENS = "kind whole_han unknown normalise lowercase strip_accents digits special"
_VECTORS = "file train epochs window std freeze"

# The sections of `proxlm data` that are for the step of their name.
_OF_STEPS: tuple[tuple[str, type], ...] = (
    ("unicode", UnicodeSettings),
    ("html", HtmlSettings),
    ("chinese", ChineseSettings),
    ("language", LanguageSettings),
    ("quality", QualitySettings),
    ("exact", ExactSettings),
    ("near", NearSettings),
    ("contamination", ContaminationSettings),
    ("pii", PiiSettings),
    ("chat", ChatSettings),
    ("split", SplitSettings),
)

SWITCHES = (
    Switch("url sink timeout retries wait tolerance checksums folder", "engine", "engine.use", *_is("vllm")),
    Switch("alpha targets variant", "model.lora", "model.lora.rank", *_POSITIVE),
    Switch("low high bins sigma head_rate", "model.value", "model.value.head", *_is("categorical")),
    Switch(f"type {_MODEL}", "new", "model.policy", *_EMPTY),
    Switch(_TOKENS, "new.tokens", "model.policy", *_EMPTY),
    Switch(_MODEL, "scratch", "scratch.type", *_GIVEN),
    Switch(_TOKENS, "scratch.tokens", "scratch.type", *_GIVEN),
    Switch(_VECTORS, "new.embeddings", "model.policy", *_EMPTY),
    Switch(_VECTORS, "scratch.embeddings", "scratch.type", *_GIVEN),
    *(
        switch
        for section in ("new", "scratch")
        for switch in (
            Switch("vocabulary", section, f"{section}.tokenizer", *_EMPTY),
            Switch(_TOKENS, f"{section}.tokens", f"{section}.tokenizer", *_EMPTY),
            Switch("std scale_residual", section, f"{section}.initialisation", *_NAMED),
            Switch("epochs window", f"{section}.embeddings", f"{section}.embeddings.train", *_TRAINED),
        )
    ),
    Switch("name key extra concurrency timeout retries max_requests", "teacher", "teacher.url", *_GIVEN),
    Switch("eval_samples cache_gb", "distill", "teacher.url", *_EMPTY),
    Switch("tokenizer", "distill", "scratch.type", *_GIVEN),
    Switch("vocabulary tokenizer", "scratch", "distill.tokenizer", *_is("new")),
    Switch(_TOKENS, "scratch.tokens", "distill.tokenizer", *_is("new")),
    Switch(
        "divergence temperature top_k cross_entropy", "distill", "distill.mode", *_is("logits", "on_policy")
    ),
    Switch("beta", "distill", "distill.divergence", *_is("jsd")),
    Switch("student_share student_temperature", "distill", "distill.mode", *_is("on_policy")),
    Switch("samples_per_prompt answers", "distill", "text.train", *_EMPTY),
    Switch(_ENVIRONMENT, "environment", "environment.use", *_GIVEN),
    Switch(f"examples {_SHOTS}", "data", "data.shots", *_POSITIVE),
    Switch("shots", "data", "data.examples", *_GIVEN),
    Switch("shots", "data", "environment.use", *_EMPTY),
    Switch("field", "choices", "perplexity.text", *_EMPTY),
    *(
        switch
        for other in ("choices.field", "perplexity.text")
        for switch in (
            Switch(_SAMPLED, "rollout", other, *_EMPTY),
            Switch("greedy", "", other, *_EMPTY),
            Switch("teacher", "model", other, *_EMPTY),
        )
    ),
    Switch(_PROMPTS, "data", "perplexity.text", *_EMPTY),
    Switch("answer_field answer separator", "choices", "choices.field", *_GIVEN),
    Switch("answer_separator response_field", "data", "choices.field", *_EMPTY),
    Switch("extensions window stride", "perplexity", "perplexity.text", *_GIVEN),
    Switch("error_score", "reward", "reward.on_error", *_is("score")),
    Switch("memory_gb", "reward", "reward.isolate", *_is(True)),
    Switch("args", "reward", "reward.terms", *_EMPTY),
    Switch("reference_samples", "shaping", "shaping.scale", *_is("reference")),
    Switch("missing_eos_penalty", "shaping", "shaping.missing_eos", *_is("subtract", "replace")),
    Switch("overlong_penalty", "shaping", "shaping.overlong_buffer", *_POSITIVE),
    Switch("kl_controller", "ppo", "ppo.kl_coef", *_POSITIVE),
    Switch("kl_target kl_horizon", "ppo", "ppo.kl_controller", *_is("adaptive")),
    Switch("kl_lam", "ppo", "ppo.kl_in", *_is("advantage")),
    Switch("entropy_floor", "ppo", "ppo.entropy_coef", *_POSITIVE),
    Switch("positive positive_threshold", "ppo", "ppo.positive_coef", *_POSITIVE),
    Switch("positive_threshold", "ppo", "ppo.positive", *_is("threshold")),
    Switch("filter_rounds", "ppo", "ppo.filter_groups", *_is(True)),
    Switch("partial_rollouts", "ppo", "ppo.max_staleness", (lambda value: value > 1), "2 or more"),
    Switch("share", _COV, "ppo.loss", *_is("clip_cov", "kl_cov")),
    Switch("low high", _COV, "ppo.loss", *_is("clip_cov")),
    Switch("kl_factor", _COV, "ppo.loss", *_is("kl_cov")),
    Switch("delta iterations damping halvings fisher_share", "ppo.trpo", "ppo.loss", *_is("trpo")),
    Switch("text extensions block batch_tokens", "ptx", "ptx.coef", *_POSITIVE),
    Switch("use samples_per_prompt", "metrics", "choices.field", *_EMPTY),
    Switch("use samples_per_prompt baseline", "metrics", "perplexity.text", *_EMPTY),
    Switch(_METRICS, "metrics", "metrics.use", *_GIVEN),
    Switch("entities", "metrics", "metrics.use", *_holds("entity_f1")),
    Switch("k", "metrics", "metrics.use", *_holds("pass_at_k")),
    Switch("right", "metrics", "metrics.use", *_holds("pass_at_k", "calibration_error")),
    Switch("confidence confidence_pattern", "metrics", "metrics.use", *_holds("calibration_error")),
    Switch("confidence_pattern", "metrics", "metrics.confidence", *_is("stated")),
    Switch("pattern", "metrics", "metrics.read", *_is("pattern")),
    Switch("validation_share", "text", "text.validation", *_EMPTY),
    Switch("centring label_smoothing", "objective", *_COMPARED),
    Switch(_PAIRS, "text", *_COMPARED),
    Switch("best_of", "test", *_COMPARED),
    Switch("slice_field", "text", "objective.kind", *_is("comparisons", "classes")),
    Switch("score_loss", "objective", "objective.kind", *_is("scores")),
    Switch("huber_delta", "objective", "objective.score_loss", *_is("huber")),
    Switch("smoothing", "loss", "loss.kind", *_is("label-smoothing")),
    Switch("gamma", "loss", "loss.kind", *_is("focal")),
    Switch("kind smoothing gamma", "loss", "objective.kind", *_is("classes")),
    Switch("response_field", "labels", "objective.kind", *_is("scores", "classes")),
    Switch("score_fields", "labels", "objective.kind", *_is("scores")),
    Switch("class_field classes", "labels", "objective.kind", *_is("classes")),
    Switch("steps_field step_labels_field separator", "labels", "objective.kind", *_is("steps")),
    Switch("bagging boosting save", "ensemble", "ensemble.size", (lambda value: value > 1), "2 or more"),
    Switch("curriculum_start", "train", "train.curriculum_steps", *_POSITIVE),
    Switch("average_last", "train", "train.average", *_is("uniform")),
    Switch("ema_decay", "train", "train.average", *_is("ema")),
    Switch("keep_best_is", "run", "run.keep_best", lambda value: value != "none", "the name of a metric"),
    Switch("watchdog_stop", "run", "run.watchdog", *_POSITIVE),
    Switch("accept_changes", "run", "run.resume", *_is(True)),
    Switch("prune_by prune_from", "", "pruner", lambda value: value != "none", "median, for instance"),
    Switch("factor", "", "pruner", *_is("halving", "hyperband")),
    Switch("random_first", "", "sampler", *_is("tpe", "gp")),
    Switch("confirm_best", "", "confirm", *_POSITIVE),
    Switch("sparsity scope pattern", "magnitude", "method", *_is("magnitude")),
    Switch("heads channels", "structured", "method", *_is("structured")),
    Switch("drop", "blocks", "method", *_is("blocks")),
    Switch("text count tokens", "calibration", "method", *_is("structured", "blocks")),
    Switch("command set", "recover", "recover.recipe", *_GIVEN),
    Switch("scope", "magnitude", "magnitude.pattern", *_is("none")),
    Switch("minutes", "", "chat", *_is(False)),
    *(
        Switch(" ".join(field.name for field in fields(kind)), section, "steps", *_holds(section))
        for section, kind in _OF_STEPS
    ),
    Switch("language", "words", "steps", *_holds("stem", "lemma")),
    Switch("stop_words stop_word_file", "words", "steps", *_holds("stop_words")),
    Switch("stop_words", "words", "words.stop_word_file", *_EMPTY),
    Switch("validation test", "split", "split.folds", *_ZERO),
    Switch("threshold ngram permutations", "split", "split.by", *_is("near")),
    Switch("field", "split", "split.by", *_is("field", "time")),
    Switch("fields", "split", "split.by", *_is("near", "exact")),
    Switch("output", "", "prompt", *_EMPTY),
    Switch("model use folds choose seed", "", "classifier", *_EMPTY),
    Switch("train eval_share label_field on_long_text", "data", "classifier", *_EMPTY),
    Switch("pooling template label_texts batch_tokens", "features", "classifier", *_EMPTY),
    Switch("size features", "bagging", "classifier", *_EMPTY),
    Switch("rounds rate depth", "boosting", "classifier", *_EMPTY),
    Switch("count", "pick", "pick.by", *_is("majority", "reward")),
    Switch("read ignore_case", "pick", "pick.by", *_is("majority")),
    Switch("pattern", "pick", "pick.read", *_is("pattern")),
    Switch("labels", "pick", "pick.read", *_is("label")),
    *(
        switch
        for section in ("optim", "optim.policy", "optim.critic")
        for switch in (
            Switch("half_life", section, f"{section}.schedule", *_is("inverse-time")),
            Switch("stages", section, f"{section}.schedule", *_is("staged")),
            Switch("final", section, f"{section}.schedule", *_is(*_FALLING)),
            Switch("cycles", section, f"{section}.schedule", *_is("cosine-restarts")),
            Switch("rise", section, f"{section}.schedule", *_is("one-cycle")),
            Switch("decay", section, f"{section}.schedule", *_is("warmup-stable-decay")),
            Switch("power", section, f"{section}.schedule", *_is("polynomial")),
            Switch("warmup", section, f"{section}.schedule", *_is(*_WITH_WARMUP)),
        )
    ),
)


def without_effect(config: Any) -> list[tuple[str, str]]:
    """The settings of a job that were given and do nothing, with what they need.

    A setting counts as given if it is neither the default of its section nor that of the job.
    """
    return [
        (
            key,
            f"has no effect with {switch.key} = {shown_value(_at(config, switch.key))}; leave it out, or set that to"
            f" {switch.advice}",
        )
        for key, switch in _idle(config)
    ]


def leave_out(assembly: Assembly, later: Collection[str]) -> list[str]:
    """Give settings of a file that a later source has left without effect their defaults.

    So a switch can be turned off over a recipe. What the later sources themselves say stays, and so does what had no
    effect in the file already; both are refused by `without_effect`.

    Args:
        assembly: The settings; those that are left out are changed in place.
        later: The names of the sources that are later than the file.

    Returns:
        A line for each setting that made others idle: which, and why.
    """
    lines, left = [], set[str]()
    for switch in SWITCHES:  # a setting comes after the one that it needs
        if assembly.source(split_key(switch.key, "")) not in later and switch.key not in left:
            continue
        of_switch = (key for key, idle in _idle(assembly.config) if idle is switch)
        keys = [key for key in of_switch if assembly.source(split_key(key, "")) not in later]
        for key in keys:
            assembly.reset(split_key(key, ""))
        left |= set(keys)
        if keys:
            value = shown_value(_at(assembly.config, switch.key))
            lines.append(f"left out, as it has no effect with {switch.key} = {value}: {', '.join(keys)}")
    return lines


def _idle(config: Any) -> Iterator[tuple[str, Switch]]:
    """The settings of a job that were given and do nothing, with the switch that would give them an effect."""
    for switch in SWITCHES:
        value = _at(config, switch.key)
        if value is not MISSING and not switch.on(value):
            keys = (f"{switch.section}.{name}".removeprefix(".") for name in switch.settings.split())
            yield from ((key, switch) for key in keys if _is_given(config, key))


def unused_by_algorithm(ppo: PPOSettings) -> Iterator[str]:
    """What of a PPO run's settings the built-in advantage or loss that it names has no use for, in words."""
    for key, named, users in (
        ("advantage", ppo.advantage, _USED_BY_ADVANTAGES if ppo.advantage in ADVANTAGES else {}),
        ("loss", ppo.loss, _USED_BY_LOSSES if ppo.loss in LOSSES else {}),
    ):
        unused = [name for name, by in users.items() if named not in by and _is_given(ppo, name)]
        if unused:
            names = listed([f"ppo.{name}" for name in unused], most=4)
            yield f"{names}: no effect with ppo.{key} = {named}"


_CRITICS = tuple(name for name, advantage in ADVANTAGES.items() if advantage.critic)
_USED_BY_ADVANTAGES = {
    **dict.fromkeys(("lam", "critic_lam", "lam_length", "gae_steps", "clip_value", "value_coef"), _CRITICS),
    "gamma": (*_CRITICS, "reinforce", "reinforce++"),
    "trace_rho": ("vtrace",),
    "trace_c": ("vtrace", "retrace"),
    "group_std": ("grpo",),
}
_CLIPPED = ("ppo", "gspo", "cispo", "clip_cov")
_USED_BY_LOSSES = {
    "clip_low": _CLIPPED,
    "clip_high": _CLIPPED,
    "dual_clip": ("ppo", "clip_cov"),
    "divergence_limit": ("dppo",),
}


def _is_given(config: Any, key: str) -> bool:
    """Whether a setting is there, and neither its section's default nor the job's."""
    value = _at(config, key)
    if value is MISSING:
        return False
    *above, name = key.split(".")
    section = type(_at(config, ".".join(above)))
    return value not in (_default(section, name), _at(type(config)(), key))


def _at(config: Any, key: str) -> Any:
    """The value of a key; MISSING where the job has no such setting."""
    for name in filter(None, key.split(".")):
        if not is_dataclass(config) or not hasattr(config, name):
            return MISSING
        config = getattr(config, name)
    return config


def _default(section: type, name: str) -> Any:
    field = next(field for field in fields(section) if field.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()
