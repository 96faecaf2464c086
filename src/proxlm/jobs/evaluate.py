"""`proxlm evaluate`: models side by side on held-out prompts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from proxlm.config import EvaluateConfig, settings_or_default, validate
from proxlm.config.from_run import IN_MEMORY
from proxlm.config.metrics import needs_reward
from proxlm.config.paths import short
from proxlm.config.signature import checked
from proxlm.data.chat import carry_template
from proxlm.data.prompts import LoadedPrompts
from proxlm.data.records import Source
from proxlm.data.skipped import Skipped
from proxlm.engine.averaging import AveragingEngine, averaged_logprobs
from proxlm.engine.native import NativeEngine
from proxlm.environments.protocol import MakeEnvironment
from proxlm.environments.resolve import task_prompts
from proxlm.errors import ConfigError, DataError
from proxlm.evaluation.differences import (
    Arm,
    as_text,
    difference_tables,
    differences,
)
from proxlm.evaluation.evaluate import evaluate_model
from proxlm.evaluation.results import Evaluation, as_json
from proxlm.evaluation.tables import as_table, evaluation_tables
from proxlm.evaluation.task_metrics.task_metrics import task_metrics
from proxlm.evaluation.task_metrics.user_metrics import MetricFunction, UserMetric, user_metrics
from proxlm.evaluation.words_beside import WORDS, less_words
from proxlm.jobs.choices import evaluate_choices_of
from proxlm.jobs.in_memory import record_source
from proxlm.jobs.model_limits import check_same_tokens, prompt_limit
from proxlm.jobs.output import write_output
from proxlm.jobs.perplexity import evaluate_texts_of
from proxlm.jobs.progress import progress_line
from proxlm.jobs.prompts import held_out_prompts
from proxlm.jobs.sampling import check_conversations, data_of, sampler_of
from proxlm.jobs.startup import start_job
from proxlm.jobs.words import read_known_prompts, words_beside
from proxlm.models.forward import token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource
from proxlm.models.teacher import check_teacher, load_teacher
from proxlm.rewards import Reward, Rewards, build_reward
from proxlm.runlog.folder import write_jsonl_atomic
from proxlm.runlog.outputs import check_output
from proxlm.types import Sequences


def main(config: EvaluateConfig) -> None:
    """Evaluate, print the table and a few samples, and write the JSON file if one is asked for."""
    if config.output:
        check_output(Path(config.output), "evaluate")
    if config.responses:
        check_output(Path(config.responses), "evaluate --responses")
    start_job(config.run.threads, config.model)
    evaluations = evaluate(config=config)
    unit = "document" if config.perplexity.text else "question" if config.choices.field else "held-out prompt"
    print(as_table(evaluations, unit))
    models = [e for e in evaluations if WORDS not in e.notes]
    compared = differences([Arm(e.name, [e.responses]) for e in models], config.seed)
    beside = less_words(evaluations, config.seed)
    if len(models) > 1:
        print(f"\n{as_text(compared)}")
    if beside:
        print(f"\n{as_text(beside)}")
    for i in range(min(config.samples, evaluations[0].prompts)):
        print(f"\nprompt  {evaluations[0].samples[i]['prompt']}")
        for e in evaluations:
            print(f"{e.name}: {e.samples[i]['response'].strip()}")
    if config.output:
        tables = [
            *evaluation_tables(evaluations, unit),
            *difference_tables(compared),
            *difference_tables(beside),
        ]
        every = [asdict(one) for one in (*compared, *beside)]
        content = {**as_json(evaluations, config.seed), "differences": every}
        write_output(Path(config.output), "evaluate", tables, content)
        print(f"\nwritten to {config.output}")
    if config.responses:
        write_jsonl_atomic(
            Path(config.responses), [{"model": e.name, **row} for e in evaluations for row in e.responses]
        )
        print(f"responses written to {config.responses}")


@checked("prompts", "config")
def evaluate(
    models: Any = None,
    prompts: Iterable[Any] | str | Path | None = None,
    reward: Rewards | None = None,
    config: EvaluateConfig | None = None,
    *,
    tokenizer: Any = None,
    environment: MakeEnvironment | None = None,
    metrics: Sequence[MetricFunction] = (),
) -> list[Evaluation]:
    """Evaluate models on the same prompts, with the same random numbers.

    Everything that is not passed comes from `config`.

    Args:
        models: One model or a list of them, each a folder, a name on the Hugging Face hub, a transformers model (with
            `tokenizer`) or a `LanguageModel`. They must share a tokenizer, except where choices or text are measured
            (`config.choices`, `config.perplexity`). The first one is the reference, against which KL and perplexity
            are measured.
        prompts: Held-out prompts: texts, chats or records, or the path of a file of these.
        reward: One reward function or several; see `PPOTrainer`. None and none in `config`: no reward is measured.
        config: The settings.
        tokenizer: The tokenizer of transformers models.
        environment: Makes an environment for each conversation; see `PPOTrainer`.
        metrics: Functions beside `config.metrics.use`: from a list of `Completion` to a number for each (None: it
            does not apply), to a dict of such lists, or to one number for all.

    Returns:
        Metrics with 95% intervals, and samples, of each model in the order given; with `metrics.baseline` also those
        of the judge of words, the last.

    Raises:
        UserError: A model, a prompt or the reward cannot be used.
    """
    config = settings_or_default(EvaluateConfig, config)
    if models is None:
        models = [name for name in (config.model.policy, *config.models) if name] or [None]
    elif not isinstance(models, list | tuple):
        models = [models]
    if not models:
        raise ConfigError("models: an empty list; there is nothing to evaluate")
    if prompts is None:
        for key, value in (("eval_prompts", config.data.eval_prompts), ("prompts", config.data.prompts)):
            if value == IN_MEMORY:
                raise ConfigError(
                    f"data.{key}: the run's prompts were passed from Python and are in no file; name one with"
                    " --data.eval-prompts FILE, or pass prompts= to proxlm.evaluate"
                )
            if value:
                break
    if environment is None and config.environment.use == IN_MEMORY:
        raise ConfigError(
            "environment.use: the run's environment was passed from Python; name one with --environment.use"
            " FILE.py:CLASS, or pass environment= to proxlm.evaluate"
        )
    sources = [
        ModelSource(config.model, model, None if isinstance(model, str | Path | LanguageModel) else tokenizer)
        for model in models
    ]
    given = record_source(prompts, "prompts", config.data.prompt_field)
    data = config.data if given is None else replace(config.data, eval_prompts=str(given))
    settings = replace(config.environment, use=IN_MEMORY) if environment else config.environment
    config = replace(config, model=sources[0].settings, data=data, environment=settings)
    config = validate(config, {"model.policy": "models", "data.eval_prompts": "prompts"})
    has_reward = reward is not None or config.reward.use or config.reward.terms
    built = build_reward(config.reward, reward) if has_reward else None
    _check_picks(config, bool(has_reward or config.environment.use), len(sources))
    functions = user_metrics(config.metrics, metrics, config.reward.timeout)
    if needs_reward(config.metrics) and not (has_reward or config.environment.use):
        raise ConfigError("metrics.right = reward: there is no reward; set reward.use, or name a metric")
    with ExitStack() as lent:
        for source in sources:
            lent.enter_context(source.lent())
        if config.perplexity.text or config.choices.field:
            _note_unused(config, built is not None)
        if config.perplexity.text:
            return evaluate_texts_of(sources, config)
        if config.choices.field:
            return evaluate_choices_of(sources, config, given)
        return _side_by_side(sources, config, given, built, environment, functions)


def _note_unused(config: EvaluateConfig, rewarded: bool) -> None:
    """Say which settings about responses do nothing, because none are sampled; a run's own may be among them."""
    by = "perplexity.text" if config.perplexity.text else "choices.field"
    used = {"reward": rewarded, "environment.use": config.environment.use}
    if named := [key for key, value in used.items() if value]:
        print(
            f"note: with {by} no responses are sampled: {', '.join(named)}: not used",
            file=sys.stderr,
            flush=True,
        )


