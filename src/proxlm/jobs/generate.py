"""`proxlm generate`: responses to one prompt, to a file of them, or in a conversation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from proxlm.config import (
    DataSettings,
    GenerateConfig,
    ModelSettings,
    RolloutSettings,
    validate,
)
from proxlm.config.from_run import IN_MEMORY
from proxlm.config.signature import checked
from proxlm.data.chat import ChatFormat, carry_template, encode_rendered, with_system
from proxlm.data.in_memory import InMemoryRecords
from proxlm.data.skipped import Skipped
from proxlm.data.tokenizer import encode_prompt, encode_source
from proxlm.engine.averaging import AveragingEngine
from proxlm.engine.generate import generate as generate_rollout
from proxlm.engine.native import NativeEngine
from proxlm.engine.protocol import Engine
from proxlm.errors import ConfigError, DataError
from proxlm.evaluation.picks import Picker, picker
from proxlm.jobs.in_memory import record_source
from proxlm.jobs.model_limits import check_same_tokens, prompt_limit
from proxlm.jobs.progress import progress_line
from proxlm.jobs.prompts import all_prompts, load_prompts_of
from proxlm.jobs.startup import start_job
from proxlm.masking import masked_tree
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource
from proxlm.rewards import build_reward
from proxlm.runlog.folder import write_atomic
from proxlm.runlog.outputs import check_output
from proxlm.text import on_screen
from proxlm.types import Completion, Progress, Prompt

Message = dict[str, Any]
# Prompts, and which turn it is, → a row for each.
Respond = Callable[..., list[dict[str, Any]]]


def main(config: GenerateConfig) -> None:
    """Generate as configured, and print or write the responses."""
    if config.output:
        check_output(Path(config.output), "generate")
    start_job(config.run.threads, config.model)
    picked = picker(config.pick, build_reward(config.reward) if config.pick.by == "reward" else None)
    source = ModelSource(config.model)
    limit = prompt_limit(source, config.data, config.rollout)
    with closing(_engine(config, source, limit)) as engine:
        respond = partial(_responses, engine, config, picked)
        if config.prompt and _made_of_records(config.data):
            print(respond([_of_record(engine, config, limit, config.prompt)])[0]["response"])
        elif config.prompt:
            history = with_system([{"role": "user", "content": config.prompt}], config.data.system)
            asked = history if config.data.chat else config.prompt
            print(respond([_prompt(engine, config, limit, asked)])[0]["response"])
        elif config.data.prompts:
            _from_file(engine, config, limit, respond)
        else:
            _conversation(engine, config, limit, respond)


@checked("prompts")
def generate(
    model: Any,
    prompts: Iterable[Any] | str | Path,
    rollout: RolloutSettings | None = None,
    *,
    tokenizer: Any = None,
    settings: ModelSettings | None = None,
    data: DataSettings | None = None,
    seed: int = 0,
) -> list[Completion]:
    """One response to each prompt.

    Args:
        model: A folder, a name on the Hugging Face hub, a transformers model (with `tokenizer`) or a `LanguageModel`.
        prompts: Texts, chats (lists of messages) or records, or the path of a file of these.
        rollout: Temperature, filters, stop texts, and the limit of the length.
        tokenizer: The tokenizer of a transformers model.
        settings: Device, precision and more.
        data: Chat template, system message, and the name of the prompt's field.
        seed: Of the sampling; the same seed gives the same responses, whatever the batch size.

    Returns:
        Prompt, text, token ids and why it ended, for each, in the order of the prompts.

    Raises:
        UserError: The model or a prompt cannot be used.
    """
    checked = validate(
        GenerateConfig(
            model=ModelSettings(policy=IN_MEMORY),
            data=data or DataSettings(),
            rollout=rollout or RolloutSettings(),
            seed=seed,
        )
    )
    rollout, data, seed = replace(checked.rollout, keep_sampling_mask=False), checked.data, checked.seed
    source = ModelSource(settings or ModelSettings(), model, tokenizer)
    records = record_source(prompts, "prompts", data.prompt_field)
    if records is None:
        raise ConfigError("prompts: expected texts, chats, records or a file of these, got None")
    encoded = load_prompts_of(records, source, data, rollout, seed)
    with source.lent(), closing(NativeEngine(_with_template(source, data), rollout)) as engine:
        return generate_rollout(engine, encoded, rollout, seed=seed, step=0).completions()


def _engine(config: GenerateConfig, source: ModelSource, limit: int) -> NativeEngine:
    """The engine of the model, or of the mean of several models' probabilities."""
    others = [ModelSource(replace(config.model, policy=name)) for name in config.models]
    for other in others:
        check_same_tokens(source, other, limit + config.rollout.max_new_tokens)
    models = [_with_template(one, config.data) for one in (source, *others)]
    if not others:
        return NativeEngine(models[0], config.rollout)
    print(
        f"note: {len(models)} models, so each token costs {len(models)} passes", file=sys.stderr, flush=True
    )
    return AveragingEngine(models, config.rollout)


