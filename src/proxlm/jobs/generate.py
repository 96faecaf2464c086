"""`proxlm generate`: one prompt, a file of prompts, or a conversation."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxlm.config import GenerateConfig, LoraSettings
from proxlm.data.chat import encode_rendered, read_template, render, with_system
from proxlm.data.prompts import load_prompts
from proxlm.data.skipped import Skipped
from proxlm.data.tokenizer import encode_prompt, encode_source
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.engine.protocol import Engine
from proxlm.errors import DataError
from proxlm.jobs.model_limits import prompt_limit
from proxlm.jobs.progress import progress_line
from proxlm.jobs.startup import set_up
from proxlm.models.load import load_language_model
from proxlm.runlog.folder import write_atomic
from proxlm.types import Prompt

Message = dict[str, Any]


def main(config: GenerateConfig) -> None:
    """Write text as configured."""
    set_up(config.seed, model=config.model)
    # A finished model holds its adapters already; new ones would be of no use.
    config = replace(config, model=replace(config.model, lora=LoraSettings()))
    limit = prompt_limit(config.model, config.data, config.rollout)
    with closing(NativeEngine(load_language_model(config.model), config.rollout)) as engine:
        if config.prompt:
            print(continue_text(engine, config, limit, config.prompt))
        elif config.data.prompts:
            _from_file(engine, config, limit)
        else:
            _conversation(engine, config, limit)


def continue_text(engine: Engine, config: GenerateConfig, limit: int, text: str) -> str:
    """The response to one prompt, put through the chat template if data.chat is set."""
    history = with_system([{"role": "user", "content": text}], config.data.system)
    return _respond(engine, config, limit, history if config.data.chat else text, turn=0)


def _from_file(engine: Engine, config: GenerateConfig, limit: int) -> None:
    skipped = Skipped(config.data.on_bad_record == "skip")
    loaded = load_prompts(
        replace(config.data, eval_count=0, eval_prompts=""),
        engine.tokenizer,
        limit,
        "train",
        config.seed,
        engine.encoder_decoder,
        skipped,
    )
    rollout = generate(
        engine,
        loaded.prompts,
        config.rollout,
        seed=config.seed,
        step=0,
        on_progress=progress_line("responses"),
    )
    rows = [
        {"prompt": p.text, "response": text, "finish": finish}
        for p, text, finish in zip(rollout.prompts, rollout.texts, rollout.finish, strict=True)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if config.output:
        write_atomic(Path(config.output), lines)
    else:
        print(lines, end="")
    skipped.print_summary()


def _conversation(engine: Engine, config: GenerateConfig, limit: int) -> None:
    """Ask for prompts until an empty line or the end of the input; with data.chat the history is kept."""
    kind = "your message" if config.data.chat else "a text to continue"
    print(f"Enter {kind}; an empty line ends.", file=sys.stderr)
    history: list[Message] = with_system([], config.data.system)
    turn = 0
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not text.strip():
            return
        if not config.data.chat:
            print(_respond(engine, config, limit, text, turn), flush=True)
        else:
            history.append({"role": "user", "content": text})
            reply = _respond(engine, config, limit, history, turn)
            history.append({"role": "assistant", "content": reply})
            print(reply, flush=True)
        turn += 1


def _respond(
    engine: Engine, config: GenerateConfig, limit: int, asked: str | list[Message], turn: int
) -> str:
    """One response. `turn` picks the random numbers, so that asking again gives another answer."""
    if isinstance(asked, str):
        ids = (encode_source if engine.encoder_decoder else encode_prompt)(engine.tokenizer, asked)
    else:
        template = read_template(config.data.chat_template)
        ids = encode_rendered(
            engine.tokenizer,
            render(engine.tokenizer, asked, template, "the prompt", add_generation_prompt=True),
        )
    if not ids:
        raise DataError("the prompt has no tokens")
    if len(ids) > limit:
        raise DataError(
            f"the prompt has {len(ids)} tokens, the limit is {limit}; shorten it or lower rollout.max_new_tokens"
        )
    text = asked if isinstance(asked, str) else ""
    rollout = generate(engine, [Prompt(0, tuple(ids), text)], config.rollout, seed=config.seed, step=turn)
    return rollout.texts[0]