def _side_by_side(
    sources: Sequence[ModelSource],
    config: EvaluateConfig,
    given: Source | None,
    built: Reward | None,
    environment: MakeEnvironment | None,
    functions: Sequence[UserMetric],
) -> list[Evaluation]:
    """The evaluation of each model, on prompts that are passed or that the settings name."""
    first = sources[0]
    check_conversations(config, first)
    known = read_known_prompts(config.metrics, config.data)
    limit = prompt_limit(first, config.data, config.rollout)
    if config.model.teacher:
        check_teacher(first, 0, config.rollout.max_new_tokens)
    longest = limit + (0 if first.encoder_decoder else config.rollout.max_new_tokens)
    for other in sources[1:]:
        check_same_tokens(first, other, longest)
    reference = first.load()
    teacher = load_teacher(reference, config.model) if config.model.teacher else None
    carry_template(reference.tokenizer, config.data.chat_template)
    loaded = _held_out(config, given, reference, limit)
    sampler, scorer = sampler_of(config, reference.tokenizer, built, environment)
    if not loaded.prompts:
        raise DataError("data.eval_count = 0: no prompts to evaluate on; set it to 1 or more")
    metrics = task_metrics(config.metrics, functions, loaded.prompts, config.seed)
    evaluations: list[Evaluation] = []
    models: list[LanguageModel] = []
    count = len(sources) + config.average
    for number in range(count):
        together = number == len(sources)
        if together:
            model, name = reference, f"average of {len(models)} models"
        else:
            model = sources[number].load() if number else reference
            carry_template(model.tokenizer, config.data.chat_template)
            name = short(sources[number].settings.policy)
        if config.average and not together:
            models.append(model)
        print(f"evaluating {name} ({number + 1}/{count}) …", file=sys.stderr, flush=True)
        engine_of_all = partial(AveragingEngine, models) if together else partial(NativeEngine, model)
        with closing(engine_of_all(config.rollout)) as engine:
            evaluation = evaluate_model(
                name,
                model,
                engine,
                _logprobs_of(reference),
                loaded.prompts,
                scorer,
                config.rollout,
                seed=config.seed,
                micro_batch_tokens=config.micro_batch_tokens,
                samples=max(config.samples, 16),
                greedy=config.greedy,
                on_progress=progress_line("responses"),
                generate=sampler,
                teacher_logprobs=None if teacher is None else _logprobs_of(teacher),
                metrics=metrics,
                own_logprobs=partial(averaged_logprobs, models) if together else None,
                pick=config.pick,
            )
        evaluations.append(evaluation)
    if known is not None:
        greedy = config.greedy and config.rollout.temperature > 0
        words = partial(words_beside, known, loaded.prompts, config.data, config.metrics)
        evaluations.append(words(seed=config.seed, samples=max(config.samples, 16), greedy=greedy))
    return evaluations


def _check_picks(config: EvaluateConfig, rewarded: bool, models: int) -> None:
    """Raise ConfigError for picks and averages of what is not there."""
    if "reward" in config.pick and not rewarded:
        raise ConfigError("pick = reward: there is no reward; set reward.use")
    if config.average and models < 2:
        raise ConfigError("average: there is one model; name others in models")


def _logprobs_of(model: LanguageModel) -> Callable[[Sequences, float], Tensor]:
    return lambda sequences, temperature: token_outputs(model, sequences, temperature).logprobs


def _held_out(
    config: EvaluateConfig, given: Source | None, reference: LanguageModel, limit: int
) -> LoadedPrompts:
    data = data_of(config)
    if config.environment.use and not (data.prompts or data.eval_prompts):
        return task_prompts(config.environment, data.eval_count)[1]
    skipped = Skipped(data.on_bad_record == "skip")
    loaded = held_out_prompts(data, given, reference, limit, config.seed, skipped)
    skipped.print_summary()
    return loaded
