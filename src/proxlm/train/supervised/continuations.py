"""What a language model makes of held-out examples while it learns: rows of samples.jsonl."""

from __future__ import annotations

from contextlib import closing

from proxlm.config import RolloutSettings
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.models.language_model import LanguageModel
from proxlm.runlog.folder import JsonRow
from proxlm.seeds import Stream
from proxlm.train.supervised.examples import Examples
from proxlm.types import Prompt

LONGEST = 48
"""Tokens of a response, and at most as many of plain text that is continued."""

_SHORTEST = 4


def continuations(model: LanguageModel, examples: Examples, count: int) -> list[JsonRow]:
    """Greedy responses to the prompts of the first `count` examples, beside the responses that they have.

    Packed text has no prompts; the first half of a row, at most LONGEST tokens, is one. Examples that leave the
    model no room for a response are left out.

    Args:
        model: Generates; nothing of it changes, and no random number is drawn.
        examples: Held-out ones.
        count: Of rows.

    Returns:
        prompt_id (the example's number), prompt, response, expected, finish.
    """
    prompts, expected, longest = list[Prompt](), dict[int, str](), LONGEST
    decode = model.tokenizer.decode
    for row in range(min(count, len(examples))):
        ids, length = _ids(examples, row), _prompt_length(examples, row)
        room = _room(model, length)
        if room >= _SHORTEST:
            longest = min(longest, room)
            prompts.append(Prompt(row, tuple(ids[:length]), decode(ids[:length])))
            expected[row] = decode(ids[length : length + LONGEST])
    if not prompts:
        return []
    settings = RolloutSettings(temperature=0.0, max_new_tokens=longest)
    with closing(NativeEngine(model, settings)) as engine:
        rollout = generate(engine, prompts, settings, seed=0, step=0, stream=Stream.EVALUATION)
    return [
        {
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "response": text,
            "expected": expected[prompt.id],
            "finish": finish,
        }
        for prompt, text, finish in zip(rollout.prompts, rollout.texts, rollout.finish, strict=True)
    ]


def _room(model: LanguageModel, prompt: int) -> int:
    """Tokens that the context leaves for a response."""
    if model.context is None:
        return LONGEST
    taken = 1 if model.encoder_decoder else prompt  # a decoder of its own begins with the start token
    return model.context - taken


def _ids(examples: Examples, row: int) -> list[int]:
    start = int(examples.starts[row])
    return examples.tokens[start : start + int(examples.lengths[row])].tolist()


def _prompt_length(examples: Examples, row: int) -> int:
    """Tokens that the model is given; a row whose prompt is a single token is plain text."""
    prompt, length = int(examples.prompt_lengths[row]), int(examples.lengths[row])
    return prompt if prompt > 1 else max(1, min(LONGEST, length // 2))