def _made_of_records(data: DataSettings) -> bool:
    """Whether a prompt is more than its text: a template or examples are part of it."""
    return bool(data.template or data.shots)


def _with_template(source: ModelSource, data: DataSettings) -> LanguageModel:
    """The model, which ends its turns as the chat template of the settings does."""
    model = source.load()
    carry_template(model.tokenizer, data.chat_template)
    return model


def _responses(
    engine: Engine,
    config: GenerateConfig,
    picked: Picker,
    prompts: Sequence[Prompt],
    turn: int = 0,
    on_progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """A row for each prompt: its response, or that of several which is picked, and why.

    `turn` selects the random numbers, so that asking again gives another answer.
    """
    count = 1 if config.pick.by == "none" else config.pick.count
    rollout = generate_rollout(
        engine,
        [prompt for prompt in prompts for _ in range(count)],
        replace(config.rollout, keep_sampling_mask=False),
        seed=config.seed,
        step=turn,
        on_progress=on_progress,
    )
    done = rollout.completions()
    return [
        {
            "prompt": done[row].prompt,
            "response": done[row].text,
            "finish": done[row].finish,
            **why,
        }
        for row, why in picked(rollout, count)
    ]


def _from_file(engine: Engine, config: GenerateConfig, limit: int, respond: Respond) -> None:
    skipped = Skipped(config.data.on_bad_record == "skip")
    loaded = all_prompts(config.data, engine, limit, config.seed, skipped)
    rows = respond(loaded.prompts, on_progress=progress_line("responses"))
    lines = "".join(json.dumps(masked_tree(row), ensure_ascii=False) + "\n" for row in rows)
    if config.output:
        write_atomic(Path(config.output), lines)
    else:
        for line, row in zip(lines.removesuffix("\n").split("\n"), rows, strict=True):
            # The output spells control characters out as Python does; JSON has escapes of its own.
            print(line if on_screen(line) == line else json.dumps(masked_tree(row)))
    skipped.print_summary()


def _conversation(engine: Engine, config: GenerateConfig, limit: int, respond: Respond) -> None:
    """Ask for prompts until an empty line or the end of the input; with data.chat the history is kept."""
    kind = "your message" if config.data.chat else "a text to continue"
    print(f"Enter {kind}; an empty line ends.", file=sys.stderr)
    if config.data.chat and _made_of_records(config.data):
        print("note: data.template and data.examples are not used in a conversation", file=sys.stderr)
    history: list[Message] = with_system([], config.data.system)
    turn = 0
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not text.strip():
            return
        if not config.data.chat and _made_of_records(config.data):
            print(respond([_of_record(engine, config, limit, text)], turn)[0]["response"], flush=True)
        elif not config.data.chat:
            print(respond([_prompt(engine, config, limit, text)], turn)[0]["response"], flush=True)
        else:
            history.append({"role": "user", "content": text})
            reply = respond([_prompt(engine, config, limit, history)], turn)[0]["response"]
            history.append({"role": "assistant", "content": reply})
            print(reply, flush=True)
        turn += 1


def _prompt(engine: Engine, config: GenerateConfig, limit: int, asked: str | list[Message]) -> Prompt:
    """A text or a conversation as tokens."""
    if isinstance(asked, str):
        ids = (encode_source if engine.encoder_decoder else encode_prompt)(engine.tokenizer, asked)
    else:
        chat = ChatFormat.of(engine.tokenizer, config.data)
        ids = encode_rendered(engine.tokenizer, chat.render(asked, "the prompt", add_generation_prompt=True))
    if not ids:
        raise DataError("the prompt has no tokens")
    if len(ids) > limit:
        raise DataError(
            f"the prompt has {len(ids)} tokens, the limit is {limit}; shorten it or lower rollout.max_new_tokens"
        )
    if isinstance(asked, str):
        return Prompt(0, tuple(ids), asked)
    return Prompt(0, tuple(ids), str(asked[-1].get("content") or ""), messages=asked)


def _of_record(engine: Engine, config: GenerateConfig, limit: int, text: str) -> Prompt:
    """A single text as the record of a file, with template and examples."""
    source = InMemoryRecords([text], "prompt", config.data.prompt_field)
    return all_prompts(config.data, engine, limit, config.seed, source=source).prompts[0]
